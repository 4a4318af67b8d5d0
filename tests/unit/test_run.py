"""What a load run does for its scenario: it watches through a fault, and notes what fails beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from waiting import until

from pgqueue_ref.harness import faults
from pgqueue_ref.harness.run import LoadRun, RunError, Settings, Stopped
from pgqueue_ref.harness.scenario import Scenario
from pgqueue_ref.harness.slo import Exit

Connection = psycopg.Connection[Any]


@pytest.fixture
def run_of(database: str, tmp_path: Path) -> Callable[..., LoadRun]:
    """`run_of(faults)`: a run on the test's database, with nothing begun."""

    def run_of(text: str = "") -> LoadRun:
        settings = Settings(Scenario(quick=True), [], "", tmp_path, tmp_path, faults=faults.parse(text))
        return LoadRun(settings, SimpleNamespace(dsn=database), None, print)  # type: ignore[arg-type]

    return run_of


class Looks:
    """Counts what `watching` calls, and cuts the connection of the third look."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, connection: Connection) -> None:
        self.pids.append(connection.info.backend_pid)
        cut = "SELECT pg_terminate_backend(pg_backend_pid())" if len(self.pids) == 3 else "SELECT 1"
        connection.execute(cut)


def test_where_faults_are_injected_a_watcher_goes_on_over_a_new_connection(run_of: Any) -> None:
    run, looks = run_of("kill-worker@1h"), Looks()
    with run.watching(looks, every=0.001):
        until(lambda: len(looks.pids) >= 6, "it looks again after the cut")
    assert len(set(looks.pids)) == 2
    assert run._incidents == []


def test_elsewhere_a_lost_connection_is_an_incident_and_the_watch_is_over(run_of: Any) -> None:
    run, looks = run_of(), Looks()
    with run.watching(looks, every=0.001):
        until(lambda: run._incidents, "the loss is noted")
    ((code, line),) = run._incidents
    assert code is Exit.CRASH_OR_USAGE
    assert "terminating connection" in line
    assert len(looks.pids) == 3


def test_a_watch_ends_with_its_block_also_when_that_raises(run_of: Any) -> None:
    looks: list[int] = []

    def watch_and_fail() -> None:
        with run_of().watching(lambda _: looks.append(1), every=0.001):
            until(lambda: looks, "it looks")
            raise RunError("enough")

    before = threading.active_count()
    with pytest.raises(RunError, match="enough"):
        watch_and_fail()
    assert threading.active_count() == before


def test_what_fails_beside_is_an_incident_and_being_stopped_is_none(run_of: Any) -> None:
    def fail(error: Exception) -> None:
        raise error

    run = run_of()
    for error in (RunError("worker 1 died\nhere"), Stopped("by a person"), ValueError()):
        run.spawn(fail, error).join()
    assert run._incidents == [(Exit.CRASH_OR_USAGE, "worker 1 died here"), (Exit.CRASH_OR_USAGE, "ValueError")]


def test_waiting_for_an_empty_queue_ends_when_it_is_empty_or_in_time(run_of: Any, database: str) -> None:
    run = run_of()
    run.schema = "public"
    assert run.wait_drained(60)
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO pgqueue_jobs (kind) VALUES ('mail')")
    assert not run.wait_drained(0.2)


def test_a_fault_that_is_due_waits_for_an_undisturbed_block_and_comes_before_the_next(run_of: Any) -> None:
    run, order = run_of("kill-worker@0s"), list[str]()

    def fault() -> None:
        with run.disturbing():
            order.append("fault")

    with run.undisturbed():
        threads = [run.spawn(fault)]
        until(run._due.locked, "the fault is due")
        order.append("first block")
    with run.undisturbed():
        order.append("second block")
    for thread in threads:
        thread.join()
    assert order == ["first block", "fault", "second block"]


def test_an_undisturbed_block_waits_for_the_fault_that_goes_on(run_of: Any) -> None:
    run, order, over = run_of("pause-worker@0s"), list[str](), threading.Event()

    def fault() -> None:
        with run.disturbing():
            over.wait()
            order.append("fault over")

    def block() -> None:
        with run.undisturbed():
            order.append("block")

    threads = [run.spawn(fault)]
    until(run._calm.locked, "the fault goes on")
    threads.append(run.spawn(block))
    over.set()
    for thread in threads:
        thread.join()
    assert order == ["fault over", "block"]
