"""Puts a load run into Locust: options, the server, the run's beginning and end, the exit code.

Called by loadtests/locustfile.py: `install` at import, then `Session` while Locust runs, headless or with
its web page. Locust makes the arrivals and nothing else; it swallows exceptions of listeners, so each one
here ends in one line and an exit code that is a failure until a run was judged.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
import psycopg
import psycopg.waiting
from gevent import monkey
from locust import events
from locust.env import Environment
from locust.html import get_html_report
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import PERCENTILES_TO_REPORT, StatsCSVFileWriter

from pgqueue_ref.core import QueueError
from pgqueue_ref.harness import slo, traces
from pgqueue_ref.harness.run import LoadRun, RunError, Settings, headline
from pgqueue_ref.harness.server import ProvisionError, Server, provision
from pgqueue_ref.harness.slo import Exit, SloError, Verdict
from pgqueue_ref.harness.traces import TraceError

SCENARIO = "steady"
# The four busiest weeks of the shipped log: 7,552 jobs, so that a minute asks 126 jobs/s on average and
# several hundred in its bursts of two cores that also run the server, the workers and the generator.
SHIPPED_WINDOW = ("56d", "84d")

_USAGE = (TraceError, SloError, ProvisionError, RunError, QueueError, psycopg.Error)


class Session:
    """One Locust process: a server for as long as it lives, and a run each time a test is started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run: LoadRun | None = None
        self.aborted = False
        self._closing: str | None = None
        self.in_flight = 0  # users that are with an arrival or wait for one
        self._options: Any
        self._settings: Settings
        self._server: Server | None = None
        self._csv: tuple[StatsCSVFileWriter, gevent.Greenlet] | None = None

    def listen(self) -> None:
        """Register with Locust's events."""
        hooks: Any = events  # Locust's own hooks are not annotated
        hooks.init_command_line_parser.add_listener(lambda parser, **_: add_options(parser))
        hooks.init.add_listener(self._on_init)
        hooks.test_start.add_listener(self._on_test_start)
        hooks.spawning_complete.add_listener(self._on_spawned)
        hooks.test_stop.add_listener(self._on_test_stop)
        hooks.quitting.add_listener(self._on_quitting)
        hooks.quit.add_listener(self._on_quit)

    @property
    def producers(self) -> int:
        """How many users to run."""
        return self._settings.producers

    @property
    def ended(self) -> bool:
        """Whether nothing is left to offer, or the run cannot go on."""
        if self.aborted or self.run is None:
            return True
        if (line := self.run.broken()) is not None:
            say(line)
            return True
        counts = self.run.clock.counts
        return counts.begun + counts.skipped >= counts.offered and self.in_flight == 0

    def _on_init(self, environment: Environment, **_: Any) -> None:
        """Check everything that can be checked before anything is started, then find a server."""
        environment.process_exit_code = Exit.CRASH_OR_USAGE
        # 0, the default, kills users in the middle of a query when somebody stops the test.
        environment.stop_timeout = environment.stop_timeout or 5.0
        self._options = environment.parsed_options
        try:
            if isinstance(environment.runner, MasterRunner | WorkerRunner):
                raise RunError("this scenario runs in one Locust process; leave out --master, --worker, --processes")
            assert_cooperative()
            self._settings = settings_of(self._options, self.root)
            self._server = provision(self._options.postgres)
        except _USAGE as error:
            say(one_line(error))
            sys.exit(Exit.CRASH_OR_USAGE)
        # Headless, Locust installs its own handler only after the test; until then SIGTERM would leave
        # orphans.
        gevent.signal_handler(signal.SIGTERM, self._on_sigterm)
        # Python raises KeyboardInterrupt in whatever greenlet runs just then, which ends that one and nothing else.
        gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)

    def _on_sigterm(self) -> None:
        say(f"FAIL {SCENARIO} (exit {Exit.CRASH_OR_USAGE.value}): ended by SIGTERM, nothing was judged")
        self._on_quitting()
        os._exit(Exit.CRASH_OR_USAGE)  # sys.exit() in a greenlet would first let the test end as if it were done

    def _on_test_start(self, environment: Environment, **_: Any) -> None:
        environment.process_exit_code = Exit.CRASH_OR_USAGE
        assert self._server is not None  # noqa: S101  # for the type checker: _on_init provisions or exits
        self.aborted, self._closing, self.in_flight = False, None, 0
        try:
            self.run = LoadRun(self._settings, self._server, say)
            self.run.prepare()
            writer = StatsCSVFileWriter(environment, PERCENTILES_TO_REPORT, str(self.run.directory / "locust"))
            self._csv = (writer, gevent.spawn(writer))
        except _USAGE as error:
            self.abort(error)

    def _on_spawned(self, **_: Any) -> None:
        if self.run is not None and not self.aborted:
            self.run.begin()

    def abort(self, error: Exception) -> None:
        """Give the run up, with one line."""
        if not self.aborted:
            self.aborted = True
            say(one_line(error))
            if self.run is not None:
                self.run.abandon()

    def _on_test_stop(self, environment: Environment, **_: Any) -> None:
        if self.run is None or self.aborted:
            return
        try:
            self._write_locusts_own_files(environment, self.run)
            verdict = self.run.finish()
        except Exception as error:  # noqa: BLE001  # Locust would swallow it; the exit code stays a failure
            self.abort(error)
            return
        environment.process_exit_code = verdict.exit.value
        self._closing = self._closing_words(self.run, verdict)
        if not self._options.headless:
            say(self._closing)

    def _closing_words(self, run: LoadRun, verdict: Verdict) -> str:
        return f"{headline(run.result, verdict)}\nreport: {run.directory / 'report.html'}"

    def _write_locusts_own_files(self, environment: Environment, run: LoadRun) -> None:
        render: Any = get_html_report  # not annotated
        html: str = render(environment, show_download_link=False)
        (run.directory / "locust.html").write_text(html, encoding="utf-8")
        if self._csv is not None:
            writer, greenlet = self._csv
            greenlet.kill()
            writer.close_files()

    def _on_quitting(self, **_: Any) -> None:
        """Also reached on SIGTERM, when no test_stop comes: then what runs ends without a verdict."""
        if self.run is not None and self._closing is None:
            self.aborted = True
            self.run.abandon()
        if self._server is not None:
            self._server.close()

    def _on_quit(self, exit_code: int, **_: Any) -> None:
        """After Locust's own tables, so that the verdict is the last thing on the terminal."""
        if self._closing is not None:
            if self._options.headless:
                say(self._closing)
        elif exit_code:
            say(f"FAIL {SCENARIO} (exit {exit_code}): no run was finished and judged")


