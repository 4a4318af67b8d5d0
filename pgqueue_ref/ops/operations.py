"""What operators need beside `core.operations`: newest pages, and changes of many jobs in batches that can be interrupted.

Sans I/O like the core's, run by any of its runners; the command line calls them, the API may. Those that change many
jobs do one batch each: the caller goes on from the answer's `after` until that is None, so that every batch is a
transaction of its own, bounded in time and locks, and whoever is interrupted has done whole batches. Sending one again
is safe: it finds what is left. Rules of `core.sql` hold: batches skip locked rows and look at the state again in the
UPDATE, so that they neither wait for workers nor overwrite what one of them has just written.
"""

# ruff: noqa: E501 - SQL reads better in its own lines than in Python's

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pgqueue_ref.core import ACTIVE, TERMINAL, InvalidJob, JobRow, Operation, QueueError, Seconds, Statement, Status
from pgqueue_ref.core import seconds as _seconds
from pgqueue_ref.core.jobs import DEFAULT_TTL, MAX_KEY, MAX_NAME, ellipsis, text, whole
from pgqueue_ref.core.operations import _intact, _row
from pgqueue_ref.core.sql import _FRESH, _ROW, PURGE

P = TypeVar("P")
BATCH: Final = 1_000  # rows that one transaction changes or looks at to change
PAGE: Final = 20_000  # rows that one statement counts
MAX_ID: Final = 2**63 - 1
MAX_ERRORS: Final = 10  # messages that a job keeps, as in `core.operations.rescue`


class Batch(NamedTuple, Generic[P]):
    """How many jobs a batch changed (or would), and where the next one starts: None is the end."""

    jobs: int
    after: P | None


def moment() -> Operation[datetime]:
    """The database's clock: what was so when a command began."""
    ((now,),) = yield Statement("SELECT now()")
    return now  # type: ignore[no-any-return]  # psycopg's rows are untyped


# -- looking ---------------------------------------------------------------------------------------------------

# Newest first, because that is what somebody looks for who opens a list; else core.sql's LIST. The server plans it with
# the values: a status that has a partial index is found there, kind and key in pgqueue_jobs_key, the rest by the primary
# key backwards until the page is full.
NEWEST = f"""{_ROW}
WHERE id < %(before)s AND (%(queue)s::text IS NULL OR queue = %(queue)s) AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(status)s::text IS NULL OR status = %(status)s) AND (%(key)s::text IS NULL OR external_key = %(key)s)
ORDER BY id DESC LIMIT %(limit)s
"""

# pgqueue_jobs_failed backwards: what failed last is looked for first, however old the job is. It is planned with the
# values, like NEWEST: a plan for any values would expect one row and sort.
FAILED = f"""{_ROW}
WHERE status = 'failed' AND (finished_at, id) < (%(finished_at)s, %(id)s)
  AND (%(queue)s::text IS NULL OR queue = %(queue)s) AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(key)s::text IS NULL OR external_key = %(key)s)
  AND (%(error_like)s::text IS NULL OR errors[cardinality(errors)] ILIKE %(error_like)s)
ORDER BY finished_at DESC, id DESC LIMIT %(limit)s
"""

# One probe each of pgqueue_jobs_claim and, twice, pgqueue_jobs_active. With EXISTS the planner may expect a hit anywhere
# and read the table: all of it (40,857 pages of 1,400,000 rows) for a queue that has none.
IN_USE = """
SELECT coalesce((SELECT true FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'pending'
                 ORDER BY kind, priority DESC, run_at, id LIMIT 1),
                (SELECT true FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'running' ORDER BY id LIMIT 1),
                (SELECT true FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'blocked' ORDER BY id LIMIT 1), false)
"""


class Ending(NamedTuple):
    """A place among the failed jobs, by when they failed."""

    finished_at: datetime
    id: int


def newest(
    *,
    queue: str | None = None,
    kind: str | None = None,
    status: Status | None = None,
    key: str | None = None,
    before: int = MAX_ID,
    limit: int = 50,
) -> Operation[list[JobRow]]:
    """Jobs by id, newest first; pass the last id of a page as `before` to get the next."""
    if status not in (None, *ACTIVE, *TERMINAL):
        raise InvalidJob(f"status must be one of {', '.join(ACTIVE + TERMINAL)}, not {ellipsis(status)}")
    params = _filters(queue, kind) | {"status": status, "key": _optional(key, "key", MAX_KEY)}
    page = {"before": whole(before, "before", 1, MAX_ID), "limit": whole(limit, "limit")}
    return [_row(row) for row in (yield Statement(NEWEST, params | page))]


