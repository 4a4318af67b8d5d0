"""Results: what a handler returned, for whoever asked for the work.

    @kinds.register("sum", result_ttl=3600)
    def add(job): return sum(job.payload)

    print(results.wait(queue, queue.push("sum", [1, 2]).id, timeout=30).value)  # 3

A result is stored in the statement that completes its job: both are there or neither, and an attempt that lost its lease
stores nothing. It outlives the job and is deleted after `result_ttl`, a chore of every worker. A value that is not JSON,
or too large, does not cost the job: the work is done, and would only be done again. The job succeeds, the worker logs
the reason, and who asks for the result is told it by `NoResult`.
"""

# ruff: noqa: E501 - SQL reads better in its own lines than in Python's

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from pgqueue_ref.core import (
    ACTIVE,
    AsyncQueue,
    Held,
    InvalidJob,
    Job,
    JobNotFound,
    Json,
    LeaseLost,
    Operation,
    Queue,
    QueueError,
    Seconds,
    Statement,
    Status,
    seconds,
    translate,
)
from pgqueue_ref.core import operations as op
from pgqueue_ref.core.jobs import DEFAULT_TTL, encode, text, whole
from pgqueue_ref.core.operations import _loads
from pgqueue_ref.core.runners import needs_transaction

from .extension import Chore, Extension, within

MAX_VALUE: Final = 1_000_000  # characters of JSON: a batch of completions is one statement, and must stay sendable
BATCH: Final = 1_000
CHORE_INTERVAL: Final = 5.0  # seconds between two looks for results that are past their time
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.5  # seconds between two looks of `wait`, each twice the one before

SCHEMA_SQL: Final = """
CREATE TABLE IF NOT EXISTS pgqueue_results (
    job_id       bigint      PRIMARY KEY,              -- no foreign key: the job may go first
    stored_at    timestamptz NOT NULL DEFAULT now(),
    delete_after timestamptz,                          -- NULL: kept
    duration     double precision,                     -- seconds that the handler took; NULL: nobody measured
    attempt      integer     NOT NULL,
    queue        text        NOT NULL,
    kind         text        NOT NULL,
    worker       text,
    value        jsonb       NOT NULL DEFAULT 'null',
    error        text                                  -- why there is no value
);
CREATE INDEX IF NOT EXISTS pgqueue_results_cleanup ON pgqueue_results (delete_after) WHERE delete_after IS NOT NULL;
"""

# The number of a job whose result somebody waits for: an advisory lock, and part of a channel's name.
_NUMBER = "hashtextextended('pgqueue:result:' || 'pgqueue_results'::regclass::oid || ':' || {id}, 0)"

# Around core.sql's COMPLETE_DELETE or COMPLETE_KEEP, whose answers are the attempts that were still held. IS TRUE keeps
# the IN a hashed subplan; as a join of two small estimates it would loop over all pairs (see core.sql, _MATCH). A job
# that ran before (somebody set it back by hand) has its old result replaced.
# A transaction that notifies takes its turn with all others that do, until it is on disk (docs/adr/0005). So a result is
# announced only if somebody waits for it: that one holds the shared lock that is tried here.
_WITH_RESULTS = f""", stored AS (
    INSERT INTO pgqueue_results (job_id, delete_after, duration, attempt, queue, kind, worker, value, error)
    SELECT id, now() + make_interval(secs => %(result_ttl)s::float8), duration, attempt, queue, kind, %(worker)s, value::jsonb, error
    FROM unnest(%(r_ids)b::bigint[], %(r_tokens)b::bigint[], %(r_durations)b::float8[], %(r_attempts)b::int[],
                %(r_queues)b::text[], %(r_kinds)b::text[], %(r_values)b::text[], %(r_errors)b::text[])
         AS given (id, token, duration, attempt, queue, kind, value, error)
    WHERE ((id, token) IN (SELECT id, lease_token FROM core)) IS TRUE
    ON CONFLICT (job_id) DO UPDATE SET (stored_at, delete_after, duration, attempt, queue, kind, worker, value, error) =
        (now(), EXCLUDED.delete_after, EXCLUDED.duration, EXCLUDED.attempt, EXCLUDED.queue, EXCLUDED.kind, EXCLUDED.worker,
         EXCLUDED.value, EXCLUDED.error)
    RETURNING {_NUMBER.format(id="job_id")} AS number
), told AS MATERIALIZED (
    SELECT count(CASE WHEN pg_try_advisory_lock(number) THEN pg_advisory_unlock(number)
                      ELSE pg_notify('pgqueue:result:' || number, '') IS NULL END)
    FROM stored
)
SELECT core.* FROM core, told
"""