def install(root: Path) -> Session:
    """Register a session whose handlers and SLO file are under `root`/loadtests."""
    session = Session(root)
    session.listen()
    return session


def say(text: str) -> None:
    """A line for people, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def one_line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def assert_cooperative() -> None:
    """Refuse to run where psycopg would block every user while one of them waits.

    psycopg looks once, at import, whether gevent has patched `select`. Raises `RunError`.
    """
    blocking = getattr(psycopg.waiting, "wait_c", None)
    if not monkey.is_module_patched("select") or (blocking is not None and psycopg.waiting.wait is blocking):
        raise RunError("psycopg was imported before gevent patched the library; start with `locust -f loadtests`")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The load run's options, in Locust's own command line."""
    group = parser.add_argument_group("pgqueue_ref load run")

    def option(name: str, **keywords: Any) -> None:
        group.add_argument(name, **keywords)

    option(
        "--postgres",
        metavar="SPEC",
        default=os.environ.get("PGQUEUE_DATABASE_URL") or "auto",
        help="auto, docker[:IMAGE], embedded[:16|:18], local[:PATH] or a DSN; else PGQUEUE_DATABASE_URL, else auto",
    )
    option("--trace", metavar="FILE", default=None, help="SWF or CSV (at,duration,kind); default: the shipped NASA log")
    option("--trace-from", metavar="TIME", default=None, help="begin there in the trace, e.g. 56d")
    option("--trace-to", metavar="TIME", default=None, help="end there in the trace, e.g. 84d")
    option("--fit", metavar="SECONDS", type=float, default=60.0, help="let the trace pass in this time (default 60)")
    option("--speedup", type=float, default=None, help="divide arrival times by this, instead of --fit")
    option("--duration-scale", type=float, default=None, help="multiply durations (default: 1 / speedup)")
    option("--queue-workers", type=int, default=2, help="worker processes (default 2)")
    option("--slots", type=int, default=32, help="concurrent jobs per worker process (default 32)")
    option("--producers", type=int, default=32, help="connections that push (default 32)")
    option(
        "--drain-timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="how long the backlog may take (default 60)",
    )
    option("--slo", metavar="FILE", default=None, help="objectives (default: loadtests/slo.toml)")
    option("--runs", metavar="DIR", default="runs", help="where run directories go (default: runs)")
    option("--summary", metavar="FILE", default=None, help="also write the figures there as JSON")


def settings_of(options: argparse.Namespace, root: Path) -> Settings:
    """Read and check everything the options name. Raises `TraceError`, `SloError` or `RunError`."""
    for name in ("queue_workers", "slots", "producers"):
        if getattr(options, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")
    for name in ("fit", "drain_timeout"):
        value = getattr(options, name)
        if not (value > 0 and math.isfinite(value)):
            raise RunError(f"--{name.replace('_', '-')} must be a positive number of seconds, not {value:g}")
    summary = Path(options.summary) if options.summary else None
    if summary is not None and not summary.absolute().parent.is_dir():
        raise RunError(f"--summary {summary}: there is no such directory; make it first")
    trace, source = trace_of(options)
    return Settings(
        scenario=SCENARIO,
        trace=trace,
        trace_source=source,
        objectives=slo.load(options.slo or root / "loadtests" / "slo.toml", SCENARIO),
        app="loadtests._handlers:kinds",
        root=root,
        runs=Path(options.runs),
        workers=options.queue_workers,
        slots=options.slots,
        producers=options.producers,
        drain_timeout=options.drain_timeout,
        summary=summary,
    )


def trace_of(options: argparse.Namespace) -> tuple[traces.Trace, str]:
    """The trace, cut and scaled, and in words what was done to it. Raises `TraceError`."""
    window = (options.trace_from, options.trace_to)
    if options.trace is None and window == (None, None):
        window = SHIPPED_WINDOW
    whole = traces.load(options.trace or traces.SHIPPED)
    start = traces.seconds(window[0]) if window[0] else 0.0
    end = traces.seconds(window[1]) if window[1] else math.inf
    cut = traces.window(whole, start, end)
    length = min(end, whole.span) - start
    speedup = options.speedup if options.speedup is not None else max(length, 1e-9) / options.fit
    duration_scale = options.duration_scale if options.duration_scale is not None else 1 / speedup if speedup else 0.0
    scaled = traces.scale(cut, speedup=speedup, duration_scale=duration_scale)
    part = f"from {window[0] or 'the start'} to {window[1] or 'the end'}" if any(window) else "whole"
    durations = f"times {duration_scale:.3g}" if options.duration_scale is not None else "alike"
    return scaled, f"{whole.name} {part}, {speedup:,.6g} times as fast, durations scaled {durations}"
