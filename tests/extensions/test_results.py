"""Results: stored with the completion or not at all, found by whoever waits, gone after their time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine
from waiting import eventually, until

from pgqueue_ref.core import AsyncQueue, InvalidJob, JobNotFound, LeaseLost, NewJob, Queue, Want, connect
from pgqueue_ref.extensions import results
from pgqueue_ref.extensions.results import NoResult, Result, WaitTimeout
from pgqueue_ref.sqlalchemy import queue as sqlalchemy_queue
from pgqueue_ref.worker import COMPLETED, Job, Kinds, Worker

Db = psycopg.Connection[Any]
NEVER = 3600.0


def take(queue: Queue, count: int = 1) -> list[Job]:
    queue.push_many([NewJob("sum", [n, 2]) for n in range(count)])
    return queue.claim([Want("sum", count)], worker="w1")


def kinds_of(*handlers: Callable[[Job], Any], **options: Any) -> Kinds:
    kinds = Kinds()
    for handler in handlers:
        kinds.register(handler.__name__, **({"result_ttl": 60} | options))(handler)
    return kinds


def turn(database: str, kinds: Kinds) -> None:
    async def once() -> None:
        worker = Worker(kinds, dsn=database, name="w1")
        try:
            await worker.run_once()
        finally:
            await worker.close()

    asyncio.run(once())


async def add(job: Job) -> int:
    return sum(job.payload)


def thread(job: Job) -> dict[str, Any]:
    return {"sum": sum(job.payload), "of": job.payload}


async def nothing(job: Job) -> None:
    pass


# -- storing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, 60])
def test_a_worker_stores_what_its_handlers_return(queue: Queue, extended: str, ttl: float) -> None:
    jobs = [queue.push(kind, [1, 2]).id for kind in ("add", "thread", "nothing")]
    turn(extended, kinds_of(add, thread, nothing, terminal_ttl=ttl))
    found = [queue.run(results.get(job)) for job in jobs]
    assert [result.value for result in found] == [3, {"sum": 3, "of": [1, 2]}, None]
    assert {(result.worker, result.attempt, result.queue) for result in found} == {("w1", 1, "default")}
    assert [result.kind for result in found] == ["add", "thread", "nothing"]
    assert all(0 <= result.duration < 60 for result in found if result.duration is not None)
    assert all(result.delete_after - result.stored_at == timedelta(seconds=60) for result in found)
    assert len(queue.list_jobs()) == (3 if ttl else 0)


def test_kinds_that_keep_no_results_store_none(queue: Queue, extended: str) -> None:
    job = queue.push("add", [1, 2]).id
    turn(extended, kinds_of(add, result_ttl=0))
    with pytest.raises(NoResult, match=f"job {job} succeeded without a result") as caught:
        queue.run(results.get(job))
    assert (caught.value.job_id, caught.value.status) == (job, "succeeded")


def test_attempts_that_lost_their_lease_store_nothing_and_the_others_of_the_batch_do(queue: Queue) -> None:
    jobs = take(queue, 3)
    queue.cancel(jobs[1].id)
    stale = queue.run(results.complete_many([results.returned(job, job.payload) for job in jobs]))
    assert stale == [jobs[1]]
    assert queue.run(results.get_many(job.id for job in jobs)).keys() == {jobs[0].id, jobs[2].id}
    with pytest.raises(LeaseLost):
        queue.run(results.complete(jobs[1], 7))


def test_of_two_attempts_at_one_job_only_the_one_that_holds_it_stores_its_result(queue: Queue) -> None:
    (late,) = take(queue)
    queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = '2001-01-01'")
    queue.rescue()
    (current,) = queue.claim([Want("sum", 1)], worker="w2")
    outcomes = [results.returned(late, "late"), results.returned(current, "current")]
    assert queue.run(results.complete_many(outcomes)) == [late]
    assert queue.run(results.get(late.id)).value == "current"


def test_a_result_is_there_if_and_only_if_the_completion_is(queue: Queue, extended: str) -> None:
    (job,) = take(queue)
    with connect(extended) as connection:
        other = Queue(connection)
        with connection.transaction(force_rollback=True):
            other.run(results.complete(job, 3))
            assert other.run(results.get(job.id)).value == 3
            assert queue.get(job.id).status == "running"
            assert queue.run(results.get_many([job.id])) == {}
        assert queue.get(job.id).status == "running"
        assert queue.run(results.get_many([job.id])) == {}


def test_a_handler_may_complete_its_job_with_a_result_in_its_own_transaction(queue: Queue, extended: str) -> None:
    def own(job: Job) -> object:
        with psycopg.connect(extended) as connection:
            Queue(connection).run(results.complete(job, {"own": True}, worker="me", duration=1.5))
        return COMPLETED

    job = queue.push("own").id
    turn(extended, kinds_of(own))
    result = queue.run(results.get(job))
    assert (result.value, result.worker, result.duration) == ({"own": True}, "me", 1.5)


def test_a_job_that_ran_again_has_its_newest_result(queue: Queue) -> None:
    (job,) = take(queue)
    queue.run(results.complete(job, "old", result_ttl=None))
    queue.connection.execute("UPDATE pgqueue_jobs SET status = 'pending'")
    (again,) = queue.claim([Want("sum", 1)], worker="w2")
    with pytest.raises(NoResult, match="is running"):
        queue.run(results.get(job.id))
    queue.run(results.complete(again, "new", worker="w2"))
    result = queue.run(results.get(job.id))
    assert (result.value, result.worker, result.attempt) == ("new", "w2", 2)
    assert result.delete_after is not None


NOT_JSON = {
    "a set": {1, 2},
    "not a number": float("nan"),
    "a NUL": "a\0b",
    "a lone surrogate": "\udc80",
    "an object": object(),
    "too large": "x" * results.MAX_VALUE,
    "a number beyond digits": 10**5000,
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_a_value_that_cannot_be_stored_costs_neither_the_job_nor_its_neighbours(
    queue: Queue, extended: str, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    async def odd(job: Job) -> Any:
        return value if job.payload else "fine"

    job, neighbour = queue.push("odd", True).id, queue.push("odd", False).id
    turn(extended, kinds_of(odd))
    assert queue.get(job).status == "succeeded"
    assert queue.run(results.get(neighbour)).value == "fine"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"job {job} (odd) attempt 1: its result is not kept: the result " in record.getMessage()
    assert len(record.getMessage()) < 400
    with pytest.raises(NoResult, match="succeeded, but its result was not kept: the result "):
        queue.run(results.get(job))
    assert queue.run(results.get_many([job]))[job].error in record.getMessage()


def test_a_value_that_cannot_be_stored_is_refused_before_anything_is_sent(queue: Queue) -> None:
    (job,) = take(queue)
    with pytest.raises(InvalidJob, match="the result is not JSON"):
        next(results.complete(job, {1, 2}))
    assert queue.get(job.id).status == "running"


def test_a_batch_is_written_without_comparing_each_with_each(queue: Queue) -> None:
    jobs = take(queue, 100)
    statement = next(results.complete_many([results.returned(job, 1) for job in jobs]))
    for _ in range(8):  # the server makes up its mind about a plan after five
        rows = queue.connection.execute("EXPLAIN " + statement.sql, statement.params, prepare=True).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "hashed SubPlan" in plan.partition("CTE stored")[2]
    assert "Join" not in plan.partition("CTE stored")[2].partition("CTE told")[0]


# -- a worker and the extension ----------------------------------------------------------------------------------


def test_a_worker_without_the_extension_says_so_and_runs(database: str, caplog: pytest.LogCaptureFixture) -> None:
    with Queue.connect(database) as queue:
        job = queue.push("add", [1, 2]).id
        turn(database, kinds_of(add))
        assert queue.get(job).status == "succeeded"
    assert "results of add are not kept: the extension is not installed" in caplog.text


def test_endings_are_written_when_the_extension_goes_while_a_worker_runs(queue: Queue, extended: str) -> None:
    async def run() -> None:
        async with Worker(kinds_of(add), dsn=extended, poll_interval=0.05) as worker:
            queue.connection.execute("DROP TABLE pgqueue_results")
            await asyncio.to_thread(queue.push, "add", [1, 2])
            await eventually(lambda: worker.counts.succeeded == 1, "the job has succeeded")

    asyncio.run(run())


# -- looking -----------------------------------------------------------------------------------------------------


def test_who_asks_for_a_result_that_is_not_there_is_told_why(queue: Queue) -> None:
    waiting = queue.push("other").id
    failed, cancelled, running = take(queue, 3)
    queue.fail(failed, "no luck", final=True)
    queue.cancel(cancelled.id)
    for job_id, why in {
        waiting: "is pending: it has no result yet",
        running.id: "is running: it has no result yet",
        failed.id: "failed: no luck",
        cancelled.id: "cancelled",
    }.items():
        with pytest.raises(NoResult, match=f"^job {job_id} {why}$"):
            queue.run(results.get(job_id))
    with pytest.raises(JobNotFound):
        queue.run(results.get(10_000))


def test_a_result_outlives_its_job(queue: Queue) -> None:
    (job,) = take(queue)
    queue.run(results.complete(job, 3, ttl=60))
    queue.connection.execute("DELETE FROM pgqueue_jobs")
    assert queue.run(results.get(job.id)).value == 3


def test_pages_go_through_all_results_once(queue: Queue) -> None:
    jobs = take(queue, 5)
    queue.run(results.complete_many([results.returned(job, n) for n, job in enumerate(jobs)]))
    seen: list[Result] = []
    while page := queue.run(results.list_results(after=seen[-1].job_id if seen else 0, limit=2)):
        seen += page
    assert [result.value for result in seen] == [0, 1, 2, 3, 4]
    assert queue.run(results.list_results(kind="sum", limit=1))[0].value == 0
    assert queue.run(results.list_results(kind="other")) == []


# -- cleanup -----------------------------------------------------------------------------------------------------


def past(queue: Queue, count: int) -> None:
    """So many results that are past their time, and one that is not."""
    jobs = take(queue, count + 1)
    queue.run(results.complete_many([results.returned(job, 1) for job in jobs]))
    update = "UPDATE pgqueue_results SET delete_after = '2001-01-01' WHERE job_id <> %s"
    queue.connection.execute(update, [jobs[0].id])


def test_a_worker_deletes_results_that_are_past_their_time(queue: Queue, extended: str) -> None:
    past(queue, 3)
    (kept,) = take(queue)
    queue.run(results.complete(kept, 1, result_ttl=None))
    turn(extended, kinds_of(add))
    assert len(queue.run(results.list_results())) == 2
    assert queue.run(results.get(kept.id)).delete_after is None


def test_two_that_clean_up_at_once_take_each_result_once_and_do_not_wait(queue: Queue, extended: str) -> None:
    past(queue, 30)
    with psycopg.connect(extended) as first, connect(extended, options="-c lock_timeout=1") as second:
        assert Queue(first).run(results.cleanup(limit=10)) == 10
        assert Queue(second).run(results.cleanup()) == 20
    assert queue.run(results.cleanup()) == 0


def test_full_batches_are_followed_by_the_next_at_once(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    past(queue, results.BATCH + 1)
    assert queue.run(results.chore())[:2] == (results.BATCH, 0.0)
    assert queue.run(results.chore())[:2] == (1, results.CHORE_INTERVAL)


# -- waiting -----------------------------------------------------------------------------------------------------

Wait = Callable[..., Future[Result]]


@pytest.fixture(params=["sync", "async", "sync, polling", "async, polling"])
def wait(request: pytest.FixtureRequest, extended: str) -> Iterator[Wait]:
    """Waits in a thread, on a connection called `waiter`."""
    way, _, polling = request.param.partition(", ")
    dsn = make_conninfo(extended, application_name="waiter", options="-c statement_timeout=60000")

    def sync(job_id: int, **options: Any) -> Result:
        with Queue.connect(dsn) as queue:
            return results.wait(queue, job_id, **options)

    def asynchronous(job_id: int, **options: Any) -> Result:
        async def run() -> Result:
            async with await AsyncQueue.connect(dsn) as queue:
                return await results.wait_async(queue, job_id, **options)

        return asyncio.run(run())

    with ThreadPoolExecutor(1) as threads:

        def wait(job_id: int, **options: Any) -> Future[Result]:
            call = sync if way == "sync" else asynchronous
            return threads.submit(call, job_id, **({"timeout": 60, "listen": not polling} | options))

        yield wait


def waits(db: Db) -> bool:
    """Whether somebody holds the lock that says so, and has looked since: nothing tells it again but a notification."""
    row = db.execute("""
        SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted AND application_name = 'waiter'
          AND state = 'idle' AND query ~ 'LEFT JOIN pgqueue_jobs'""").fetchone()
    return row == (1,)


def test_a_result_that_is_there_needs_no_wait(queue: Queue, wait: Wait) -> None:
    (job,) = take(queue)
    queue.run(results.complete(job, 3, ttl=0))
    assert wait(job.id, timeout=0).result().value == 3


def test_a_result_arrives_while_somebody_waits(queue: Queue, wait: Wait) -> None:
    (job,) = take(queue)
    waiting = wait(job.id)
    until(lambda: looked(queue.connection), "the waiter has looked")
    queue.run(results.complete(job, 3, ttl=0))
    assert waiting.result().value == 3


def looked(db: Db) -> bool:
    """Whether the waiter's last statement was a look."""
    row = db.execute("""
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'waiter' AND state = 'idle' AND query ~ 'LEFT JOIN pgqueue_jobs'""").fetchone()
    return row == (1,)


