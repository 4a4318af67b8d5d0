"""Back-pressure is exact: however many push at once, a bounded queue never holds more than its limit."""

from __future__ import annotations

import threading
from typing import Any

import pytest

LIMIT, PUSHERS, WORKERS, TRIES = 12, 50, 3, 12
# Each statement that adds or ends jobs leaves an event, in its own transaction, with the snapshot that sees its moment.
EVENTS = """
CREATE TABLE events (seq bigint GENERATED ALWAYS AS IDENTITY, change bigint, xid xid8, seen pg_snapshot);
CREATE FUNCTION pushed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO events (change, xid, seen) SELECT count(*), pg_current_xact_id(), pg_current_snapshot() FROM new;
    RETURN NULL; END $$;
CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO events (change, xid) SELECT -count(*), pg_current_xact_id() FROM old;
    RETURN NULL; END $$;
CREATE TRIGGER pushed AFTER INSERT ON pgqueue_jobs REFERENCING NEW TABLE AS new
    FOR EACH STATEMENT EXECUTE FUNCTION pushed();
CREATE TRIGGER ended AFTER DELETE ON pgqueue_jobs REFERENCING OLD TABLE AS old
    FOR EACH STATEMENT EXECUTE FUNCTION ended();
"""
# For each push: the jobs that were there at its moment, its own included: everything its snapshot saw.
LEVELS = """
SELECT push.seq, sum(other.change) FROM events AS push
JOIN events AS other ON other.xid = push.xid OR pg_visible_in_snapshot(other.xid, push.seen)
WHERE push.change > 0 GROUP BY push.seq ORDER BY push.seq
"""
# Pushes that took no turns: neither saw the other. The levels above would mean nothing if there were any.
SIDE_BY_SIDE = """
SELECT a.seq, b.seq FROM events AS a JOIN events AS b ON a.seq < b.seq
WHERE a.change > 0 AND b.change > 0 AND NOT pg_visible_in_snapshot(a.xid, b.seen)
"""
ACTIVE = "SELECT count(*) FROM pgqueue_jobs WHERE status IN ('pending', 'blocked', 'running')"


def test_fifty_pushers_never_exceed_twelve_active_jobs(core, connect, db, background):
    db.execute(EVENTS)
    begin, finished = threading.Barrier(PUSHERS + WORKERS + 1), threading.Event()
    room = threading.Semaphore(0)  # how many refused pushers asked for

    def push(connection: Any) -> tuple[int, list[Any]]:
        queue, created, refused = core.Queue(connection, max_in_flight=LIMIT), 0, []
        begin.wait()
        for _ in range(TRIES):
            try:
                created += queue.push("mail").created
            except core.QueueBusy as busy:
                refused.append(busy)
                room.release()
        return created, refused

    def work(connection: Any) -> int:
        queue, done = core.Queue(connection), 0
        begin.wait()
        while room.acquire() and not finished.is_set():
            jobs = queue.claim([core.Want("mail", 2)], worker="w")
            assert queue.complete_many(jobs, ttl=0) == []
            done += len(jobs)
        return done

    def sample(connection: Any) -> list[int]:
        begin.wait()
        samples = []
        while not finished.is_set():
            samples.append(connection.execute(ACTIVE).fetchone()[0])
        return samples

    pushers = [background(push, connect()) for _ in range(PUSHERS)]
    workers = [background(work, connect()) for _ in range(WORKERS)]
    samples = background(sample, connect())
    try:
        answers = [pusher.result() for pusher in pushers]
    finally:
        finished.set()
        room.release(WORKERS)
    created, done = sum(n for n, _ in answers), sum(worker.result() for worker in workers)
    refused = [busy for _, refusals in answers for busy in refusals]

    assert 0 < max(samples.result()) <= LIMIT
    levels = [level for _, level in db.execute(LEVELS).fetchall()]
    assert db.execute(SIDE_BY_SIDE).fetchall() == []
    assert len(levels) == created
    assert max(levels) == LIMIT  # the bound was reached, and never passed
    assert created == done + db.execute(ACTIVE).fetchone()[0]
    assert created + len(refused) == PUSHERS * TRIES
    assert created > LIMIT
    assert refused
    assert {(busy.queue, busy.limit, busy.active) for busy in refused} == {("default", LIMIT, LIMIT)}
    assert all(busy.retry_after > 0 for busy in refused)


def test_fifty_pushers_without_workers_fill_the_queue_to_its_last_place(core, connect, db, background, wait_until):
    """Batches of several jobs, all let go at once: what fits is taken whole, what does not is refused whole."""
    gate, connections = connect(autocommit=False), [connect() for _ in range(PUSHERS)]
    core.Queue(gate, max_in_flight=LIMIT).push("mail")
    sizes = [1 + n % 5 for n in range(PUSHERS)]
    pushing = [
        background(core.Queue(connection, max_in_flight=LIMIT).push_many, [core.NewJob("mail", size)] * size)
        for connection, size in zip(connections, sizes, strict=True)
    ]
    waiting = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    wait_until(lambda: db.execute(waiting).fetchone() == (PUSHERS,), "all pushers wait for their turn")
    gate.rollback()
    created, refused = 0, 0
    for push in pushing:
        try:
            created += len(push.result())
        except core.QueueBusy:
            refused += 1
    assert db.execute(ACTIVE).fetchone() == (created,) == (LIMIT,)
    assert refused > 0
    whole = db.execute("SELECT payload::text::int, count(*) FROM pgqueue_jobs GROUP BY 1").fetchall()
    assert all(count % size == 0 for size, count in whole)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_bounded_push_waits_for_anothers_transaction_and_then_sees_its_jobs(
    core, connect, db, background, wait_for_block, ends
):
    holder, waiter = connect(autocommit=False), connect()
    core.Queue(holder, max_in_flight=1).push("mail")
    waiting = background(core.Queue(waiter, max_in_flight=1).push, "mail")
    wait_for_block(waiter, holder, "advisory")
    getattr(holder, ends)()
    if ends == "commit":
        with pytest.raises(core.QueueBusy) as refused:
            waiting.result()
        assert (refused.value.limit, refused.value.active) == (1, 1)
    else:
        assert waiting.result().created
    assert db.execute(ACTIVE).fetchone() == (1,)


def test_pushers_of_other_queues_and_unbounded_ones_do_not_wait(core, connect, db):
    holder, other = connect(autocommit=False), connect(options="-c lock_timeout=1")
    core.Queue(holder, max_in_flight=5).push("mail")
    assert core.Queue(other, max_in_flight=5).push("mail", queue="other").created
    assert core.Queue(other).push("mail").created


def test_the_bound_belongs_to_the_table_whatever_else_is_in_the_search_path(
    core, connect, db, background, wait_for_block
):
    db.execute("CREATE SCHEMA elsewhere")
    first, second = connect(autocommit=False), connect(options="-c search_path=elsewhere,public")
    core.Queue(first, max_in_flight=1).push("mail")
    waiting = background(core.Queue(second, max_in_flight=1).push, "mail")
    wait_for_block(second, first, "advisory")
    first.commit()
    with pytest.raises(core.QueueBusy):
        waiting.result()


def test_schemas_have_bounds_of_their_own(core, connect, db):
    db.execute("CREATE SCHEMA staging")
    staging = "-c search_path=staging"
    core.install(connect(options=staging))
    holder, other = connect(autocommit=False), connect(options=f"{staging} -c lock_timeout=1")
    core.Queue(holder, max_in_flight=1).push("mail")
    assert core.Queue(other, max_in_flight=1).push("mail").created
