"""Dependencies: jobs that wait for other jobs.

    first, second = queue.push("scan", 1), queue.push("scan", 2)
    queue.run(dependencies.push("merge", depends_on=[first, second], on_failure=[NewJob("alarm")]))

A job with parents is `blocked` until all of them have succeeded. It is pushed with its edges in one transaction, and
statement-level triggers on pgqueue_jobs follow what becomes of the parents, so that every way to an end counts: a
completion, also one that deletes its row, failure, cancellation, expiry, rescue, a purge, SQL by hand. What an end
sets free or cancels commits with it. The promises:

- a parent that fails for good, is cancelled, or is deleted before it ran cancels its children, theirs, and so on; or
  lets them run, as each was pushed (`on_parent_failure`). `succeeded` is final: a parent that did counts as such for ever;
- a failed or cancelled parent that is retried takes back what it cancelled: those jobs are blocked again. They stay for as
  long as the parent does. One that was retried itself meanwhile runs, and waits for nothing any more. What runs whatever
  becomes of the parent, and has not begun because of another, waits for the new end as well;
- of two parents that end at the same instant on two connections the second sees what the first did;
- `on_success` and `on_failure` are jobs of their own: blocked with their parent as it is pushed, then pushed on with
  its outcome in `metadata["parent"]`, or cancelled where it came out otherwise;
- no cycles: a job depends on jobs that were there before it.

`parents` tells a handler what became of each, with its result where the extension `results` is installed.
"""

# ruff: noqa: E501 - SQL reads better in its own lines than in Python's

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, Unpack

from pgqueue_ref.core import ATOMIC, TERMINAL, InvalidJob, JobNotFound, Json, NewJob, Operation, Pushed, Statement, sql
from pgqueue_ref.core import operations as op
from pgqueue_ref.core.jobs import MAX_KEY, PushOptions, ellipsis, text, whole
from pgqueue_ref.core.operations import _admit, _existing, _loads

from .extension import Extension

Outcome = Literal["succeeded", "failed", "cancelled"]
Ref = int | tuple[str, str] | Pushed  # a parent: its id, its kind and key, or what its push answered
MAX_ID: Final = 2**63 - 1
EDGES: Final = 20_000  # in one INSERT

