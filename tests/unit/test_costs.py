"""What the operations cost the server, in numbers that no other load on the machine can move: statements,
transactions, bytes of WAL and shared buffers.

WAL and buffers are those of the statement's own backend, as EXPLAIN counts them; full-page images, which depend on
the last checkpoint, are kept out by measuring again when one came in between. The bounds stand a tenth above what
PostgreSQL 16 and 18 need at wal_level replica, so that one more index or a changed plan breaks them; bytes and buffers
for each job, batches of 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import psycopg
import pytest

from pgqueue_ref.core import ATOMIC, Job, NewJob, Operation, Position, Queue, Statement, Want, connect, run, sql
from pgqueue_ref.core import operations as op
from pgqueue_ref.extensions.extension import INSTALLED
from pgqueue_ref.worker import Kinds, Worker
from pgqueue_ref.worker.link import Link
from pgqueue_ref.worker.worker import PLANNER

T = TypeVar("T")
BATCH = 500
PAYLOAD = {"photo": 7, "sizes": [64, 256, 1024], "owner": "ada"}


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the worker has it."""
    with connect(database, options=PLANNER) as connection:
        yield connection


def watched(operation: Operation[T], seen: list[str]) -> Operation[T]:
    """The same operation, noting its statements as they go by."""
    try:
        step = next(operation)
        while True:
            seen.append("ATOMIC" if step is ATOMIC else _name(step.sql))
            step = operation.send((yield step))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # what a StopIteration carries is not typed


def _name(text: str) -> str:
    known = vars(sql) | {"INSTALLED": INSTALLED}
    return next(name for name, value in known.items() if name.isupper() and value == text)


def counting(connection: psycopg.Connection[Any], seen: list[str], **options: Any) -> Queue:
    """A queue that notes its statements."""
    return Queue(connection, run=lambda connection, operation: run(connection, watched(operation, seen)), **options)


# -- Statements ----------------------------------------------------------------------------------------------


def test_a_push_is_one_statement_and_a_second_with_the_same_key_two(connection: psycopg.Connection[Any]) -> None:
    seen: list[str] = []
    queue = counting(connection, seen)
    queue.push("mail", PAYLOAD)
    assert seen == ["PUSH"]
    queue.push("mail", key="a")
    seen.clear()
    assert not queue.push("mail", key="a").created
    assert seen == ["PUSH", "FIND_KEYS"]


def test_push_many_is_one_statement_for_five_thousand_jobs(connection: psycopg.Connection[Any]) -> None:
    seen: list[str] = []
    queue = counting(connection, seen)
    queue.push_many(NewJob("mail") for _ in range(5_000))
    assert seen == ["PUSH_MANY"]
    seen.clear()
    queue.push_many(NewJob("mail") for _ in range(12_000))
    assert seen == ["ATOMIC", "PUSH_MANY", "PUSH_MANY", "PUSH_MANY"]


def test_a_bounded_push_is_a_lock_a_count_and_the_insert_in_one_transaction(
    connection: psycopg.Connection[Any],
) -> None:
    seen: list[str] = []
    counting(connection, seen, max_in_flight=12).push("mail")
    assert seen == ["ATOMIC", "LOCK_QUEUE", "COUNT_ACTIVE", "PUSH_MANY"]


def test_a_whole_batch_is_one_statement_for_each_step_of_its_life(connection: psycopg.Connection[Any]) -> None:
    seen: list[str] = []
    queue = counting(connection, seen)
    for number, end in enumerate(("COMPLETE_DELETE", "COMPLETE_KEEP")):
        queue.push_many(NewJob("mail") for _ in range(BATCH))
        jobs = queue.claim([Want("mail", BATCH)], worker="w")
        assert queue.heartbeat_many(jobs) == []
        assert queue.complete_many(jobs, ttl=60 * number) == []
        assert seen == ["PUSH_MANY", "CLAIM", "HEARTBEAT", end]
        seen.clear()


