"""The ledger: two independent records that together prove what the queue did.

Producers record what they committed, in the same transaction as the push, so that there is no moment at
which one exists without the other, however a commit ends. Handlers record each effect before they return,
so before the attempt can be completed. After a full drain `reconcile` compares the two in SQL. Nothing
here believes the queue's own tables, except for whether a job is still waiting or ended `failed` or
`cancelled`.

Called by the load run (`create`, `record_push`, `already_pushed`, `reconcile`) and, in the workers under
test, by the handlers (`EffectWriter`). All times are the database's clock: `DatabaseClock` measures how
far the local one is from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg

from pgqueue_ref.core import translate

Connection = psycopg.Connection[Any]

DDL = """
CREATE TABLE loadtest_pushed (
    key text PRIMARY KEY,
    job_id bigint NOT NULL,             -- not unique: one id for two keys is a fault to find, not to refuse
    kind text NOT NULL,
    measured boolean NOT NULL,          -- false: pushed to warm up; reconciled, but in no latency
    intended_at timestamptz NOT NULL,   -- when the arrival clock wanted it
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX loadtest_pushed_job ON loadtest_pushed (job_id);
CREATE TABLE loadtest_effects (
    job_id bigint NOT NULL,
    attempt integer NOT NULL,
    key text,
    kind text NOT NULL,
    worker text NOT NULL,
    runs integer NOT NULL,              -- above 1: the same attempt was handed out more than once
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, attempt)
);
"""

# A key is recorded once; a producer that does not know how its commit ended asks ALREADY_PUSHED before it
# repeats.
RECORD_PUSH = """
INSERT INTO loadtest_pushed (key, job_id, kind, measured, intended_at)
VALUES (%s, %s, %s, %s, to_timestamp(%s::float8))
"""

ALREADY_PUSHED = "SELECT job_id FROM loadtest_pushed WHERE key = %s"

# One statement for all effects that waited for the last commit. Grouped first, because ON CONFLICT refuses
# to touch a row twice in one statement and the same attempt handed out twice is exactly what `runs` has to
# show.
RECORD_EFFECTS = """
INSERT INTO loadtest_effects AS e (job_id, attempt, key, kind, worker, runs, started_at, finished_at)
SELECT job_id, attempt, min(key), min(kind), %s, count(*),
       to_timestamp(min(started)), to_timestamp(max(finished))
FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::text[], %s::float8[], %s::float8[])
     AS row(job_id, attempt, key, kind, started, finished)
GROUP BY job_id, attempt
ORDER BY job_id, attempt
ON CONFLICT (job_id, attempt) DO UPDATE SET runs = e.runs + excluded.runs
"""

# One statement, so one snapshot: a job whose completion is visible has its effect visible too.
# An effect counts for a push only if id, key and kind agree; otherwise it is unexpected, and the push may
# be lost. A job that is still active and that no producer recorded is undrained too: no other figure has it.
RECONCILE = """
WITH effects AS (
    SELECT job_id, key, kind, sum(runs) AS runs, min(attempt) AS first_attempt
    FROM loadtest_effects GROUP BY job_id, key, kind
), joined AS (
    SELECT p.key AS pushed_key, p.job_id, e.runs, e.first_attempt, e.key AS effect_key, e.kind AS effect_kind,
           coalesce(e.job_id, p.job_id) AS any_id,
           j.status IN ('pending', 'blocked', 'running') AS active,
           j.status IN ('failed', 'cancelled') AS ended
    FROM loadtest_pushed p
    FULL JOIN effects e ON e.job_id = p.job_id AND e.key = p.key AND e.kind = p.kind
    LEFT JOIN pgqueue_jobs j ON j.id = p.job_id AND j.external_key = p.key
), marked AS (
    SELECT joined.*,
           pushed_key IS NULL AS unexpected,
           pushed_key IS NOT NULL AND active IS TRUE AS undrained,
           pushed_key IS NOT NULL AND ended IS TRUE AS failed,
           pushed_key IS NOT NULL AND runs IS NULL AND active IS NOT TRUE AND ended IS NOT TRUE AS lost,
           pushed_key IS NOT NULL AND runs > 1 AS duplicated
    FROM joined
)
SELECT count(pushed_key), (SELECT coalesce(sum(runs), 0) FROM loadtest_effects),
       count(*) FILTER (WHERE pushed_key IS NOT NULL AND runs IS NOT NULL),
       count(*) FILTER (WHERE lost),
       count(*) FILTER (WHERE unexpected),
       coalesce(sum(runs - 1) FILTER (WHERE duplicated), 0),
       count(*) FILTER (WHERE pushed_key IS NOT NULL AND first_attempt > 1),
       count(*) FILTER (WHERE failed),
       count(*) FILTER (WHERE undrained)
           + (SELECT count(*) FROM pgqueue_jobs q WHERE q.status IN ('pending', 'blocked', 'running')
              AND NOT EXISTS (SELECT FROM loadtest_pushed p WHERE p.job_id = q.id AND p.key = q.external_key)),
       coalesce((array_agg(pushed_key ORDER BY pushed_key) FILTER (WHERE lost))[:10], '{}'),
       coalesce((array_agg(format('job %s, key %s, kind %s', any_id, coalesce(effect_key, 'none'),
                                  effect_kind) ORDER BY any_id) FILTER (WHERE unexpected))[:10], '{}'),
       coalesce((array_agg(pushed_key ORDER BY pushed_key) FILTER (WHERE duplicated))[:10], '{}')