# What it costs to end a job for which nobody waits: no statement more from the client, and 2 pages of
# pgqueue_dependencies_parent, 4 with the primary key where the row is deleted (PostgreSQL 18 reads them once for a whole batch;
# 16 for each job). 500 jobs completed by one statement with 100,000 edges of others in the table, best of 15, without
# triggers and with them: deleted 0.85 and 1.06 ms, kept 2.4 and 2.7 ms (PostgreSQL 18.4, 2 cores; 16.14: 1.4 and 1.8, 3.0 and
# 3.4); a single one 0.05 and 0.14 ms, kept 0.08 and 0.15 ms. A claim of 500: no difference seen.
#
# Lock order. A statement that ends jobs holds them and then locks what depends on them, all levels together by id; a push
# locks the parents that run before those that are blocked, each by id, so that the two meet in one order. Whoever
# changes several blocked jobs (expire), or goes level by level (retry), may meet a cascade crosswise; then the server
# ends one of the two, and a worker repeats it.
#
# No lost wake-up: everybody who ends a parent locks the child before it looks, in a statement of its own, whose snapshot is
# younger than the lock. Above READ COMMITTED snapshots do not get younger; there the open edges are locked as well, and one
# that somebody closed meanwhile is a serialization failure, to be repeated like any other.
SCHEMA_SQL: Final = """
-- A job waits for a parent. The row stays as long as the job does: handlers ask what became of their parents.
CREATE TABLE IF NOT EXISTS pgqueue_dependencies (
    job_id    bigint  NOT NULL,
    parent_id bigint  NOT NULL,                        -- no foreign key: it may go first
    needs     text    NOT NULL DEFAULT 'success',      -- of the parent; or its failure, or only its end
    callback  boolean NOT NULL DEFAULT false,          -- the job is told the outcome in its metadata
    outcome   text,                                    -- NULL: it has not ended
    PRIMARY KEY (job_id, parent_id),
    -- Ids grow, so that no cycle can be written, not by hand either.
    CONSTRAINT pgqueue_dependencies_order CHECK (parent_id < job_id),
    CONSTRAINT pgqueue_dependencies_words CHECK (
        needs IN ('success', 'failure', 'end') AND outcome IN ('succeeded', 'failed', 'cancelled'))
) WITH (
    -- Each row is updated once, in place: no index has the outcome. Turned over like the jobs.
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
);
CREATE INDEX IF NOT EXISTS pgqueue_dependencies_parent ON pgqueue_dependencies (parent_id);

-- The edges that these ends close, level by level: where an end cancels a job, that is an end as well. `until` is when
-- what is cancelled may be deleted: with the parent that is to blame, at once where it is not needed any more.
CREATE OR REPLACE FUNCTION pgqueue_dependencies_reach(parents bigint[], outcomes text[], untils timestamptz[])
RETURNS TABLE (job_id bigint, parent_id bigint, outcome text, cancels boolean, until timestamptz) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE reached (job_id, parent_id, outcome, cancels, until) AS (
        SELECT edge.job_id, edge.parent_id, ended.outcome,
               edge.needs = CASE ended.outcome WHEN 'succeeded' THEN 'failure' ELSE 'success' END,
               CASE ended.outcome WHEN 'succeeded' THEN now() ELSE ended.until END
        FROM unnest(parents, outcomes, untils) AS ended (id, outcome, until)
        JOIN pgqueue_dependencies AS edge ON edge.parent_id = ended.id AND edge.outcome IS NULL
        UNION
        SELECT edge.job_id, edge.parent_id, 'cancelled', edge.needs = 'success', reached.until
        FROM reached
        JOIN pgqueue_jobs AS child ON child.id = reached.job_id AND child.status || '' = 'blocked'
        JOIN pgqueue_dependencies AS edge ON edge.parent_id = child.id AND edge.outcome IS NULL
        WHERE reached.cancels
    )
    SELECT * FROM reached
$$;

-- Jobs have ended: close the edges to them, cancel what can never run, free what waits for nothing more. A cascade is one
-- recursive query: as triggers that fire each other, a chain of some hundred jobs would break the stack's limit and the first
-- could never fail. Loops over indexes only: the plan stays for the session, made when the table may have been empty.
-- `status || ''` keeps pgqueue_jobs_active out of it (see core/sql.py).
CREATE OR REPLACE FUNCTION pgqueue_dependencies_settle(parents bigint[], outcomes text[], untils timestamptz[])
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    reached bigint[];
    held bigint[];
    cascades boolean;
    waiting bigint[];
    due text;
    namespace text;
    sleepers bigint;
BEGIN
    -- Nobody adds an edge to a parent that we hold. Below it somebody may have while we waited: then look and lock again.
    LOOP
        SELECT array_agg(DISTINCT job_id ORDER BY job_id), bool_or(cancels) INTO reached, cascades
        FROM pgqueue_dependencies_reach(parents, outcomes, untils);
        EXIT WHEN reached IS NULL OR reached = held;
        PERFORM FROM pgqueue_jobs WHERE id = ANY (reached) ORDER BY id FOR UPDATE;
        EXIT WHEN NOT cascades;
        held := reached;
    END LOOP;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM pgqueue_dependencies AS edge
        WHERE edge.job_id = ANY (ARRAY(SELECT job_id FROM pgqueue_dependencies_reach(parents, outcomes, untils)))
          AND edge.outcome IS NULL
        ORDER BY edge.job_id, edge.parent_id FOR UPDATE;
    END IF;
    WITH reached AS MATERIALIZED (
        SELECT * FROM pgqueue_dependencies_reach(parents, outcomes, untils)
    ), closed AS (
        UPDATE pgqueue_dependencies AS edge SET outcome = reached.outcome
        FROM reached WHERE edge.job_id = reached.job_id AND edge.parent_id = reached.parent_id AND edge.outcome IS NULL
    ), cancelled AS (
        UPDATE pgqueue_jobs
        SET status = 'cancelled', finished_at = now(), delete_after = nullif(reason.until, 'infinity'),
            errors = (errors || CASE reason.outcome
                WHEN 'succeeded' THEN format('not needed: job %s succeeded', reason.parent_id)
                WHEN 'failed' THEN format('cancelled because job %s failed', reason.parent_id)
                ELSE format('cancelled because job %s was cancelled', reason.parent_id) END
            )[greatest(1, cardinality(errors) - 8):]
        FROM (SELECT DISTINCT ON (job_id) * FROM reached WHERE cancels ORDER BY job_id, until DESC, parent_id) AS reason
        WHERE id = reason.job_id AND status || '' = 'blocked'
    )
    SELECT array_agg(DISTINCT job_id) INTO waiting FROM reached WHERE NOT cancels;
    IF waiting IS NULL THEN
        RETURN;
    END IF;
    -- Whether any edge is open: from the parent with the highest id on, which mostly ends last. From the lowest on, each
    -- of n parents that end one by one would read all those before it. A job that was freed has its place in the
    -- order from now on: workers claim behind the last position (docs/adr/0003).
    FOR due IN
        WITH freed AS (
            UPDATE pgqueue_jobs AS job
            SET status = 'pending', run_at = greatest(run_at, now()),
                metadata = metadata || coalesce((
                    SELECT jsonb_build_object('parent', coalesce(job.metadata -> 'parent', '{}') || jsonb_build_object(
                        'id', edge.parent_id, 'status', edge.outcome, 'error', parent.errors[cardinality(parent.errors)]))
                    FROM pgqueue_dependencies AS edge LEFT JOIN pgqueue_jobs AS parent ON parent.id = edge.parent_id
                    WHERE edge.job_id = job.id AND edge.callback), '{}')
            WHERE job.id = ANY (waiting) AND job.status || '' = 'blocked' AND (
                SELECT edge.parent_id FROM pgqueue_dependencies AS edge
                WHERE edge.job_id = job.id AND edge.outcome IS NULL ORDER BY edge.job_id DESC, edge.parent_id DESC LIMIT 1) IS NULL
            RETURNING queue, run_at
        )
        SELECT DISTINCT queue FROM freed WHERE run_at <= now()
    LOOP
        -- Wake a worker that sleeps, as the core's pgqueue_notify() does for what is inserted.
        namespace := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                      WHERE pg_class.oid = 'pgqueue_jobs'::regclass);
        sleepers := hashtextextended('pgqueue:asleep:' || namespace || ':' || due, 0);
        IF pg_try_advisory_lock(sleepers) THEN
            PERFORM pg_advisory_unlock(sleepers);
        ELSE
            PERFORM pg_notify('pgqueue:' || namespace, due);
        END IF;
    END LOOP;
END $$;

-- Jobs that had failed or were cancelled have been retried. They themselves wait for nothing that did not come true; what
-- their end had cancelled is blocked again, unless another parent has failed as well, and so is what that had cancelled.
-- What only waits for an end, and still waits for another one, waits for theirs again. The reason goes with what it was for:
-- whoever cancels such a job by hand afterwards leaves none, and is to have the last word.
CREATE OR REPLACE FUNCTION pgqueue_dependencies_revive(retried bigint[]) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
DECLARE
    level bigint[] := retried;
BEGIN
    DELETE FROM pgqueue_dependencies
    WHERE job_id = ANY (retried) AND (outcome IS NULL OR needs = CASE outcome WHEN 'succeeded' THEN 'failure' ELSE 'success' END);
    WHILE level IS NOT NULL LOOP
        PERFORM FROM pgqueue_jobs WHERE id = ANY (ARRAY(
            SELECT job_id FROM pgqueue_dependencies WHERE parent_id = ANY (level) AND needs <> 'failure' AND outcome <> 'succeeded'))
        ORDER BY id FOR UPDATE;
        WITH opened AS (
            UPDATE pgqueue_dependencies AS edge SET outcome = NULL
            WHERE parent_id = ANY (level) AND outcome <> 'succeeded' AND (needs = 'success' OR needs = 'end' AND (
                SELECT status FROM pgqueue_jobs WHERE id = edge.job_id) = 'blocked')
            RETURNING job_id
        )
        SELECT array_agg(DISTINCT job_id) INTO level FROM opened;
        WITH back AS (
            UPDATE pgqueue_jobs AS job
            SET status = 'blocked', finished_at = NULL, delete_after = NULL, errors = trim_array(errors, 1)
            WHERE id = ANY (level) AND status = 'cancelled' AND starts_with(errors[cardinality(errors)], 'cancelled because job ')
              AND NOT EXISTS (SELECT FROM pgqueue_dependencies AS edge
                              WHERE edge.job_id = job.id AND edge.needs = 'success' AND edge.outcome <> 'succeeded')
            RETURNING id
        )
        SELECT array_agg(id) INTO level FROM back;
    END LOOP;
END $$;

-- Claims and heartbeats end here after a look at their own rows; ends without dependents after one probe of
-- pgqueue_dependencies_parent for each, deletions after another of the primary key.
CREATE OR REPLACE FUNCTION pgqueue_dependencies_follow() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    ids bigint[];
    is_open boolean;
    orphans bigint[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM pgqueue_dependencies;
    ELSIF TG_OP = 'UPDATE' THEN
        ids := ARRAY(SELECT id FROM became WHERE status IN ('succeeded', 'failed', 'cancelled'));
        IF EXISTS (SELECT FROM pgqueue_dependencies WHERE parent_id = ANY (ids) AND outcome IS NULL) THEN
            PERFORM pgqueue_dependencies_settle(array_agg(id), array_agg(status), array_agg(coalesce(delete_after, 'infinity')))
            FROM became WHERE status IN ('succeeded', 'failed', 'cancelled');
        END IF;
        -- IS TRUE keeps the IN a hashed subplan: as a join of two small estimates it would compare all pairs.
        ids := ARRAY(SELECT id FROM became
                     WHERE status = 'pending' AND (id IN (SELECT id FROM was WHERE status IN ('failed', 'cancelled'))) IS TRUE);
        IF ids <> '{}' THEN
            PERFORM pgqueue_dependencies_revive(ids);
        END IF;
    ELSE
        -- A running row that goes was completed with TTL 0. One that never ran will not.
        ids := ARRAY(SELECT id FROM was);
        SELECT bool_or(outcome IS NULL), array_agg(job_id) FILTER (WHERE needs = 'success' AND outcome <> 'succeeded')
        INTO is_open, orphans FROM pgqueue_dependencies WHERE parent_id = ANY (ids);
        IF is_open THEN
            PERFORM pgqueue_dependencies_settle(array_agg(id), array_agg(CASE
                WHEN status = 'running' THEN 'succeeded' WHEN status IN ('pending', 'blocked') THEN 'cancelled' ELSE status END),
                array_agg(now()))
            FROM was;
        END IF;
        IF orphans IS NOT NULL THEN
            -- Nobody can take them back any more: cleanup may have them.
            UPDATE pgqueue_jobs SET delete_after = now() WHERE id = ANY (ARRAY(
                SELECT id FROM pgqueue_jobs
                WHERE id = ANY (orphans) AND status = 'cancelled' AND delete_after IS NULL
                  AND starts_with(errors[cardinality(errors)], 'cancelled because job ')
                ORDER BY id FOR UPDATE));
        END IF;
        DELETE FROM pgqueue_dependencies WHERE job_id = ANY (ids);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_update AFTER UPDATE ON pgqueue_jobs
    REFERENCING OLD TABLE AS was NEW TABLE AS became FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow();
CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_delete AFTER DELETE ON pgqueue_jobs
    REFERENCING OLD TABLE AS was FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow();
CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_truncate AFTER TRUNCATE ON pgqueue_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow();
"""

