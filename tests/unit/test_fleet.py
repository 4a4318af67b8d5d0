"""A fleet's bookkeeping, message by message, between stand-ins for Locust's runners; the real: test_distributed.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import msgpack  # Locust brings it
import psycopg
import pytest
from waiting import until

from pgqueue_ref.harness import fleet, ledger
from pgqueue_ref.harness.fleet import Fleet, FleetError, LoadWorker
from pgqueue_ref.harness.generator import LATENCIES, Generator, Setup, Share, decode, encode
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.traces import Arrival

SETUP = Setup("postgresql://nowhere", "run_1", 1.0, [])


class Events:
    """One of Locust's hooks."""

    def __init__(self) -> None:
        self.listeners: list[Callable[..., None]] = []

    def add_listener(self, listener: Callable[..., None]) -> None:
        self.listeners.append(listener)


class Clients(dict[str, SimpleNamespace]):
    """The master's list of load workers."""

    def __getattr__(self, state: str) -> list[SimpleNamespace]:
        return [node for node in self.values() if node.state == state]


class Runner:
    """What both ends use of Locust's runners. Messages travel as bytes; `sent` has (kind, data, to whom)."""

    def __init__(self) -> None:
        self.state = "ready"
        self.clients = Clients()
        self.environment = SimpleNamespace(events=SimpleNamespace(worker_report=Events(), report_to_master=Events()))
        self.sent: list[tuple[str, Any, str | None]] = []
        self.reply: dict[str, Callable[[], object]] = {}  # what follows a message of a kind at once
        self._listeners: dict[str, Callable[..., None]] = {}

    def register_message(self, kind: str, listener: Callable[..., None]) -> None:
        self._listeners[kind] = listener

    def send_message(self, kind: str, data: Any = None, client_id: str | None = None) -> None:
        self.sent.append((kind, msgpack.loads(msgpack.dumps(data), strict_map_key=False), client_id))
        self.reply.get(kind, lambda: None)()

    def receive(self, kind: str, data: Any = None, node: str = "") -> None:
        self._listeners[kind](environment=None, msg=SimpleNamespace(data=data, node_id=node))

    def taken(self, kind: str) -> list[tuple[Any, str | None]]:
        """The messages of a kind that were sent since the last look."""
        found = [(data, to) for what, data, to in self.sent if what == kind]
        self.sent = [message for message in self.sent if message[0] != kind]
        return found


class Master:
    """A fleet with load workers that answer by hand."""

    def __init__(self) -> None:
        self.runner = Runner()
        self.fleet = Fleet(self.runner)  # type: ignore[arg-type]
        self.committed: set[int] = set()

    def join(self, *names: str, users: int = 2) -> None:
        for name in names:
            self.runner.clients[name] = SimpleNamespace(id=name, state="ready", user_count=users)
            self.runner.receive(fleet._HELLO, node=name)
            self.answer(name)

    def answer(self, name: str, schema: str = SETUP.schema) -> None:
        self.runner.receive(fleet._READY, {"schema": schema}, name)

    def begin(self, *names: str) -> None:
        """Tell load workers of the run; they all answer."""
        for name in names:
            self.runner.clients[name] = SimpleNamespace(id=name, state="ready", user_count=2)
        self.runner.reply[fleet._SETUP] = lambda: [self.answer(name) for name in names]
        self.fleet.setup(SETUP, self._committed)
        del self.runner.reply[fleet._SETUP]
        self.runner.state = "running"

    def _committed(self, numbers: Collection[int]) -> set[int]:
        return self.committed & set(numbers)

    def offer(self, count: int, phase: int = 1) -> dict[str, list[int]]:
        arrivals = [(number, Arrival(number / 10, 0.1, "mail")) for number in range(count)]
        self.fleet.offer(Share(phase, 0.0, 0.0, arrivals))
        return self.dealt()

    def dealt(self) -> dict[str, list[int]]:
        """Who was given which arrivals since the last look."""
        shares: dict[str, list[int]] = {}
        for data, to in self.runner.taken(fleet._SHARE):
            shares.setdefault(str(to), []).extend(number for number, _ in data["arrivals"])
        return shares

    def finish(self, name: str, phase: int = 1, shares: int = 1, schema: str = SETUP.schema, begun: int = 0) -> None:
        report = {"schema": schema, "tally": tally(begun), "latencies": {}}
        self.runner.receive(fleet._DONE, {"phase": phase, "shares": shares, "report": report}, name)


def tally(begun: int) -> dict[str, Any]:
    return {"begun": begun, "errors": {}, "refused": {}, "begun_each": [begun]}


@pytest.fixture
def master() -> Master:
    return Master()


