"""What networks do to a worker's connections: cut, held up, half-open. Nothing is lost, and the worker goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from proxy import Proxy
from waiting import until


@pytest.fixture
def line(database: str) -> Iterator[Proxy]:
    """The line between the workers and the server."""
    with Proxy(database) as proxy:
        yield proxy


def complete(bench, jobs: int) -> None:
    """Every job ran, and none twice in one attempt."""
    until(lambda: bench.count("succeeded") == jobs, "all jobs run")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.undrained, found.completed) == (0, 0, 0, jobs)
    assert bench.most_effects_of_an_attempt() == 1


def test_a_worker_outlives_a_cut_of_its_line(bench, launch, line) -> None:
    bench.push("work", 600, payload=0.02)
    worker = launch(line.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "20", ledger=bench.dsn)
    until(lambda: bench.count("succeeded") > 50, "the drain goes on")
    line.cut()
    until(lambda: worker.log().count("next try in") > 2, "the worker notices, and cannot connect")
    line.mend()
    complete(bench, 600)
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0


def test_what_a_line_that_stood_still_brings_late_changes_nothing(bench, launch, line) -> None:
    bench.push("slow-once", 100, payload=1.0)
    late = launch(line.dsn, "late", "--lease", "2", ledger=bench.dsn)
    until(lambda: bench.count("running") == 100, "all jobs are in flight")
    line.hold()
    launch(bench.dsn, "other", "--lease", "60")
    until(lambda: bench.count("succeeded") == 100, "the other worker runs them after the lease")
    before = bench.query("SELECT * FROM pgqueue_jobs ORDER BY id")
    line.mend()
    until(lambda: late.log().count("the lease was lost") == 100, "the first worker learns of it")
    late.signal(signal.SIGTERM)
    assert late.ends() == 0
    assert (late.counts()["stale"], late.counts()["succeeded"]) == (100, 0)
    assert bench.query("SELECT * FROM pgqueue_jobs ORDER BY id") == before
    complete(bench, 100)


def test_connections_that_are_half_open_are_given_up_and_made_anew(bench, launch, line) -> None:
    """Nothing tells the worker but the silence: TCP is acknowledged, and no server is there to time out a statement."""
    worker = launch(line.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "20", ledger=bench.dsn)
    worker.started()
    bench.push("work", 600, payload=0.02)
    until(lambda: bench.count("succeeded") > 50, "the drain goes on")
    assert line.half_open() == 3
    complete(bench, 600)
    assert "no answer within 10 s: the connection is given up" in worker.log()
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0


def test_a_worker_on_half_open_connections_can_be_stopped(bench, launch, line) -> None:
    worker = launch(line.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "20", ledger=bench.dsn)
    worker.started()
    bench.push("work", 300, payload=0.05)
    until(lambda: bench.count("succeeded") > 50, "the drain goes on")
    line.half_open()
    worker.signal(signal.SIGTERM)
    worker.ends()
    launch(bench.dsn, "next")
    complete(bench, 300)