DEPENDENCIES: Final = Extension("dependencies", "pgqueue_dependencies", SCHEMA_SQL)

# The parents, locked until the push commits: none can end meanwhile unseen. Those that have not ended are written as well,
# in place and with what they hold: a lock alone would not be seen by a transaction above READ COMMITTED that ends the
# parent later, on a snapshot without the new edges; a changed row is a serialization failure there. Primary key and
# pgqueue_jobs_key; running ones first, then blocked ones, each by id (see above SCHEMA_SQL). Heartbeats skip them meanwhile.
LOCK_PARENTS = """
WITH wanted AS MATERIALIZED (
    SELECT unnest(%(ids)b::bigint[]) AS id
    UNION
    SELECT found.id FROM unnest(%(kinds)b::text[], %(keys)b::text[]) AS named (kind, key)
    CROSS JOIN LATERAL (SELECT id FROM pgqueue_jobs WHERE kind = named.kind AND external_key = named.key LIMIT 1) AS found
), held AS MATERIALIZED (
    SELECT id, kind, external_key, status FROM pgqueue_jobs WHERE id = ANY (ARRAY(SELECT id FROM wanted))
    ORDER BY status = 'blocked', id FOR NO KEY UPDATE
), written AS (
    UPDATE pgqueue_jobs SET metadata = metadata
    WHERE id = ANY (ARRAY(SELECT id FROM held WHERE status IN ('pending', 'blocked', 'running')))
)
SELECT id, kind, external_key, status FROM held
"""