_ROW = "job_id, stored_at, delete_after, duration, attempt, queue, kind, worker, value::text, error"

# Two primary keys, in one snapshot: a job that has succeeded has its result there as well, or never.
LOOK = f"""
SELECT status, errors[cardinality(errors)], found.*
FROM (SELECT %(job_id)s::bigint AS id) AS wanted
LEFT JOIN pgqueue_jobs USING (id)
LEFT JOIN (SELECT {_ROW} FROM pgqueue_results) AS found ON found.job_id = wanted.id
"""

GET_MANY = f"SELECT {_ROW} FROM pgqueue_results WHERE job_id = ANY (%(job_ids)b::bigint[])"

# Keyset pagination on the primary key.
LIST = f"""
SELECT {_ROW} FROM pgqueue_results
WHERE job_id > %(after)s AND (%(kind)s::text IS NULL OR kind = %(kind)s) ORDER BY job_id LIMIT %(limit)s
"""

# pgqueue_results_cleanup, longest overdue first; skips what another worker is deleting. A result that was stored anew
# meanwhile is looked at again.
CLEANUP = """
WITH picked AS MATERIALIZED (
    SELECT job_id FROM pgqueue_results WHERE delete_after <= now() ORDER BY delete_after LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM pgqueue_results WHERE job_id = ANY (ARRAY(SELECT job_id FROM picked)) AND delete_after <= now() RETURNING job_id
"""

# Whoever waits holds this before it looks at the job: who stores the result afterwards finds it taken, and notifies. A
# result that was stored just before, and commits just after, is found by the looks that follow.
WAIT = f"SELECT number, pg_advisory_lock_shared(number) FROM (SELECT {_NUMBER.format(id='%(job_id)s::bigint')} AS number) AS job"
LEAVE = "SELECT pg_advisory_unlock_shared(%(number)s)"


class NoResult(QueueError):  # noqa: N818 - in line with the core's tree
    """The job has no result (yet, or ever); `status` is the job's."""

    def __init__(self, job_id: int, status: Status, why: str) -> None:
        super().__init__(f"job {job_id} {why}")
        self.job_id, self.status = job_id, status


class WaitTimeout(QueueError, TimeoutError):  # noqa: N818
    """The job had not ended when the time to wait was over; it goes on."""


class Result(NamedTuple):
    """What a handler returned; where `error` is set, `value` is None and could not be stored."""

    job_id: int
    stored_at: datetime
    delete_after: datetime | None
    duration: float | None
    attempt: int
    queue: str
    kind: str
    worker: str | None
    value: Json
    error: str | None


class Returned(NamedTuple):
    """An attempt that ended well, and what its handler returned, for `complete_many`; made by `returned`."""

    job: Job
    encoded: str
    duration: float | None
    error: str | None


def returned(job: Job, value: Json, duration: float | None = None) -> Returned:
    """`duration` in seconds. A value that cannot be stored becomes the reason why."""
    try:
        encoded = encode(value, "the result")
        if len(encoded) <= MAX_VALUE:
            return Returned(job, encoded, duration, None)
        error = f"the result is {len(encoded):,} characters of JSON, at most {MAX_VALUE:,} are kept; store it elsewhere and return where"
    except InvalidJob as refused:
        error = str(refused)
    return Returned(job, "null", duration, error)


# -- with the core ---------------------------------------------------------------------------------------------


