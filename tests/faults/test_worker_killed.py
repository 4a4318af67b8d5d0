"""Workers that are killed, stopped and told to stop, as processes: no job is lost, none runs twice in one attempt."""

import os
import signal

import psutil
import pytest
from waiting import until


def test_jobs_of_a_killed_worker_run_again_after_the_lease(bench, launch) -> None:
    bench.push("hang-once", 500)
    first = launch(bench.dsn, "first", "--max-concurrent-jobs", "500", "--lease", "2")
    until(lambda: bench.count("running") == 500, "500 jobs are in flight")
    first.signal(signal.SIGKILL)
    assert first.ends() == -signal.SIGKILL
    assert bench.attempts() == {("running", 1)}
    launch(bench.dsn, "second", "--lease", "60")
    until(lambda: bench.count("succeeded") == 500, "all of them run again")
    assert bench.attempts() == {("succeeded", 2)}
    assert bench.query("SELECT DISTINCT errors FROM pgqueue_jobs") == [(["lease ran out, worker first"],)]
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.duplicated, found.recovered, found.undrained) == (0, 0, 0, 500, 0)


def test_a_job_that_always_kills_its_process_ends_failed_and_the_processes_are_started_again(bench, launch) -> None:
    (poison,) = bench.push("kill")
    parent = launch(bench.dsn, "w", "--processes", "2", "--lease", "1")
    until(lambda: bench.count("failed") == 1, "the poisonous job is given up")
    assert bench.query("SELECT id, attempt, cardinality(errors) FROM pgqueue_jobs") == [(poison, 3, 3)]
    assert parent.log().count("ended with code -9, starting it again") == 3
    bench.push("work", 20)
    until(lambda: bench.count("succeeded") == 20, "other jobs run")
    until(lambda: len(parent.children()) == 2, "both processes are back")
    parent.signal(signal.SIGTERM)
    assert parent.ends() == 0


@pytest.mark.parametrize("told_by", ["its next heartbeat", "the refusal of its outcomes"])
def test_a_worker_stopped_past_its_lease_changes_nothing_when_it_goes_on(told_by, bench, launch) -> None:
    bench.push("slow-once", 100, payload=3.0)
    frozen = launch(bench.dsn, "frozen", "--lease", "2" if told_by == "its next heartbeat" else "3600")
    until(lambda: bench.count("running") == 100, "all jobs are in flight")
    frozen.signal(signal.SIGSTOP)
    if told_by != "its next heartbeat":  # the hour has passed
        bench.query("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s' RETURNING id")
    launch(bench.dsn, "other", "--lease", "60")
    until(lambda: bench.count("succeeded") == 100, "the other worker runs them")
    before = bench.query("SELECT * FROM pgqueue_jobs ORDER BY id")
    frozen.signal(signal.SIGCONT)
    until(lambda: frozen.log().count("the lease was lost") == 100, "the first worker learns of it")
    frozen.signal(signal.SIGTERM)
    assert frozen.ends() == 0
    assert (frozen.counts()["stale"], frozen.counts()["succeeded"]) == (100, 0)
    if told_by != "its next heartbeat":
        assert frozen.log().count("its outcome was refused") == 100
    assert bench.query("SELECT * FROM pgqueue_jobs ORDER BY id") == before
    assert bench.query("SELECT DISTINCT worker, attempt FROM pgqueue_jobs") == [("other", 2)]
    assert bench.most_effects_of_an_attempt() == 1
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.undrained) == (0, 0, 0)
    assert found.duplicated <= 100


# -- told to stop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_with_0_and_nothing_left_running(number, bench, launch) -> None:
    bench.push("work", 3000, payload=0.05)
    worker = launch(bench.dsn, "w", "--grace", "60")
    until(lambda: bench.count("succeeded") >= 200, "it is under load")
    worker.signal(number)
    assert worker.ends() == 0
    counts = worker.counts()
    assert counts["claimed"] == counts["succeeded"] + counts["released"]
    assert bench.statuses() == {"succeeded": counts["succeeded"], "pending": 3000 - counts["succeeded"]}
    assert bench.attempts() == {("succeeded", 1), ("pending", 0)}
    launch(bench.dsn, "next")
    until(lambda: bench.count("succeeded") == 3000, "the next worker does the rest")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.duplicated, found.undrained) == (0, 0, 0, 0)


