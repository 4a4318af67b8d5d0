"""One load run from an empty schema to a verdict.

The order is that of the methods: `prepare` (schema, ledger, workers, warm-up), `begin` (the arrival clock
starts), producers push until the clock is through, `finish` (drain, stop, reconcile, judge, write). The
exit code is `CRASH_OR_USAGE` until `finish` has evaluated everything. Called by the Locust plugin; knows
nothing of Locust itself.

Every run has a schema of its own, so it can be pointed at a server that carries other work. The schema is
dropped at the end, except when the run did not pass on a server that somebody else runs: then it is left
for inspection.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_ref.core import NewJob, Queue, connect
from pgqueue_ref.harness import ledger, manifest, traces
from pgqueue_ref.harness.clock import ArrivalClock, Watch
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.processes import GRACE, WorkerProcess, start_workers
from pgqueue_ref.harness.producer import Producer
from pgqueue_ref.harness.result import Measured, build_result, write_run
from pgqueue_ref.harness.sampler import Sampler
from pgqueue_ref.harness.server import Server
from pgqueue_ref.harness.slo import Exit, Objective, Verdict, evaluate

LEAD = 0.5  # seconds from the start of the clock to the origin, so that every producer is in place
WARM_UP_SERVICE = 0.05  # seconds; longer than a claim, so that one worker alone cannot take every warm-up job
PROGRESS_EVERY = 5.0  # seconds


class RunError(RuntimeError):
    """The run cannot go on. Its text is one line for people."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to do. Times in seconds; `trace` is already cut and scaled."""

    scenario: str
    trace: traces.Trace
    trace_source: str  # which file, which part of it, scaled how: for people
    objectives: Sequence[Objective]
    app: str  # module:kinds of the handlers, importable from `root`
    root: Path
    runs: Path
    workers: int = 2
    slots: int = 32
    producers: int = 32
    drain_timeout: float = 60.0
    summary: Path | None = None