def complete_many(
    outcomes: Sequence[Returned],
    *,
    ttl: Seconds | None = DEFAULT_TTL,
    result_ttl: Seconds | None = DEFAULT_TTL,
    worker: str | None = None,
) -> Operation[list[Held]]:
    """`core.operations.complete_many`, in one statement with the results, which stay for `result_ttl` (None: for ever).

    Returns the attempts no longer held, whose results are not stored.
    """
    params = {
        "r_ids": [one.job.id for one in outcomes], "r_tokens": [one.job.lease_token for one in outcomes],
        "r_durations": [one.duration for one in outcomes], "r_attempts": [one.job.attempt for one in outcomes],
        "r_queues": [one.job.queue for one in outcomes], "r_kinds": [one.job.kind for one in outcomes],
        "r_values": [one.encoded for one in outcomes], "r_errors": [one.error for one in outcomes],
        "worker": None if worker is None else text(worker, "worker"),
        "result_ttl": None if result_ttl is None else seconds(result_ttl, "result_ttl"),
    }  # fmt: skip
    return (yield from within(_WITH_RESULTS, params, op.complete_many([one.job for one in outcomes], ttl=ttl)))


def complete(
    job: Job,
    value: Json = None,
    *,
    ttl: Seconds | None = DEFAULT_TTL,
    result_ttl: Seconds | None = DEFAULT_TTL,
    worker: str | None = None,
    duration: float | None = None,
) -> Operation[None]:
    """Complete one job with its result, in the transaction of a handler's own writes for example (see `COMPLETED`).

    Raises `LeaseLost`, and `InvalidJob` for a value that cannot be stored: then nothing was changed.
    """
    outcome = returned(job, value, duration)
    if outcome.error:
        raise InvalidJob(outcome.error)
    if (yield from complete_many([outcome], ttl=ttl, result_ttl=result_ttl, worker=worker)):
        raise LeaseLost(job.id, job.lease_token)


# -- looking ---------------------------------------------------------------------------------------------------


def get(job_id: int) -> Operation[Result]:
    """The result of a job. Raises `NoResult` where there is none, with the reason, and `JobNotFound`."""
    status, message, result = yield from _look(job_id)
    if result is None:
        raise _none(job_id, status, message)
    return result


def _look(job_id: int) -> Operation[tuple[Status | None, str | None, Result | None]]:
    """The job's status (None: it is gone), its newest error, and its result if that is what it succeeded with."""
    ((status, message, *row),) = yield Statement(LOOK, {"job_id": whole(job_id, "job_id", most=2**63 - 1)})
    result = _result(row) if row[0] is not None and status in (None, "succeeded") else None
    if result and result.error:
        raise NoResult(job_id, "succeeded", f"succeeded, but its result was not kept: {result.error}")
    return status, message, result


def _none(job_id: int, status: Status | None, message: str | None) -> QueueError:
    if status is None:
        return JobNotFound(f"job {job_id} does not exist (any more), and there is no result of it")
    if status in ("failed", "cancelled"):
        return NoResult(job_id, status, f"{status}: {message}" if message else f"{status}")
    if status == "succeeded":
        return NoResult(job_id, status, "succeeded without a result, or kept it no longer: see result_ttl of its kind")
    return NoResult(job_id, status, f"is {status}: it has no result yet")


def get_many(job_ids: Iterable[int]) -> Operation[dict[int, Result]]:
    """The results that there are of these jobs, by id; look at `error` as well."""
    rows = yield Statement(GET_MANY, {"job_ids": list(job_ids)})
    return {row[0]: _result(row) for row in rows}


def list_results(*, kind: str | None = None, after: int = 0, limit: int = 100) -> Operation[list[Result]]:
    """Results in the order of their jobs' ids, from the one after `after`."""
    page = {"after": whole(after, "after", 0, 2**63 - 1), "limit": whole(limit, "limit")}
    rows = yield Statement(LIST, page | {"kind": None if kind is None else text(kind, "kind")})
    return [_result(row) for row in rows]


def _result(row: Sequence[Any]) -> Result:
    value = row[-2]
    with contextlib.suppress(ValueError, RecursionError):  # people get the text
        value = _loads(value)
    return Result._make((*row[:-2], value, row[-1]))


# -- waiting ---------------------------------------------------------------------------------------------------


