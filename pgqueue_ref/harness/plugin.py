"""Puts a load run into Locust: options, the server, the run's beginning and end, the exit code.

Called by loadtests/locustfile.py: `install` at import, then `Session` while Locust runs, headless or with
its web page, alone or as master or worker of several. Locust makes the arrivals and nothing else; it swallows
exceptions of listeners, so each one here ends in one line and an exit code that is a failure until a run was judged.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import gevent
import psycopg
import psycopg.waiting
from gevent import monkey
from locust import events
from locust.env import Environment
from locust.html import get_html_report
from locust.runners import STATE_SPAWNING, MasterRunner, WorkerRunner
from locust.stats import PERCENTILES_TO_REPORT, StatsCSVFileWriter

from pgqueue_ref.core import QueueError
from pgqueue_ref.harness import faults, slo, webui
from pgqueue_ref.harness.faults import FaultError
from pgqueue_ref.harness.fleet import Fleet, FleetError, Generators, LoadWorker, Solo
from pgqueue_ref.harness.generator import Generator
from pgqueue_ref.harness.producer import Producer
from pgqueue_ref.harness.run import LoadRun, RunError, Settings, headline
from pgqueue_ref.harness.scenario import SCENARIOS, Scenario, ScenarioError
from pgqueue_ref.harness.server import ProvisionError, Server, provision
from pgqueue_ref.harness.slo import Exit, SloError, Verdict, summary_file
from pgqueue_ref.harness.traces import TraceError

_USAGE = (
    TraceError, SloError, ScenarioError, FaultError, FleetError, ProvisionError, RunError, QueueError, psycopg.Error
)  # fmt: skip


class Session:
    """One Locust process: a server for as long as it lives, and a run each time a test is started.

    In a load worker of a distributed run there is neither, but the generator that the master's messages make.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run: LoadRun | None = None
        self.aborted = False
        self.settings: Settings
        self._environment: Environment
        self._closing: str | None = None
        self._options: Any
        self._server: Server | None = None
        self._csv: tuple[StatsCSVFileWriter, gevent.Greenlet] | None = None
        self._generator: Generator | None = None
        self._generating = threading.Event()
        self._load_worker: LoadWorker | None = None
        self._finishing: gevent.Greenlet | None = None
        self._begun = False

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

    # -- for Locust's users and shape -----------------------------------------------------------------

    @property
    def producers(self) -> int:
        """How many users to run."""
        return max(1, self.settings.scenario.producers)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to offer, or the run cannot go on."""
        if self.aborted or self.run is None:
            return True
        if (line := self.run.broken()) is not None:
            say(line)
            return True
        return self.run.ended

    def producer(self) -> Producer:
        """A producer of this process's generator."""
        self._generating.wait()
        assert self._generator is not None  # noqa: S101  # for the type checker: the event says that there is one
        return self._generator.producer()

    def produce(self, producer: Producer) -> bool:
        """Push the next arrival when it is due; False once the run has ended."""
        assert self._generator is not None  # noqa: S101  # for the type checker: it made the producer
        return self._generator.produce(producer, self.tell)

    def tell(self, kind: str, latency: float, error: Exception | None) -> None:
        """Show a push in Locust's tables; latency in seconds."""
        hooks: Any = self._environment.events
        hooks.request.fire(
            request_type="push", name=kind, response_time=latency * 1000, response_length=0, exception=error, context={}
        )

    # -- Locust's events ------------------------------------------------------------------------------

    def _on_init(self, environment: Environment, **_: Any) -> None:
        """Check everything that can be checked before anything is started, then find a server."""
        self._environment = environment
        # 0, the default, kills users in the middle of a query when somebody stops the test.
        environment.stop_timeout = environment.stop_timeout or 5.0
        self._options = environment.parsed_options
        if isinstance(environment.runner, WorkerRunner):
            assert_cooperative()
            self._load_worker = LoadWorker(environment.runner, self._on_generator, gevent.spawn)
            return
        environment.process_exit_code = Exit.CRASH_OR_USAGE
        # Before anything that waits: load workers say hello as soon as they listen.
        fleet = Fleet(environment.runner) if isinstance(environment.runner, MasterRunner) else None
        self._generators: Generators = fleet or Solo(self._on_generator)
        try:
            assert_cooperative()
            self.settings = settings_of(self._options, self.root)
            self._server = provision(self._options.postgres, settings=self.settings.scenario.server_settings)
            if self._server.tier == "dsn" and any(fault.kind == "crash-postgres" for fault in self.settings.faults):
                raise FaultError(f"--fault crash-postgres: {self._server.describe()} was not started here")
        except _USAGE as error:
            say(one_line(error))
            sys.exit(Exit.CRASH_OR_USAGE)
        except Exception:  # noqa: BLE001  # Locust would end with 1, which says that requests failed
            traceback.print_exc()
            sys.exit(Exit.CRASH_OR_USAGE)
        if environment.web_ui is not None:
            webui.extend(environment.web_ui, self._options.web_base_path, lambda: self.run)
        # Headless, Locust installs its own handler only after the test; until then SIGTERM would leave
        # orphans.
        gevent.signal_handler(signal.SIGTERM, self._on_sigterm)
        # Python raises KeyboardInterrupt in whatever greenlet runs just then, which ends that one and nothing else.
        gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)

    def _on_generator(self, generator: Generator) -> None:
        self._generator = generator
        self._generating.set()

    def _on_sigterm(self) -> None:
        name = self.settings.scenario.name
        say(f"FAIL {name} (exit {Exit.CRASH_OR_USAGE.value}): ended by SIGTERM, nothing was judged")
        self._generators.dismiss()
        self._end()
        os._exit(Exit.CRASH_OR_USAGE)  # sys.exit() in a greenlet would first let the test end as if it were done

    def _on_test_start(self, environment: Environment, **_: Any) -> None:
        self.aborted = self._begun = False
        if isinstance(environment.runner, WorkerRunner):
            return
        environment.process_exit_code = Exit.CRASH_OR_USAGE
        assert self._server is not None  # noqa: S101  # for the type checker: _on_init provisions or exits
        self._closing = self._finishing = None
        try:
            self.settings = settings_of(self._options, self.root)  # a scenario is played once
            self.run = LoadRun(self.settings, self._server, self._generators, say, self.tell)
            if environment.web_ui is not None and environment.runner is not None:
                # A page that finds it still ready would show its start form again, and look no more.
                environment.runner.update_state(STATE_SPAWNING)
            self.run.prepare()
            writer = StatsCSVFileWriter(environment, PERCENTILES_TO_REPORT, str(self.run.directory / "locust"))
            self._csv = (writer, gevent.spawn(writer))
        except Exception as error:  # noqa: BLE001  # Locust would swallow it and go on with half a run
            self.abort(error)

    def _on_spawned(self, **_: Any) -> None:
        """Also fired when the number of users changes, as when a load worker comes or is replaced."""
        if self.run is not None and not self.aborted and not self._begun:
            self._begun = True
            self.run.begin()

    def abort(self, error: Exception) -> None:
        """Give the run up, with one line; in a load worker, have the master do so."""
        if not self.aborted:
            self.aborted = True
            say(one_line(error))
            if self._load_worker is not None:
                self._load_worker.fail(one_line(error))
            if self.run is not None:
                self.run.abandon()

    def _on_test_stop(self, environment: Environment, **_: Any) -> None:
        if self.run is None or self.aborted:
            return
        # Beside: when its last load worker is gone, Locust stops the test in a greenlet that it kills soon after.
        self._finishing = gevent.spawn(self._finish, environment, self.run)
        self._finishing.join()

    def _finish(self, environment: Environment, run: LoadRun) -> None:
        try:
            self._write_locusts_own_files(environment, run)
            verdict = run.finish()
        except Exception as error:  # noqa: BLE001  # Locust would swallow it; the exit code stays a failure
            self.abort(error)
            return
        environment.process_exit_code = verdict.exit.value
        self._closing = self._closing_words(run, verdict)
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
        if self._finishing is not None:
            self._finishing.join()
        self._end()

    def _end(self) -> None:
        """Leave nothing behind; what still runs ends without a verdict."""
        if self.run is not None and self._closing is None:
            self.aborted = True
            self.run.abandon()
        if self._server is not None:
            self._server.close()

    def _on_quit(self, exit_code: int, **_: Any) -> None:
        """After Locust's own tables, so that the verdict is the last thing on the terminal."""
        if isinstance(self._environment.runner, WorkerRunner):
            return
        if self._closing is not None:
            if self._options.headless:
                say(self._closing)
        elif exit_code:
            say(f"FAIL {self._options.scenario} (exit {exit_code}): no run was finished and judged")


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
    option(
        "--scenario", metavar="NAME", default="steady", help=f"one of {', '.join(sorted(SCENARIOS))} (default steady)"
    )
    option("--quick", action="store_true", help="about a minute instead of the full profile")
    option(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter of the scenario, such as rate=200 or workers=4; may be given more than once",
    )
    option("--seed", type=int, default=1, help="of everything that is left to chance (default 1)")
    option(
        "--fault",
        metavar="KIND@TIME",
        default="",
        help=f"e.g. kill-worker@20s,pause-worker@40s:15s; {', '.join(faults.KINDS)}",
    )
    option("--trace", metavar="FILE", default=None, help="steady: SWF or CSV (at,duration,kind); default: the NASA log")
    option("--trace-from", metavar="TIME", default=None, help="steady: begin there in the trace, e.g. 56d")
    option("--trace-to", metavar="TIME", default=None, help="steady: end there in the trace, e.g. 84d")
    option("--speedup", type=float, default=None, help="steady: divide arrival times by this, instead of --set seconds")
    option("--duration-scale", type=float, default=None, help="steady: multiply durations (default: 1 / speedup)")
    option("--slo", metavar="FILE", default=None, help="objectives (default: loadtests/slo.toml)")
    option("--runs", metavar="DIR", default="runs", help="where run directories go (default: runs)")
    option("--summary", metavar="FILE", default=None, help="also write the figures there as JSON")