def test_attempts_that_outlast_the_grace_period_are_put_back_unspent(bench, launch) -> None:
    bench.push("hang-once", 150)
    places = bench.query("SELECT id, run_at FROM pgqueue_jobs ORDER BY id")
    worker = launch(bench.dsn, "w", "--grace", "0.2")
    until(lambda: bench.count("running") == 100, "its slots are full")
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0
    assert worker.counts()["released"] == 100
    assert bench.attempts() == {("pending", 0)}
    assert bench.query("SELECT id, run_at FROM pgqueue_jobs ORDER BY id") == places


@pytest.mark.parametrize(
    ("kind", "number"),
    [("hang-once", signal.SIGTERM), ("hang-once", signal.SIGINT), ("stubborn", signal.SIGTERM)],
)
def test_a_second_signal_stops_at_once(kind, number, bench, launch) -> None:
    bench.push(kind, 3)
    worker = launch(bench.dsn, "w", "--grace", "3600")
    until(lambda: bench.count("running") == 3, "the handlers run")
    worker.signal(number)
    until(lambda: "stopping: at most 3600 s" in worker.log(), "it waits for them")
    assert worker.running()
    worker.signal(number)
    assert worker.ends() == 0
    assert bench.attempts() == {("pending", 0)}
    assert ("handlers do not end" in worker.log()) == (kind == "stubborn")


# -- several processes -----------------------------------------------------------------------------------------


def test_ctrl_c_at_a_terminal_lets_every_process_finish_its_attempts(bench, launch) -> None:
    bench.push("work", 8, payload=1.0)
    parent = launch(bench.dsn, "w", "--processes", "2", "--max-concurrent-jobs", "4", "--grace", "60")
    until(lambda: bench.count("running") == 8, "both processes run jobs")
    assert set(bench.query("SELECT DISTINCT worker FROM pgqueue_jobs")) == {("w:0",), ("w:1",)}
    parent.signal_group(signal.SIGINT)
    assert parent.ends() == 0
    assert bench.attempts() == {("succeeded", 1)}


def test_a_signal_during_the_start_stops_every_process(bench, launch) -> None:
    parent = launch(bench.dsn, "w", "--processes", "2")
    until(parent.children, "the first process is being started")
    parent.signal(signal.SIGTERM)
    assert parent.ends() == 0


def test_a_killed_process_is_started_again(bench, launch) -> None:
    parent = launch(bench.dsn, "w", "--processes", "2", "--lease", "2")
    until(lambda: parent.log().count("queues default; kinds") == 2, "both processes are up")
    bench.push("work", 300, payload=0.1)
    until(lambda: bench.count("succeeded") >= 50, "the drain goes on")
    victim = parent.children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    others = {child.pid for child in parent.children()} - {victim.pid}
    until(lambda: len({child.pid for child in parent.children()} - others - {victim.pid}) == 1, "it is back")
    until(lambda: bench.count("succeeded") == 300, "all jobs run")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.undrained) == (0, 0, 0)
    parent.signal(signal.SIGTERM)
    assert parent.ends() == 0


def test_processes_whose_parent_was_killed_stop_by_themselves(bench, launch) -> None:
    parent = launch(bench.dsn, "w", "--processes", "2", "--grace", "60")
    until(lambda: parent.log().count("queues default; kinds") == 2, "both processes are up")
    bench.push("work", 10, payload=0.5)
    until(lambda: bench.count("running") == 10, "jobs are in flight")
    children = parent.children()
    parent.signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert bench.attempts() == {("succeeded", 1)}


def test_several_processes_are_not_started_on_a_database_without_the_schema(empty_database, launch) -> None:
    parent = launch(empty_database, "w", "--processes", "2")
    assert parent.ends() == 1
    assert parent.log().startswith("pgqueue-ref: queue schema is missing")
    assert len(parent.log().splitlines()) == 1
