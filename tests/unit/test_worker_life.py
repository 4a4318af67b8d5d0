"""A running worker: its life, leases, wake-up, fairness, connections. On a real server, waiting for states only."""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from waiting import eventually

from pgqueue_ref.core import AsyncQueue, InvalidJob, NewJob, Queue, QueueError, SchemaMissing, Want, constant
from pgqueue_ref.core import operations as core_operations
from pgqueue_ref.worker import Cancel, Counts, Job, Kinds, Snooze, Worker
from pgqueue_ref.worker import worker as worker_module
from pgqueue_ref.worker.bell import CHANNEL, LIE_DOWN

pytestmark = pytest.mark.anyio

NEVER = 3600.0  # a poll interval that no test waits for: what happens was woken

Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def kinds() -> Kinds:
    return Kinds()


@pytest.fixture
async def queue(database: str) -> AsyncIterator[AsyncQueue]:
    async with await AsyncQueue.connect(database) as queue:
        yield queue


@pytest.fixture
async def start(database: str, kinds: Kinds) -> AsyncIterator[Start]:
    """Starts a worker on `kinds`; it is stopped at the end of the test, without grace."""
    workers: list[Worker] = []

    async def start(**settings: Any) -> Worker:
        worker = Worker(kinds, dsn=database, **settings)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        worker.hurry()
        await worker.stop()


class Gate:
    """A handler that waits until the test lets it go, and says who is in it."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.entered: list[int] = []
        self.cancelled: list[int] = []
        self.open = asyncio.Event()

    async def __call__(self, job: Job) -> None:
        self.inside.append(job.id)
        self.entered.append(job.id)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            raise
        finally:
            self.inside.remove(job.id)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


async def jobs(to: AsyncQueue, kind: str, count: int, **options: Any) -> list[int]:
    return [pushed.id for pushed in await to.push_many(NewJob(kind, **options) for _ in range(count))]


async def statuses(queue: AsyncQueue) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stat in await queue.stats():
        counts[stat.status] = counts.get(stat.status, 0) + stat.jobs
    return counts


async def connections(queue: AsyncQueue, like: str = "pgqueue_ref:%") -> list[str]:
    """The worker's connections to this database, by their names."""
    rows = await queue.connection.execute(
        "SELECT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s ORDER BY 1",
        [like],
    )
    return [name for (name,) in await rows.fetchall()]


async def disconnected(queue: AsyncQueue) -> bool:
    """Whether the server has seen the end of the worker's connections."""
    return await connections(queue) == []


async def listening(queue: AsyncQueue) -> bool:
    """Whether the worker has lain down and told pushers so, by its lock."""
    rows = await queue.connection.execute(
        "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database()"
        " AND application_name = 'pgqueue_ref:listen' AND locktype = 'advisory' AND mode = 'ShareLock' AND granted"
    )
    return bool(await rows.fetchall())


async def terminate(queue: AsyncQueue, like: str = "pgqueue_ref:%") -> int:
    """End the worker's connections; returns once they are gone."""
    rows = await queue.connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s",
        [like],
    )
    return len(await rows.fetchall())


# -- start, stop, resume ---------------------------------------------------------------------------------------


