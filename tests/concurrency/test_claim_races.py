"""Claims from many processes: each job once, none left, nobody waits for another's lock."""

from __future__ import annotations

import importlib
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psycopg
import pytest

PROCESSES, JOBS = 8, 10_000
START = 4711  # advisory lock: held by the test until every process waits for it


def drain(core_package: str, dsn: str, name: str) -> list[int]:
    """One worker process: waits for the start, then claims until nothing is left. Returns the claimed ids."""
    core: Any = importlib.import_module(core_package)
    claimed: list[int] = []
    with psycopg.connect(dsn, autocommit=True, application_name=name) as connection:
        queue = core.Queue(connection)
        connection.execute("SELECT pg_advisory_lock_shared(%s)", [START])
        wants = [core.Want("mail", 7), core.Want("text", 3)]
        while jobs := queue.claim(wants, worker=name):
            claimed += [job.id for job in jobs]
    return claimed


def test_eight_processes_claim_10_000_jobs_and_none_twice(core, connect, db, database, wait_until):
    core.Queue(db).push_many(
        core.NewJob("mail" if n % 3 else "text", n, priority=n % 4, key=str(n)) for n in range(JOBS)
    )
    gate = connect()
    gate.execute("SELECT pg_advisory_lock(%s)", [START])
    waiting = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        workers = [pool.submit(drain, core.__name__, database, f"w{n}") for n in range(PROCESSES)]
        wait_until(lambda: db.execute(waiting).fetchone() == (PROCESSES,), "all processes wait for the start")
        gate.execute("SELECT pg_advisory_unlock(%s)", [START])
        claims = [worker.result() for worker in workers]
    times = Counter(job_id for claimed in claims for job_id in claimed)
    assert [job_id for job_id, n in times.items() if n > 1] == []
    assert len(times) == JOBS
    assert sum(bool(claimed) for claimed in claims) > 1
    found = db.execute("SELECT status, attempt, lease_token, count(*) FROM pgqueue_jobs GROUP BY 1, 2, 3").fetchall()
    assert found == [("running", 1, 1, JOBS)]
    by_worker = dict(db.execute("SELECT worker, count(*) FROM pgqueue_jobs GROUP BY 1").fetchall())
    assert by_worker == {f"w{n}": len(claimed) for n, claimed in enumerate(claims) if claimed}


def test_a_claim_does_not_wait_for_a_row_that_somebody_holds(core, connect, db):
    first, second = core.Queue(db).push_many([core.NewJob("mail")] * 2)
    holder, claimer = connect(autocommit=False), connect(options="-c lock_timeout=1")
    holder.execute("SELECT FROM pgqueue_jobs WHERE id = %s FOR UPDATE", [first.id])
    jobs = core.Queue(claimer).claim([core.Want("mail", 5)], worker="w")
    assert [job.id for job in jobs] == [second.id]
    holder.rollback()
    jobs = core.Queue(claimer).claim([core.Want("mail", 5)], worker="w")
    assert [job.id for job in jobs] == [first.id]


def test_a_claim_in_an_open_transaction_hides_its_jobs_and_gives_them_back_on_rollback(core, connect, db):
    core.Queue(db).push_many([core.NewJob("mail")] * 3)
    other = connect(autocommit=False)
    taken = core.Queue(other).claim([core.Want("mail", 2)], worker="a")
    queue = core.Queue(connect(options="-c lock_timeout=1"))
    (rest,) = queue.claim([core.Want("mail", 5)], worker="b")
    assert rest.id not in {job.id for job in taken}
    other.rollback()
    jobs = queue.claim([core.Want("mail", 5)], worker="b")
    assert [job.id for job in jobs] == [job.id for job in taken]
    assert [(job.attempt, job.lease_token) for job in jobs] == [(1, 1)] * 2


def test_a_job_completed_by_its_holder_is_not_claimed_by_one_who_saw_it_pending(
    core, connect, db, background, wait_until
):
    """SKIP LOCKED re-reads a row that changed between the look and the lock."""
    core.Queue(db).push_many([core.NewJob("mail")] * 200)
    queues = [core.Queue(connect()) for _ in range(6)]

    def work(queue: Any, name: str) -> list[int]:
        done = []
        while jobs := queue.claim([core.Want("mail", 1)], worker=name):
            assert queue.complete_many(jobs, ttl=0) == []
            done += [job.id for job in jobs]
        return done

    workers = [background(work, queue, f"w{n}") for n, queue in enumerate(queues)]
    done = [job_id for worker in workers for job_id in worker.result()]
    assert len(done) == len(set(done)) == 200
    assert db.execute("SELECT count(*) FROM pgqueue_jobs").fetchone() == (0,)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_cancelling_a_job_that_is_just_being_claimed_waits_and_then_decides(
    core, connect, db, background, wait_for_block, ends
):
    pushed = core.Queue(db).push("mail")
    claimer, canceller = connect(autocommit=False), connect()
    (job,) = core.Queue(claimer).claim([core.Want("mail", 1)], worker="w")
    cancelling = background(core.Queue(canceller).cancel, pushed.id)
    wait_for_block(canceller, claimer)
    getattr(claimer, ends)()
    assert cancelling.result() is True
    assert core.Queue(db).get(pushed.id).status == "cancelled"
    with pytest.raises(core.LeaseLost):
        core.Queue(db).heartbeat(job)


@pytest.mark.parametrize(
    ("ends", "cancelled", "status"), [("commit", False, "succeeded"), ("rollback", True, "cancelled")]
)
def test_cancelling_a_job_that_is_just_being_completed_waits_and_then_decides(
    core, connect, db, background, wait_for_block, ends, cancelled, status
):
    queue = core.Queue(db)
    pushed = queue.push("mail")
    (job,) = queue.claim([core.Want("mail", 1)], worker="w")
    worker, canceller = connect(autocommit=False), connect()
    core.Queue(worker).complete(job)
    cancelling = background(core.Queue(canceller).cancel, pushed.id)
    wait_for_block(canceller, worker)
    getattr(worker, ends)()
    assert cancelling.result() is cancelled
    assert queue.get(pushed.id).status == status


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_completion_that_meets_a_rescue_waits_and_then_decides(core, connect, db, background, wait_for_block, ends):
    queue = core.Queue(db)
    queue.push("mail")
    (job,) = queue.claim([core.Want("mail", 1)], worker="w", lease=0)
    rescuer, worker = connect(autocommit=False), connect()
    assert core.Queue(rescuer).rescue().retried == [job.id]
    completing = background(core.Queue(worker).complete_many, [job])
    wait_for_block(worker, rescuer)
    getattr(rescuer, ends)()
    assert completing.result() == ([job] if ends == "commit" else [])
    assert queue.get(job.id).status == ("pending" if ends == "commit" else "succeeded")
