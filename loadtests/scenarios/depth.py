from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import psycopg
from psycopg import errors, sql

from pgqueue_ref.core import Queue, Want, connect, install, operations
from pgqueue_ref.harness import plans
from pgqueue_ref.harness.faults import Line
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.run import LoadRun, RunError
from pgqueue_ref.harness.scenario import Scenario
from pgqueue_ref.worker.worker import PLANNER

# What differs below these, in ms, is noise: at p99 who got the next slice of a busy processor.
FLOORS = {"p50": 1.0, "p99": 10.0}
LEAST = 100  # claims at each level, however long they take
WARM_UP = 10  # claims at each level, so that the statement is prepared and its plan settled
ALLOWED = {"pgqueue_jobs_claim", "pgqueue_jobs_pkey", "pgqueue_queues_pkey"}  # indexes of a claim's plan
KIND = "job"

FILL = """
INSERT INTO pgqueue_jobs (kind, payload, priority, run_at)
SELECT 'job', '{"service_seconds": 0}', %(lowest)s + n %% %(priorities)s,
       CASE WHEN %(due)s THEN now() - make_interval(secs => n * 0.01)
            ELSE now() + make_interval(days => 1, secs => n * 0.01) END
FROM generate_series(1, %(rows)s) AS n
"""
REFILL = """
INSERT INTO pgqueue_jobs (kind, payload, priority) SELECT 'job', '{"service_seconds": 0}', unnest(%s::int[])
"""


class Level(NamedTuple):
    """What lies behind the jobs that are claimed; the due ones have priorities from 0, those of the future `above`."""

    name: str
    meaning: str
    due: int = 0
    priorities: int = 1
    future: int = 0
    above: int = 0


