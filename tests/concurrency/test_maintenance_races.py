"""Rescue, expire and cleanup from every worker at once: each row once, and nobody waits for another's lock."""

from __future__ import annotations

import pytest

LOST = """INSERT INTO pgqueue_jobs (kind, status, attempt, max_attempts, lease_token, lease_expires_at)
          SELECT 'mail', 'running', 1, 5, 1, '2001-01-01' FROM generate_series(1, 300)"""
LATE = "INSERT INTO pgqueue_jobs (kind, expires_at) SELECT 'mail', '2001-01-01' FROM generate_series(1, 300)"
DONE = """INSERT INTO pgqueue_jobs (kind, status, delete_after)
          SELECT 'mail', 'succeeded', '2001-01-01' FROM generate_series(1, 300)"""


def test_a_rescue_leaves_what_another_holds_and_does_not_wait(core, connect, db):
    db.execute(LOST)
    first, second = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert len(core.Queue(first).rescue().retried) == 300
    assert core.Queue(second).rescue() == ([], [], [])
    first.commit()
    assert core.Queue(second).rescue() == ([], [], [])
    assert db.execute("SELECT DISTINCT status, cardinality(errors) FROM pgqueue_jobs").fetchall() == [("pending", 1)]


def test_rescues_at_once_take_each_job_once(core, connect, db, background):
    db.execute(LOST)
    rescuing = [background(core.Queue(connect()).rescue, 10) for _ in range(6)]
    rescued = [job_id for rescue in rescuing for job_id in rescue.result().retried]
    assert len(rescued) == len(set(rescued)) == 300
    assert db.execute("SELECT DISTINCT status, cardinality(errors) FROM pgqueue_jobs").fetchall() == [("pending", 1)]


def test_a_heartbeat_that_came_first_keeps_its_job_from_the_rescue(core, connect, db):
    db.execute(LOST)
    jobs = core.Queue(db).list_jobs(limit=2)
    beating, rescuer = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert core.Queue(beating).heartbeat_many(jobs) == []
    assert len(core.Queue(rescuer).rescue().retried) == 298
    beating.commit()
    assert core.Queue(rescuer).rescue().retried == []
    assert {core.Queue(db).get(job.id).status for job in jobs} == {"running"}


@pytest.mark.parametrize(("rows", "chore"), [(LATE, "expire"), (DONE, "cleanup")], ids=["expire", "cleanup"])
def test_expire_and_cleanup_leave_what_another_holds_and_do_not_wait(core, connect, db, rows, chore):
    db.execute(rows)
    first, second = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert getattr(core.Queue(first), chore)(limit=100) == 100
    assert [getattr(core.Queue(second), chore)(limit=150) for _ in range(3)] == [150, 50, 0]
    first.commit()
    assert getattr(core.Queue(second), chore)() == 0


def test_a_retry_that_came_first_keeps_its_job_from_the_cleanup(core, connect, db):
    db.execute("INSERT INTO pgqueue_jobs (kind, status, delete_after) VALUES ('mail', 'cancelled', '2001-01-01')")
    (job,) = core.Queue(db).list_jobs()
    retrying, cleaner = connect(autocommit=False), connect(options="-c lock_timeout=1")
    assert core.Queue(retrying).retry(job.id) is True
    assert core.Queue(cleaner).cleanup() == 0
    retrying.commit()
    assert core.Queue(cleaner).cleanup() == 0
    assert core.Queue(db).get(job.id).status == "pending"


def test_a_purge_waits_for_a_retry_and_then_leaves_its_job(core, connect, db, background, wait_for_block):
    db.execute("INSERT INTO pgqueue_jobs (kind, status, finished_at) VALUES ('mail', 'cancelled', '2001-01-01')")
    (job,) = core.Queue(db).list_jobs()
    retrying, purger = connect(autocommit=False), connect()
    core.Queue(retrying).retry(job.id)
    purging = background(core.Queue(purger).purge, 1)
    wait_for_block(purger, retrying)
    retrying.commit()
    purging.result()
    assert core.Queue(db).get(job.id).status == "pending"


def test_retries_by_filter_at_once_take_each_job_once(core, connect, db):
    db.execute("""INSERT INTO pgqueue_jobs (kind, status, finished_at)
                  SELECT 'mail', 'failed', now() FROM generate_series(1, 30)""")
    first, second = connect(autocommit=False), connect(options="-c lock_timeout=1")
    taken = core.Queue(first).retry_many(limit=20)
    rest = core.Queue(second).retry_many(limit=20)
    assert (len(taken), len(rest), set(taken) & set(rest)) == (20, 10, set())
