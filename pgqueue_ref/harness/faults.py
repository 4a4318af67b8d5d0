"""Faults that a load run injects: `--fault kill-worker@20s,crash-postgres@40s,pause-worker@50s:15s`.

Each comes at its time from the start of the load, or as soon as the one before is over and the scenario is not in the
midst of what a fault would make meaningless (`LoadRun.undisturbed`). What dies is replaced a second later, as a
supervisor would; that is over when the replacement works. The run then judges the queue by what must survive: nothing
lost, nothing unexpected, and no job run twice unless a fault lies between its first start and its last end. Called by
the load run, in a greenlet of its own.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import psycopg

from pgqueue_ref.harness.traces import TraceError, seconds

if TYPE_CHECKING:
    from pgqueue_ref.harness.run import LoadRun

KINDS = ("kill-worker", "terminate-backend", "crash-postgres", "pause-worker")
REPLACED_AFTER = 1.0  # seconds
PAUSE = 15.0  # seconds, unless given
# What pushes and probes may meet while a fault lasts; they try again.
TOLERATED = ("DatabaseUnavailable", "ConnectionLimit")


class FaultError(ValueError):
    """A fault that cannot be injected. Its text is one line for people."""


class Fault(NamedTuple):
    """What, when, and for how long; seconds from the start of the load."""

    kind: str
    at: float
    lasts: float


@dataclass(slots=True)
class Injected:
    """A fault that happened; `at` and `until` in seconds from the start of the run."""

    name: str
    at: float
    until: float


class Line:
    """A connection of a scenario's own, which a fault may end: `connect` makes it, `renew` makes a lost one anew."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self.connection = connect()

    def renew(self) -> None:
        """For the start of an undisturbed block: what was lost before shows only when it is used."""
        try:
            self.connection.execute("SELECT")
        except psycopg.OperationalError:
            self.connection = self._connect()

    def close(self) -> None:
        """Give it back."""
        self.connection.close()


def parse(text: str) -> list[Fault]:
    """Read the option. Raises `FaultError`."""
    faults = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([a-z-]+)@([\d.]+[smh]?)(?::([\d.]+[smh]?))?", part.strip())
        if match is None or match[1] not in KINDS:
            kinds = ", ".join(KINDS)
            raise FaultError(f"--fault {part.strip()}: write KIND@TIME, KIND one of {kinds}, e.g. pause-worker@50s:15s")
        if match[3] is not None and match[1] != "pause-worker":
            raise FaultError(f"--fault {part.strip()}: only pause-worker lasts for a given time")
        try:
            at, lasts = seconds(match[2]), seconds(match[3]) if match[3] else PAUSE
        except TraceError as error:
            raise FaultError(f"--fault {part.strip()}: {error}") from error
        faults.append(Fault(match[1], at, lasts))
    return sorted(faults, key=lambda fault: fault.at)


def inject(run: LoadRun, faults: Sequence[Fault], done: list[Injected]) -> None:
    """Inject each at its time, appending it to `done` when it begins."""
    for fault in faults:
        time.sleep(max(0.0, fault.at - run.elapsed()))
        with run.disturbing():
            if run.over:
                return
            began = run.elapsed()
            injected = Injected(fault.kind, began, began + fault.lasts)
            done.append(injected)
            _ACTIONS[fault.kind](run, fault)
            injected.until = run.elapsed()
        run.say(f"{began:5.0f} s  fault: {fault.kind}, {injected.until - began:.1f} s")


def _kill_worker(run: LoadRun, _: Fault) -> None:
    victim = run.scenario.random.choice(run.workers)
    victim.excused = True
    victim.kill()
    time.sleep(REPLACED_AFTER)
    replacement = run.replace(victim)
    while not replacement.started:  # a worker that starts into the next fault would end at once, as it should
        run.check()
        time.sleep(0.05)


def _pause_worker(run: LoadRun, fault: Fault) -> None:
    victim = run.scenario.random.choice(run.workers)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        time.sleep(fault.lasts)
    finally:
        os.kill(victim.pid, signal.SIGCONT)


# A worker's connections call themselves pgqueue_ref:claim, :write and :listen. By their ports, so that on a server that
# others use too only this run's workers are hit.
_TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name LIKE 'pgqueue_ref:%%' AND client_port = ANY(%s) ORDER BY random() LIMIT 1
"""


def _terminate_backend(run: LoadRun, _: Fault) -> None:
    connections = [c for worker in run.workers for c in psutil.Process(worker.pid).net_connections("tcp")]
    with run.connect("loadtest fault") as connection:
        if connection.execute(_TERMINATE, ([c.laddr.port for c in connections],)).fetchone() is None:
            raise FaultError("terminate-backend: no worker is connected over TCP")


def _crash_postgres(run: LoadRun, _: Fault) -> None:
    run.server.kill()
    time.sleep(REPLACED_AFTER)
    run.server.start()


_ACTIONS = {
    "kill-worker": _kill_worker,
    "pause-worker": _pause_worker,
    "terminate-backend": _terminate_backend,
    "crash-postgres": _crash_postgres,
}