class Depth(Scenario):
    """A claim costs the same whatever lies behind it: nothing, ten thousand due jobs, a million, jobs of the future.

    Each level has a schema of its own. Levels take turns in random order, claim by claim, so that what else the machine
    does meets all of them alike; what was claimed is completed and replaced, so that depths stay. The claims are those
    of a worker, on connections as a worker's; no worker runs. Their p99 is compared with that of the empty level, where
    nothing is left but what the next claim takes. Then the server explains the claim at each level, by custom and by
    generic plan: it must keep to its index, and the pages that it touches must not depend on the depth.
    """

    name = "depth"
    positive = (*Scenario.positive, "deep", "claims", "batch")
    quick = {"deep": 200_000, "claims": 1_000, "seconds": 100.0}
    deep = 1_000_000  # jobs at the deep levels; the whole takes 1.5 GiB of disk for a million
    claims = 5_000  # at each level
    seconds = 900.0  # that they take at most; then fewer are enough
    batch = 10  # jobs in a claim; the fewer, the less does a busy machine stretch it
    workers = 0  # with --fault 2, for the faults to hit; they have nothing to do
    producers = 1  # of Locust's own, idle here

    def prepare(self, options: Any) -> None:
        if options.fault or self.faults:
            self.workers = self.workers or 2
        shallow, deep = min(10_000, self.deep), self.deep
        self._levels = (
            Level("empty", "nothing"),
            Level("shallow", f"{shallow:,} due", due=shallow),
            Level("deep", f"{deep:,} due", due=deep),
            Level("mixed", f"{deep:,} due and as many of the future, ten priorities", deep, 10, deep),
            Level(
                "below", f"{shallow:,} due below {deep:,} of the future, of a higher priority", shallow, 10, deep, 10
            ),
            Level("future", f"{deep:,} of the future, none due", future=deep),
        )

    def play(self, run: LoadRun) -> None:
        self._took = {level.name: Latencies(level.name, self.window) for level in self._levels}
        self._plans: dict[str, list[plans.Plan]] = {}
        with contextlib.ExitStack() as stack:
            with run.undisturbed(), run.phase("fill"):
                lines = {level: stack.enter_context(self._filled(run, level)) for level in self._levels}
                with contextlib.suppress(errors.InsufficientPrivilege):  # then it comes when it comes
                    lines[self._levels[0]].connection.execute("CHECKPOINT")  # so that none is due because of the fill
            with run.phase("claims"):
                until = run.elapsed() + self.seconds
                for turn in range(-WARM_UP, self.claims):
                    run.check()
                    if turn >= LEAST and run.elapsed() > until:
                        break  # what made them so slow shows in these as well
                    with self._connected(run, lines) as connections:
                        for level in self.random.sample(self._levels, len(self._levels)):
                            took = self._claim(run, level, connections[level])
                            if turn >= 0:
                                self._took[level.name].record(run.elapsed(), took)
            with self._connected(run, lines) as connections:
                for level, connection in connections.items():
                    connection.execute("VACUUM pgqueue_jobs")  # pages of entries that claims left are not the plan's
                    claim = next(operations.claim([Want(KIND, self.batch)], worker="depth"))
                    self._plans[level.name] = [plans.explain(connection, *claim, mode) for mode in plans.MODES]
                stack.close()  # here, where no fault comes

    @contextlib.contextmanager
    def _connected(self, run: LoadRun, lines: Mapping[Level, Line]) -> Iterator[dict[Level, psycopg.Connection[Any]]]:
        """The connections, made anew after a crash; no fault comes while the block runs."""
        with run.undisturbed():
            if run.settings.faults:
                for line in lines.values():
                    line.renew()
            yield {level: line.connection for level, line in lines.items()}

    @contextlib.contextmanager
    def _filled(self, run: LoadRun, level: Level) -> Iterator[Line]:
        """A line to a schema with the level's jobs, which goes at the end."""
        schema, began = f"{run.schema}_{level.name}", run.elapsed()
        with contextlib.ExitStack() as stack:
            with _connect(run, schema, timeout_ms=0) as connection:
                install(connection, schema)
                stack.callback(_drop, run, schema)
                # The trigger would keep a second copy of all rows in memory.
                connection.execute("ALTER TABLE pgqueue_jobs DISABLE TRIGGER USER")
                for rows, due, lowest in ((level.due, True, 0), (level.future, False, level.above)):
                    given = {"rows": rows, "due": due, "lowest": lowest, "priorities": level.priorities}
                    connection.execute(FILL, given)
                connection.execute(REFILL, ([level.priorities - 1] * self.batch,))
                connection.execute("ALTER TABLE pgqueue_jobs ENABLE TRIGGER USER")
                connection.execute("VACUUM (ANALYZE) pgqueue_jobs")
            run.say(f"{run.elapsed():5.0f} s  {level.name}: {level.meaning}, {run.elapsed() - began:.1f} s")
            yield stack.enter_context(contextlib.closing(Line(lambda: _connect(run, schema))))

    def _claim(self, run: LoadRun, level: Level, connection: psycopg.Connection[Any]) -> float:
        """Seconds of one claim; what it took is completed and replaced."""
        queue = Queue(connection)
        began = run.elapsed()
        taken = queue.claim([Want(KIND, self.batch)], worker="depth")
        took = run.elapsed() - began
        first = level.priorities - 1  # the highest that is due: it is refilled, so that every claim takes from it alone
        if len(taken) != self.batch or any(job.priority != first for job in taken):
            raise RunError(f"{level.name}: a claim took {len(taken)} jobs, not the {self.batch} of priority {first}")
        with connection.transaction():
            queue.complete_many(taken, ttl=0)
            connection.execute(REFILL, ([first] * self.batch,))
        return took

    def judge(self, run: LoadRun) -> None:
        took = {name: latencies.summary() for name, latencies in self._took.items()}
        for level in self._levels:
            for percentile in FLOORS:
                value, words = (
                    took[level.name][f"{percentile}_ms"],
                    f"of {self.batch} jobs; behind them {level.meaning}",
                )
                run.found(f"{level.name}_{percentile}_ms", value, "ms", f"claim {words}")
        run.found("claims", min(summary["count"] or 0 for summary in took.values()), "", "at each level, at least")
        for percentile, floor in FLOORS.items():
            empty, *behind = (summary[f"{percentile}_ms"] for summary in took.values())
            ratio = None if None in (empty, *behind) else max(floor, *behind) / max(floor, empty)
            words = f"largest {percentile} over that of the empty level, where less than {floor:g} ms counts as that"
            run.found(f"{percentile}_ratio", ratio, "", words)
        self._judge_plans(run)
        self._draw(run)

    def _judge_plans(self, run: LoadRun) -> None:
        explained = [plan for both in self._plans.values() for plan in both]
        off = [plan for plan in explained if not _keeps(plan)]
        used = set.union(*(plan.indexes for plan in explained)) if explained else set()
        whole = set.union(*(plan.scanned for plan in explained)) if explained else set()
        words = (
            f"indexes used: {', '.join(sorted(used)) or 'none'}; read whole: {', '.join(sorted(whole)) or 'nothing'}"
        )
        run.found("plans", len(explained), "", "that the server made for the claim, custom and generic, at all levels")
        run.found("plans_off_index", len(off), "plans", words)
        most = {name: max(plan.buffers for plan in both) for name, both in self._plans.items()}
        pages = max(most.values(), default=0) / self.batch
        run.found("pages_per_job", pages if most else None, "pages", "that a claim touches, at the worst level")
        ratio = max(most.values()) / most["empty"] if most else None
        run.found("pages_ratio", ratio, "", "the same over that of the empty level")

    def _draw(self, run: LoadRun) -> None:
        lines = {
            level.meaning: [
                (share, self._took[level.name].total.get_value_at_percentile(share) / 1000 or None)
                for share in (*range(1, 100), 99.5, 99.9)
            ]
            for level in self._levels
        }
        run.plot(
            "Claim latency by what lies behind", "milliseconds", lines, log=True,
            x="percent of the claims that took no longer",
        )  # fmt: skip


def _keeps(plan: plans.Plan) -> bool:
    """Whether the plan reads jobs through the claim's index and by id, and no other way."""
    return "pgqueue_jobs_claim" in plan.indexes <= ALLOWED and "pgqueue_jobs" not in plan.scanned


def _connect(run: LoadRun, schema: str, timeout_ms: int = 5000) -> psycopg.Connection[Any]:
    """A connection as a worker's."""
    settings = {"application_name": "loadtest depth", "options": PLANNER}
    return connect(run.server.dsn, schema=schema, statement_timeout_ms=timeout_ms, **settings)


def _drop(run: LoadRun, schema: str) -> None:
    with run.connect("loadtest depth", statement_timeout_ms=0) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