def test_a_job_that_ends_badly_ends_the_wait(queue: Queue, wait: Wait) -> None:
    failed, cancelled = take(queue, 2)
    waiting = wait(failed.id)
    until(lambda: looked(queue.connection), "the waiter has looked")
    queue.fail(failed, "no luck yet")  # there are attempts left: the wait goes on
    (failed,) = queue.claim([Want("sum", 1)], worker="w2")
    queue.fail(failed, "no luck", final=True)
    with pytest.raises(NoResult, match="failed: no luck"):
        waiting.result()
    waiting = wait(cancelled.id)
    queue.cancel(cancelled.id)
    with pytest.raises(NoResult, match="cancelled"):
        waiting.result()


def test_a_job_that_keeps_no_result_or_is_not_there_ends_the_wait(queue: Queue, wait: Wait) -> None:
    (job,) = take(queue)
    queue.complete(job)
    with pytest.raises(NoResult, match="succeeded without a result"):
        wait(job.id).result()
    with pytest.raises(JobNotFound):
        wait(10_000).result()


def test_a_wait_that_is_over_says_that_the_job_goes_on(queue: Queue, wait: Wait) -> None:
    (job,) = take(queue)
    with pytest.raises(WaitTimeout, match=f"job {job.id} has not ended within 0.05 s; it goes on"):
        wait(job.id, timeout=0.05).result()
    with pytest.raises(TimeoutError):
        wait(job.id, timeout=timedelta(0)).result()
    assert queue.get(job.id).status == "running"