def failed(
    *,
    queue: str | None = None,
    kind: str | None = None,
    key: str | None = None,
    error_like: str | None = None,
    before: Ending | None = None,
    limit: int = 50,
) -> Operation[list[JobRow]]:
    """Failed jobs, the last failure first; pass the `Ending` of a page's last job as `before` to get the next."""
    start = before or Ending(datetime.max.replace(tzinfo=UTC), MAX_ID)
    params = _filters(queue, kind) | {
        "key": _optional(key, "key", MAX_KEY), "error_like": _optional(error_like, "error_like", MAX_KEY)
    }  # fmt: skip
    page = {"finished_at": start.finished_at, "id": start.id, "limit": whole(limit, "limit")}
    return [_row(row) for row in (yield Statement(FAILED, params | page))]


def in_use(queue: str) -> Operation[bool]:
    """Whether any job of the queue is pending, blocked or running: a name without one may be misspelt."""
    ((found,),) = yield Statement(IN_USE, {"queue": text(queue, "queue")})
    return bool(found)


def _filters(queue: str | None, kind: str | None) -> dict[str, Any]:
    return {"queue": _optional(queue, "queue"), "kind": _optional(kind, "kind")}


def _optional(value: str | None, name: str, limit: int = MAX_NAME) -> str | None:
    return None if value is None else text(value, name, limit)


# -- retry many ------------------------------------------------------------------------------------------------

# A page of pgqueue_jobs_failed from the oldest, of which those that match are retried: bounded work for each statement
# however few match, where core.sql's RETRY_MANY would walk past all the others again in every batch. `until` keeps jobs
# that fail again meanwhile from being retried for ever. Sent again it finds the page's jobs pending and changes none.
_FAILED_PAGE = """
WITH page AS MATERIALIZED (
    SELECT id, queue, kind, errors, finished_at FROM pgqueue_jobs
    WHERE status = 'failed' AND (finished_at, id) > (%(finished_at)s, %(id)s) AND finished_at <= %(until)s
    ORDER BY finished_at, id LIMIT %(page)s
), wanted AS MATERIALIZED (
    SELECT id FROM page
    WHERE (%(queue)s::text IS NULL OR queue = %(queue)s) AND (%(kind)s::text IS NULL OR kind = %(kind)s)
      AND (%(error_like)s::text IS NULL OR errors[cardinality(errors)] ILIKE %(error_like)s)
    ORDER BY finished_at, id LIMIT %(limit)s
)"""

COUNT_FAILED = f"""{_FAILED_PAGE}
SELECT (SELECT count(*) FROM wanted), finished_at, id FROM page ORDER BY finished_at DESC, id DESC LIMIT 1
"""

RETRY_PAGE = f"""{_FAILED_PAGE}, free AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs WHERE id = ANY (ARRAY(SELECT id FROM wanted)) AND status = 'failed'
    ORDER BY id FOR UPDATE SKIP LOCKED
), changed AS (
    {_FRESH} WHERE id = ANY (ARRAY(SELECT id FROM free)) AND status = 'failed' AND finished_at <= %(until)s RETURNING id
)
SELECT (SELECT count(*) FROM changed), finished_at, id FROM page ORDER BY finished_at DESC, id DESC LIMIT 1
"""

FIRST_ENDING: Final = Ending(datetime.min.replace(tzinfo=UTC), 0)


def retry_batch(
    after: Ending,
    *,
    until: datetime,
    queue: str | None = None,
    kind: str | None = None,
    error_like: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
) -> Operation[Batch[Ending]]:
    """Give the failed jobs of the next page fresh attempts, due now: those that failed by `until`, oldest first, at most
    `limit`; then `after` is only good for the end.

    `error_like` is an ILIKE pattern for the newest message. With `dry_run` they are only counted.
    """
    page = PAGE if dry_run else BATCH
    params = _filters(queue, kind) | {
        "error_like": _optional(error_like, "error_like", MAX_KEY), "until": until, "id": after.id,
        "finished_at": after.finished_at, "page": page, "limit": page if limit is None else whole(limit, "limit"),
    }  # fmt: skip
    rows = yield Statement(COUNT_FAILED if dry_run else RETRY_PAGE, params)
    return Batch(rows[0][0], Ending(*rows[0][1:])) if rows else Batch(0, None)


