from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

import psycopg

from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.ledger import Connection
from pgqueue_ref.harness.result import Phase
from pgqueue_ref.harness.run import LoadRun, RunError
from pgqueue_ref.harness.scenario import Scenario, poisson, service

# What differs below these, in ms, is noise; start latency in the median and at p99, and the bystander's p99.
FLOOR_P50, FLOOR_P99, FLOOR_PROBE = 25.0, 500.0, 30.0
PROBED_ROWS = 10_000
CHUNK = 10_000  # jobs of the history in one transaction
LEFT = 0.1  # of the dead tuples that were pinned, at most, for the table to count as vacuumed
NAPS = 3.0  # between two looks of vacuum: as long is waited for that

BYSTANDER = f"""
CREATE TABLE loadtest_bystander (id integer PRIMARY KEY, n integer NOT NULL);
INSERT INTO loadtest_bystander SELECT id, 0 FROM generate_series(1, {PROBED_ROWS}) AS id
"""
PROBE = "UPDATE loadtest_bystander SET n = n + 1 WHERE id = %s"
NAPTIME = "SELECT setting::float8 FROM pg_settings WHERE name = 'autovacuum_naptime'"

# Jobs that were pushed, claimed and finished, by the versions and index entries that they leave. In one transaction, so
# that no worker sees them; by their ids, or each statement would read the whole table.
PUSHED = """
WITH new AS (
    INSERT INTO pgqueue_jobs (kind, worker, payload)
    SELECT 'job', 'history', '{"service_seconds": 0}' FROM generate_series(1, %s) RETURNING id
)
SELECT min(id), max(id) FROM new
"""
CLAIMED = """
UPDATE pgqueue_jobs SET status = 'running', attempt = 1, lease_token = 1, lease_expires_at = now()
WHERE id BETWEEN %s AND %s AND worker = 'history'
"""
FINISHED = "DELETE FROM pgqueue_jobs WHERE id BETWEEN %s AND %s AND worker = 'history'"