@pytest.mark.parametrize("wait", ["sync", "async"], indirect=True)
def test_who_listens_is_told_and_need_not_look(queue: Queue, wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FIRST_PAUSE", NEVER)
    monkeypatch.setattr(results, "LAST_PAUSE", NEVER)
    job, other = take(queue, 2)
    waiting = wait(job.id, timeout=None)
    until(lambda: waits(queue.connection), "somebody waits")
    queue.run(results.complete_many([results.returned(other, 0), results.returned(job, 3)]))
    assert waiting.result().value == 3


@pytest.mark.parametrize("wait", ["sync", "async"], indirect=True)
def test_a_job_that_ends_while_its_waiter_arrives_is_not_missed(queue: Queue, extended: str, wait: Wait) -> None:
    """The completion found nobody waiting, and commits when the waiter has looked: there is no notification."""
    (job,) = take(queue)
    with psycopg.connect(extended) as completing:
        Queue(completing).run(results.complete(job, 3))
        waiting = wait(job.id, timeout=None)
        until(lambda: waits(queue.connection), "somebody waits")
        completing.commit()
        assert waiting.result().value == 3


@pytest.mark.parametrize("wait", ["sync", "async"], indirect=True)
def test_a_completion_that_somebody_waits_for_and_that_rolls_back_is_not_taken_for_one(
    queue: Queue, extended: str, wait: Wait
) -> None:
    (job,) = take(queue)
    waiting = wait(job.id, timeout=None)
    until(lambda: waits(queue.connection), "somebody waits")
    with psycopg.connect(extended) as completing:
        Queue(completing).run(results.complete(job, "never"))
        completing.rollback()
    queue.run(results.complete(job, "true"))
    assert waiting.result().value == "true"


def test_nobody_is_notified_of_a_result_that_nobody_waits_for(queue: Queue, extended: str) -> None:
    (job,) = take(queue)
    with connect(extended) as listener:
        ((number, _),) = listener.execute(results.WAIT, {"job_id": job.id}).fetchall()
        listener.execute(f'LISTEN "pgqueue:result:{number}"')
        listener.execute(results.LEAVE, {"number": number})
        queue.run(results.complete(job, 3))
        assert list(listener.notifies(timeout=0)) == []


def test_the_connection_is_left_as_it_was(queue: Queue) -> None:
    for end in (lambda job: queue.run(results.complete(job, 3)), lambda job: queue.fail(job, "no", final=True)):
        (job,) = take(queue)
        end(job)
        with contextlib.suppress(NoResult):
            results.wait(queue, job.id)
        assert queue.connection.execute("SELECT * FROM pg_listening_channels()").fetchall() == []
        mine = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert queue.connection.execute(mine).fetchone() == (0,)


def test_a_cancelled_wait_leaves_the_connection_usable(queue: Queue, extended: str) -> None:
    (job,) = take(queue)

    async def run() -> None:
        async with await AsyncQueue.connect(extended) as waiter:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await results.wait_async(waiter, job.id)
            listening = await waiter.connection.execute("SELECT * FROM pg_listening_channels()")
            assert await listening.fetchall() == []
            assert (await waiter.get(job.id)).status == "running"

    asyncio.run(run())


def test_waiting_works_on_sqlalchemy_s_connections(queue: Queue, extended: str) -> None:
    (job,) = take(queue)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(extended))
    with engine.connect() as connection:
        with pytest.raises(WaitTimeout):
            results.wait(sqlalchemy_queue(connection), job.id, timeout=0.05)
        queue.run(results.complete(job, 3))
        assert results.wait(sqlalchemy_queue(connection), job.id, timeout=60).value == 3
    engine.dispose()
