"""The queues, each in a database of its own on one server, taking turns at every scenario. Used by `run`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import fault
import scenarios
from adapters import PEERS, Peer, make
from scenarios import Measurement
from table import ROWS, Results, names

from pgqueue_ref.harness.server import Server


class Rounds(NamedTuple):
    full: int
    quick: int


# By `Row.scenario`, in the order of a round. The rates have bounds as ratios, so they get the most rounds.
SCENARIOS: dict[str, tuple[Callable[[Peer], Measurement], Rounds]] = {
    "push one by one": (scenarios.push_one_by_one, Rounds(5, 2)),
    "bulk push": (scenarios.push_in_bulk, Rounds(5, 2)),
    "drain, 1 process": (scenarios.drain_with_one, Rounds(5, 2)),
    "drain, 2 processes": (scenarios.drain_with_two, Rounds(5, 2)),
    "drain under arrivals": (scenarios.drain_under_arrivals, Rounds(3, 1)),
    "pinned xmin": (scenarios.drain_pinned, Rounds(3, 1)),
    "depth": (scenarios.depth, Rounds(3, 1)),
    "steady": (scenarios.steady, Rounds(3, 1)),
    "fault": (fault.kill_a_worker, Rounds(2, 1)),
}


class Comparison:
    """What was measured is in `results`; `loads` are the machine's load averages meanwhile."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.peers: dict[str, Peer] = {}
        self.results = Results(list(PEERS))
        self.loads: list[float] = []
        self.began = time.monotonic()

    def run(self, *, quick: bool) -> None:
        """Measure everything."""
        try:
            for number, name in enumerate(PEERS):
                self.add(name, f"peer_{number}")
            for turn in range(max(rounds.full for _, rounds in SCENARIOS.values())):
                for scenario, (measure, (full, few)) in SCENARIOS.items():
                    if turn < (few if quick else full):
                        self.measure(scenario, measure, turn)
        finally:
            for peer in self.peers.values():
                with contextlib.suppress(Exception):  # one that failed may have no connection to close
                    peer.close()

    def add(self, name: str, database: str) -> None:
        """Install a queue; one that cannot be installed is left out of everything."""
        try:
            with self.server.connect() as connection:
                connection.execute(f"CREATE DATABASE {database}")
            peer = make(name, urlsplit(self.server.dsn)._replace(path=f"/{database}").geturl())
            peer.open()
        except Exception as error:  # noqa: BLE001 - whatever another queue raises is why its cells are empty
            for scenario in SCENARIOS:
                self.missing(name, scenario, error)
            return
        self.peers[name] = peer
        self.results.missing |= {(name, scenario): why for scenario, why in peer.without.items()}

    def measure(self, scenario: str, measure: Callable[[Peer], Measurement], turn: int) -> None:
        """Once for every queue, slice by slice in turns; another one begins each time."""
        queues = [name for name in self.peers if (name, scenario) not in self.results.missing]
        first = turn % len(queues) if queues else 0
        waiting = {name: measure(self.peers[name]) for name in queues[first:] + queues[:first]}
        while waiting:
            for name in list(waiting):
                self.step(name, scenario, waiting)
        self.loads.append(os.getloadavg()[0])
        for row in names(scenario):
            values = {name: self.results.values.get((name, row), []) for name in queues}
            decimals = next(r.decimals for r in ROWS if r.name == row)
            latest = (f"{name} {got[turn]:,.{decimals}f}" for name, got in values.items() if len(got) > turn)
            print(f"{time.monotonic() - self.began:4.0f} s, round {turn + 1}, {row}: {', '.join(latest)}", flush=True)

    def step(self, name: str, scenario: str, waiting: dict[str, Measurement]) -> None:
        """A queue that fails in a scenario is left out of it from then on; it and the others go on in the rest."""
        try:
            next(waiting[name])
        except StopIteration as done:
            del waiting[name]
            self.results.add(name, done.value)
        except Exception as error:  # noqa: BLE001 - as in `add`
            del waiting[name]
            self.missing(name, scenario, error)

    def missing(self, name: str, scenario: str, error: Exception) -> None:
        line = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {line[0] if line else ''}"
        self.results.missing[name, scenario] = f"not measured: {why}"
        print(f"{name}, {scenario}: not measured: {why}", flush=True)

    def configurations(self) -> str:
        """A line for each queue: its version, how it was set up, and what brings a dead worker's jobs back."""
        return "\n".join(
            f"- *{name}*: {peer.package} {peer.version}: {peer.configuration}. Recovery: {peer.recovery}."
            for name, peer in self.peers.items()
        )