# The core's own INSERT, but for the status: pushed as pending and blocked by a second statement, each row would be
# written twice, and workers be woken for it.
PUSH_BLOCKED: Final = sql.PUSH_MANY.replace(", created_at)", ", created_at, status)", 1).replace(
    "max_attempts, now()\n", "max_attempts, now(), 'blocked'\n", 1
)

CONNECT = """
INSERT INTO pgqueue_dependencies (job_id, parent_id, needs, callback)
SELECT * FROM unnest(%(jobs)b::bigint[], %(parents)b::bigint[], %(needs)b::text[], %(callbacks)b::bool[]) RETURNING job_id
"""

# For parents that had ended before the push, which holds their locks: as if they had ended just after.
SETTLE = """
SELECT pgqueue_dependencies_settle(array_agg(id), array_agg(status), array_agg(coalesce(delete_after, 'infinity')))
FROM pgqueue_jobs WHERE id = ANY (%(ids)b::bigint[])
"""

# Keyset pagination on the primary key.
PARENTS = """
SELECT edge.parent_id, edge.outcome, parent.status, parent.kind, parent.external_key, parent.errors[cardinality(parent.errors)]
FROM pgqueue_dependencies AS edge LEFT JOIN pgqueue_jobs AS parent ON parent.id = edge.parent_id
WHERE edge.job_id = %(job_id)s AND edge.parent_id > %(after)s AND (edge.outcome IS NULL OR NOT %(waiting)s)
ORDER BY edge.parent_id LIMIT %(limit)s
"""

