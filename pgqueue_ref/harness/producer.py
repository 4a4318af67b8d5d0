"""A producer: one connection that pushes the arrivals it is given and records each in the ledger.

Called by the users of the load run, one producer each. A push and its ledger row are one transaction. When
a push fails, the producer does not know whether it was committed; it asks the ledger before it tries
again, so an arrival is pushed once however often that takes. Every failed try is reported, also of an
arrival that succeeded later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psycopg

from pgqueue_ref.core import Queue, QueueBusy, QueueError
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.traces import Arrival

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # between tries; the last one repeats


class Report(Protocol):
    """What a producer tells of each try: kind, seconds since the intended instant, the error if it failed."""

    def __call__(self, kind: str, latency: float, error: Exception | None) -> None: ...


class Producer:
    """Pushes over one connection, which `connect` opens, now and again after it broke."""

    give_up_after = 10.0  # seconds from the first try; the arrival then counts as not achieved

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], clock: ledger.DatabaseClock) -> None:
        self._connect = connect
        self._clock = clock
        self._connection: psycopg.Connection[Any] | None = connect()

    def push(
        self, key: str, arrival: Arrival, intended: float, report: Report, *, max_in_flight: int | None = None
    ) -> bool:
        """Push one arrival whose intended instant is `intended` (monotonic); True once it is committed.

        A queue that is busy (`max_in_flight`) is an answer, not a failure: it is reported and not tried again.
        """
        deadline = time.monotonic() + self.give_up_after
        failed = 0
        while True:
            try:
                self._push_once(key, arrival, intended, again=failed > 0, max_in_flight=max_in_flight)
            except QueueError as error:
                report(arrival.kind, time.monotonic() - intended, error)
                pause = self._pause(error, failed)
                if pause is None or time.monotonic() > deadline:
                    return False
                time.sleep(pause)
                failed += 1
            else:
                report(arrival.kind, time.monotonic() - intended, None)
                return True

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _push_once(
        self, key: str, arrival: Arrival, intended: float, *, again: bool, max_in_flight: int | None
    ) -> None:
        with self._transaction() as connection:
            if again and ledger.already_pushed(connection, key):
                return
            queue = Queue(connection, max_in_flight=max_in_flight)
            pushed = queue.push(arrival.kind, {"service_seconds": arrival.duration}, key=key)
            self._record(connection, key, pushed.id, arrival.kind, intended)

    def _pause(self, error: QueueError, failed: int) -> float | None:
        """Seconds before the next try, or None: there is none."""
        return None if isinstance(error, QueueBusy) else _PAUSES[min(failed, len(_PAUSES) - 1)]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        with ledger.translated(), self._connection.transaction():
            yield self._connection

    def _record(self, connection: psycopg.Connection[Any], key: str, job_id: int, kind: str, intended: float) -> None:
        ledger.record_push(connection, key, job_id, kind, self._clock.at(intended), measured=True)
