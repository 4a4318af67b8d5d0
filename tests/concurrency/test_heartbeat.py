"""A heartbeat waits for nobody: a handler may hold its own job's row in a transaction for long."""

from __future__ import annotations

from pgqueue_ref.core import NewJob, Queue, Want

AGE = "UPDATE pgqueue_jobs SET lease_expires_at = now() + interval '1 second'"
FRESH = "SELECT array_agg(id ORDER BY id) FROM pgqueue_jobs WHERE lease_expires_at > now() + interval '30 seconds'"


def test_a_locked_row_holds_up_no_other_heartbeat_and_is_not_called_lost(connect, db):
    worker = Queue(connect(options="-c lock_timeout=10s"))
    worker.push_many(NewJob("mail", number) for number in range(3))
    jobs = worker.claim([Want("mail", 3)], worker="w")
    db.execute(AGE)
    handler = connect(autocommit=False)
    Queue(handler).complete(jobs[1])  # in the transaction of its own writes, still open
    assert worker.heartbeat_many(jobs) == []
    assert db.execute(FRESH).fetchone() == ([jobs[0].id, jobs[2].id],)
    handler.rollback()
    assert worker.heartbeat_many(jobs) == []
    assert db.execute(FRESH).fetchone() == ([job.id for job in jobs],)


def test_once_the_holder_commits_the_next_heartbeat_says_that_the_job_is_gone(connect):
    worker, handler = Queue(connect(options="-c lock_timeout=10s")), connect(autocommit=False)
    worker.push("mail")
    (job,) = worker.claim([Want("mail", 1)], worker="w")
    Queue(handler).complete(job)
    assert worker.heartbeat_many([job]) == []
    handler.commit()
    assert worker.heartbeat_many([job]) == [job]
