"""The generators of a run: one in this process, or one in each of Locust's worker processes.

`Solo` and `Fleet` have the same methods; the load run calls them and does not know which it has. A fleet splits the
arrivals of a phase evenly over the load workers that are alive, and when one dies splits what it had not committed over
the rest: the ledger says what was. Locust's `--processes` and `--master/--worker` carry the messages, which hold the
server's DSN: use them between machines only where the network is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from pgqueue_ref.harness.generator import Generator, Setup, Share, Tally, decode, encode
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.traces import Arrival

if TYPE_CHECKING:  # importing Locust patches the standard library; who imports this module may not want that
    from locust.runners import MasterRunner, WorkerRunner

_SETUP, _SHARE, _CLOSE, _DONE = "pgqueue-setup", "pgqueue-share", "pgqueue-close", "pgqueue-done"
_REPORT = "pgqueue"  # the field of Locust's own reports that carries a generator's

NOWHERE: Mapping[str, Latencies] = {}
Committed = Callable[[Collection[int]], Collection[int]]


class Generators(Protocol):
    """What the load run needs of them. `lost` has a line for each load worker that died."""

    lost: list[str]

    def setup(self, setup: Setup, committed: Committed) -> None:
        """Tell them of the run; `committed` tells which arrivals of some are pushed."""

    def offer(self, share: Share) -> None:
        """Begin a phase."""

    def done(self) -> bool:
        """Whether the phase is over; also what notices that a load worker died."""

    def close(self) -> None:
        """Send the producers home."""

    def tally(self, into: Mapping[str, Latencies] = NOWHERE) -> Tally:
        """What they counted; their latencies are added to those in `into`."""


class Solo:
    """One generator, in this process."""

    def __init__(self, started: Callable[[Generator], None]) -> None:
        self.lost: list[str] = []
        self._started = started
        self._generator: Generator

    def setup(self, setup: Setup, committed: Committed) -> None:
        self._generator = Generator(setup)
        self._started(self._generator)

    def offer(self, share: Share) -> None:
        self._generator.offer(share)

    def done(self) -> bool:
        return self._generator.idle

    def close(self) -> None:
        self._generator.close()

    def tally(self, into: Mapping[str, Latencies] = NOWHERE) -> Tally:
        for name, series in into.items():
            series.add(self._generator.latencies[name].encode())
        return self._generator.tally()


class Fleet:
    """One generator in each load worker of a Locust master."""

    def __init__(self, runner: MasterRunner) -> None:
        self.lost: list[str] = []
        self._runner = runner
        self._committed: Committed
        self._setup: Setup | None = None
        self._phase: Share
        self._shares: dict[str, dict[int, Arrival]] = {}
        self._busy: dict[str, int] = {}  # shares that a load worker has not reported done
        self._reports: dict[str, dict[str, Any]] = {}
        runner.register_message(_DONE, self._on_done)
        hooks: Any = runner.environment.events
        hooks.worker_connect.add_listener(self._on_connect)
        hooks.worker_report.add_listener(self._on_report)

    def setup(self, setup: Setup, committed: Committed) -> None:
        self._setup, self._committed = setup, committed
        self._reports.clear()
        self.lost.clear()
        self._runner.send_message(_SETUP, asdict(setup))

    def offer(self, share: Share) -> None:
        self._phase = share
        self._shares, self._busy = {}, {}
        self._deal(share.arrivals)

    def done(self) -> bool:
        for client in [client for client in self._shares if client not in self._alive()]:
            mine = self._shares.pop(client)
            self._busy.pop(client, None)
            committed = set(self._committed(mine))
            rest = [(number, arrival) for number, arrival in mine.items() if number not in committed]
            self.lost.append(f"load worker {client} died; {len(rest)} of its arrivals went to the others")
            self._deal(rest)
        return not self._busy

    def close(self) -> None:
        self._runner.send_message(_CLOSE)

    def tally(self, into: Mapping[str, Latencies] = NOWHERE) -> Tally:
        total = Tally()
        for report in self._reports.values():
            total.add(decode(report, into))
        return total

    def _alive(self) -> Sequence[str]:
        clients = self._runner.clients
        return sorted(node.id for node in [*clients.ready, *clients.spawning, *clients.running])

    def _deal(self, arrivals: Sequence[tuple[int, Arrival]]) -> None:
        alive = self._alive()
        for place, client in enumerate(alive):
            mine = arrivals[place :: len(alive)]
            if mine:
                self._shares.setdefault(client, {}).update(mine)
                self._busy[client] = self._busy.get(client, 0) + 1
                share = self._phase._replace(arrivals=[(number, tuple(arrival)) for number, arrival in mine])  # type: ignore[misc]  # a message has no named tuples
                self._runner.send_message(_SHARE, share._asdict(), client_id=client)

    def _on_connect(self, client_id: str, **_: Any) -> None:
        if self._setup is not None:  # it came, or came back, while a run is on
            self._runner.send_message(_SETUP, asdict(self._setup), client_id=client_id)

    def _on_done(self, environment: Any, msg: Any) -> None:
        self._reports[msg.node_id] = msg.data["report"]
        if msg.node_id in self._busy and msg.data["phase"] == self._phase.phase:
            self._busy[msg.node_id] -= msg.data["shares"]
            if self._busy[msg.node_id] <= 0:
                del self._busy[msg.node_id]

    def _on_report(self, client_id: str, data: dict[str, Any]) -> None:
        if _REPORT in data:
            self._reports[client_id] = data[_REPORT]


def serve(runner: WorkerRunner, started: Callable[[Generator], None], spawn: Callable[..., object]) -> None:
    """The load worker's end: makes a generator when the master says so, and reports when its shares are through."""
    state: dict[str, Any] = {"generator": None, "shares": 0}

    def on_setup(environment: Any, msg: Any) -> None:
        if state["generator"] is not None and asdict(state["generator"].setup) == msg.data:
            return  # told again because others came
        state.update(generator=Generator(Setup(**msg.data)), shares=0)
        started(state["generator"])

    def on_share(environment: Any, msg: Any) -> None:
        arrivals = [(number, Arrival(*arrival)) for number, arrival in msg.data["arrivals"]]
        state["generator"].offer(Share(**msg.data | {"arrivals": arrivals}))
        state["shares"] += 1
        if state["shares"] == 1:
            spawn(report_when_idle, msg.data["phase"])

    def report_when_idle(phase: int) -> None:
        while not state["generator"].idle:
            time.sleep(0.05)
        shares, state["shares"] = state["shares"], 0
        done = {"phase": phase, "shares": shares, "report": encode(state["generator"])}
        runner.send_message(_DONE, done)

    def on_close(environment: Any, msg: Any) -> None:
        if state["generator"] is not None:
            state["generator"].close()

    def on_report(client_id: str, data: dict[str, Any]) -> None:
        if state["generator"] is not None:
            data[_REPORT] = encode(state["generator"])

    # Making a generator waits for the database; Locust would handle no message meanwhile, but in this order.
    runner.register_message(_SETUP, on_setup)
    runner.register_message(_SHARE, on_share)
    runner.register_message(_CLOSE, on_close)
    hooks: Any = runner.environment.events
    hooks.report_to_master.add_listener(on_report)