FROM marked
"""


class DatabaseClock:
    """Tells the database's time, in seconds since the epoch, from the local monotonic clock.

    `error` bounds what the measurement may be off by: half the shortest round trip, in seconds.
    """

    def __init__(self, offset: float, error: float) -> None:
        self.offset = offset
        self.error = error

    PROBE = "SELECT extract(epoch FROM clock_timestamp())::float8"
    PROBES = 9

    @classmethod
    def measure(cls, connection: psycopg.Connection[Any]) -> DatabaseClock:
        """Measure over a synchronous connection; the probe with the shortest round trip counts."""
        probes = []
        for _ in range(cls.PROBES):
            before = time.monotonic()
            row = connection.execute(cls.PROBE).fetchone()
            probes.append(cls._probe(before, row))
        return min(probes, key=lambda clock: clock.error)

    @classmethod
    async def measure_async(cls, connection: psycopg.AsyncConnection[Any]) -> DatabaseClock:
        """Like `measure`."""
        probes = []
        for _ in range(cls.PROBES):
            before = time.monotonic()
            row = await (await connection.execute(cls.PROBE)).fetchone()
            probes.append(cls._probe(before, row))
        return min(probes, key=lambda clock: clock.error)

    @classmethod
    def _probe(cls, before: float, row: tuple[Any, ...] | None) -> DatabaseClock:
        after = time.monotonic()
        assert row is not None  # noqa: S101  # for the type checker: a SELECT without FROM has one row
        return cls(row[0] - (before + after) / 2, (after - before) / 2)

    def at(self, monotonic: float) -> float:
        """The database's time, in seconds since the epoch, at a local `time.monotonic()`."""
        return monotonic + self.offset

    def now(self) -> float:
        """The database's time now, in seconds since the epoch."""
        return self.at(time.monotonic())


@dataclass(frozen=True, slots=True)
class Ledger:
    """What reconciliation found; counts of jobs, except `effects` and `duplicated`, which count runs.

    lost: committed by a producer, no effect, and no longer in the queue. unexpected: an effect that no
    producer committed. duplicated: runs beyond the first of a job. recovered: jobs whose first effect came
    from a later attempt. failed: ended failed or cancelled. undrained: still in the queue, so not judged yet,
    whoever pushed it.
    """

    pushed: int
    effects: int
    completed: int
    lost: int
    unexpected: int
    duplicated: int
    recovered: int
    failed: int
    undrained: int
    lost_examples: list[str] = field(default_factory=list)
    unexpected_examples: list[str] = field(default_factory=list)
    duplicated_examples: list[str] = field(default_factory=list)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise the queue's errors where the driver's come from statements and commits around it."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the ledger's tables in the connection's schema, beside the queue's."""
    connection.execute(DDL)


def record_push(
    connection: psycopg.Connection[Any],
    key: str,
    job_id: int,
    kind: str,
    intended_at: float,
    *,
    measured: bool,
) -> None:
    """Record a push, in the transaction that pushes. `intended_at`: database time, epoch seconds."""
    connection.execute(RECORD_PUSH, (key, job_id, kind, measured, intended_at))


