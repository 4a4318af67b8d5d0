"""What `--fault` understands, in which order faults come, and that they hit the run's own."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness import faults
from pgqueue_ref.harness.faults import Fault, FaultError, Injected, inject, parse


def test_faults_are_read_in_the_order_of_their_times() -> None:
    assert parse("pause-worker@1m:2.5s, kill-worker@20s,crash-postgres@40") == [
        Fault("kill-worker", 20.0, faults.PAUSE),
        Fault("crash-postgres", 40.0, faults.PAUSE),
        Fault("pause-worker", 60.0, 2.5),
    ]


@pytest.mark.parametrize("text", ["", ",", ",,"])
def test_no_text_is_no_fault(text: str) -> None:
    assert parse(text) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kill-worker", "write KIND@TIME"),
        ("kill-worker@", "write KIND@TIME"),
        ("kill-worker@soon", "write KIND@TIME"),
        ("kill-worker@-3s", "write KIND@TIME"),
        ("kill-worker@1.2.3s", "kill-worker@1.2.3s"),
        ("kill-dba@3s", "KIND one of kill-worker, terminate-backend, crash-postgres, pause-worker"),
        ("kill-worker@3s:4s", "only pause-worker lasts"),
        ("kill-worker@3s;crash-postgres@4s", "write KIND@TIME"),
    ],
)
def test_a_bad_fault_costs_one_line_that_names_it(text: str, says: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("--fault ")
    assert "\n" not in str(caught.value)


class Run:
    """What `inject` needs of a load run; time passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.over = False
        self.said: list[str] = []
        monkeypatch.setattr(faults.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def elapsed(self) -> float:
        return self.now

    def disturbing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def act(run: Run, monkeypatch: pytest.MonkeyPatch, takes: float) -> None:
    for kind in faults.KINDS:
        monkeypatch.setitem(faults._ACTIONS, kind, lambda *_: run._sleep(takes))


def test_each_comes_at_its_time_and_the_next_when_the_one_before_is_through(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    act(run, monkeypatch, takes=4.0)
    done: list[Injected] = []
    inject(run, parse("kill-worker@10s,crash-postgres@12s,kill-worker@30s"), done)  # type: ignore[arg-type]
    assert [(fault.name, fault.at, fault.until) for fault in done] == [
        ("kill-worker", 10.0, 14.0),
        ("crash-postgres", 14.0, 18.0),
        ("kill-worker", 30.0, 34.0),
    ]
    assert run.said == [
        "   10 s  fault: kill-worker, 4.0 s",
        "   14 s  fault: crash-postgres, 4.0 s",
        "   30 s  fault: kill-worker, 4.0 s",
    ]


def test_none_comes_after_the_end_of_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    act(run, monkeypatch, takes=1.0)
    run.over = True
    done: list[Injected] = []
    inject(run, parse("kill-worker@10s"), done)  # type: ignore[arg-type]
    assert (done, run.said) == ([], [])


def test_a_fault_that_fails_is_in_the_record_and_raises(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise FaultError("no worker is connected")

    monkeypatch.setitem(faults._ACTIONS, "terminate-backend", fail)
    done: list[Injected] = []
    with pytest.raises(FaultError):
        inject(run, parse("terminate-backend@1s"), done)  # type: ignore[arg-type]
    assert [fault.name for fault in done] == ["terminate-backend"]


def test_a_worker_that_is_killed_is_excused_and_replaced_by_one_that_works(run: Run) -> None:
    events: list[str] = []

    class Replacement:
        @property
        def started(self) -> bool:
            events.append(f"asked after {run.now:g} s")
            return run.now > 1.07

    def replace(worker: object) -> Replacement:
        events.append(f"replaced after {run.now:g} s, {worker is victim}")
        return Replacement()

    victim = SimpleNamespace(excused=False, kill=lambda: events.append(f"killed, excused {victim.excused}"))
    scenario = SimpleNamespace(random=SimpleNamespace(choice=lambda workers: workers[0]))
    vars(run).update(workers=[victim], scenario=scenario, replace=replace, check=lambda: None)
    inject(run, parse("kill-worker@0s"), [])  # type: ignore[arg-type]
    asked = [f"asked after {seconds} s" for seconds in ("1", "1.05", "1.1")]
    assert events == ["killed, excused True", "replaced after 1 s, True", *asked]


def test_a_line_is_made_anew_when_its_connection_was_lost_and_kept_when_not(database: str) -> None:
    line = faults.Line(lambda: psycopg.connect(database, autocommit=True))
    first = line.connection
    line.renew()
    assert line.connection is first
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10_000)", (first.info.backend_pid,))
    line.renew()
    assert line.connection is not first
    assert line.connection.execute("SELECT 1").fetchone() == (1,)
    line.close()