def settings_of(options: argparse.Namespace, root: Path) -> Settings:
    """Read and check everything the options name. Raises one-line errors."""
    summary = summary_file(options.summary) if options.summary else None
    scenario = scenario_of(options)
    if summary is not None and not summary.absolute().parent.is_dir():
        raise RunError(f"--summary {summary}: there is no such directory; make it first")
    wanted = faults.parse(f"{scenario.faults},{options.fault}")
    scenario.prepare(options)
    return Settings(
        scenario=scenario,
        objectives=slo.load(options.slo or root / "loadtests" / "slo.toml", scenario.name),
        app="loadtests._handlers:kinds",
        root=root,
        runs=Path(options.runs),
        faults=wanted,
        summary=summary,
    )


def scenario_of(options: argparse.Namespace) -> Scenario:
    """The scenario with its parameters. Raises `ScenarioError`."""
    if options.scenario not in SCENARIOS:
        raise ScenarioError(
            f"--scenario {options.scenario}: there is none of that name, only {', '.join(sorted(SCENARIOS))}"
        )
    overrides = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ScenarioError(f"--set {text}: write NAME=VALUE, such as rate=200")
        overrides[name] = value
    return SCENARIOS[options.scenario](quick=options.quick, overrides=overrides, seed=options.seed)