def test_every_arrival_is_dealt_once_and_evenly(master: Master) -> None:
    master.begin("a", "b", "c")
    shares = master.offer(100)
    assert sorted(number for share in shares.values() for number in share) == list(range(100))
    assert sorted(len(share) for share in shares.values()) == [33, 33, 34]


def test_a_phase_is_over_when_every_share_was_reported(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    master.finish("a")
    assert not master.fleet.done()
    master.finish("b", phase=0)  # of the phase before
    assert not master.fleet.done()
    master.finish("b")
    assert master.fleet.done()


def test_what_a_dead_load_worker_had_not_committed_goes_to_the_others(master: Master) -> None:
    master.begin("a", "b", "c")
    shares = master.offer(9)
    master.committed = set(shares["b"][:2])
    for name in ("a", "c"):
        master.finish(name)
    master.runner.clients["b"].state = "missing"
    assert not master.fleet.done()
    again = master.dealt()
    assert [number for share in again.values() for number in share] == shares["b"][2:]
    assert len(master.fleet.lost) == 1
    assert "load worker b died; 1 of its arrivals" in master.fleet.lost[0]
    master.finish(next(iter(again)))
    assert master.fleet.done()


def test_a_share_taken_over_is_one_more_to_report(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    master.runner.clients["b"].state = "missing"
    assert not master.fleet.done()
    assert len(master.dealt()["a"]) == 5
    master.finish("a", shares=1)
    assert not master.fleet.done(), "one of two"
    master.finish("a", shares=1)
    assert master.fleet.done()


def test_one_that_vanished_from_locusts_list_is_dead_too(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    del master.runner.clients["b"]
    master.fleet.done()
    assert len(master.fleet.lost) == 1


def test_nobody_dies_when_locust_empties_its_list_at_the_end(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    master.runner.state = "stopping"
    master.runner.clients.clear()
    master.fleet.done()
    assert master.fleet.lost == []


def test_a_sleeper_that_was_taken_for_dead_is_given_nothing_more(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    master.runner.clients["b"].state = "missing"
    master.fleet.done()
    master.runner.clients["b"].state = "running"
    assert set(master.dealt()) == {"a"}
    assert set(master.offer(10, phase=2)) == {"a"}


def test_when_none_is_left_the_phase_stays_open(master: Master) -> None:
    master.begin("a")
    master.offer(10)
    master.runner.clients["a"].state = "missing"
    assert not master.fleet.done()
    assert master.dealt() == {}
    master.join("b")
    assert not master.fleet.done()
    assert len(master.dealt()["b"]) == 10


def test_a_late_comer_is_told_of_the_run_and_takes_part_from_the_next_phase(master: Master) -> None:
    master.begin("a")
    master.offer(10)
    master.runner.taken(fleet._SETUP)
    master.join("b")
    ((told, to),) = master.runner.taken(fleet._SETUP)
    assert (told["schema"], to) == (SETUP.schema, "b")
    assert master.dealt() == {}
    assert set(master.offer(10, phase=2)) == {"a", "b"}


def test_one_without_producers_or_without_an_answer_is_given_nothing(master: Master) -> None:
    master.begin("a")
    master.join("idle", users=0)
    master.runner.clients["silent"] = SimpleNamespace(id="silent", state="running", user_count=2)
    assert set(master.offer(10)) == {"a"}


def test_a_load_worker_that_cannot_push_ends_the_setup_with_its_reason(master: Master) -> None:
    master.runner.clients["a"] = SimpleNamespace(id="a", state="ready", user_count=0)
    master.runner.reply[fleet._SETUP] = lambda: master.runner.receive(fleet._FAILED, {"line": "no route"}, "a")
    with pytest.raises(FleetError, match="load worker a cannot push: no route"):
        master.fleet.setup(SETUP, set)


def test_a_load_worker_that_does_not_answer_is_named(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_ANSWER", 0.0)
    with pytest.raises(FleetError, match="none is connected"):
        master.fleet.setup(SETUP, set)
    master.runner.clients["a"] = SimpleNamespace(id="a", state="ready", user_count=0)
    master.answer("a", schema="of another run")
    with pytest.raises(FleetError, match="0 s: a"):
        master.fleet.setup(SETUP, set)


def test_a_failure_in_mid_run_is_raised_where_the_run_waits(master: Master) -> None:
    master.begin("a")
    master.offer(10)
    master.runner.receive(fleet._FAILED, {"line": "the server is full"}, "a")
    with pytest.raises(FleetError, match="the server is full"):
        master.fleet.done()


def test_counts_are_sums_and_reports_of_an_earlier_run_do_not_count(master: Master) -> None:
    master.begin("a", "b")
    master.offer(10)
    master.finish("a", begun=6)
    master.finish("b", begun=4)
    master.finish("c", begun=1000, schema="of another run")
    total = master.fleet.tally()
    assert (total.begun, sorted(total.begun_each)) == (10, [4, 6])


def test_an_early_end_sends_everybody_home(master: Master) -> None:
    master.begin("a")
    master.fleet.dismiss()
    assert [kind for kind, _, _ in master.runner.sent if kind == "quit"] == ["quit"]


# -- the other end -------------------------------------------------------------------------------------


@pytest.fixture
def setup(database: str) -> Setup:
    with psycopg.connect(database) as connection:
        ledger.create(connection)
    return Setup(database, "public", 1.0, [])


@pytest.fixture
def station(setup: Setup) -> Iterator[tuple[Runner, LoadWorker, list[Generator]]]:
    """A load worker whose generators have one producer each, in a thread."""
    runner, generators, threads = Runner(), list[Generator](), list[threading.Thread]()

    def spawn(function: Callable[..., object], *arguments: Any) -> None:
        threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        threads[-1].start()

    def produce(generator: Generator) -> None:
        producer = generator.producer()
        while generator.produce(producer, lambda kind, latency, error: None):
            pass
        producer.close()

    def started(generator: Generator) -> None:
        generators.append(generator)
        spawn(produce, generator)

    yield runner, LoadWorker(runner, started, spawn), generators  # type: ignore[arg-type]
    for generator in generators:
        generator.close()
    for thread in threads:
        thread.join(10)


def share(setup: Setup, numbers: range, phase: int = 1) -> dict[str, Any]:
    arrivals = [(number, (0.0, 0.1, "mail")) for number in numbers]
    return Share(phase, time.time(), time.time(), arrivals)._asdict()  # type: ignore[arg-type]


def given(setup: Setup) -> dict[str, Any]:
    return {"dsn": setup.dsn, "schema": setup.schema, "window": setup.window, "tolerated": setup.tolerated}


def test_a_load_worker_says_hello_when_it_listens_and_ready_when_it_can_push(station: Any, setup: Setup) -> None:
    runner, _, generators = station
    assert [kind for kind, _, _ in runner.sent] == [fleet._HELLO]
    for _ in range(2):  # told again, because it said hello when it had been told already
        runner.receive(fleet._SETUP, given(setup))
        assert runner.taken(fleet._READY) == [({"schema": "public"}, None)]
    assert len(generators) == 1


def test_shares_are_pushed_and_reported_with_what_was_measured(station: Any, setup: Setup) -> None:
    runner, _, _ = station
    runner.receive(fleet._SETUP, given(setup))
    runner.receive(fleet._SHARE, share(setup, range(10)))
    runner.receive(fleet._SHARE, share(setup, range(10, 30)))  # of somebody who died
    done: list[dict[str, Any]] = []

    def reported(phase: int) -> int:
        done.extend(data for data, _ in runner.taken(fleet._DONE))
        return sum(data["shares"] for data in done if data["phase"] == phase)

    until(lambda: reported(1) == 2, "both shares are reported")
    runner.receive(fleet._SHARE, share(setup, range(30, 40), phase=2))
    until(lambda: reported(2) == 1, "the next phase is reported")
    last = done[-1]
    merged = {name: Latencies(name, 1.0) for name in LATENCIES}
    total = decode(last["report"], merged)
    assert (total.begun, merged["push"].summary()["count"], total.failures) == (40, 40, 0)
    with psycopg.connect(setup.dsn) as connection:
        assert ledger.committed(connection, [f"arrival-{n}" for n in range(40)]) == {f"arrival-{n}" for n in range(40)}


def test_histograms_of_two_processes_merge_into_the_sum(station: Any, setup: Setup) -> None:
    runner, _, generators = station
    runner.receive(fleet._SETUP, given(setup))
    runner.receive(fleet._SHARE, share(setup, range(5)))
    until(lambda: generators[0].idle, "all is pushed")
    report = msgpack.loads(msgpack.dumps(encode(generators[0])), strict_map_key=False)
    merged = {name: Latencies(name, 1.0) for name in LATENCIES}
    total = decode(report, merged)
    total.add(decode(report, merged))
    assert (total.begun, total.begun_each, merged["push"].summary()["count"]) == (10, [5, 5], 10)
    assert merged["push"].summary()["max_ms"] == generators[0].latencies["push"].summary()["max_ms"]


def test_a_database_that_cannot_be_reached_is_told_in_one_line_without_the_password(station: Any) -> None:
    runner, _, generators = station
    runner.receive(fleet._SETUP, given(Setup("postgresql://u:hunter2@127.0.0.1:1/x", "run_1", 1.0, [])))
    ((told, _),) = runner.taken(fleet._FAILED)
    assert "refused" in told["line"]
    assert "hunter2" not in told["line"]
    assert "\n" not in told["line"]
    assert generators == []
    assert runner.taken(fleet._READY) == []
