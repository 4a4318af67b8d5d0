"""Batches that overlap wait for each other in one order, however they were given and however they are planned.

Each test holds a row in the middle of both batches, so that the first batch stops half way. Were the second to lock
from the other end, it would stop half way as well, and both would deadlock when the row is let go.
"""

from __future__ import annotations

import pytest

# What the planner may choose for a batch, by its size and that of the table: in the order of ids, or of the pages.
PLANS = {
    "by itself": "",
    "index": "-c enable_seqscan=off -c enable_bitmapscan=off",
    "pages": "-c enable_indexscan=off -c enable_bitmapscan=off",
    "bitmap": "-c enable_indexscan=off -c enable_seqscan=off",
}
ENDS = {
    "complete_many": lambda core, queue, jobs: queue.complete_many(jobs),
    "complete_many, TTL 0": lambda core, queue, jobs: queue.complete_many(jobs, ttl=0),
    "release_many": lambda core, queue, jobs: queue.release_many(jobs),
    "fail_many": lambda core, queue, jobs: queue.fail_many(core.Failure(job, "no") for job in jobs),
}


@pytest.fixture
def jobs(db):
    """20 attempts whose rows lie on the pages in the reverse order of their ids."""
    db.execute("INSERT INTO pgqueue_jobs (id, kind) SELECT 21 - n, 'mail' FROM generate_series(1, 20) AS n")
    db.execute("ALTER TABLE pgqueue_jobs ALTER id RESTART WITH 21")
    db.execute("""UPDATE pgqueue_jobs SET status = 'running', attempt = 1, max_attempts = 9, lease_token = 1,
                  lease_expires_at = now() + interval '1 hour'""")
    assert db.execute("SELECT array_agg(id ORDER BY ctid) FROM pgqueue_jobs").fetchone() == ([*range(20, 0, -1)],)
    return [Attempt(job_id) for job_id in range(1, 21)]


class Attempt:
    lease_token = 1

    def __init__(self, job_id: int) -> None:
        self.id = job_id


@pytest.mark.parametrize("plans", [(a, b) for a in PLANS for b in PLANS], ids=" against ".join)
def test_two_endings_of_the_same_jobs_do_not_deadlock_whatever_their_plans(
    core, connect, db, jobs, background, wait_for_block, plans
):
    gate, first, second = connect(autocommit=False), connect(options=PLANS[plans[0]]), connect(options=PLANS[plans[1]])
    gate.execute("SELECT FROM pgqueue_jobs WHERE id = 10 FOR UPDATE")
    releasing = background(core.Queue(first).release_many, jobs)
    wait_for_block(first, gate)
    completing = background(core.Queue(second).complete_many, jobs[::-1])
    wait_for_block(second, first)  # at its first row: it holds nothing that the other one wants
    gate.rollback()
    assert releasing.result() == []
    assert completing.result() == jobs
    assert db.execute("SELECT DISTINCT status FROM pgqueue_jobs").fetchall() == [("pending",)]


@pytest.mark.parametrize("plan", PLANS)
def test_a_heartbeat_waits_for_no_row_and_extends_the_other_leases(core, connect, db, jobs, plan):
    """A handler that completes its job in a long transaction of its own must not hold up its worker's heartbeats."""
    handler, worker = connect(autocommit=False), connect(options=f"-c lock_timeout=1 {PLANS[plan]}")
    core.Queue(handler).complete(jobs[9])
    assert core.Queue(worker).heartbeat_many(jobs, lease=36_000) == []  # nobody else's yet
    extended = "SELECT id FROM pgqueue_jobs WHERE lease_expires_at > now() + interval '9 hours' ORDER BY id"
    assert [row[0] for row in db.execute(extended)] == [job.id for job in jobs if job is not jobs[9]]
    handler.commit()
    assert core.Queue(worker).heartbeat_many(jobs) == [jobs[9]]


@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_two_batches_given_in_opposite_orders_do_not_deadlock(
    core, connect, db, jobs, background, wait_for_block, first, second
):
    gate, one, two = connect(autocommit=False), connect(options=PLANS["pages"]), connect(options=PLANS["index"])
    gate.execute("SELECT FROM pgqueue_jobs WHERE id = 10 FOR UPDATE")
    earlier = background(ENDS[first], core, core.Queue(one), jobs)
    wait_for_block(one, gate)
    later = background(ENDS[second], core, core.Queue(two), jobs[::-1])
    wait_for_block(two, one)
    gate.rollback()
    all_held = {job.id: "pending" for job in jobs} if first == "fail_many" else []
    ended = earlier.result()
    assert ({job_id: status for (job_id, _), status in ended.items()} if ended else ended) == all_held
    assert later.result() == ({} if second == "fail_many" else jobs)  # the first ended all of them


@pytest.mark.parametrize("bound", [None, 100], ids=["unbounded", "bounded"])
def test_two_overlapping_batches_of_keys_in_opposite_orders_do_not_deadlock(
    core, connect, db, background, wait_for_block, bound
):
    gate, first, second = connect(autocommit=False), connect(), connect()
    batch = [core.NewJob("mail", n, key=f"k{n}") for n in range(10)]
    core.Queue(gate).push("mail", key="k5")
    ahead = background(core.Queue(first, max_in_flight=bound).push_many, batch)
    wait_for_block(first, gate)
    behind = background(core.Queue(second, max_in_flight=bound).push_many, batch[::-1])
    wait_for_block(second, first)
    gate.rollback()
    created, existing = ahead.result(), behind.result()
    assert all(answer.created for answer in created)
    assert not any(answer.created for answer in existing)
    assert [answer.id for answer in existing[::-1]] == [answer.id for answer in created]
    assert db.execute("SELECT count(*) FROM pgqueue_jobs").fetchone() == (10,)


def test_two_batches_of_several_chunks_in_opposite_orders_do_not_deadlock(
    core, connect, db, background, wait_for_block
):
    """The order of keys holds across chunks: the first batch waits in its second chunk, the other in its first."""
    gate, first, second = connect(autocommit=False), connect(), connect()
    batch = [core.NewJob("mail", key=f"k{n:05}") for n in range(2 * core.operations.CHUNK)]
    core.Queue(gate).push("mail", key=batch[-10].key)
    ahead = background(core.Queue(first).push_many, batch)
    wait_for_block(first, gate)
    behind = background(core.Queue(second).push_many, batch[::-1])
    wait_for_block(second, first)
    gate.rollback()
    assert all(answer.created for answer in ahead.result())
    assert not any(answer.created for answer in behind.result())


def test_two_bounded_batches_over_the_same_queues_do_not_deadlock(core, connect, db, background, wait_for_block):
    """The locks of the queues are taken in the order of their names."""
    gate, first, second = connect(autocommit=False), connect(), connect()
    batch = [core.NewJob("mail", queue=name) for name in "abcde"]
    core.Queue(gate, max_in_flight=9).push("mail", queue="c")
    ahead = background(core.Queue(first, max_in_flight=9).push_many, batch)
    wait_for_block(first, gate, "advisory")
    behind = background(core.Queue(second, max_in_flight=9).push_many, batch[::-1])
    wait_for_block(second, first, "advisory")
    gate.commit()
    assert len(ahead.result()) == len(behind.result()) == 5
    assert db.execute("SELECT count(*) FROM pgqueue_jobs").fetchone() == (11,)
