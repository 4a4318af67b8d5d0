"""One load run from an empty schema to a verdict.

The order is that of the methods: `prepare` (schema, ledger, workers, warm-up), `begin` (the scenario plays), `finish`
(drain, stop, reconcile, judge, write). The exit code is `CRASH_OR_USAGE` until `finish` has evaluated everything.
Called by the Locust plugin; knows nothing of Locust itself. Scenarios use the methods between `begin` and `finish`.

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
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgqueue_ref.core import ConnectionLimit, DatabaseUnavailable, NewJob, Queue, connect
from pgqueue_ref.harness import faults, ledger, manifest
from pgqueue_ref.harness.fleet import Generators
from pgqueue_ref.harness.generator import Setup, Share
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.processes import GRACE, ApiProcess, Process, WorkerProcess, start_api, start_worker
from pgqueue_ref.harness.producer import Report
from pgqueue_ref.harness.result import Measured, Phase, build_result, write_run
from pgqueue_ref.harness.sampler import Sampler
from pgqueue_ref.harness.scenario import Scenario
from pgqueue_ref.harness.server import Server
from pgqueue_ref.harness.slo import Exit, Objective, Verdict, evaluate
from pgqueue_ref.harness.traces import Arrival

LEAD = 0.5  # seconds from the offer to the origin of its arrivals, so that every generator knows of it
WARM_UP_SERVICE = 0.05  # seconds; longer than a claim, so that one worker alone cannot take every warm-up job
PROGRESS_EVERY = 5.0  # seconds
FILL_CHUNK = 5_000
PATIENCE = 60.0  # seconds for a process to start


class RunError(RuntimeError):
    """The run cannot go on. Its text is one line for people."""


class Stopped(RunError):  # noqa: N818  # news, not a fault
    """Somebody stopped the run before its scenario was through."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to do."""

    scenario: Scenario
    objectives: Sequence[Objective]
    app: str  # module:kinds of the handlers, importable from `root`
    root: Path
    runs: Path
    faults: Sequence[faults.Fault] = ()
    summary: Path | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """A point of progress: t (s), the phase; since the point before pushed and finished (jobs/s) and start p99 (s);
    errors and refusals so far; the newest sample."""

    t: float
    phase: str
    pushed: float
    finished: float
    start_p99: float | None
    errors: int
    refused: int
    sample: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The line of progress, in columns."""
        p99 = "-" if self.start_p99 is None else f"{self.start_p99 * 1000:,.0f} ms"
        return (
            f"{self.t:5.0f} s  {self.phase:<10.10}  pushed {self.pushed:5.0f}/s  finished {self.finished:5.0f}/s"
            f"  pending {_count(self.sample, 'pending'):>6}  running {_count(self.sample, 'running'):>4}"
            f"  start p99 {p99:>9}  errors {self.errors}{f'  refused {self.refused:,}' if self.refused else ''}"
        )


def _count(sample: Mapping[str, Any], column: str) -> str:
    return f"{sample[column]:,}" if column in sample else "-"


class LoadRun:
    """See the module. `say` takes lines for people, `tell` each request for Locust's own tables."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        generators: Generators,
        say: Callable[[str], None],
        tell: Report = lambda kind, latency, error: None,
    ) -> None:
        self.settings, self.server, self.say, self.tell = settings, server, say, tell
        self.scenario = settings.scenario
        self.result: dict[str, Any] = {}
        self.live: list[Live] = []
        self.workers: list[WorkerProcess] = []
        self.apis: list[ApiProcess] = []
        self.played = self.ended = False  # the scenario is through; it is through or has failed
        self.abandoned = False
        began = datetime.datetime.now(datetime.UTC)
        self.id = f"{began:%Y%m%dT%H%M%S}-{self.scenario.name}"
        self.schema = f"pgqueue_load_{began:%Y%m%d_%H%M%S_%f}"
        self.directory = settings.runs / self.id
        self.measured = Measured(self.id, settings)
        self.generators = generators
        self._incidents: list[tuple[Exit, str]] = []
        self._started: Counter[str] = Counter()  # workers and APIs, ever
        self._drained = True
        self._done = threading.Event()
        self._stopped = False
        self._faults: threading.Thread
        self._sampler: Sampler | None = None
        self._origin = time.monotonic()
        self._due, self._calm = threading.Lock(), threading.Lock()
        self._database_clock: ledger.DatabaseClock

    # -- Before ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the schema, the ledger and the run directory, start the workers and see each of them work.

        Raises `RunError`, `QueueError` or `psycopg.Error`.
        """
        self._make_directory()
        with self.connect("loadtest") as connection:
            self.say(f"{self.id}: {self.server.describe()}, {self.scenario.source}")
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))
            self._migrate()
            ledger.create(connection)
            self.scenario.set_up(self)
            self.measured.server = manifest.server_facts(connection, self.server.describe())
            self._start_workers(connection)
            self._database_clock = ledger.DatabaseClock.measure(connection)
        self.measured.database_clock = self._database_clock
        tolerated = {*self.scenario.tolerates, *(faults.TOLERATED if self.settings.faults else ())}
        setup = Setup(self.server.dsn, self.schema, self.scenario.window, sorted(tolerated), self.scenario.api)
        self.generators.setup(setup, self.committed)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{self.directory}: cannot be made ({error.strerror}); choose another --runs") from error

    def environment(self) -> dict[str, str]:
        """What a worker of this run needs to know."""
        return {
            "PGQUEUE_DATABASE_URL": self.server.dsn,
            "PGQUEUE_SCHEMA": self.schema,
            "PGQUEUE_LOADTEST_KINDS": ",".join(self.scenario.kinds),
            "PGQUEUE_LOADTEST_SLOTS": str(self.scenario.slots),
            **self.scenario.environment,
        }

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "pgqueue_ref", "migrate"]
        environment = {**os.environ, **self.environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603  # our own command
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it wrote nothing"]
            raise RunError(f"pgqueue-ref migrate failed: {manifest.masked(lines[-1])}")

    def _start_workers(self, connection: psycopg.Connection[Any]) -> None:
        scenario = self.scenario
        for _ in range(scenario.workers):
            self.start_worker()
        wanted = {f"pid-{worker.pid}" for worker in self.workers}
        deadline = time.monotonic() + 60
        turn = 0
        while wanted:
            # More than all workers but one can hold: every one of them has to take a share.
            self._push_warm_up(connection, turn, scenario.slots * scenario.workers)
            self._wait_idle(connection, deadline)
            turn += 1
            seen = {name for (name,) in connection.execute("SELECT DISTINCT worker FROM loadtest_effects")}
            if wanted <= seen:
                self.say(f"{len(wanted)} workers are at work ({scenario.slots} slots each)")
                return
            if time.monotonic() > deadline:
                raise RunError(f"{len(wanted - seen)} workers took no job within 60 s; see {self.directory}")

    def _push_warm_up(self, connection: psycopg.Connection[Any], turn: int, count: int) -> None:
        kind = self.scenario.kinds[0]
        payload = {"service_seconds": WARM_UP_SERVICE}
        keys = [f"warm-up-{turn}-{n}" for n in range(count)]
        with connection.transaction():
            pushed = Queue(connection).push_many([NewJob(kind, payload, key=key) for key in keys])
            ledger.record_pushes(connection, keys, [job.id for job in pushed], kind)

    def _wait_idle(self, connection: psycopg.Connection[Any], deadline: float) -> None:
        while ledger.active(connection) and time.monotonic() < deadline:
            self.check()
            time.sleep(0.05)

    # -- While ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the sampler, the progress lines, the faults and the scenario."""
        self._origin = time.monotonic()
        self.measured.began = self._database_clock.at(self._origin)
        self._sampler = Sampler(
            lambda: self.connect("loadtest sampler"),
            self.directory / "samples.csv",
            origin=self._origin,
            processes=lambda: [worker.pid for worker in self.workers if worker.process.poll() is None],
        )
        self.measured.sampler = self._sampler
        self._sampler.start()
        threading.Thread(target=self._tell_progress, name="progress", daemon=True).start()
        self._faults = self.spawn(faults.inject, self, self.settings.faults, self.measured.faults)
        self.spawn(self._play)

    def _play(self) -> None:
        try:
            self.scenario.play(self)
            self.played = True
        finally:
            self.measured.arrivals_ended = self.elapsed()
            self.generators.close()
            self.ended = True

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._origin

    @property
    def over(self) -> bool:
        """Whether the run was given up or has ended."""
        return self._done.is_set()

    def check(self) -> None:
        """Raise `RunError` when the run cannot end well any more: it was stopped, or a process died unasked."""
        if self._stopped:
            raise Stopped("stopped before the scenario was through")
        if (line := self.broken()) is not None:
            raise RunError(line)

    def broken(self) -> str | None:
        """One line when the run cannot end well any more (a process died unasked), else None."""
        return next((line for process in self._processes() if (line := process.died())), None)

    def _processes(self) -> list[Process]:
        return [*self.workers, *self.apis]

    def connect(self, name: str, **settings: Any) -> psycopg.Connection[Any]:
        """A connection in the run's schema; settings as of `core.connect`."""
        return connect(self.server.dsn, schema=self.schema, application_name=name, **settings)

    def spawn(self, function: Callable[..., object], *arguments: Any) -> threading.Thread:
        """Run something beside; what it raises makes the run fail."""

        def guarded() -> None:
            try:
                function(*arguments)
            except Stopped:
                pass  # `finish` says so
            except Exception as error:  # noqa: BLE001  # whatever it is, the run is no pass
                if not self.over:
                    line = " ".join(str(error).split()) or type(error).__name__
                    self._incidents.append((Exit.CRASH_OR_USAGE, line))

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def offer(self, arrivals: Sequence[Arrival], name: str = "load", *, max_in_flight: int | None = None) -> Phase:
        """Offer arrivals, whose times count from now, and wait until each was pushed, refused or skipped."""
        origin = self._database_clock.now() + LEAD
        start, first = origin - self.measured.began, len(self.measured.offered)
        self.measured.offered += [(start + arrival.at, arrival) for arrival in arrivals]
        with self.phase(name, start) as phase:
            numbered = list(enumerate(arrivals, first))
            number = len(self.measured.phases)
            self.generators.offer(Share(number, self.measured.began, origin, numbered, max_in_flight))
            while not self.generators.done():
                self.check()
                time.sleep(0.05)
        return phase

    @contextlib.contextmanager
    def phase(self, name: str, start: float | None = None) -> Iterator[Phase]:
        """A named part of the run, from now (or `start`) until the block ends."""
        phase = Phase(name, self.elapsed() if start is None else start)
        self.measured.phases.append(phase)
        try:
            yield phase
        finally:
            phase.until = self.elapsed()

    def fill(self, count: int, duration: Callable[[], float], *, kind: str | None = None, prefix: str = "fill") -> None:
        """Push a backlog at once; each job is in the ledger, none in the latencies. `duration` in seconds."""
        kind = kind or self.scenario.kinds[0]
        with self.connect("loadtest fill", statement_timeout_ms=0) as connection:
            for start in range(0, count, FILL_CHUNK):
                keys = [f"{prefix}-{n}" for n in range(start, min(start + FILL_CHUNK, count))]
                jobs = [NewJob(kind, {"service_seconds": duration()}, key=key) for key in keys]
                with connection.transaction():
                    pushed = Queue(connection).push_many(jobs)
                    ledger.record_pushes(connection, keys, [job.id for job in pushed], kind)

    def wait_drained(self, seconds: float) -> bool:
        """Wait until no job is left, so many seconds at most; whether none was."""
        drained, deadline = threading.Event(), time.monotonic() + seconds

        def look(connection: psycopg.Connection[Any]) -> None:
            if not ledger.active(connection):
                drained.set()

        with self.watching(look, every=0.05):
            while not drained.is_set() and time.monotonic() < deadline:
                self.check()
                drained.wait(0.05)
        return drained.is_set()

    @contextlib.contextmanager
    def watching(self, look: Callable[[psycopg.Connection[Any]], object], *, every: float) -> Iterator[None]:
        """Call `look` every so many seconds while the block runs, beside it.

        Where faults are injected it goes on, over a new connection, when one was lost.
        """
        through = threading.Event()
        watcher = self.spawn(self._watch, look, every, through)
        try:
            yield
        finally:
            through.set()
            watcher.join()

    def _watch(self, look: Callable[[psycopg.Connection[Any]], object], every: float, through: threading.Event) -> None:
        lost = (DatabaseUnavailable, ConnectionLimit, psycopg.OperationalError) if self.settings.faults else ()
        while not (through.is_set() or self.over):
            with contextlib.suppress(*lost), self.connect("loadtest watch") as connection:
                while not (through.is_set() or self.over):
                    look(connection)
                    through.wait(every)
            through.wait(every)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """While the block runs no fault begins or goes on: it waits for one that is due, and those due later wait.

        For what cannot be told from a fault's doing: a count of connections, a lock, a script that sets things up. A
        fault may have come before the block, so that connections of the scenario's own may be lost. Not to be nested.
        """
        with self._due:  # a fault has it from when it is due, so that one block after the other does not keep it out
            pass
        with self._calm:
            yield

    @contextlib.contextmanager
    def disturbing(self) -> Iterator[None]:
        """The other side of `undisturbed`, for faults."""
        with self._due, self._calm:
            yield

    def start_worker(self, *options: str) -> WorkerProcess:
        """Start one more worker; further command line options."""
        self._started["worker"] += 1
        worker = start_worker(
            self._started["worker"],
            app=self.settings.app,
            root=self.settings.root,
            logs=self.directory,
            environment=self.environment(),
            options=("--max-concurrent-jobs", str(self.scenario.slots), "--lease", str(self.scenario.lease), *options),
        )
        self.workers.append(worker)
        return worker

    def start_api(self, token: str, *options: str) -> ApiProcess:
        """Start the REST API with a token that may write, and wait until it serves. Raises `RunError`."""
        self._started["api"] += 1
        api = start_api(
            self._started["api"],
            root=self.settings.root,
            logs=self.directory,
            environment=self.environment() | {"PGQUEUE_API_TOKEN": f"load:write:{token}"},
            options=options,
        )
        self.apis.append(api)
        deadline = time.monotonic() + PATIENCE
        while api.address is None:
            self.check()
            if time.monotonic() > deadline:
                raise RunError(f"{api.name} does not serve after {PATIENCE:.0f} s (see {api.log})")
            time.sleep(0.05)
        return api

    def replace(self, worker: WorkerProcess) -> WorkerProcess:
        """Start a worker in the place of one that was killed."""
        self.workers.remove(worker)
        return self.start_worker()

    def committed(self, numbers: Collection[int]) -> set[int]:
        """Which of these arrivals were pushed."""
        with self.connect("loadtest ledger") as connection:
            keys = ledger.committed(connection, [f"arrival-{number}" for number in numbers])
        return {int(key.removeprefix("arrival-")) for key in keys}

    def found(self, name: str, value: float | None, unit: str, meaning: str) -> None:
        """Note a figure of the scenario's own; objectives name it `found.NAME`."""
        self.measured.found.append({"name": name, "value": value, "unit": unit, "meaning": meaning})

    def plot(
        self, title: str, unit: str, series: Mapping[str, Sequence[tuple[float, float | None]]], **more: Any
    ) -> None:
        """Add a plot to the report: points of named series; `x` (the axis's label), `log`, `note`."""
        lines = [
            {"name": name, "t": [t for t, _ in points], "v": [v for _, v in points]} for name, points in series.items()
        ]
        self.measured.plots.append({"title": title, "unit": unit, "series": lines, **more})

    def start_latency(self, phase: Phase) -> dict[str, float | int | None]:
        """Start latencies (ms) of the arrivals whose instant lies in a phase; for `judge`."""
        within = Latencies("phase", self.scenario.window)
        for at, start, _ in self.measured.latencies:
            if phase.at <= at < phase.until:
                within.record(at, start)
        return within.summary()

    def incident(self, exit_code: Exit, line: str) -> None:
        """Note that something went wrong in the run itself; it is then no pass."""
        self._incidents.append((exit_code, line))

    def _tell_progress(self) -> None:
        last = ledger.Recent()
        while not self.over:
            try:
                with self.connect("loadtest progress") as connection:
                    look = ledger.recent(connection, last)
                if last.at:  # the first look is what the next one counts from
                    self._say_progress(look, last)
                last = look
            except Exception as error:  # noqa: BLE001  # whatever it is, the run goes on and progress with it
                self.say(
                    f"{self.elapsed():5.0f} s  no progress to be seen: {manifest.masked(' '.join(str(error).split()))}"
                )
            self._done.wait(PROGRESS_EVERY)

    def _say_progress(self, look: ledger.Recent, last: ledger.Recent) -> None:
        tally, phases, seconds = self.generators.tally(), self.measured.phases, look.at - last.at
        self.live.append(
            Live(
                t=look.at - self.measured.began,
                phase="draining" if self.ended else phases[-1].name if phases else "",
                pushed=(look.pushed - last.pushed) / seconds,
                finished=(look.effects - last.effects) / seconds,
                start_p99=look.start_p99,
                errors=tally.failures,
                refused=sum(tally.refused.values()),
                sample=self.measured.samples[-1] if self.measured.samples else {},
            )
        )
        self.say(str(self.live[-1]))

    # -- After ----------------------------------------------------------------------------------------

    def finish(self) -> Verdict:
        """Drain, stop the workers, reconcile, judge and write the run directory.

        Raises what the database raises; the exit code then stays `CRASH_OR_USAGE`.
        """
        if not self.ended:
            self._stopped = True
            self._incidents.append((Exit.INVALID, "stopped before the scenario was through"))
            self.measured.arrivals_ended = self.elapsed()
            for phase in self.measured.phases:
                phase.until = min(phase.until, self.measured.arrivals_ended)
        if unborn := len(self.settings.faults) - len(self.measured.faults):
            self._incidents.append((Exit.INVALID, f"the run ended before {unborn} of its faults"))
        elif self.settings.faults:
            self._faults.join()  # the last one may still have the server down
        with self.connect("loadtest", statement_timeout_ms=0) as connection:
            with self._winding_down():
                self._drain(connection)
            self._measure(connection)
            if self.played:  # half a script has not made what it judges; its figures are then not measured
                self.scenario.judge(self)
            self.result = build_result(self.measured)
            verdict = evaluate(
                self.result,
                self.settings.objectives,
                incidents=list(dict.fromkeys(self._incidents)),  # a death may be noticed by several
                faults=bool(self.settings.faults),
            )
            write_run(self.directory, self.measured, self.result, verdict)
            self._clean_up(connection, verdict)
        return verdict

    def abandon(self) -> None:
        """End what runs, at once and without a verdict."""
        self.abandoned = True
        self._done.set()
        for process in self._processes():
            process.kill()

    @contextlib.contextmanager
    def _winding_down(self) -> Iterator[None]:
        """Whatever happens inside, the workers and threads of the run end."""
        try:
            yield
        finally:
            processes = self._processes()
            died = [process.died() for process in processes]
            self._done.set()  # from here on what ends does so because it was asked to
            for process in processes:
                process.ask_to_stop()
            stopped = [process.wait(GRACE + 15, drained=self._drained) for process in processes]
            complaints = [before or after for before, after in zip(died, stopped, strict=True)]
            self._incidents += [(Exit.CRASH_OR_USAGE, line) for line in dict.fromkeys(filter(None, complaints))]
            self._incidents += [(Exit.INVALID, line) for line in self.generators.lost]
            if self._sampler is not None:
                self._sampler.stop()

    def _drain(self, connection: psycopg.Connection[Any]) -> None:
        deadline = time.monotonic() + self.scenario.drain_timeout
        while ledger.active(connection) and time.monotonic() < deadline and self.broken() is None:
            time.sleep(0.1)
        self._drained = not ledger.active(connection)
        self.measured.drained_at = self.elapsed()

    def _measure(self, connection: psycopg.Connection[Any]) -> None:
        measured = self.measured
        measured.ledger = ledger.reconcile(connection)
        faulty = [(measured.began + fault.at, measured.began + fault.until) for fault in measured.faults]
        measured.unexplained = ledger.unexplained(connection, faulty)
        measured.tally = self.generators.tally(measured.request_latencies)
        for intended, start, end in ledger.latencies(connection):
            at = intended - measured.began
            measured.latencies.append((at, start, end))
            measured.start_latency.record(at, start)
            measured.end_latency.record(at, end)
        measured.pushed_per_second = ledger.pushed_per_second(connection, measured.began)
        drift = ledger.DatabaseClock.measure(connection)
        measured.clock_drift = abs(drift.offset - self._database_clock.offset)

    def _clean_up(self, connection: psycopg.Connection[Any], verdict: Verdict) -> None:
        if verdict.passed or self.server.tier != "dsn":
            connection.execute("SET client_min_messages = warning")  # one notice per dropped object says nothing
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))
        else:
            self.say(f"left for inspection: DROP SCHEMA {self.schema} CASCADE;")


def headline(result: dict[str, Any], verdict: Verdict) -> str:
    """The verdict in one line: PASS with its figures, or FAIL with its exit code and every reason."""
    name = result["scenario"]
    if not verdict.passed:
        return f"FAIL {name} (exit {verdict.exit.value}): {'; '.join(verdict.reasons)}"
    completed = result["ledger"]["completed"]
    held = f"{sum(not check.skipped for check in verdict.checks)} objectives held"
    figures = [f"{completed:,} jobs" if completed else held]  # a scenario may only probe
    if result["arrivals"]["offered"]:
        start = result["latency"]["start"]
        figures += [f"{result['arrivals']['achieved_per_second']:.0f}/s"]
        figures += (
            [f"start latency p50 {start['p50_ms']:.1f} ms, p99 {start['p99_ms']:.1f} ms"] if start["count"] else []
        )
    figures += [f"lost {result['ledger']['lost']}, unexpected {result['ledger']['unexpected']}"]
    return f"PASS {name}: {', '.join(figures)}"