def record_pushes(connection: psycopg.Connection[Any], keys: Sequence[str], ids: Sequence[int], kind: str) -> None:
    """Record a backlog that was pushed at once, in the transaction that pushed it; it is in no latency."""
    connection.execute(
        "INSERT INTO loadtest_pushed (key, job_id, kind, measured, intended_at)"
        " SELECT key, id, %s, false, now() FROM unnest(%s::text[], %s::bigint[]) AS row(key, id)",
        (kind, list(keys), list(ids)),
    )


def committed(connection: psycopg.Connection[Any], keys: Sequence[str]) -> set[str]:
    """Which of these keys were pushed."""
    rows = connection.execute("SELECT key FROM loadtest_pushed WHERE key = ANY(%s)", (list(keys),))
    return {key for (key,) in rows}


# A job may run twice only where a fault lies between its first start and its last end. Runs of the same attempt are
# never explained: no fault hands an attempt out twice.
UNEXPLAINED = """
SELECT coalesce(sum(runs - attempts + CASE WHEN explained THEN 0 ELSE attempts - 1 END), 0) FROM (
    SELECT sum(runs) AS runs, count(*) AS attempts,
           EXISTS (SELECT FROM unnest(%s::float8[], %s::float8[]) AS fault(began, ended)
                   WHERE min(started_at) <= to_timestamp(ended)
                     AND max(finished_at) >= to_timestamp(began)) AS explained
    FROM loadtest_effects GROUP BY job_id HAVING sum(runs) > 1
) jobs
"""


def unexplained(connection: psycopg.Connection[Any], faults: Sequence[tuple[float, float]]) -> int:
    """Runs beyond the first of a job that no fault explains; faults from and to, database time, epoch seconds."""
    row = connection.execute(UNEXPLAINED, ([f for f, _ in faults], [t for _, t in faults])).fetchone()
    assert row is not None  # noqa: S101  # for the type checker: an aggregate has one row
    return int(row[0])


def already_pushed(connection: psycopg.Connection[Any], key: str) -> bool:
    """Whether a push whose outcome the producer does not know was committed after all."""
    return connection.execute(ALREADY_PUSHED, (key,)).fetchone() is not None


def reconcile(connection: psycopg.Connection[Any]) -> Ledger:
    """Compare what was committed with what had an effect. Closed only if `undrained` is 0."""
    row = connection.execute(RECONCILE).fetchone()
    assert row is not None  # noqa: S101  # for the type checker: an aggregate without GROUP BY has one row
    pushed, effects, completed, lost, unexpected, duplicated, recovered, failed, undrained = map(int, row[:9])
    return Ledger(pushed, effects, completed, lost, unexpected, duplicated, recovered, failed, undrained, *row[9:])


class _Effect(NamedTuple):
    job_id: int
    attempt: int
    key: str | None
    kind: str
    started: float
    finished: float