@pytest.mark.parametrize(("ttl", "end"), [(0, "COMPLETE_DELETE"), (60, "COMPLETE_KEEP")])
def test_a_turn_of_the_worker_is_two_transactions_for_its_batch(
    database: str, monkeypatch: pytest.MonkeyPatch, ttl: float, end: str
) -> None:
    transactions = _transactions(monkeypatch)
    kinds = Kinds()

    @kinds.register("mail", terminal_ttl=ttl)
    async def mail(job: Job) -> None:
        pass

    with Queue.connect(database) as queue:
        queue.push_many(NewJob("mail") for _ in range(BATCH))
    done, idle = asyncio.run(_two_turns(Worker(kinds, dsn=database, max_concurrent_jobs=BATCH)))
    assert (done, idle) == (BATCH, 0)
    first, *turns = transactions
    assert first == ["INSTALLED"]  # once for each worker
    assert turns == [["CHORES", "CLAIM"], [end], ["CHORES", "CLAIM"]]  # the last is the idle turn


def _transactions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The statements of each transaction that workers run from here on."""
    transactions: list[list[str]] = []
    original = Link.run

    async def noted(self: Link, *operations: Operation[Any]) -> list[Any]:
        transactions.append([])
        return await original(self, *(watched(operation, transactions[-1]) for operation in operations))

    monkeypatch.setattr(Link, "run", noted)
    return transactions


async def _two_turns(worker: Worker) -> tuple[int, int]:
    try:
        first, second = await worker.run_once(), await worker.run_once()
    finally:
        await worker.close()
    return first.succeeded, second.succeeded


# -- WAL and buffers -----------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Of one statement. Buffers are accesses, whether PostgreSQL had the page or read it."""

    wal_bytes: int
    buffers: int


def cost(connection: psycopg.Connection[Any], statement: Statement) -> Cost | None:
    """Run the statement under EXPLAIN; None if a checkpoint made it write full-page images."""
    explain = "EXPLAIN (ANALYZE, BUFFERS, WAL, TIMING OFF, FORMAT JSON) "
    row = connection.execute(explain + statement.sql, statement.params).fetchone()
    assert row
    counted = list(_counted(row[0][0]["Plan"]))
    if any(plan["WAL FPI"] for plan in counted):
        return None
    return Cost(
        sum(plan["WAL Bytes"] for plan in counted),
        sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in counted),
    )