# -- purge -----------------------------------------------------------------------------------------------------

# core.sql's PURGE, by the clock of when a command began.
_BEGAN = "coalesce(%(until)s::timestamptz, now())"
PURGE_UNTIL = PURGE.replace("now()", _BEGAN)

# A page of the primary key, as PURGE, which it counts for.
COUNT_PURGEABLE = f"""
WITH page AS MATERIALIZED (
    SELECT id, status, finished_at FROM pgqueue_jobs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
)
SELECT count(*) FILTER (WHERE status = ANY (%(statuses)s::text[])
                          AND finished_at < {_BEGAN} - make_interval(secs => %(age)s)), max(id) FROM page
"""

# Both ends of the primary key.
SPAN = "SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM pgqueue_jobs"


def span() -> Operation[tuple[int, int]]:
    """The lowest and highest id there is: how far a walk over all jobs has to go."""
    ((first, last),) = yield Statement(SPAN)
    return first, last


def purge_batch(
    after: int,
    age: Seconds,
    *,
    statuses: tuple[Status, ...] = ("succeeded", "cancelled"),
    until: datetime | None = None,
    dry_run: bool = False,
) -> Operation[Batch[int]]:
    """`core.operations.purge` of one page, after an id: deletes the jobs that ended longer ago than `age`, at `until`
    if that is given: none that grew old at a question."""
    if not set(statuses) <= set(TERMINAL):
        raise InvalidJob(f"only terminal jobs can be purged: {', '.join(TERMINAL)}")
    limit = PAGE if dry_run else BATCH * 5  # of which the fewest match, mostly
    params = {"after": after, "age": _seconds(age, "age"), "statuses": list(statuses), "until": until, "limit": limit}
    ((jobs, last),) = yield Statement(COUNT_PURGEABLE if dry_run else PURGE_UNTIL, params)
    return Batch(jobs, last)


# -- clear -----------------------------------------------------------------------------------------------------

# The queue's part of pgqueue_jobs_claim, index-only where vacuum has been: 1,000,000 entries take some tenths of a second.
COUNT_CLEARABLE = """
SELECT count(*) FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'pending'
"""

# From the head of the queue's part of pgqueue_jobs_claim. Each batch steps over the entries of those before it, until
# the index forgets them, and over jobs pushed since `until`, which are not meant. A job that a claim holds at this
# moment is skipped: it is about to run. Cancelled, not deleted: `states` has no other way out of pending, and whoever
# cleared the wrong queue can retry them until their TTL is over.
CLEAR = """
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'pending' AND created_at <= %(until)s
    ORDER BY kind, priority DESC, run_at, id LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgqueue_jobs
    SET status = 'cancelled', finished_at = now(), delete_after = now() + make_interval(secs => %(ttl)s::float8),
        errors = (errors || 'cleared from its queue'::text)[greatest(1, cardinality(errors) + 2 - %(max_errors)s):]
    WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND status = 'pending'
    RETURNING id
)
SELECT (SELECT count(*) FROM changed), (SELECT count(*) FROM picked)
"""


def clearable(queue: str) -> Operation[int]:
    """How many jobs of the queue are pending."""
    ((jobs,),) = yield Statement(COUNT_CLEARABLE, {"queue": text(queue, "queue")})
    return int(jobs)


def clear_batch(queue: str, *, until: datetime, limit: int = BATCH) -> Operation[Batch[datetime]]:
    """Cancel pending jobs of a queue, those created by `until`; `after` is `until` again as long as there may be more."""
    params = {"queue": text(queue, "queue"), "until": until, "limit": whole(limit, "limit")}
    ((changed, picked),) = yield Statement(CLEAR, params | {"ttl": DEFAULT_TTL, "max_errors": MAX_ERRORS})
    return Batch(changed, until if picked == limit else None)


# -- reset stuck jobs ------------------------------------------------------------------------------------------

