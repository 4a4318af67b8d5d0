"""Operations belong to the transaction that their connection has open; on an idle connection each is its own."""

from __future__ import annotations

import asyncio

import psycopg
import pytest


def count(db):
    return db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone()["n"]


def test_a_push_is_there_when_the_callers_transaction_commits_and_not_before(queue, core, db):
    with queue.transaction():
        queue.push("mail")
        queue.push_many([core.NewJob("mail")] * 3)
        assert count(db) == 0
    assert count(db) == 4


def test_any_operation_runs_in_the_callers_transaction_too(queue, core, db):
    with queue.undone():
        assert queue.run(core.operations.push("mail")).created
    assert count(db) == 0
    assert queue.run(core.operations.push("mail")).created
    assert count(db) == 1


@pytest.mark.parametrize("jobs", [1, 6_000], ids=["one chunk", "two chunks"])
def test_pushes_roll_back_with_the_callers_transaction(queue, core, db, jobs):
    with queue.undone():
        queue.push("mail", key="k")
        queue.push_many(core.NewJob("mail", n) for n in range(jobs))
    assert count(db) == 0
    assert queue.push("mail", key="k").created


def test_a_bounded_push_rolls_back_with_the_callers_transaction(open_queue, core, db):
    queue = open_queue(max_in_flight=2)
    with queue.undone():
        queue.push("mail")
        queue.push("mail")
        with pytest.raises(core.QueueBusy):
            queue.push("mail")
    assert count(db) == 0
    assert queue.push("mail").created


def test_a_completion_commits_or_rolls_back_with_the_handlers_own_writes(queue, take, row, db):
    job = take()
    before = row(job.id)
    with queue.undone():
        queue.execute("INSERT INTO pgqueue_queues (queue) VALUES ('written by the handler') RETURNING queue")
        queue.complete(job)
    assert row(job.id) == before
    assert queue.paused() == []
    with queue.transaction():
        queue.execute("INSERT INTO pgqueue_queues (queue) VALUES ('written by the handler') RETURNING queue")
        queue.complete(job)
        assert row(job.id) == before
    assert row(job.id)["status"] == "succeeded"
    assert queue.paused() == ["written by the handler"]


def test_an_operation_on_an_idle_connection_is_committed_when_it_returns(queue, open_queue, core, take, db):
    bounded = open_queue(max_in_flight=6_002)
    queue.push("mail")
    assert count(db) == 1
    bounded.push("mail")
    assert count(db) == 2
    bounded.push_many(core.NewJob("mail") for _ in range(6_000))
    assert count(db) == 6_002
    queue.complete(take(push=False), ttl=0)
    assert count(db) == 6_001
    idle = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    assert db.execute(idle).fetchone()["n"] == 0


def test_a_refused_argument_leaves_the_callers_transaction_in_use(queue, core, db):
    with queue.transaction():
        queue.push("mail")
        with pytest.raises(core.InvalidJob):
            queue.push("")
        queue.push("mail")
    assert count(db) == 2


def test_a_lost_lease_leaves_the_callers_transaction_in_use(queue, core, take, lose, row, db):
    job = take(max_attempts=3)
    lose(job)
    queue.rescue()
    with queue.transaction():
        with pytest.raises(core.LeaseLost):
            queue.complete(job)
        pushed = queue.push("mail")
    assert row(pushed.id) is not None


def test_a_psycopg_connection_that_is_not_autocommit_is_committed_by_its_owner(core, db, shared):
    with psycopg.connect(shared) as connection:
        for queue in (core.Queue(connection), core.Queue(connection, max_in_flight=99)):
            queue.push("mail")
            queue.push_many([core.NewJob("mail")] * 6)
            assert count(db) == 0
            connection.rollback()
            assert count(db) == 0
        core.Queue(connection, max_in_flight=99).push("mail")
        assert count(db) == 0
        connection.commit()
        assert count(db) == 1


def test_an_async_psycopg_connection_that_is_not_autocommit_is_committed_by_its_owner(core, db, shared):
    async def scenario():
        async with await psycopg.AsyncConnection.connect(shared) as connection:
            for queue in (core.AsyncQueue(connection), core.AsyncQueue(connection, max_in_flight=99)):
                await queue.push("mail")
                await queue.push_many([core.NewJob("mail")] * 6)
                assert count(db) == 0
                await connection.rollback()
                assert count(db) == 0
            await core.AsyncQueue(connection, max_in_flight=99).push("mail")
            assert count(db) == 0
            await connection.commit()
            assert count(db) == 1

    asyncio.run(scenario())


def test_a_row_factory_of_the_callers_makes_no_difference(core, db, shared):
    with psycopg.connect(shared, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        queue = core.Queue(connection)
        pushed = queue.push("mail", {"to": "ada"}, key="k")
        assert queue.push("mail", key="k") == (pushed.id, False)
        (job,) = queue.claim([core.Want("mail", 1)], worker="w")
        assert job.payload == {"to": "ada"}
        assert connection.row_factory is psycopg.rows.dict_row


def test_a_queue_can_have_a_connection_of_its_own(core, db, shared):
    with core.Queue.connect(shared, max_in_flight=1) as queue:
        queue.push("mail")
        with pytest.raises(core.QueueBusy):
            queue.push("mail")
    assert queue.connection.closed

    async def scenario():
        async with await core.AsyncQueue.connect(shared) as queue:
            await queue.push("mail")
        assert queue.connection.closed

    asyncio.run(scenario())
    assert count(db) == 2