# The extension `results`, where it is installed: its table is all that is known of it here.
HAS_RESULTS = "SELECT to_regclass('pgqueue_results') IS NOT NULL"
RESULTS = "SELECT job_id, value::text FROM pgqueue_results WHERE job_id = ANY (%(ids)b::bigint[]) AND error IS NULL"


@dataclass(slots=True)
class Dependent:
    """A job to push with what it depends on, checked when it is made (`InvalidJob`); the fields are those of `push`."""

    job: NewJob
    depends_on: Sequence[Ref] = ()
    on_parent_failure: Literal["cancel", "run"] = "cancel"
    on_success: Sequence[NewJob] = ()
    on_failure: Sequence[NewJob] = ()

    def __post_init__(self) -> None:
        self.depends_on = tuple(dict.fromkeys(_ref(ref) for ref in self.depends_on))
        if self.on_parent_failure not in ("cancel", "run"):
            raise InvalidJob(f"on_parent_failure must be cancel or run, not {ellipsis(self.on_parent_failure)}")
        for name in ("on_success", "on_failure"):
            if not all(isinstance(job, NewJob) for job in getattr(self, name)):
                raise InvalidJob(f"{name} must be a list of NewJob")


class Parent(NamedTuple):
    """What became of a job that another depends on. `outcome` is None until it has ended; a parent whose row is gone has
    neither status nor kind. `error` is its newest message; `result` needs the extension `results`."""

    id: int
    outcome: Outcome | None
    status: str | None
    kind: str | None
    key: str | None
    error: str | None
    result: Json = None


# -- push ------------------------------------------------------------------------------------------------------