def wait(queue: Queue, job_id: int, timeout: Seconds | None = None, *, listen: bool = True) -> Result:
    """The result of a job, as soon as there is one; `timeout` in seconds, None waits for ever.

    Raises `NoResult` when the job fails for good, is cancelled, or succeeds without a result; `JobNotFound`; and
    `WaitTimeout`. On an idle autocommit connection of psycopg it listens, and is told at once; other notifications to
    that connection are lost meanwhile. Everywhere else, and for jobs that end badly, it looks again after 10 ms, 20 ms,
    and so on up to half a second. Turn `listen` off behind a pooler in transaction mode.
    """
    deadline = _Deadline(job_id, timeout)
    with _translated(), _listening(queue, job_id, listen) as listening:
        while (result := queue.run(_ended(job_id))) is None:
            pause = deadline.pause()
            if listening:
                list(queue.connection.notifies(timeout=pause, stop_after=1))
            else:
                time.sleep(pause)
    return result


async def wait_async(
    queue: AsyncQueue,
    job_id: int,
    timeout: Seconds | None = None,  # noqa: ASYNC109 - as `wait` has it
    *,
    listen: bool = True,
) -> Result:
    """`wait` for asyncio; where it listens, the connection can do nothing else meanwhile."""
    deadline = _Deadline(job_id, timeout)
    with _translated():
        async with _listening_async(queue, job_id, listen) as listening:
            while (result := await queue.run(_ended(job_id))) is None:
                pause = deadline.pause()
                if listening:
                    async for _ in queue.connection.notifies(timeout=pause, stop_after=1):
                        pass
                else:
                    await asyncio.sleep(pause)
    return result


class _Deadline:
    """How long to pause between looks; there is one when the time is over."""

    def __init__(self, job_id: int, timeout: Seconds | None) -> None:
        self._job_id, self._timeout = job_id, None if timeout is None else seconds(timeout, "timeout")
        self._began, self._pause = time.monotonic(), FIRST_PAUSE

    def pause(self) -> float:
        """Seconds; raises `WaitTimeout`."""
        pause, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE)
        if self._timeout is None:
            return pause
        left = self._began + self._timeout - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"job {self._job_id} has not ended within {self._timeout:g} s; it goes on")
        return min(pause, left)


def _ended(job_id: int) -> Operation[Result | None]:
    """The result, None while the job goes on; raises `NoResult` or `JobNotFound` when there will be none."""
    status, message, result = yield from _look(job_id)
    if result is None and status not in ACTIVE:
        raise _none(job_id, status, message)
    return result


@contextlib.contextmanager
def _listening(queue: Queue, job_id: int, wanted: bool) -> Iterator[bool]:
    """Be told of the job's result meanwhile; whether that is possible."""
    connection = queue.connection
    if not (wanted and isinstance(connection, psycopg.Connection) and needs_transaction(connection)):
        yield False
        return
    number = queue.run(_register(job_id))
    try:
        connection.execute(f'LISTEN "pgqueue:result:{number}"')
        yield True
    finally:
        if not connection.broken:
            connection.execute(f'UNLISTEN "pgqueue:result:{number}"')
            queue.run(_leave(number))


@contextlib.asynccontextmanager
async def _listening_async(queue: AsyncQueue, job_id: int, wanted: bool) -> AsyncIterator[bool]:
    connection = queue.connection
    if not (wanted and isinstance(connection, psycopg.AsyncConnection) and needs_transaction(connection)):
        yield False
        return
    number = await queue.run(_register(job_id))
    try:
        await connection.execute(f'LISTEN "pgqueue:result:{number}"')
        yield True
    finally:
        if not connection.broken:
            await connection.execute(f'UNLISTEN "pgqueue:result:{number}"')
            await queue.run(_leave(number))


def _register(job_id: int) -> Operation[int]:
    ((number, _),) = yield Statement(WAIT, {"job_id": whole(job_id, "job_id", most=2**63 - 1)})
    return int(number)


def _leave(number: int) -> Operation[None]:
    yield Statement(LEAVE, {"number": number})


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What the connection itself raises, as the queue's errors."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


# -- maintenance -----------------------------------------------------------------------------------------------


def cleanup(limit: int = BATCH) -> Operation[int]:
    """Delete up to `limit` results that are past their TTL; returns how many."""
    return len((yield Statement(CLEANUP, {"limit": whole(limit, "limit")})))


def chore() -> Operation[Chore]:
    """Clean up one batch."""
    deleted = yield from cleanup()
    return Chore(deleted, 0.0 if deleted == BATCH else CHORE_INTERVAL)


RESULTS: Final = Extension("results", "pgqueue_results", SCHEMA_SQL, chore)