class PinnedXmin(Scenario):
    """A session holds a snapshot open, as a dump or a forgotten psql does, and vacuum may remove nothing meanwhile.

    Steady load before it (clean), while it is held (pinned) and afterwards (recovery). Right after the snapshot,
    `history` jobs come and go by SQL, which leave the dead rows and index entries of as many real ones: hours of load
    in seconds. Pinned, jobs must start about as fast as before it and after it, so that a machine that grew busy in
    between is no verdict; within a few naps of vacuum from the release, starts must be as before and the dead rows
    gone. A bystander updates a table of its own all the while.
    """

    name = "pinned-xmin"
    # Autovacuum looks once a minute, which is all that the quick profile takes: it vacuums itself, as it needs.
    quick = {"clean": 15.0, "pinned": 15.0, "recovery": 20.0, "history": 300_000, "vacuum_every": 5.0}
    positive = (*Scenario.positive, "clean", "pinned", "recovery", "rate", "probe_every")
    clean = 120.0  # seconds without a snapshot
    pinned = 600.0  # seconds with it
    recovery = 180.0  # seconds after it
    history = 1_000_000  # jobs; at 100 jobs/s what a snapshot pins in three hours
    rate = 100.0  # jobs/s
    service = "exp:0.02"  # seconds
    probe_every = 0.025  # seconds between two statements of the bystander
    vacuum_every = 0.0  # seconds; 0: vacuuming is autovacuum's business

    def play(self, run: LoadRun) -> None:
        self._bystander = Latencies("bystander", self.window)
        self._released = 0.0
        draw = service(self.service, self.random)
        with run.undisturbed(), run.connect("loadtest bystander") as connection:
            connection.execute(BYSTANDER)
            (naptime,) = connection.execute(NAPTIME).fetchone() or (0.0,)
        self._nap = self.vacuum_every or naptime
        self._due = run.elapsed()
        with contextlib.ExitStack() as beside:
            if self.vacuum_every:
                beside.enter_context(run.watching(_vacuum, every=self.vacuum_every))
            with run.watching(functools.partial(self._probe, run), every=0.0):
                run.offer(poisson(self.rate, self.clean, draw, self.random), "clean")
                with self._snapshot(run):
                    with run.undisturbed(), run.phase("history"):
                        self._make_history(run)
                    run.offer(poisson(self.rate, self.pinned, draw, self.random), "pinned")
                self._released = run.elapsed()
                run.offer(poisson(self.rate, self.recovery, draw, self.random), "recovery")
            while self._vacuumed(run) is None and run.elapsed() < self._released + NAPS * self._nap:
                run.check()
                time.sleep(0.2)

    def _probe(self, run: LoadRun, connection: Connection) -> None:
        """One statement of the bystander, an open loop: its latency counts from when it was due."""
        time.sleep(max(0.0, self._due - run.elapsed()))
        connection.execute(PROBE, (self.random.randint(1, PROBED_ROWS),))
        self._bystander.record(self._due, run.elapsed() - self._due)
        self._due += self.probe_every

    @contextlib.contextmanager
    def _snapshot(self, run: LoadRun) -> Iterator[None]:
        """A REPEATABLE READ transaction that is idle while the block runs; a crash of the server ends it before."""
        with contextlib.ExitStack() as stack:
            with run.undisturbed():
                settings = {"options": "-c idle_in_transaction_session_timeout=0"}
                connection = stack.enter_context(run.connect("loadtest snapshot", **settings))
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                connection.execute("SELECT count(*) FROM loadtest_bystander")  # the first statement takes the snapshot
            yield
            try:
                connection.execute("ROLLBACK")
            except psycopg.OperationalError as error:
                if any(fault.name == "crash-postgres" for fault in run.measured.faults):
                    return
                raise RunError("the session that held the snapshot was ended meanwhile: nothing was pinned") from error

    def _make_history(self, run: LoadRun) -> None:
        with run.connect("loadtest history", statement_timeout_ms=0) as connection:
            for start in range(0, self.history, CHUNK):
                run.check()
                with connection.transaction():
                    ids = connection.execute(PUSHED, (min(CHUNK, self.history - start),)).fetchone()
                    connection.execute(CLAIMED, ids)
                    connection.execute(FINISHED, ids)

    def _dead(self, run: LoadRun) -> int:
        """Dead tuples of the job table when the snapshot was released, by the last sample before."""
        before = [row["dead_tuples"] for row in run.measured.samples if row["t"] <= self._released]
        return before[-1] if before else 0

    def _vacuumed(self, run: LoadRun) -> float | None:
        """When a sample after the release found the dead tuples gone (seconds), or None."""
        few = LEFT * self._dead(run)
        after = (row for row in run.measured.samples if row["t"] > self._released)
        return next((row["t"] for row in after if row["dead_tuples"] <= few), None)

    def judge(self, run: LoadRun) -> None:
        phases = {phase.name: phase for phase in run.measured.phases}
        clean, pinned, recovery = (phases[name] for name in ("clean", "pinned", "recovery"))
        again = self._judge_recovery(run, recovery, run.start_latency(clean)["p50_ms"])
        self._judge_starts(run, pinned, (clean, recovery), (clean, again))
        self._judge_bystander(run, (pinned, recovery), (clean, again))
        self._judge_pin(run, pinned)
        self._draw(run)

    def _judge_recovery(self, run: LoadRun, recovery: Phase, clean_p50: float | None) -> Phase:
        """How long it took; returns the rest of the phase, in which the queue was clean again."""
        bound = 2 * max(FLOOR_P50, clean_p50 or 0.0)
        ends = settled, vacuumed = self._settled(run, recovery, bound), self._vacuumed(run)
        recovered = settled is not None and vacuumed is not None
        end = max(settled or 0.0, vacuumed or 0.0) if recovered else run.measured.arrivals_ended
        after = [None if moment is None else moment - self._released for moment in (*ends, end)]
        run.found(
            "settled_seconds",
            after[0],
            "s",
            f"from the release until the median start latency of a window was below {bound:.0f} ms",
        )
        words = f"from the release until {LEFT:.0%} of the dead tuples were left; vacuum naps {self._nap:g} s"
        run.found("vacuumed_seconds", after[1], "s", words)
        run.found(
            "recovered", int(recovered), "", "1: starts were back and the dead tuples gone; 0: not in the time given"
        )
        words = f"until both, in naps of vacuum{'' if recovered else ', at least'}"
        run.found("recovery_naps", (end - self._released) / self._nap, "naps", words)
        return Phase("recovered", end, max(end, recovery.until))

    def _settled(self, run: LoadRun, recovery: Phase, bound: float) -> float | None:
        """The end of the first window after the release whose median start latency is within the bound (ms)."""
        windows = Latencies("recovery", self.window)
        for at, start, _ in run.measured.latencies:
            if recovery.at <= at < recovery.until:
                windows.record(at - recovery.at, start)
        within = (window["t"] or 0.0 for window in windows.windows() if (window["p50_ms"] or 0.0) <= bound)
        first = next(within, None)
        return None if first is None else recovery.at + first + self.window

    def _judge_starts(self, run: LoadRun, pinned: Phase, shown: Sequence[Phase], base: Sequence[Phase]) -> None:
        for phase in (*shown, pinned):
            for percentile in ("p50", "p99"):
                value = run.start_latency(phase)[f"{percentile}_ms"]
                run.found(f"{phase.name}_start_{percentile}_ms", value, "ms", "start latency")
        for percentile, floor in (("p50_ms", FLOOR_P50), ("p99_ms", FLOOR_P99)):
            value, before = (run.start_latency(phase)[percentile] for phase in (pinned, base[0]))
            ratio = over(value, before, run.start_latency(base[1])[percentile], floor=floor)
            words = f"pinned over the slower of clean and recovered, where less than {floor:g} ms counts as that"
            run.found(f"start_{percentile.removesuffix('_ms')}_ratio", ratio, "", words)
        fewest = min(run.start_latency(phase)["count"] or 0 for phase in (*shown, pinned))
        run.found("jobs_per_phase", fewest, "jobs", "that these rest on, at least")

    def _judge_bystander(self, run: LoadRun, judged: Sequence[Phase], base: Sequence[Phase]) -> None:
        p99s = {}
        for phase in (*base, *judged):
            summary = self._bystander.between(phase.at, phase.until)
            p99s[phase.name] = summary["p99_ms"]
            words = f"an UPDATE of one row of another table, {summary['count']} times"
            run.found(f"{phase.name}_bystander_p99_ms", summary["p99_ms"], "ms", words)
        ratios = [over(p99s[phase.name], *(p99s[b.name] for b in base), floor=FLOOR_PROBE) for phase in judged]
        words = (
            "pinned or in recovery, whichever is slower, over the slower of clean and recovered, where less than"
            f" {FLOOR_PROBE:g} ms counts as that"
        )
        run.found("bystander_ratio", None if None in ratios else max(filter(None, ratios)), "", words)
        fewest = min(self._bystander.between(phase.at, phase.until)["count"] or 0 for phase in judged)
        run.found("probes_per_phase", fewest, "", "statements of the bystander, pinned or in recovery, at least")

    def _judge_pin(self, run: LoadRun, pinned: Phase) -> None:
        """Whether the snapshot pinned anything: a finished job leaves two dead versions, as pending and as running."""
        finished = sum(pinned.at <= at + end < pinned.until for at, _, end in run.measured.latencies)
        dead, left = self._dead(run), 2 * (self.history + finished)
        run.found("dead_tuples", dead, "", "of the job table when the snapshot was released")
        run.found("pinned_share", dead / left, "", "of the versions that the jobs since the snapshot have left")

    def _draw(self, run: LoadRun) -> None:
        windows = self._bystander.windows()
        lines = {name: [(row["t"] or 0.0, row[f"{name}_ms"]) for row in windows] for name in ("p50", "max")}
        note = "An UPDATE of one row of a table of its own, from the instant at which it was due."
        run.plot("Latency of the bystander", "milliseconds", lines, log=True, note=note)


def _vacuum(connection: Connection) -> None:
    connection.execute("SET statement_timeout = 0")
    connection.execute("VACUUM pgqueue_jobs")


def over(value: float | None, *base: float | None, floor: float) -> float | None:
    """A measurement over the largest of some, where less than `floor` counts as `floor`; None where there is none."""
    known = [measured for measured in base if measured is not None]
    return max(floor, value) / max(floor, *known) if value is not None and known else None