def _counted(top: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plans whose sums make up the statement: the topmost, and the changes in WITH that no other part reads."""
    plans = list(_plans(top))
    read = {plan.get("CTE Name") for plan in plans}
    yield top
    yield from (
        plan
        for plan in plans
        if plan.get("Subplan Name", "").startswith("CTE ") and plan["Subplan Name"].removeprefix("CTE ") not in read
    )


def _plans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _plans(child)


def first_of(operation: Operation[Any]) -> Statement:
    """The statement that an operation starts with."""
    return next(operation)


def filled(connection: psycopg.Connection[Any]) -> Queue:
    """A queue with twice the batch due, of which the first half is measured: the second lies behind it."""
    connection.execute("TRUNCATE pgqueue_jobs")
    queue = Queue(connection)
    queue.push_many(NewJob("mail", PAYLOAD) for _ in range(2 * BATCH))
    connection.execute("VACUUM ANALYZE pgqueue_jobs")
    return queue


def undisturbed(measure: Callable[[], Cost | None]) -> Cost:
    """The first measurement that no checkpoint came into."""
    for _ in range(5):
        if (measured := measure()) is not None:
            return measured
    raise AssertionError("five checkpoints in a row")


def claimed(queue: Queue) -> list[Job]:
    """A batch to end."""
    return queue.claim([Want("mail", BATCH)], worker="w")


STATEMENTS: dict[str, tuple[Callable[[Queue], Statement], int, float, float]] = {
    # name: the statement, jobs in it, most bytes of WAL a job, most buffers a job
    "push": (lambda queue: first_of(op.push("mail", PAYLOAD)), 1, 490, 14),
    "push with a key": (lambda queue: first_of(op.push("mail", PAYLOAD, key="photo-7")), 1, 680, 18.5),
    "push_many": (lambda queue: first_of(op.push_many([NewJob("mail", PAYLOAD)] * BATCH)), BATCH, 500, 7.9),
    "claim": (lambda queue: first_of(op.claim([Want("mail", BATCH)], worker="w")), BATCH, 520, 12.5),
    "complete, deleted": (lambda queue: first_of(op.complete_many(claimed(queue), ttl=0)), BATCH, 124, 11.6),
    "complete, kept": (lambda queue: first_of(op.complete_many(claimed(queue), ttl=60)), BATCH, 428, 16.5),
    "heartbeat": (lambda queue: first_of(op.heartbeat_many(claimed(queue)[:50])), 50, 225, 18),
    "release": (lambda queue: first_of(op.release_many(claimed(queue))), BATCH, 485, 17.6),
    "fail": (lambda queue: first_of(op.fail_many([op.Failure(job, "no") for job in claimed(queue)])), BATCH, 495, 17.6),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_job_costs_no_more_wal_and_buffers_than_this(connection: psycopg.Connection[Any], name: str) -> None:
    make, jobs, wal_bytes, buffers = STATEMENTS[name]
    spent = undisturbed(lambda: cost(connection, make(filled(connection))))
    assert 0 < spent.wal_bytes / jobs <= wal_bytes
    assert 0 < spent.buffers / jobs <= buffers


DUE = 2_000
BEHIND = 20_000


@pytest.mark.parametrize("levels", [1, 10])
def test_a_claim_reads_as_little_however_many_jobs_lie_behind_it(
    connection: psycopg.Connection[Any], levels: int
) -> None:
    """As many more due, and as many of the future in a priority above them all."""
    alone = _claim_among(connection, DUE, levels, later=0)
    among = _claim_among(connection, BEHIND, levels, later=BEHIND)
    # One more level of the indexes for each descent; the future ones cost one descent altogether.
    assert among <= 1.25 * alone


def _claim_among(connection: psycopg.Connection[Any], due: int, levels: int, later: int) -> int:
    """Buffers of a claim of 100."""

    def measure() -> Cost | None:
        connection.execute("TRUNCATE pgqueue_jobs")
        Queue(connection).push_many(
            [NewJob("mail", delay=86_400, priority=100) for _ in range(later)]
            + [NewJob("mail", priority=number % levels) for number in range(due)]
        )
        connection.execute("VACUUM ANALYZE pgqueue_jobs")
        return cost(connection, first_of(op.claim([Want("mail", 100)], worker="w")))

    return undisturbed(measure).buffers


def test_a_position_spares_a_claim_the_entries_that_a_snapshot_pins(
    database: str, connection: psycopg.Connection[Any]
) -> None:
    queue = Queue(connection)
    with psycopg.connect(database) as pinning:
        pinning.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        pinning.execute("SELECT 1")
        queue.push_many(NewJob("mail") for _ in range(10_000))
        connection.execute("ANALYZE pgqueue_jobs")
        (head, behind), (late_head, late_behind) = (_claims_after(queue, batches) for batches in (2, 14))
    assert late_behind <= 1.1 * behind
    assert late_head - late_behind > 4 * (head - behind)  # what this would miss if nothing were pinned


def _claims_after(queue: Queue, batches: int) -> tuple[int, int]:
    """Buffers of a claim of 100 from the head and behind the last position, after so many more batches are done."""
    for _ in range(batches):
        jobs = claimed(queue)
        queue.complete_many(jobs, ttl=0)
    position = Position(jobs[-1].priority, jobs[-1].run_at, jobs[-1].id)
    head, behind = (
        undisturbed(lambda want=want: cost(queue.connection, first_of(op.claim([want], worker="w")))).buffers  # type: ignore[misc]  # a default binds it
        for want in (Want("mail", 100), Want("mail", 100, after=position))
    )
    return head, behind


def test_back_pressure_reads_as_much_as_its_limit_whatever_the_table_holds(
    connection: psycopg.Connection[Any],
) -> None:
    Queue(connection).push_many(NewJob("mail") for _ in range(2_000))
    terminal = "SELECT 'mail', 'succeeded', now() FROM generate_series(1, %s)"
    connection.execute(f"INSERT INTO pgqueue_jobs (kind, status, finished_at) {terminal}", [BEHIND])
    connection.execute("VACUUM ANALYZE pgqueue_jobs")
    for limit in (12, 1_000):
        spent = cost(connection, Statement(sql.COUNT_ACTIVE, {"queue": "default", "limit": limit}))
        assert spent is not None
        assert spent.buffers <= 12 + limit