class EffectWriter:
    """Writes effects from one worker process over one connection, however many handlers run.

    `record` returns when its row is committed. Rows that come while a commit is under way share the next
    one, so the price per job falls as the load grows, and no handler returns before its effect is durable.
    """

    def __init__(self, conninfo: str, worker: str = f"pid-{os.getpid()}") -> None:
        self._conninfo = conninfo
        self._worker = worker
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._clock: DatabaseClock | None = None
        self._waiting: list[tuple[_Effect, asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def clock(self) -> DatabaseClock:
        """The database's clock, measured at the first call, which also opens the connection."""
        if self._clock is None:
            await self._open()
        assert self._clock is not None  # noqa: S101  # for the type checker: _open sets it or raises
        return self._clock

    async def record(
        self, job_id: int, attempt: int, key: str | None, kind: str, *, started: float, finished: float
    ) -> None:
        """Commit one effect; times are database time, epoch seconds.

        Raises psycopg.Error when the commit is unknown or refused: the attempt must then fail.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((_Effect(job_id, attempt, key, kind, started, finished), done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await done

    async def close(self) -> None:
        """Close the connection; what was recorded is committed already."""
        if self._connection is not None:
            await self._connection.close()

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                connection = await self._open()
                columns = zip(*(effect for effect, _ in batch), strict=True)
                await connection.execute(RECORD_EFFECTS, (self._worker, *map(list, columns)))
            except psycopg.Error as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
                self._clock = await DatabaseClock.measure_async(self._connection)
            return self._connection


START_LATENCIES = """
SELECT extract(epoch FROM p.intended_at)::float8,
       extract(epoch FROM e.started_at - p.intended_at)::float8,
       extract(epoch FROM e.finished_at - p.intended_at)::float8
FROM loadtest_pushed p
JOIN (SELECT DISTINCT ON (job_id) job_id, key, started_at, finished_at
      FROM loadtest_effects ORDER BY job_id, attempt) e USING (job_id, key)
WHERE p.measured
"""

PUSHED_PER_SECOND = """
SELECT floor(extract(epoch FROM recorded_at) - %s::float8)::int AS second, count(*)
FROM loadtest_pushed WHERE measured GROUP BY second ORDER BY second
"""

# Each side through its partial index, so that asking costs nothing beside a million finished jobs.
ACTIVE = """
SELECT EXISTS (SELECT FROM pgqueue_jobs WHERE status = 'pending')
    OR EXISTS (SELECT FROM pgqueue_jobs WHERE status IN ('running', 'blocked'))
"""

# For the progress line. Jobs that wait still count with the time they have waited, or a stall would look fast; one that
# runs has started, though its effect is yet to come. Only jobs after the last one that nothing waits before are looked
# at. The counts read both tables, 50 ms for a million jobs: the statistics are cheaper, but a second behind.
RECENT = """
SELECT (SELECT count(*) FROM loadtest_pushed), (SELECT count(*) FROM loadtest_effects),
       percentile_cont(0.99) WITHIN GROUP (
           ORDER BY extract(epoch FROM coalesce(started_at, clock_timestamp()) - intended_at)::float8)
           FILTER (WHERE started_at IS NULL OR started_at > to_timestamp(%s)),
       coalesce(min(job_id) FILTER (WHERE started_at IS NULL) - 1, max(job_id)),
       extract(epoch FROM clock_timestamp())::float8
FROM (
    SELECT p.job_id, p.intended_at,
           coalesce((SELECT min(started_at) FROM loadtest_effects e WHERE e.job_id = p.job_id),
                    CASE WHEN j.status NOT IN ('pending', 'blocked') THEN coalesce(j.started_at, j.finished_at) END
           ) AS started_at
    FROM loadtest_pushed p LEFT JOIN pgqueue_jobs j ON j.id = p.job_id
    WHERE p.measured AND p.job_id > %s
) jobs
"""


class Recent(NamedTuple):
    """A look at the run: jobs pushed and effects recorded so far, and the start latency p99 (s) of the jobs that
    started since the last look or wait still, None where none does. `settled`: no measured job up to this id waits;
    `at`: database time, epoch seconds.
    """

    pushed: int = 0
    effects: int = 0
    start_p99: float | None = None
    settled: int = 0
    at: float = 0.0


def latencies(connection: psycopg.Connection[Any]) -> Sequence[tuple[float, float, float]]:
    """Per measured job with an effect: intended (epoch s), start latency (s), end-to-end latency (s)."""
    return connection.execute(START_LATENCIES).fetchall()


def recent(connection: psycopg.Connection[Any], last: Recent) -> Recent:
    """A look at the run while it goes on; `last` is the one before, `Recent()` for the first."""
    row = connection.execute(RECENT, (last.at, last.settled)).fetchone()
    assert row is not None  # noqa: S101  # for the type checker: an aggregate without GROUP BY has one row
    pushed, effects, start_p99, settled, at = row
    return Recent(pushed, effects, start_p99, last.settled if settled is None else settled, at)


def pushed_per_second(connection: psycopg.Connection[Any], began: float) -> dict[int, int]:
    """Measured jobs recorded in each second from `began` (database time, epoch seconds)."""
    return dict(connection.execute(PUSHED_PER_SECOND, (began,)).fetchall())


def active(connection: psycopg.Connection[Any]) -> bool:
    """Whether any job of the schema is not terminal yet."""
    (found,) = connection.execute(ACTIVE).fetchone() or (True,)
    return bool(found)
