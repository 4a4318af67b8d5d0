"""The generators of a run: one in this process, or one in each of Locust's worker processes.

`Solo` and `Fleet` have the same methods; the load run calls them and does not know which it has. A fleet splits the
arrivals of a phase evenly over the load workers that are alive and have producers. When one dies, what it had not
committed is split over the rest: the ledger says what was, and refuses a second push of the same arrival should the
dead one only have been asleep. Nothing is lost then but what it measured since its last report, so that the run is
invalid all the same: `lost` says so. Locust's `--processes` and `--master/--worker` carry the messages, which hold the
server's DSN: use them between machines only where the network is trusted.

A load worker says hello when it listens, is told of the run, makes its generator and says that it is ready; only then
it is given arrivals. One that comes while a run is on takes part from the next phase.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from pgqueue_ref.harness.generator import Generator, Setup, Share, Tally, decode, encode
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.traces import Arrival

if TYPE_CHECKING:  # importing Locust patches the standard library, which is for the plugin to do
    from locust.runners import MasterRunner, WorkerRunner

# From a load worker.
_HELLO, _READY, _FAILED, _DONE = "pgqueue-hello", "pgqueue-ready", "pgqueue-failed", "pgqueue-done"
# From the master.
_SETUP, _SHARE, _CLOSE = "pgqueue-setup", "pgqueue-share", "pgqueue-close"
_REPORT = "pgqueue"  # the field of Locust's own reports that carries a generator's
_ANSWER = 30.0  # seconds that a load worker may take to connect to the database and say so

NOWHERE: Mapping[str, Latencies] = {}
Committed = Callable[[Collection[int]], Collection[int]]


class FleetError(RuntimeError):
    """A load worker cannot take part. Its text is one line for people."""


class Generators(Protocol):
    """What the load run needs of them. `lost` has a line for each load worker that died."""

    lost: list[str]

    def setup(self, setup: Setup, committed: Committed) -> None:
        """Tell them of the run, and return when they can push; `committed` tells which arrivals of some are pushed.

        Raises `FleetError`.
        """

    def offer(self, share: Share) -> None:
        """Begin a phase."""

    def done(self) -> bool:
        """Whether the phase is over; also what notices that a load worker died. Raises `FleetError`."""

    def close(self) -> None:
        """Send the producers home."""

    def dismiss(self) -> None:
        """End the load workers, because this process ends out of turn."""

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

    def dismiss(self) -> None:
        """Nobody is there but this process."""

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
        self._ready: set[str] = set()  # load workers that have a generator of this run
        self._dead: set[str] = set()  # that died in this run; one that turns out to live is given nothing more
        self._complaint: str | None = None  # of a load worker that cannot push
        self._undealt: list[tuple[int, Arrival]] = []
        self._shares: dict[str, dict[int, Arrival]] = {}
        self._busy: dict[str, int] = {}  # shares that a load worker has not reported done
        self._reports: dict[str, dict[str, Any]] = {}
        for name, listener in (
            (_HELLO, self._on_hello), (_READY, self._on_ready), (_FAILED, self._on_failed), (_DONE, self._on_done)
        ):  # fmt: skip
            runner.register_message(name, listener)
        hooks: Any = runner.environment.events
        hooks.worker_report.add_listener(self._on_report)

    def setup(self, setup: Setup, committed: Committed) -> None:
        self._setup, self._committed, self._complaint = setup, committed, None
        for of_the_last_run in (self.lost, self._ready, self._dead, self._undealt, self._shares, self._busy):
            of_the_last_run.clear()
        self._reports.clear()
        self._runner.send_message(_SETUP, asdict(setup))
        deadline = time.monotonic() + _ANSWER
        while not (connected := set(self._connected())) or not connected <= self._ready:
            self._check()
            if time.monotonic() > deadline:
                silent = ", ".join(sorted(connected - self._ready)) or "none is connected"
                raise FleetError(f"load workers did not answer within {_ANSWER:.0f} s: {silent}")
            time.sleep(0.02)

    def offer(self, share: Share) -> None:
        self._bury()
        self._phase = share
        self._shares, self._busy, self._undealt = {}, {}, list(share.arrivals)
        self._deal()

    def done(self) -> bool:
        self._check()
        self._bury()
        self._deal()
        return not self._busy and not self._undealt

    def close(self) -> None:
        self._bury()
        self._runner.send_message(_CLOSE)

    def dismiss(self) -> None:
        self._runner.send_message("quit")  # Locust's own
        time.sleep(0.2)  # or it would not have left yet

    def tally(self, into: Mapping[str, Latencies] = NOWHERE) -> Tally:
        total = Tally()
        for report in self._reports.values():
            total.add(decode(report, into))
        return total

    def _check(self) -> None:
        if self._complaint is not None:
            raise FleetError(self._complaint)

    def _connected(self) -> Sequence[str]:
        """The load workers that Locust hears of. It takes them off its list one by one when it stops a test."""
        clients = self._runner.clients
        return sorted(node.id for node in [*clients.ready, *clients.spawning, *clients.running])

    def _staffed(self) -> Sequence[str]:
        """Those that can push: they have a generator, and users who ask it for arrivals."""
        clients = self._runner.clients
        return [node for node in self._connected() if node in self._ready - self._dead and clients[node].user_count]

    def _bury(self) -> None:
        """Take what load workers that died had not pushed, to deal it anew."""
        clients = self._runner.clients
        missing = {node.id for node in clients.missing}
        if self._runner.state in ("ready", "spawning", "running"):
            missing |= self._ready - set(clients)  # gone without a word, and not because the test ends
        for client in sorted(missing & self._ready - self._dead):
            self._dead.add(client)
            self._busy.pop(client, None)
            mine = self._shares.pop(client, {})
            committed = set(self._committed(mine)) if mine else set()
            rest = [(number, arrival) for number, arrival in mine.items() if number not in committed]
            self._undealt += rest
            self.lost.append(f"load worker {client} died; {len(rest)} of its arrivals were left to others")

    def _deal(self) -> None:
        """Split what is to be dealt over those who can push; without any it stays where it is."""
        staffed = self._staffed()
        if not self._undealt or not staffed:
            return
        arrivals, self._undealt = self._undealt, []
        for place, client in enumerate(staffed):
            mine = arrivals[place :: len(staffed)]
            if mine:
                self._shares.setdefault(client, {}).update(mine)
                self._busy[client] = self._busy.get(client, 0) + 1
                share = self._phase._replace(arrivals=[(number, tuple(arrival)) for number, arrival in mine])  # type: ignore[misc]  # a message has no named tuples
                self._runner.send_message(_SHARE, share._asdict(), client_id=client)

    def _on_hello(self, environment: Any, msg: Any) -> None:
        if self._setup is not None:  # it came while a run is on, or came back
            self._runner.send_message(_SETUP, asdict(self._setup), client_id=msg.node_id)

    def _on_ready(self, environment: Any, msg: Any) -> None:
        if self._setup is not None and msg.data["schema"] == self._setup.schema:
            self._ready.add(msg.node_id)

    def _on_failed(self, environment: Any, msg: Any) -> None:
        self._complaint = f"load worker {msg.node_id} cannot push: {msg.data['line']}"

    def _on_done(self, environment: Any, msg: Any) -> None:
        self._note(msg.node_id, msg.data["report"])
        if msg.node_id in self._busy and msg.data["phase"] == self._phase.phase:
            self._busy[msg.node_id] -= msg.data["shares"]
            if self._busy[msg.node_id] <= 0:
                del self._busy[msg.node_id]

    def _on_report(self, client_id: str, data: dict[str, Any]) -> None:
        if _REPORT in data:
            self._note(client_id, data[_REPORT])

    def _note(self, client: str, report: dict[str, Any]) -> None:
        if self._setup is not None and report["schema"] == self._setup.schema:  # not of the run before
            self._reports[client] = report


class LoadWorker:
    """The load worker's end: makes a generator when the master says so, and reports when its shares are through.

    `started` is given each generator; `spawn` runs a function beside.
    """

    def __init__(
        self, runner: WorkerRunner, started: Callable[[Generator], None], spawn: Callable[..., object]
    ) -> None:
        self._runner = runner
        self._started = started
        self._spawn = spawn
        self._generator: Generator | None = None
        self._shares = 0  # that were not reported done
        # Making a generator waits for the database. Locust handles one message after the other, which is what keeps
        # shares behind the setup that they need.
        runner.register_message(_SETUP, self._on_setup)
        runner.register_message(_SHARE, self._on_share)
        runner.register_message(_CLOSE, self._on_close)
        hooks: Any = runner.environment.events
        hooks.report_to_master.add_listener(self._on_report)
        runner.send_message(_HELLO)  # a setup that came before now found nobody who listens

    def fail(self, line: str) -> None:
        """Tell the master that nothing can be pushed from here, and why."""
        self._runner.send_message(_FAILED, {"line": line})

    def _on_setup(self, environment: Any, msg: Any) -> None:
        setup = Setup(**msg.data)
        if self._generator is None or self._generator.setup != setup:  # else it is told again because it said hello
            try:
                self._generator, self._shares = Generator(setup), 0
            except Exception as error:  # noqa: BLE001  # Locust would log it and wait for ever
                self.fail(" ".join(str(error).split()) or type(error).__name__)
                return
            self._started(self._generator)
        self._runner.send_message(_READY, {"schema": setup.schema})

    def _on_share(self, environment: Any, msg: Any) -> None:
        assert self._generator is not None  # noqa: S101  # for the type checker: only who is ready is dealt any
        arrivals = [(number, Arrival(*arrival)) for number, arrival in msg.data["arrivals"]]
        self._generator.offer(Share(**msg.data | {"arrivals": arrivals}))
        self._shares += 1
        if self._shares == 1:
            self._spawn(self._report_when_idle, self._generator, msg.data["phase"])

    def _report_when_idle(self, generator: Generator, phase: int) -> None:
        while generator is self._generator and not generator.idle:
            time.sleep(0.05)
        if generator is self._generator:
            shares, self._shares = self._shares, 0
            self._runner.send_message(_DONE, {"phase": phase, "shares": shares, "report": encode(generator)})

    def _on_close(self, environment: Any, msg: Any) -> None:
        if self._generator is not None:
            self._generator.close()

    def _on_report(self, client_id: str, data: dict[str, Any]) -> None:
        if self._generator is not None:
            data[_REPORT] = encode(self._generator)