# Lost: nobody extends the lease any more. A running job without any was made so by hand and would stay for ever.
_LOST = "coalesce(lease_expires_at, '-infinity') < now()"
_STUCK = f"({_LOST} OR started_at < {_BEGAN} - make_interval(secs => %(older_than)s::float8))"

# Every running row, through pgqueue_jobs_active: there are as many as job slots.
COUNT_STUCK = f"""
SELECT count(*) FILTER (WHERE {_LOST}), count(*) FILTER (WHERE NOT {_LOST}) FROM pgqueue_jobs
WHERE status = 'running' AND {_STUCK}
"""

# As core.sql's LOST, by (queue, id), with jobs that run for too long besides.
STUCK = f"""
SELECT queue, id FROM pgqueue_jobs
WHERE status = 'running' AND {_STUCK} AND (queue, id) > (%(queue)s, %(id)s)
ORDER BY queue, id LIMIT %(limit)s
"""

# As core.sql's RESCUE, and with the same fence: the row leaves `running`, and the next claim raises lease_token, so that
# whatever the old worker reports is stale. Whoever has the row first wins: a completion that is being written holds its
# lock and is skipped here, one that comes later waits for this statement, looks again and changes nothing. Waiting for
# locked rows instead would hang on a handler that completes its job in a long transaction of its own.
TAKE_BACK = f"""
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs
    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running' AND {_STUCK}
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue_jobs
SET status = CASE WHEN attempt >= max_attempts THEN 'failed' ELSE 'pending' END,
    finished_at = CASE WHEN attempt >= max_attempts THEN now() END,
    errors = (errors || (CASE WHEN {_LOST} THEN 'lease ran out, worker ' ELSE 'taken back by an operator while running, worker ' END
                         || coalesce(worker, 'unknown')))[greatest(1, cardinality(errors) + 2 - %(max_errors)s):],
    lease_expires_at = NULL
WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND status || '' = 'running' AND {_STUCK}
RETURNING id, status
"""

FIRST_STUCK: Final = ("", 0)


class Stuck(NamedTuple):
    """Running jobs whose lease ran out, and others that run for longer than was asked."""

    lost: int
    held: int


class TakenBack(NamedTuple):
    """Ids that are pending again, that failed, that were left because their rows were locked or had just ended, and
    that the server refused to change; and where the next batch starts."""

    retried: list[int]
    failed: list[int]
    left: list[int]
    refused: list[int]
    after: tuple[str, int] | None


def stuck(older_than: Seconds | None = None, *, until: datetime | None = None) -> Operation[Stuck]:
    """Count what `take_back` would take, at this moment."""
    return Stuck._make((yield Statement(COUNT_STUCK, _older(older_than, until)))[0])


def take_back(
    after: tuple[str, int] = FIRST_STUCK,
    older_than: Seconds | None = None,
    *,
    until: datetime | None = None,
    limit: int = BATCH,
) -> Operation[TakenBack]:
    """Put running jobs back whose lease ran out, and those that have run for longer than `older_than`, from whichever
    worker: pending with the attempt spent, failed when none is left. What their workers still report is stale. With
    `until` only those of the latter that had run for so long by then: none that grew old at a question.

    A batch that the server refuses (a trigger or constraint of the user's) is halved until the jobs to blame are found.
    """
    older = _older(older_than, until)
    found = yield Statement(STUCK, older | {"queue": after[0], "id": after[1], "limit": whole(limit, "limit")})
    result = TakenBack([], [], [], [], found[-1] if len(found) == limit else None)
    batches = [[id_ for _, id_ in found]] if found else []
    while batches:
        ids = batches.pop(0)
        try:
            rows = yield Statement(TAKE_BACK, older | {"ids": ids, "max_errors": MAX_ERRORS})
        except QueueError:
            if not (yield from _intact()):
                raise
            if len(ids) == 1:
                result.refused.extend(ids)
            else:
                batches += [ids[: len(ids) // 2], ids[len(ids) // 2 :]]
        else:
            for id_, status in rows:
                (result.failed if status == "failed" else result.retried).append(id_)
            result.left.extend(set(ids) - {id_ for id_, _ in rows})
    return result


def _older(older_than: Seconds | None, until: datetime | None) -> dict[str, Any]:
    return {"older_than": None if older_than is None else _seconds(older_than, "older_than"), "until": until}