def push(
    kind: str,
    payload: Json = None,
    *,
    depends_on: Sequence[Ref] = (),
    on_parent_failure: Literal["cancel", "run"] = "cancel",
    on_success: Sequence[NewJob] = (),
    on_failure: Sequence[NewJob] = (),
    max_in_flight: int | None = None,
    **options: Unpack[PushOptions],
) -> Operation[Pushed]:
    """Push a job that is blocked until the jobs in `depends_on` have succeeded; `options` are the fields of `NewJob`.

    Parents are ids, `(kind, key)`, or what their push answered. Where one fails for good or is cancelled, the job is
    cancelled, or counts it as done with `on_parent_failure="run"`. Of the jobs in `on_success` and `on_failure` those are
    pushed on that fit the end of this one, once, with `metadata["parent"]`: id, kind, key, status and error.

    Idempotent like the core's `push`: a job whose key exists stays as it is, with its parents and callbacks. Raises
    `JobNotFound` for a parent that does not exist, with nothing inserted: a kind whose `terminal_ttl` is 0 leaves no
    row, so push what depends on it before it can end, in one transaction with it. `QueueBusy` as there; blocked jobs and
    callbacks count against `max_in_flight`.
    """
    job = Dependent(NewJob(kind, payload, **options), depends_on, on_parent_failure, on_success, on_failure)
    return (yield from push_many([job], max_in_flight=max_in_flight))[0]


def push_many(jobs: Iterable[Dependent | NewJob], *, max_in_flight: int | None = None) -> Operation[list[Pushed]]:
    """`push` of many, all or none; the answers are in the order of `jobs`. None can depend on another of them."""
    given = [Dependent(job) if isinstance(job, NewJob) else job for job in jobs]
    if max_in_flight is not None:
        whole(max_in_flight, "max_in_flight")
    pushed = [one.job for one in given]
    first, todo = _distinct(pushed)
    yield ATOMIC
    answers = yield from _existing(pushed, first, todo)
    if max_in_flight is not None:
        answers |= yield from _bounded(given, [index for index in todo if index not in answers], max_in_flight)
    new = [index for index in todo if index not in answers]
    found = yield from _lock([ref for index in new for ref in given[index].depends_on])
    for waits in (False, True):
        group = [index for index in new if bool(given[index].depends_on) is waits]
        operation = op.push_many([pushed[index] for index in group])
        made = yield from _blocked(operation) if waits else operation
        answers |= dict(zip(group, made, strict=True))
    edges = [
        (answers[index].id, parent, "success" if given[index].on_parent_failure == "cancel" else "end", False)
        for index in new
        if answers[index].created
        for parent in sorted({found[ref][0] for ref in given[index].depends_on})
    ]
    edges += yield from _callbacks([(given[index], answers[index].id) for index in new if answers[index].created])
    yield from _connect(edges, sorted({id_ for id_, status in found.values() if status in TERMINAL}))
    return [
        answers[index] if index in answers else Pushed(answers[first[job.kind, str(job.key)]].id, created=False)
        for index, job in enumerate(pushed)
    ]


def _distinct(jobs: Sequence[NewJob]) -> tuple[dict[tuple[str, str], int], list[int]]:
    """Where each key occurs first, and the indexes of the jobs without those that repeat a key."""
    first: dict[tuple[str, str], int] = {}
    for index, job in enumerate(jobs):
        if job.key is not None:
            first.setdefault((job.kind, job.key), index)
    return first, [i for i, job in enumerate(jobs) if job.key is None or first[job.kind, job.key] == i]


def _bounded(given: Sequence[Dependent], todo: Sequence[int], limit: int) -> Operation[dict[int, Pushed]]:
    """Admit the new jobs with their callbacks, before anything is inserted. Answers for those that exist by now."""
    jobs = [given[index].job for index in todo]
    jobs += [job for index in todo for job in (*given[index].on_success, *given[index].on_failure)]
    existing = yield from _admit(jobs, *_distinct(jobs), limit)
    return {index: existing[place] for place, index in enumerate(todo) if place in existing}


