"""A producer that pushes through the REST API, as an application in another language does.

Used by the generators of a run whose scenario has an `api`. The push is the API's transaction, so that the ledger's row
cannot be part of it: it is written when the answer is there, with the id that the answer names. Where none came, nobody
knows whether the job was pushed; the producer sends the same request again, and its key makes it the same job. An
arrival that is never answered is given up, stays out of the ledger, and is a failure; a job that it has all the same
shows up there as unexpected. A queue that is full is waited for, as long as `Retry-After` says and a little longer, so
that those who were refused together do not come back together.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psycopg

from pgqueue_ref.core import (
    ConnectionLimit,
    DatabaseUnavailable,
    LockTimeout,
    QueueBusy,
    QueueError,
    SchemaMissing,
    StatementTimeout,
)
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.producer import Producer
from pgqueue_ref.harness.traces import Arrival

PATH: Final = "/api/v1/queue/jobs"
ANSWER: Final = 20.0  # seconds without an answer that make it lost; longer than the API's own timeouts together
KEPT: Final = 2.0  # seconds that an idle connection is used again; the API closes it after five

# What a problem document's code is called in the queue's own library. Others are failures under their own names.
ERRORS: Final[Mapping[str, type[QueueError]]] = {
    "schema_missing": SchemaMissing,
    "server_full": ConnectionLimit,
    "pool_empty": ConnectionLimit,
    "database_unavailable": DatabaseUnavailable,
    "statement_timeout": StatementTimeout,
    "lock_timeout": LockTimeout,
}


class Api(NamedTuple):
    """Where the API is, and a token that may write."""

    address: str
    token: str


class ApiBusy(QueueBusy):
    """429: the queue is full; `retry_after` in seconds."""

    def __init__(self, words: str, retry_after: float) -> None:
        QueueError.__init__(self, words)
        self.retry_after = retry_after


class ApiUnavailable(DatabaseUnavailable):
    """No answer came; whether the job was pushed is not known."""


class ApiProducer(Producer):
    """Pushes over one HTTP connection, and records over one of the database's."""

    give_up_after = 60.0  # a full queue is waited for, and an API that is started again

    def __init__(self, api: Api, connect: Callable[[], psycopg.Connection[Any]], clock: ledger.DatabaseClock) -> None:
        super().__init__(connect, clock)
        where = urlsplit(api.address)
        self._host, self._port = where.hostname or "", where.port
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api.token}"}
        self._http: HTTPConnection | None = None
        self._used = 0.0

    def close(self) -> None:
        """Close both connections."""
        self._hang_up()
        super().close()

    def _push_once(
        self, key: str, arrival: Arrival, intended: float, *, again: bool, max_in_flight: int | None
    ) -> None:
        """`max_in_flight` is the API's own setting."""
        job = {"kind": arrival.kind, "payload": {"service_seconds": arrival.duration}, "key": key}
        job_id = self._post(job)
        with self._transaction() as connection:
            if not (again and ledger.already_pushed(connection, key)):
                self._record(connection, key, job_id, arrival.kind, intended)

    def _pause(self, error: QueueError, failed: int) -> float | None:
        if isinstance(error, ApiBusy):
            return error.retry_after * random.uniform(1.0, 1.5)  # noqa: S311 - load, not secrets
        return super()._pause(error, failed)

    def _post(self, job: Mapping[str, Any]) -> int:
        """The id of the pushed job."""
        if self._http is None or time.monotonic() - self._used > KEPT:
            self._hang_up()
            self._http = HTTPConnection(self._host, self._port, timeout=ANSWER)
        try:
            self._http.request("POST", PATH, json.dumps(job), self._headers)
            with self._http.getresponse() as response:
                answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            self._hang_up()
            raise ApiUnavailable(f"no answer from the API: {type(error).__name__}: {error}") from error
        self._used = time.monotonic()
        if response.status in (200, 201):
            return int(answer["id"])
        words, code = f"the API answered {response.status}: {answer.get('detail')}", answer.get("code", "")
        if code == "queue_busy":
            raise ApiBusy(words, float(response.headers["Retry-After"]))
        raise ERRORS.get(code, QueueError)(words)

    def _hang_up(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None