async def test_a_worker_starts_stops_and_resumes(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    kinds.register("a")(lambda job: None)
    await jobs(queue, "a", 3)
    worker = await start(poll_interval=NEVER)
    await eventually(lambda: worker.counts.succeeded == 3, "what was there runs")
    assert await worker.stop() is True
    await eventually(lambda: disconnected(queue), "its connections are closed")
    (id_,) = await jobs(queue, "a", 1)
    assert await worker.stop() is True  # again: nothing to do
    assert (await queue.get(id_)).status == "pending"
    await worker.resume()
    await worker.start()  # already running
    await eventually(lambda: worker.counts.succeeded == 4, "what came meanwhile runs")
    assert worker.counts == Counts(claimed=4, succeeded=4)


async def test_a_worker_is_a_context_manager(queue: AsyncQueue, kinds: Kinds, database: str) -> None:
    kinds.register("a")(lambda job: None)
    await jobs(queue, "a", 1)
    async with Worker(kinds, dsn=database) as worker:
        await eventually(lambda: worker.counts.succeeded == 1, "the job runs")
    await eventually(lambda: disconnected(queue), "its connections are closed")


async def test_stop_lets_attempts_end_within_the_grace_period(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("a")(gate)
    ids = await jobs(queue, "a", 10)
    worker = await start(max_concurrent_jobs=5, grace=60)
    await eventually(lambda: len(gate.inside) == 5, "all slots are taken")
    stopping = asyncio.create_task(worker.stop())
    await eventually(lambda: not worker._claiming, "it claims no more")
    gate.open.set()
    assert await stopping is True
    assert worker.counts == Counts(claimed=5, succeeded=5)
    assert [(await queue.get(id_)).status for id_ in ids] == ["succeeded"] * 5 + ["pending"] * 5


async def test_what_outlasts_the_grace_period_is_put_back_unspent(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("a")(gate)
    (id_,) = await jobs(queue, "a", 1)
    before = await queue.get(id_)
    worker = await start(grace=0.05)
    await eventually(lambda: gate.inside, "the handler runs")
    assert await worker.stop() is True
    assert gate.cancelled == [id_]
    row = await queue.get(id_)
    assert (row.status, row.attempt, row.run_at, row.errors) == ("pending", 0, before.run_at, [])
    assert worker.counts == Counts(claimed=1, released=1)


async def test_hurry_ends_the_grace_period(queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate) -> None:
    kinds.register("a")(gate)
    (id_,) = await jobs(queue, "a", 1)
    worker = await start(grace=NEVER)
    await eventually(lambda: gate.inside, "the handler runs")
    stopping = asyncio.create_task(worker.stop())
    await eventually(lambda: not worker._claiming, "it claims no more")
    assert not stopping.done()
    worker.hurry()
    assert await stopping is True
    assert ((await queue.get(id_)).status, gate.cancelled) == ("pending", [id_])


async def test_hurry_does_not_wait_for_a_server_that_does_not_answer(
    queue: AsyncQueue, kinds: Kinds, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", "0")
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=0.02)
    async with queue.connection.transaction():
        await queue.connection.execute("LOCK TABLE pgqueue_jobs")

        async def blocked() -> Any:
            rows = await queue.connection.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                " AND application_name = 'pgqueue_ref:claim'"
            )
            await queue.connection.execute("SELECT pg_stat_clear_snapshot()")
            return await rows.fetchall()

        await eventually(blocked, "a claim waits for the lock")
        worker.hurry()
        await asyncio.wait_for(worker.stop(), 60)
    await eventually(lambda: disconnected(queue), "its connections are closed")


async def test_jobs_that_have_not_begun_when_it_stops_are_put_back_unspent(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    begun: list[int] = []
    stopping: list[asyncio.Task[bool]] = []

    @kinds.register("a")
    async def handler(job: Job) -> None:
        begun.append(job.id)
        if not stopping:
            stopping.append(asyncio.create_task(worker.stop()))
        await asyncio.Event().wait()

    await jobs(queue, "a", 100)
    worker = await start(grace=0)
    await eventually(lambda: stopping, "a handler stops the worker")
    assert await stopping[0] is True
    assert 0 < len(begun) < 100
    assert worker.counts == Counts(claimed=100, released=100)
    assert {(row.status, row.attempt) for row in await queue.list_jobs()} == {("pending", 0)}


async def test_endings_that_could_not_be_written_are_not_called_a_clean_stop(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", "0")
    kinds.register("a")(gate)
    (id_,) = await jobs(queue, "a", 1)
    worker = await start()
    await eventually(lambda: gate.inside, "the handler runs")
    async with queue.connection.transaction():
        await queue.connection.execute("SELECT FROM pgqueue_jobs FOR UPDATE")
        gate.open.set()
        await eventually(lambda: not worker._slots.running, "the handler ends")
        worker.hurry()
        assert await worker.stop() is False
    assert "1 endings could not be written" in caplog.text
    assert (await queue.get(id_)).status == "running"


async def test_a_worker_that_cannot_start_says_why_and_holds_no_connection(
    kinds: Kinds, empty_database: str, database: str
) -> None:
    kinds.register("a")(lambda job: None)
    with pytest.raises(SchemaMissing, match="pgqueue-ref migrate"):
        await Worker(kinds, dsn=empty_database).start()
    with pytest.raises(QueueError, match="connection"):
        await Worker(kinds, dsn="postgresql://nobody@127.0.0.1:1/none").start()
    async with await AsyncQueue.connect(empty_database) as queue:
        await eventually(lambda: disconnected(queue), "its connections are closed")


@pytest.mark.parametrize(
    "settings",
    [
        {"queues": []}, {"queues": [""]}, {"max_concurrent_jobs": 0}, {"poll_interval": 0}, {"lease": 0},
        {"lease": -1}, {"grace": -1}, {"name": "a\0"}, {"poll_interval": float("nan")},
    ],
)  # fmt: skip
async def test_bad_settings_are_refused(kinds: Kinds, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        Worker(kinds, **settings)


async def test_each_worker_has_a_name_of_its_own(kinds: Kinds) -> None:
    names = {Worker(kinds).name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(f"{socket.gethostname()[:60]}:{os.getpid()}:") for name in names)


# -- leases ----------------------------------------------------------------------------------------------------


async def test_heartbeats_keep_a_job_that_runs_longer_than_its_lease(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("a")(gate)
    (id_,) = await jobs(queue, "a", 1)
    worker = await start(lease=3)
    await eventually(lambda: gate.inside, "the handler runs")
    first = (await queue.get(id_)).lease_expires_at

    async def outlived() -> bool:
        assert not (await queue.rescue()).retried
        rows = await queue.connection.execute("SELECT now() > %s", [first])
        return bool((await rows.fetchone())[0])

    await eventually(outlived, "the first lease is over")
    gate.open.set()
    await eventually(lambda: worker.counts.succeeded, "the outcome is written")
    row = await queue.get(id_)
    assert (row.status, row.attempt, row.lease_token, worker.counts.stale) == ("succeeded", 1, 1, 0)


async def test_cancelling_a_running_job_stops_its_handler_at_the_next_heartbeat(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a")(gate)
    first, second = await jobs(queue, "a", 2)
    worker = await start(lease=1, name="w1")
    await eventually(lambda: len(gate.inside) == 2, "both handlers run")
    assert await queue.cancel(first)
    await eventually(lambda: gate.cancelled, "the handler is told")
    assert (gate.cancelled, gate.inside) == ([first], [second])
    assert worker.counts.stale == 1
    gate.open.set()
    await eventually(lambda: worker.counts.succeeded, "the other one ends well")
    row = await queue.get(first)
    assert (row.status, row.errors) == ("cancelled", [])
    (record,) = [record for record in caplog.records if "it is stopped" in record.getMessage()]
    assert (record.job_id, record.kind, record.attempt, record.worker) == (first, "a", 1, "w1")  # type: ignore[attr-defined]  # extra


async def test_a_thread_whose_job_is_cancelled_holds_its_slot_and_is_not_heard(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    @kinds.register("a", concurrency=1)
    def handler(job: Job) -> None:
        inside.set()
        go_on.wait()

    (id_,) = await jobs(queue, "a", 1)
    worker = await start(lease=1, poll_interval=0.05)
    try:
        await eventually(inside.is_set, "the thread runs")
        await queue.cancel(id_)
        await eventually(lambda: worker.counts.stale, "the lease is known to be lost")
        assert kinds["a"].running == 1
        (after,) = await jobs(queue, "a", 1)
    finally:
        go_on.set()
    await eventually(lambda: worker.counts.succeeded == 1, "the slot is free again")
    assert [(await queue.get(job)).status for job in (id_, after)] == ["cancelled", "succeeded"]
    assert worker.counts == Counts(claimed=2, succeeded=1, stale=1)


@pytest.mark.parametrize(
    "outcome", [None, ValueError("late"), Snooze(0), Cancel("late")], ids=lambda o: type(o).__name__
)
async def test_the_outcome_of_a_lost_lease_is_refused_and_the_other_attempt_stands(
    outcome: Exception | None, queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    @kinds.register("a", max_attempts=5)
    async def handler(job: Job) -> None:
        await gate(job)
        if outcome is not None:
            raise outcome

    (id_,) = await jobs(queue, "a", 1)
    worker = await start(lease=NEVER)  # no heartbeat tells
    await eventually(lambda: gate.inside, "the handler runs")
    await queue.pause("default")
    await queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s'")
    assert (await queue.rescue()).retried == [id_]
    await queue.connection.execute("DELETE FROM pgqueue_queues")
    (job,) = await queue.claim([Want("a", 1)], worker="another")
    await queue.complete(job)
    before = await queue.get(id_)
    gate.open.set()
    await eventually(lambda: worker.counts.stale == 1, "the outcome is refused")
    assert await queue.get(id_) == before
    assert (before.status, before.worker, before.attempt) == ("succeeded", "another", 2)
    assert worker.counts == Counts(claimed=1, stale=1)


async def test_a_handler_whose_lease_another_worker_has_is_stopped(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("a")(gate)
    (id_,) = await jobs(queue, "a", 1)
    worker = await start(lease=3)
    await eventually(lambda: gate.inside, "the handler runs")
    async with queue.connection.transaction():  # rescued and claimed by another, in between two heartbeats
        await queue.connection.execute("UPDATE pgqueue_jobs SET lease_token = lease_token + 1, worker = 'another'")
    await eventually(lambda: gate.cancelled == [id_], "the handler is stopped")
    assert worker.counts.stale == 1
    assert (await queue.get(id_)).worker == "another"


# -- wake-up ---------------------------------------------------------------------------------------------------


async def test_a_push_wakes_an_idle_worker_that_listens(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=NEVER)
    await eventually(lambda: listening(queue), "it listens")
    for number in range(1, 21):
        await queue.push("a")
        await eventually(lambda: worker.counts.succeeded == number, "the push wakes it")  # noqa: B023 - asked at once


def test_it_listens_where_the_table_is_whatever_else_is_in_the_search_path(database: str) -> None:
    elsewhere = "-c search_path=elsewhere,public"
    with psycopg.connect(database, autocommit=True, options=elsewhere) as sleeper, Queue.connect(database) as pusher:
        sleeper.execute("CREATE SCHEMA elsewhere")
        (channel,) = sleeper.execute(CHANNEL).fetchone() or ("",)
        sleeper.execute(SQL("LISTEN {}").format(Identifier(channel)))
        sleeper.execute(LIE_DOWN, [["default"]])
        pusher.push("a")
        sleeper.execute("SELECT pg_notify(%s, '(end)')", [channel])
        heard = [notice.payload for notice in sleeper.notifies(timeout=30, stop_after=2)]
    assert heard == ["default", "(end)"]


async def test_a_push_wakes_it_after_its_listening_connection_was_lost(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=NEVER)
    for number in (1, 2):
        await eventually(lambda: listening(queue), "it listens")
        await queue.push("a")
        await eventually(lambda: worker.counts.succeeded == number, "the push wakes it")  # noqa: B023 - asked at once
        assert await terminate(queue, "pgqueue_ref:listen") == 1


async def test_what_is_pushed_while_nobody_listens_is_found_when_listening_begins_again(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=NEVER)
    await eventually(lambda: listening(queue), "it listens")
    await terminate(queue, "pgqueue_ref:listen")
    await queue.push("a")
    await eventually(lambda: worker.counts.succeeded == 1, "the push is noticed")


async def test_without_listen_polling_finds_every_job(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=0.02, listen=False)
    for number in range(1, 11):
        await queue.push("a")
        await eventually(lambda: worker.counts.succeeded == number, "the poll finds it")  # noqa: B023 - asked at once
    assert not await listening(queue)


async def test_polling_finds_a_job_that_becomes_due(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    kinds.register("a", backoff=constant(0.2))(lambda job: 1 // (job.attempt - 1))
    worker = await start(poll_interval=0.02)
    await queue.push("a", delay=0.2)
    await eventually(lambda: worker.counts.succeeded == 1, "the delayed job and its retry run")
    assert worker.counts == Counts(claimed=2, retried=1, succeeded=1)


# -- what it holds and costs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "names"),
    [
        (True, ["pgqueue_ref:claim", "pgqueue_ref:listen", "pgqueue_ref:write"]),
        (False, ["pgqueue_ref:claim", "pgqueue_ref:write"]),
    ],
)
async def test_a_worker_holds_three_connections_two_without_listen_whatever_its_concurrency(
    listen: bool, names: list[str], queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("a")(gate)
    worker = await start(listen=listen, max_concurrent_jobs=400, poll_interval=0.02, lease=1)
    assert worker.connections == len(names)
    await jobs(queue, "a", 1000)
    await eventually(lambda: len(gate.inside) == 400, "all slots are taken")

    async def all_there() -> bool:
        return await connections(queue) == names

    await eventually(all_there, "its connections are open")
    gate.open.set()
    most: list[str] = []

    async def drained() -> bool:
        nonlocal most
        most = max(most, await connections(queue), key=len)
        return worker.counts.succeeded == 1000

    await eventually(drained, "all jobs run")
    assert most == names


@pytest.mark.parametrize("listen", [True, False])
async def test_an_idle_worker_costs_at_most_one_transaction_per_poll_interval(
    listen: bool, queue: AsyncQueue, kinds: Kinds, start: Start, server: Any
) -> None:
    turns = 0

    def asked() -> int:
        nonlocal turns
        turns += 1
        return 5

    kinds.register("a", concurrency=asked)(lambda job: None)
    interval = 0.01
    name = queue.connection.info.dbname
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as outside:

        async def transactions() -> int:
            rows = await outside.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", [name]
            )
            return int((await rows.fetchone())[0])

        await queue.connection.close()  # its transactions would count
        worker = await start(listen=listen, poll_interval=interval)
        await eventually(lambda: turns > 10, "it polls")
        before, turns_before, began = await transactions(), turns, time.monotonic()
        await eventually(lambda: turns >= turns_before + 100, "it polls on")
        await worker.stop()  # which also makes the server count what the connections did
        elapsed, asked_for = time.monotonic() - began, turns - turns_before
        await eventually(lambda: gone(outside, name), "the connections are closed")
        spent = await transactions() - before
    start_up = turns_before + 10  # what the server had perhaps not counted before
    assert 100 <= spent <= asked_for + start_up, "one for each look"
    assert asked_for <= elapsed / interval + 2


async def test_an_idle_worker_with_far_more_kinds_than_slots_rests_between_its_looks(
    queue: AsyncQueue, kinds: Kinds, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look goes round all of them, a few at a time; the next must not begin before it has been round."""
    for number in range(200):
        kinds.register(f"kind {number}")(lambda job: None)
    asked: list[str] = []
    claim = core_operations.claim

    def counted(wants: Any, **options: Any) -> Any:
        asked.extend(want.kind for want in wants)
        return claim(wants, **options)

    monkeypatch.setattr(core_operations, "claim", counted)
    rests: list[float] = []
    first = worker_module.first

    async def rest(delay: float, *events: asyncio.Event) -> None:
        rests.append(delay)
        await first(delay, *events)

    monkeypatch.setattr(worker_module, "first", rest)
    await start(listen=False, poll_interval=NEVER, max_concurrent_jobs=1)
    await eventually(lambda: NEVER in rests, "it rests")
    assert len(asked) == len(set(asked)) == 200


async def gone(connection: psycopg.AsyncConnection[Any], database: str) -> bool:
    rows = await connection.execute("SELECT FROM pg_stat_activity WHERE datname = %s", [database])
    return not await rows.fetchall()


async def waits(queue: AsyncQueue) -> list[Any]:
    """When the statements began that the worker's writing connection waits in."""
    await queue.connection.execute("SELECT pg_stat_clear_snapshot()")
    rows = await queue.connection.execute(
        "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'pgqueue_ref:write'"
    )
    return await rows.fetchall()


async def test_a_server_that_takes_no_endings_stops_the_claims(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", "1500")
    total, slots = 5000, 100
    kinds.register("a", terminal_ttl=0)(gate)
    await jobs(queue, "a", total)
    worker = await start(max_concurrent_jobs=slots, poll_interval=0.02)
    await eventually(lambda: len(gate.inside) == slots, "all slots are taken")
    async with queue.connection.transaction():
        await queue.connection.execute("SELECT FROM pgqueue_jobs WHERE status = 'running' FOR UPDATE")
        gate.open.set()
        full = 2 * worker_module.BATCH
        await eventually(lambda: len(worker._writer.buffer) >= full and not worker._slots.running, "the buffer is full")
        claimed, times = worker.counts.claimed, await waits(queue)
        assert claimed <= 2 * (full + slots), "the batch that is being written, and the buffer"

        async def tried_again() -> bool:
            return await waits(queue) != times

        await eventually(tried_again, "a try to write has timed out, and the next has begun")
        assert worker.counts.claimed == claimed
    await eventually(lambda: worker.counts.succeeded == total, "all endings are written once the lock is gone")
    assert worker.counts == Counts(claimed=total, succeeded=total)
    assert await statuses(queue) == {}


# -- maintenance -----------------------------------------------------------------------------------------------


async def test_maintenance_happens_without_a_leader(
    queue: AsyncQueue, kinds: Kinds, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CHORE_INTERVAL", 0.05)
    kinds.register("a")(lambda job: None)
    workers = [await start(poll_interval=0.02, name=name) for name in ("w1", "w2")]

    async def work() -> None:
        lost, old, late = (
            await jobs(queue, "a", 30, delay=NEVER),
            await jobs(queue, "b", 30),
            await jobs(queue, "c", 30),
        )
        await queue.connection.execute(
            "UPDATE pgqueue_jobs SET status = 'running', attempt = 1, max_attempts = 5, worker = 'dead',"
            " run_at = now(), lease_expires_at = now() - interval '1 s' WHERE id = ANY(%s)",
            [lost],
        )
        await queue.connection.execute(
            "UPDATE pgqueue_jobs SET status = 'succeeded', finished_at = now(), delete_after = now()"
            " WHERE id = ANY(%s)",
            [old],
        )
        await queue.connection.execute("UPDATE pgqueue_jobs SET expires_at = now() WHERE id = ANY(%s)", [late])

    def done(field: str) -> int:
        return sum(getattr(worker.counts, field) for worker in workers)

    await work()
    await eventually(lambda: done("rescued") == 30 and done("succeeded") == 30, "lost jobs are rescued and run")
    await eventually(lambda: done("expired") == 30 and done("cleaned") == 30, "and the rest is done")
    await workers[0].stop()  # either of them
    await work()
    await eventually(lambda: done("rescued") == 60 and done("succeeded") == 60, "lost jobs are rescued and run")
    await eventually(lambda: done("expired") == 60 and done("cleaned") == 60, "and the rest is done")
    assert await statuses(queue) == {"succeeded": 60, "cancelled": 60}


# -- fairness --------------------------------------------------------------------------------------------------


async def test_a_kind_whose_slots_are_full_keeps_no_other_from_being_claimed(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate
) -> None:
    kinds.register("slow", concurrency=3)(gate)
    kinds.register("quick")(lambda job: None)
    await jobs(queue, "slow", 500, priority=100)
    worker = await start(max_concurrent_jobs=10, poll_interval=NEVER)
    await eventually(lambda: len(gate.inside) == 3, "the slow kind's slots are full")
    await eventually(lambda: listening(queue), "it listens")
    for number in range(1, 31):
        await queue.push("quick")
        await eventually(lambda: worker.counts.succeeded == number, "the other kind's job runs")  # noqa: B023 - asked at once
    assert len(gate.entered) == 3


async def test_a_kind_of_few_slots_drains_without_waiting_for_the_poll(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    running, most = 0, 0

    @kinds.register("narrow", concurrency=1)
    async def handler(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.15)  # until the looks for the other kind have come back empty
        running -= 1

    kinds.register("idle")(lambda job: None)
    await jobs(queue, "narrow", 8)
    worker = await start(poll_interval=NEVER)
    await eventually(lambda: worker.counts.succeeded == 8, "the whole backlog runs")
    assert most == 1


async def test_with_fewer_slots_than_kinds_every_kind_gets_its_turn(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    for number in range(8):
        kinds.register(f"kind-{number}")(lambda job: None)
    worker = await start(max_concurrent_jobs=1, poll_interval=NEVER, queues=["default", "mail"])
    await eventually(lambda: listening(queue), "it listens")
    for number in range(8):
        await queue.push(f"kind-{number}", queue="mail")
        await eventually(lambda: worker.counts.succeeded == number + 1, "its job is found")  # noqa: B023 - asked at once


async def test_one_queue_s_backlog_keeps_no_other_queue_waiting(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    order: list[str] = []
    kinds.register("a")(lambda job: order.append(job.queue))
    await jobs(queue, "a", 300, queue="bulk")
    await jobs(queue, "a", 3, queue="mail")
    worker = await start(max_concurrent_jobs=4, poll_interval=NEVER, queues=["bulk", "mail"])
    await eventually(lambda: worker.counts.succeeded == 303, "all run")
    assert "mail" not in order[20:], "the short queue was served beside the long one"


async def test_attempts_at_once_never_exceed_the_bounds(queue: AsyncQueue, kinds: Kinds, start: Start) -> None:
    running: dict[str, int] = {"all": 0, "a": 0, "b": 0, "c": 0}
    most = dict(running)
    limit = {"a": 3}
    lock = threading.Lock()

    def enter(kind: str, by: int) -> None:
        with lock:
            for name in ("all", kind):
                running[name] += by
                most[name] = max(most[name], running[name])

    async def handler(job: Job) -> None:
        enter(job.kind, 1)
        await asyncio.sleep(0.001 * (job.id % 4))
        enter(job.kind, -1)
        if job.id % 5 == 0 and job.attempt == 1:
            raise ValueError("again")

    def in_thread(job: Job) -> None:
        enter(job.kind, 1)
        time.sleep(0.001 * (job.id % 4))
        enter(job.kind, -1)

    kinds.register("a", concurrency=lambda: limit["a"], backoff=constant(0))(handler)
    kinds.register("b", concurrency=2)(in_thread)
    kinds.register("c", backoff=constant(0))(handler)
    for name in ("x", "y"):
        for kind in "abc":
            await jobs(queue, kind, 100, queue=name)
    worker = await start(max_concurrent_jobs=6, poll_interval=0.02, queues=["x", "y"])
    await eventually(lambda: worker.counts.succeeded == 600, "all run")
    assert most["all"] == 6
    assert most["a"] <= 3
    assert most["b"] <= 2
    assert worker.counts.claimed == 600 + worker.counts.retried


async def test_a_bound_can_be_changed_while_running(queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate) -> None:
    limit = 1
    kinds.register("a", concurrency=lambda: limit)(gate)
    await jobs(queue, "a", 10)
    worker = await start(poll_interval=0.02)
    await eventually(lambda: len(gate.inside) == 1, "one runs")
    limit = 4
    await eventually(lambda: len(gate.inside) == 4, "three more may")
    limit = 0
    gate.open.set()
    await eventually(lambda: worker.counts.succeeded == 4, "those end")
    assert len(gate.entered) == 4
    limit = 10
    await eventually(lambda: worker.counts.succeeded == 10, "the rest runs")


async def test_pausing_a_queue_from_outside_stops_its_claims_and_no_others(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    kinds.register("a")(lambda job: None)
    worker = await start(poll_interval=0.02, queues=["mail", "photos"])
    await queue.pause("mail")
    (held,) = await jobs(queue, "a", 1, queue="mail")
    await jobs(queue, "a", 5, queue="photos")
    await eventually(lambda: worker.counts.succeeded == 5, "the other queue's jobs run")
    assert (await queue.get(held)).status == "pending"
    await queue.resume("mail")
    await eventually(lambda: worker.counts.succeeded == 6, "the resumed queue's job runs")


# -- a database that breaks ------------------------------------------------------------------------------------


async def test_a_worker_outlives_the_loss_of_its_connections_and_loses_nothing(
    queue: AsyncQueue, kinds: Kinds, start: Start
) -> None:
    ran: list[int] = []

    @kinds.register("a")
    async def handler(job: Job) -> None:
        ran.append(job.id)
        await asyncio.sleep(0.002)

    ids = await jobs(queue, "a", 1000)
    worker = await start(max_concurrent_jobs=20, poll_interval=0.02)
    for share in (50, 200, 400):
        await eventually(lambda: len(ran) > share, "the drain goes on")  # noqa: B023 - asked at once
        await eventually(lambda: terminate(queue), "it had connections to lose")

    async def drained() -> bool:
        if not worker._writer.held:  # a claim whose answer was lost comes back when its leases end: end them now
            await queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() WHERE status = 'running'")
            await queue.rescue()
        return await statuses(queue) == {"succeeded": 1000}

    await eventually(drained, "all jobs end")
    assert set(ran) == set(ids)


async def test_endings_survive_a_database_that_only_reads_for_a_while(
    queue: AsyncQueue, kinds: Kinds, start: Start, gate: Gate, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a")(gate)
    ids = await jobs(queue, "a", 10)
    worker = await start(poll_interval=0.02)
    await eventually(lambda: len(gate.inside) == 10, "the handlers run")
    name = queue.connection.info.dbname
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as outside:
        await outside.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await terminate(queue)  # as after a failover: the new connections are to a server that refuses writes
        gate.open.set()
        await eventually(lambda: "write failed" in caplog.text and "read-only" in caplog.text, "a write is refused")
        await outside.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await terminate(queue)
    await eventually(lambda: worker.counts.succeeded == 10, "the endings are written")
    assert gate.entered == ids, "no job ran twice"


# -- what it says ----------------------------------------------------------------------------------------------


async def test_every_record_about_an_attempt_has_its_fields(
    queue: AsyncQueue, kinds: Kinds, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgqueue_ref.worker")
    kinds.register("good")(lambda job: None)
    kinds.register("bad", max_attempts=1)(lambda job: 1 // 0)
    good, bad = await queue.push("good"), await queue.push("bad")
    worker = await start(name="w1")
    await eventually(lambda: worker.counts.succeeded and worker.counts.failed, "both end")
    for id_, kind in ((good.id, "good"), (bad.id, "bad")):
        records = [record for record in caplog.records if getattr(record, "job_id", None) == id_]
        assert records
        for record in records:
            assert (record.kind, record.attempt, record.worker) == (kind, 1, "w1")  # type: ignore[attr-defined]  # extra
            assert record.name == "pgqueue_ref.worker"
            assert f"job {id_} ({kind}) attempt 1" in record.getMessage()