@dataclass(slots=True)
class Progress:
    """Counts for the progress line and the result. Only greenlets write them, never across a wait."""

    achieved: int = 0
    failures: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class LoadRun:
    """See the module. `say` takes lines for people."""

    def __init__(self, settings: Settings, server: Server, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.server = server
        self.result: dict[str, Any] = {}
        self.progress = Progress()
        began = datetime.datetime.now(datetime.UTC)
        self.id = f"{began:%Y%m%dT%H%M%S}-{settings.scenario}"
        self.schema = f"pgqueue_load_{began:%Y%m%d_%H%M%S_%f}"
        self.directory = settings.runs / self.id
        self.clock = ArrivalClock([arrival.at for arrival in settings.trace.arrivals])
        self._say = say
        self._watch = Watch()
        self._workers: Sequence[WorkerProcess] = ()
        self._incidents: list[tuple[Exit, str]] = []
        self._drained = True
        self._done = threading.Event()
        width = max(1.0, settings.trace.span / 60)
        self._push_latency = Latencies("push", width)
        self._measured = Measured(
            self.id, settings, self.progress, self.clock, self._watch, self._push_latency, Latencies("start", width),
            Latencies("end-to-end", width),
        )  # fmt: skip

    # -- Before ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the schema, the ledger and the run directory, start the workers and see each of them work.

        Raises `RunError`, `QueueError` or `psycopg.Error`.
        """
        self._make_directory()
        with self._connect("loadtest") as connection:
            self._say(f"{self.id}: {self.server.describe()}, {self.settings.trace_source}")
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))
            self._migrate()
            ledger.create(connection)
            self._measured.server = manifest.server_facts(connection, self.server.describe())
            self._start_workers(connection)
            self._database_clock = ledger.DatabaseClock.measure(connection)
        self._measured.database_clock = self._database_clock

    def producer(self) -> Producer:
        """A producer with a connection of its own."""
        return Producer(lambda: self._connect("loadtest producer"), self._database_clock)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{self.directory}: cannot be made ({error.strerror}); choose another --runs") from error

    def _connect(self, name: str, **settings: Any) -> psycopg.Connection[Any]:
        return connect(self.server.dsn, schema=self.schema, application_name=name, **settings)

    def _environment(self) -> dict[str, str]:
        return {
            "PGQUEUE_DATABASE_URL": self.server.dsn,
            "PGQUEUE_SCHEMA": self.schema,
            "PGQUEUE_LOADTEST_KINDS": ",".join(self.settings.trace.kinds),
            "PGQUEUE_LOADTEST_SLOTS": str(self.settings.slots),
        }

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "pgqueue_ref", "migrate"]
        environment = {**os.environ, **self._environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603  # our own command
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it wrote nothing"]
            raise RunError(f"pgqueue-ref migrate failed: {manifest.masked(lines[-1])}")

    def _start_workers(self, connection: psycopg.Connection[Any]) -> None:
        settings = self.settings
        self._workers = start_workers(
            settings.workers,
            app=settings.app,
            slots=settings.slots,
            root=settings.root,
            logs=self.directory,
            environment=self._environment(),
        )
        wanted = {f"pid-{worker.pid}" for worker in self._workers}
        deadline = time.monotonic() + 60
        for turn in range(1_000_000):
            # More than all workers but one can hold: every one of them has to take a share.
            self._push_warm_up(connection, turn, settings.slots * settings.workers)
            self._wait_idle(connection, deadline)
            seen = {name for (name,) in connection.execute("SELECT DISTINCT worker FROM loadtest_effects")}
            if wanted <= seen:
                self._say(f"{len(wanted)} workers are at work ({settings.slots} slots each)")
                return
            if time.monotonic() > deadline:
                raise RunError(f"{len(wanted - seen)} workers took no job within 60 s; see {self.directory}")

    def _push_warm_up(self, connection: psycopg.Connection[Any], turn: int, count: int) -> None:
        kind = next(iter(self.settings.trace.kinds))
        payload = {"service_seconds": WARM_UP_SERVICE}
        keys = [f"warm-up-{turn}-{n}" for n in range(count)]
        with connection.transaction():
            pushed = Queue(connection).push_many([NewJob(kind, payload, key=key) for key in keys])
            for key, job in zip(keys, pushed, strict=True):
                ledger.record_push(connection, key, job.id, kind, time.time(), measured=False)

    def _wait_idle(self, connection: psycopg.Connection[Any], deadline: float) -> None:
        while ledger.active(connection) and time.monotonic() < deadline:
            if died := [line for worker in self._workers if (line := worker.died())]:
                raise RunError("; ".join(died))
            time.sleep(0.05)

    # -- While ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the arrival clock, the sampler, the watch over the generator and the progress lines."""
        origin = time.monotonic() + LEAD
        self._measured.began = self._database_clock.at(origin)
        self._sampler = Sampler(
            lambda: self._connect("loadtest sampler"), self.directory / "samples.csv", origin=origin
        )
        self._measured.sampler = self._sampler
        self._sampler.start()
        threading.Thread(target=self._keep_watch, name="watch", daemon=True).start()
        threading.Thread(target=self._tell_progress, name="progress", daemon=True).start()
        self.clock.start(origin)

    def produce(self, producer: Producer, report: Callable[[str, float, Exception | None], None]) -> bool:
        """Push the next arrival when it is due; False when there is none left."""
        due = self.clock.draw()
        if due is None:
            return False
        at = due.intended - self.clock.origin

        def note(kind: str, latency: float, error: Exception | None) -> None:
            if error is None:
                self._push_latency.record(at, latency)
            else:
                self.progress.failures += 1
                name = type(error).__name__
                self.progress.errors[name] = self.progress.errors.get(name, 0) + 1
            report(kind, latency, error)

        arrival = self.settings.trace.arrivals[due.number]
        committed = producer.push(f"arrival-{due.number}", arrival, due.intended, note)
        self.progress.achieved += committed  # not in one step with the push: others add while it waits
        return True

    def broken(self) -> str | None:
        """One line when the run cannot end well any more (a worker died unasked), else None."""
        return next((line for worker in self._workers if (line := worker.died())), None)

    def _keep_watch(self) -> None:
        while not self._done.is_set():
            self._watch.beat()
            time.sleep(self._watch.pause)

    def _tell_progress(self) -> None:
        with contextlib.suppress(Exception), self._connect("loadtest progress") as connection:
            newest, achieved, then = 0, 0, time.monotonic()
            while not self._done.wait(PROGRESS_EVERY):
                now, count = time.monotonic(), self.progress.achieved
                p99, newest = ledger.recent_p99(connection, newest)
                sample = self._sampler.samples[-1] if self._sampler.samples else {}
                rate = (count - achieved) / (now - then)
                tail = "-" if p99 is None else f"{p99 * 1000:.0f} ms"
                self._say(
                    f"{self.clock.elapsed():5.0f} s  {rate:6.0f} jobs/s  pending {sample.get('pending', '-'):>4}  "
                    f"running {sample.get('running', '-'):>3}  start p99 {tail:>8}  errors {self.progress.failures}"
                )
                achieved, then = count, now

    # -- After ----------------------------------------------------------------------------------------

    def finish(self) -> Verdict:
        """Drain, stop the workers, reconcile, judge and write the run directory.

        Raises what the database raises; the exit code then stays `CRASH_OR_USAGE`.
        """
        counts = self.clock.counts
        if counts.begun + counts.skipped < counts.offered:
            missing = counts.offered - counts.begun - counts.skipped
            self._incidents.append((Exit.INVALID, f"stopped with {missing} arrivals still to come"))
        self._measured.arrivals_ended = self.clock.elapsed()
        with self._connect("loadtest", statement_timeout_ms=0) as connection:
            with self._winding_down():
                self._drain(connection)
            self._measure(connection)
            self.result = build_result(self._measured)
            verdict = evaluate(self.result, self.settings.objectives, incidents=self._incidents)
            write_run(self.directory, self._measured, self.result, verdict)
            self._clean_up(connection, verdict)
        return verdict

    def abandon(self) -> None:
        """End what runs, at once and without a verdict."""
        self._done.set()
        for worker in self._workers:
            worker.kill()

    @contextlib.contextmanager
    def _winding_down(self) -> Iterator[None]:
        """Whatever happens inside, the workers and threads of the run end."""
        try:
            yield
        finally:
            died = [worker.died() for worker in self._workers]
            for worker in self._workers:
                worker.ask_to_stop()
            stopped = [worker.wait(GRACE + 15, drained=self._drained) for worker in self._workers]
            complaints = [before or after for before, after in zip(died, stopped, strict=True)]
            self._incidents += [(Exit.CRASH_OR_USAGE, line) for line in complaints if line]
            self._done.set()
            self._sampler.stop()

    def _drain(self, connection: psycopg.Connection[Any]) -> None:
        deadline = time.monotonic() + self.settings.drain_timeout
        while ledger.active(connection) and time.monotonic() < deadline and self.broken() is None:
            time.sleep(0.1)
        self._drained = not ledger.active(connection)
        self._measured.drained_at = self.clock.elapsed()

    def _measure(self, connection: psycopg.Connection[Any]) -> None:
        measured = self._measured
        measured.ledger = ledger.reconcile(connection)
        for intended, start, end in ledger.latencies(connection):
            at = intended - measured.began
            measured.start_latency.record(at, start)
            measured.end_latency.record(at, end)
            measured.finished.append(at + end)
        measured.pushed_per_second = ledger.pushed_per_second(connection, measured.began)
        drift = ledger.DatabaseClock.measure(connection)
        measured.clock_drift = abs(drift.offset - self._database_clock.offset)

    def _clean_up(self, connection: psycopg.Connection[Any], verdict: Verdict) -> None:
        if verdict.passed or self.server.tier != "dsn":
            connection.execute("SET client_min_messages = warning")  # one notice per dropped object says nothing
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))
        else:
            self._say(f"left for inspection: DROP SCHEMA {self.schema} CASCADE;")


def headline(result: dict[str, Any], verdict: Verdict) -> str:
    """The verdict in one line: PASS with its figures, or FAIL with its exit code and every reason."""
    name = result["scenario"]
    if not verdict.passed:
        return f"FAIL {name} (exit {verdict.exit.value}): {'; '.join(verdict.reasons)}"
    start = result["latency"]["start"]
    return (
        f"PASS {name}: {result['ledger']['completed']:,} jobs, {result['arrivals']['achieved_per_second']:.0f}/s, "
        f"start latency p50 {start['p50_ms']:.1f} ms, p99 {start['p99_ms']:.1f} ms, "
        f"lost {result['ledger']['lost']}, unexpected {result['ledger']['unexpected']}"
    )