def _lock(refs: Sequence[Ref]) -> Operation[dict[Ref, tuple[int, str]]]:
    """Id and status of each parent, locked. Raises `JobNotFound`."""
    if not refs:
        return {}
    keys = sorted({ref for ref in refs if isinstance(ref, tuple)})
    rows = yield Statement(
        LOCK_PARENTS,
        {
            "ids": sorted({ref for ref in refs if isinstance(ref, int)}),
            "kinds": [kind for kind, _ in keys],
            "keys": [key for _, key in keys],
        },
    )
    found: dict[Ref, tuple[int, str]] = {}
    for id_, kind, key, status in rows:
        found[id_] = found[kind, key] = (id_, status)
    missing = [ref for ref in dict.fromkeys(refs) if ref not in found]
    if missing:
        name = (
            f"job {missing[0]}"
            if isinstance(missing[0], int)
            else f"{missing[0][0]} job with key {ellipsis(missing[0][1])}"
        )
        more = f", and {len(missing) - 1} more," if len(missing) > 1 else ""
        raise JobNotFound(f"{name}{more} to depend on does not exist (any more); nothing was pushed")
    return {ref: found[ref] for ref in refs}


def _blocked(operation: Operation[list[Pushed]]) -> Operation[list[Pushed]]:
    """The core's push, of jobs that are blocked."""
    try:
        step = next(operation)
        while True:
            if step.sql == sql.PUSH_MANY:
                step = Statement(PUSH_BLOCKED, step.params)
            rows = yield step
            step = operation.send(rows)
    except StopIteration as done:
        pushed: list[Pushed] = done.value
        return pushed


def _callbacks(parents: Sequence[tuple[Dependent, int]]) -> Operation[list[tuple[int, int, str, bool]]]:
    """Push the callbacks of new jobs; returns the edges of those that are new as well."""
    wanted = [
        (job, id_, needs, one.job)
        for one, id_ in parents
        for needs, jobs in (("success", one.on_success), ("failure", one.on_failure))
        for job in jobs
    ]
    made = yield from _blocked(
        op.push_many(
            replace(job, metadata={**(job.metadata or {}), "parent": {"kind": parent.kind, "key": parent.key}})
            for job, _, _, parent in wanted
        )
    )
    return [
        (pushed.id, id_, needs, True) for pushed, (_, id_, needs, _) in zip(made, wanted, strict=True) if pushed.created
    ]


def _connect(edges: Sequence[tuple[int, int, str, bool]], ended: list[int]) -> Operation[None]:
    """Insert the edges; then what the parents that have ended already mean for them."""
    for start in range(0, len(edges), EDGES):
        columns = zip(*edges[start : start + EDGES], strict=True)
        names = ("jobs", "parents", "needs", "callbacks")
        yield Statement(CONNECT, {name: list(column) for name, column in zip(names, columns, strict=True)})
    if edges and ended:
        yield Statement(SETTLE, {"ids": ended})


def _ref(ref: Any) -> Ref:
    """A parent as an id or a pair of kind and key."""
    if isinstance(ref, Pushed):
        return ref.id
    if isinstance(ref, tuple) and len(ref) == 2:
        return text(ref[0], "kind of a parent"), text(ref[1], "key of a parent", MAX_KEY)
    return whole(ref, "a parent's id", most=MAX_ID)


# -- looking ---------------------------------------------------------------------------------------------------


def parents(job_id: int, *, waiting: bool = False, after: int = 0, limit: int = 1000) -> Operation[list[Parent]]:
    """What a job depends on, in the order of ids, from the one after `after`; with `waiting` only what has not ended.

    A handler asks it for the outcomes and results of its parents. Empty once the job's own row is gone.
    """
    params = {
        "job_id": whole(job_id, "job_id", most=MAX_ID), "waiting": waiting,
        "after": whole(after, "after", 0, MAX_ID), "limit": whole(limit, "limit"),
    }  # fmt: skip
    found = [Parent(*row) for row in (yield Statement(PARENTS, params))]
    done = [parent.id for parent in found if parent.outcome == "succeeded"]
    if not done or not (yield Statement(HAS_RESULTS))[0][0]:
        return found
    results: dict[int, str] = dict((yield Statement(RESULTS, {"ids": done})))
    return [parent._replace(result=_read(results[parent.id])) if parent.id in results else parent for parent in found]


def _read(value: str) -> Json:
    with contextlib.suppress(ValueError, RecursionError):  # what jsonb takes and Python does not: people get the text
        return _loads(value)
    return value
