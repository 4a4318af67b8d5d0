"""The judge of `nox -s chaos` finds what it is there to find: each kind of wrong, and nothing in what is right."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chaos"))

import catalogue
from judge import AFTERMATH, Injected, injected, judge

from pgqueue_ref.core import NewJob, Queue, Want
from pgqueue_ref.harness import ledger

EFFECT = """
INSERT INTO loadtest_effects (job_id, attempt, key, kind, worker, runs, started_at, finished_at)
VALUES (%s, %s, %s, 'chaos', %s, 1, to_timestamp(%s), to_timestamp(%s))
"""


@pytest.fixture
def run(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Four jobs that ended as they should, two of them in their second attempt: the worker `pid-1` had run one of these
    when it was lost, and not the other."""
    with psycopg.connect(database, autocommit=True) as connection:
        ledger.create(connection)
        queue, keys = Queue(connection), ["a", "b", "c", "d"]
        ids = [done.id for done in queue.push_many(NewJob("chaos", key=key) for key in keys)]
        ledger.record_pushes(connection, keys, ids, "chaos")
        first = queue.claim([Want("chaos", 4)], worker="one")
        queue.complete_many(first[:2])
        connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = '2001-01-01' WHERE status = 'running'")
        queue.rescue()
        queue.complete_many(queue.claim([Want("chaos", 2)], worker="two"))
        effects = (
            (0, 1, "pid-1", 10),
            (1, 1, "pid-2", 10),
            (2, 1, "pid-1", 10),
            (2, 2, "pid-2", 50),
            (3, 2, "pid-2", 50),
        )
        for number, attempt, worker, at in effects:
            connection.execute(EFFECT, (ids[number], attempt, keys[number], worker, at, at + 1))
        yield connection


KILL = Injected("kill-worker", 11.5, 12.0, ["pid-1"])


def wrong(run: psycopg.Connection[Any], *faults: Injected) -> list[str]:
    return [figure.name for figure in judge(run, 4, faults, drained=True) if not figure.ok]


def test_a_run_in_which_a_fault_explains_what_ran_twice_is_right(run) -> None:
    assert wrong(run, KILL) == []
    figures = {figure.name: figure.value for figure in judge(run, 4, [KILL], drained=True)}
    assert [figures[name] for name in ("attempts", "whose lease ran out", "ran again although they had run")] == [
        6,
        2,
        1,
    ]
    assert figures["recovered by a later attempt"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        KILL._replace(victims=["pid-2"]),  # another worker
        KILL._replace(began=51.5, ended=52),  # when all was over
        KILL._replace(began=-AFTERMATH, ended=9.9 - AFTERMATH),  # before it began
    ],
)
def test_a_fault_of_another_worker_or_time_explains_nothing(run, fault) -> None:
    assert wrong(run, fault) == ["of these, explained by no fault"]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("DELETE FROM loadtest_effects WHERE key = 'a'", {"completed", "lost", "succeeded without their effect"}),
        ("UPDATE loadtest_effects SET key = 'z' WHERE key = 'a'", {"completed", "lost", "unexpected"}),
        ("UPDATE loadtest_effects SET runs = 2 WHERE key = 'a'", {"handed out twice"}),
        ("DELETE FROM loadtest_effects WHERE attempt = 2 AND key = 'c'", {"succeeded without their effect"}),
        ("UPDATE pgqueue_jobs SET errors = '{}'", {"of these, without an account", "whose lease ran out"}),
        ("UPDATE pgqueue_jobs SET attempt = attempt + 1 WHERE external_key = 'a'",
         {"of these, without an account", "succeeded without their effect"}),
        ("UPDATE pgqueue_jobs SET status = 'pending' WHERE external_key = 'a'",
         {"still in the queue", "of these, without an account"}),
        ("DELETE FROM loadtest_pushed WHERE key = 'a'", {"pushed", "completed", "unexpected"}),
    ],
)  # fmt: skip
def test_each_wrong_is_found(run, damage, found) -> None:
    run.execute(damage)
    assert set(wrong(run, KILL)) == found


def test_a_run_in_which_no_fault_cost_an_attempt_proves_nothing(run) -> None:
    run.execute("UPDATE pgqueue_jobs SET errors = ARRAY['no'] WHERE attempt = 2")
    assert wrong(run, KILL) == ["whose lease ran out"]


def test_a_drain_that_was_given_up_is_found(run) -> None:
    assert [figure.name for figure in judge(run, 4, [KILL], drained=False) if not figure.ok] == ["not drained"]


def test_a_fault_that_never_came_or_hit_nothing_is_named() -> None:
    nothing = Injected("terminate-claims", 11.5, 12.0, [])
    figures = injected([KILL, KILL, nothing], ["kill-worker", "crash-server", "terminate-claims"])
    assert [(figure.name, figure.value, figure.ok) for figure in figures] == [
        ("kill-worker", 2, True),
        ("crash-server", 0, False),
        ("terminate-claims", 0, False),
    ]


def test_a_fault_has_victims_only_where_it_ended_a_connection(database, monkeypatch) -> None:
    monkeypatch.setattr(catalogue, "RETURN", 0.2)
    fleet = SimpleNamespace(dsn=database, victims=lambda: ["pid-1"])
    fault = catalogue.CATALOGUE["terminate-claims"]
    assert fault(fleet, random.Random(1)) == []
    with psycopg.connect(database, application_name="pgqueue_ref:claim", autocommit=True) as connection:
        assert fault(fleet, random.Random(1)) == ["pid-1"]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT")


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("chaos", ["--postgres", "nowhere"]),
        ("mutants", ["--postgres", "nowhere"]),
        ("benchmarks/peers", ["--postgres", "nowhere"]),
        ("matrix", ["--only", "no such cell"]),
    ],
)
def test_a_summary_of_an_earlier_run_is_gone_when_this_one_does_not_start(tmp_path, runner, options) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}")
    program = Path(__file__).resolve().parents[1] / runner / "run.py"
    done = subprocess.run([sys.executable, program, *options, "--summary", old], capture_output=True, check=False)
    assert done.returncode in (1, 2)
    assert not old.exists()
