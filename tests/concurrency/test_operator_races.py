"""Operators' batches beside workers and beside each other: nobody waits, and nothing is done twice or undone."""

from __future__ import annotations

import pytest

from pgqueue_ref.core import run
from pgqueue_ref.ops import operations as op

FAILED = """INSERT INTO pgqueue_jobs (kind, status, finished_at)
            SELECT 'mail', 'failed', now() - make_interval(secs => n) FROM generate_series(1, 30) AS n"""


@pytest.fixture
def stuck(core, db):
    """An attempt whose lease ran out, still held by its worker, which is slow."""
    queue = core.Queue(db)
    queue.push("mail")
    (job,) = queue.claim([core.Want("mail", 1)], worker="slow")
    db.execute("UPDATE pgqueue_jobs SET lease_expires_at = '2001-01-01', started_at = '2001-01-01'")
    return job


def state(db):
    return db.execute("SELECT status, attempt, cardinality(errors) FROM pgqueue_jobs").fetchall()


# -- reset stuck jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("older_than", [None, 1])
def test_a_completion_that_came_first_wins_and_is_not_waited_for(core, connect, db, stuck, older_than):
    worker, operator = connect(autocommit=False), connect(options="-c lock_timeout=1")
    core.Queue(worker).complete(stuck)
    assert run(operator, op.take_back(older_than=older_than)) == ([], [], [stuck.id], [], None)
    worker.commit()
    assert run(operator, op.take_back(older_than=older_than)) == ([], [], [], [], None)
    assert state(db) == [("succeeded", 1, 0)]


@pytest.mark.parametrize("older_than", [None, 1])
def test_a_completion_that_came_second_waits_and_is_stale(
    core, connect, db, background, wait_for_block, stuck, older_than
):
    operator, worker = connect(autocommit=False), connect()
    assert run(operator, op.take_back(older_than=older_than)).retried == [stuck.id]
    completing = background(core.Queue(worker).complete, stuck)
    wait_for_block(worker, operator)
    operator.commit()
    with pytest.raises(core.LeaseLost):
        completing.result()
    assert state(db) == [("pending", 1, 1)]


def test_a_heartbeat_that_came_first_keeps_a_lost_job_but_not_one_that_runs_for_too_long(core, connect, db, stuck):
    worker, operator = connect(autocommit=False), connect(options="-c lock_timeout=1")
    core.Queue(worker).heartbeat(stuck)
    assert run(operator, op.take_back()).left == [stuck.id]
    worker.commit()
    assert run(operator, op.take_back()).retried == []
    assert run(operator, op.take_back(older_than=1)).retried == [stuck.id]
    assert core.Queue(worker).heartbeat_many([stuck]) == [stuck], "the worker is told"


def test_a_job_that_was_rescued_and_claimed_again_is_not_taken_from_its_new_worker(core, connect, db, stuck):
    """Between the look for stuck jobs and the change of them, a worker may rescue and another claim one."""
    operator = connect()
    operation = op.take_back()
    found = operator.execute(*next(operation)).fetchall()
    core.Queue(db).rescue()
    (again,) = core.Queue(db).claim([core.Want("mail", 1)], worker="quick")
    change = operation.send(found)
    rows = operator.execute(change.sql, change.params).fetchall()
    with pytest.raises(StopIteration) as done:
        operation.send(rows)
    assert done.value.value.left == [stuck.id]
    core.Queue(db).complete(again)


def test_two_operators_take_each_stuck_job_back_once(core, connect, db):
    db.execute("""INSERT INTO pgqueue_jobs (kind, status, attempt, max_attempts, lease_token, lease_expires_at)
                  SELECT 'mail', 'running', 1, 5, 1, '2001-01-01' FROM generate_series(1, 30)""")
    first, second = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert len(run(first, op.take_back()).retried) == 30
    assert len(run(second, op.take_back()).left) == 30
    first.commit()
    assert run(second, op.take_back()) == ([], [], [], [], None)
    assert db.execute("SELECT DISTINCT status, cardinality(errors) FROM pgqueue_jobs").fetchall() == [("pending", 1)]


# -- retry many ------------------------------------------------------------------------------------------------


def everything(connection, until):
    """Retry all, as the command does; how many jobs."""
    jobs, after = 0, op.FIRST_ENDING
    while after is not None:
        changed, after = run(connection, op.retry_batch(after, until=until))
        jobs += changed
    return jobs


def test_two_retries_of_all_at_once_do_not_wait_and_retry_each_job_once(core, connect, db):
    db.execute(FAILED)
    first, second = connect(autocommit=False), connect(options="-c lock_timeout=1")
    until = run(db, op.moment())
    assert run(first, op.retry_batch(op.FIRST_ENDING, until=until, limit=20)).jobs == 20
    assert everything(second, until) == 10
    first.commit()
    assert everything(db, until) == 0
    assert db.execute("SELECT status, count(*) FROM pgqueue_jobs GROUP BY 1").fetchall() == [("pending", 30)]


def test_many_retries_of_all_at_once_add_up(core, connect, db, background, monkeypatch):
    monkeypatch.setattr(op, "BATCH", 4)
    db.execute(FAILED)
    until = run(db, op.moment())
    retrying = [background(everything, connect(), until) for _ in range(6)]
    assert sum(retry.result() for retry in retrying) == 30


# -- clear and purge -------------------------------------------------------------------------------------------


def test_clearing_leaves_a_job_that_is_being_claimed(core, connect, db):
    core.Queue(db).push_many([core.NewJob("mail") for _ in range(3)])
    worker, operator = connect(autocommit=False), connect(options="-c lock_timeout=1")
    (job,) = core.Queue(worker).claim([core.Want("mail", 1)], worker="w")
    assert run(operator, op.clear_batch("default", until=run(db, op.moment()))).jobs == 2
    worker.commit()
    core.Queue(worker).complete(job)
    worker.commit()
    assert sorted(db.execute("SELECT status FROM pgqueue_jobs")) == [("cancelled",), ("cancelled",), ("succeeded",)]


def test_a_claim_passes_over_jobs_that_are_being_cleared(core, connect, db):
    core.Queue(db).push_many([core.NewJob("mail") for _ in range(3)])
    operator, worker = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert run(operator, op.clear_batch("default", until=run(db, op.moment()))).jobs == 3
    assert core.Queue(worker).claim([core.Want("mail", 3)], worker="w") == []
    operator.commit()
    assert core.Queue(worker).claim([core.Want("mail", 3)], worker="w") == []


def test_a_purge_waits_for_a_retry_and_then_leaves_its_job(core, connect, db, background, wait_for_block):
    db.execute("INSERT INTO pgqueue_jobs (kind, status, finished_at) VALUES ('mail', 'failed', '2001-01-01')")
    retrying, purger = connect(autocommit=False), connect()
    assert everything(retrying, run(db, op.moment())) == 1
    purging = background(run, purger, op.purge_batch(0, 1, statuses=("failed",)))
    wait_for_block(purger, retrying)
    retrying.commit()
    assert purging.result().jobs == 0
    assert core.Queue(db).list_jobs()[0].status == "pending"
