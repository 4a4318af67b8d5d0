"""Operators' batches: what each changes, in pages and to the end. Their races are in tests/concurrency, their plans in
tests/concurrency/test_plans.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

import pgqueue_ref.sqlalchemy as on_sqlalchemy
from pgqueue_ref.core import InvalidJob, LeaseLost, Operation, Queue, Want, connect_async, run, run_async
from pgqueue_ref.ops import operations as op

PAST = datetime(2001, 1, 1, tzinfo=UTC)
Do = Callable[[Operation[Any]], Any]
Put = Callable[..., int]
Statuses = Callable[[], dict[int, str]]


@pytest.fixture
def queue(db: psycopg.Connection[Any]) -> Queue:
    return Queue(db)


@pytest.fixture
def do(db: psycopg.Connection[Any]) -> Do:
    """Runs an operation."""
    return lambda operation: run(db, operation)


def to_the_end(do: Do, batch: Callable[[Any], Operation[op.Batch[Any]]], start: Any) -> list[int]:
    """How many jobs each batch changed; the caller's part of the bargain."""
    changed, after = [], start
    while after is not None:
        jobs, after = do(batch(after))
        changed.append(jobs)
    return changed


# -- looking ---------------------------------------------------------------------------------------------------


def test_the_newest_come_first_page_by_page_and_filtered(do: Do, put: Put) -> None:
    ids = [
        put(
            kind=f"k{n % 2}",
            queue=f"q{n % 3}",
            external_key=f"key-{n}",
            status="failed" if n > 7 else "pending",
            finished_at=PAST,
        )
        for n in range(10)
    ]
    first = do(op.newest(limit=4))
    assert [job.id for job in first] == ids[:-5:-1]
    assert [job.id for job in do(op.newest(before=first[-1].id))] == ids[5::-1]
    assert [job.id for job in do(op.newest(kind="k1", queue="q1"))] == [ids[7], ids[1]]
    assert [job.id for job in do(op.newest(status="failed"))] == [ids[9], ids[8]]
    assert [job.id for job in do(op.newest(kind="k1", key="key-3"))] == [ids[3]]
    assert do(op.newest(kind="nobody")) == []


def test_the_last_failure_comes_first_whatever_the_id(do: Do, put: Put) -> None:
    failures = [
        put(
            status="failed",
            finished_at=PAST - timedelta(days=n),
            queue=f"q{n % 2}",
            errors=["Timeout", f"error 10{n}%"],
        )
        for n in range(5)
    ]
    put(status="cancelled", finished_at=PAST)
    first = do(op.failed(limit=2))
    assert [job.id for job in first] == failures[:2]
    rest = do(op.failed(before=op.Ending(first[-1].finished_at, first[-1].id)))
    assert [job.id for job in rest] == failures[2:]
    assert [job.id for job in do(op.failed(queue="q1"))] == failures[1::2]
    assert do(op.failed(error_like="%timeout%")) == [], "only the newest message counts"
    assert [job.id for job in do(op.failed(error_like="ERROR 103\\%"))] == [failures[3]]


def test_failures_at_one_moment_are_listed_once(do: Do, put: Put) -> None:
    ids = [put(status="failed", finished_at=PAST) for _ in range(5)]
    seen, before = [], None
    while page := do(op.failed(before=before, limit=2)):
        seen += [job.id for job in page]
        before = op.Ending(page[-1].finished_at, page[-1].id)
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    ("status", "used"), [("pending", True), ("running", True), ("blocked", True), ("failed", False)]
)
def test_a_queue_is_in_use_while_a_job_is_not_terminal(do: Do, put: Put, status: str, used: bool) -> None:
    put(queue="a", status=status)
    assert do(op.in_use("a")) is used
    assert do(op.in_use("b")) is False


@pytest.mark.parametrize(
    "operation",
    [
        lambda: op.newest(status="lost"),  # type: ignore[arg-type]  # what is wrong with it
        lambda: op.newest(kind=""),
        lambda: op.newest(limit=0),
        lambda: op.newest(before=0),
        lambda: op.failed(error_like=""),
        lambda: op.retry_batch(op.FIRST_ENDING, until=PAST, limit=0),
        lambda: op.purge_batch(0, -1),
        lambda: op.purge_batch(0, 1, statuses=("succeeded", "running")),
        lambda: op.clear_batch("", until=PAST),
        lambda: op.take_back(older_than=float("nan")),
    ],
)
def test_a_bad_argument_is_refused_before_any_statement(operation: Callable[[], Operation[Any]]) -> None:
    with pytest.raises(InvalidJob):
        next(operation())


def test_every_runner_runs_them(database: str, put: Put) -> None:
    put(status="failed", finished_at=PAST, errors=["100 % sure"])
    url = database.replace("postgresql://", "postgresql+psycopg://")
    look = {"error_like": "%100 \\% sure"}

    async def on_both() -> list[int]:
        async with await connect_async(database) as connection:
            found = [len(await run_async(connection, op.failed(**look)))]  # type: ignore[arg-type]  # of strings
        engine = create_async_engine(url)
        async with engine.begin() as asynchronous:
            found.append(len(await on_sqlalchemy.run_async(asynchronous, op.failed(**look))))  # type: ignore[arg-type]
        await engine.dispose()
        return found

    assert asyncio.run(on_both()) == [1, 1]
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        until = on_sqlalchemy.run(connection, op.moment())
        batch = op.retry_batch(op.FIRST_ENDING, until=until, error_like=look["error_like"])
        assert on_sqlalchemy.run(connection, batch).jobs == 1
    engine.dispose()


# -- retry many ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "BATCH", 3)
    monkeypatch.setattr(op, "PAGE", 4)


def test_failed_jobs_are_retried_batch_by_batch_oldest_first(
    do: Do, put: Put, db: psycopg.Connection[Any], statuses: Statuses, small_pages: None
) -> None:
    fresh = {"attempt": 5, "max_attempts": 5, "worker": "w", "delete_after": PAST}
    ids = [put(status="failed", finished_at=PAST - timedelta(days=n), **fresh) for n in range(8)]
    other = put(status="cancelled", finished_at=PAST)
    until = do(op.moment())
    first = do(op.retry_batch(op.FIRST_ENDING, until=until))
    assert first.jobs == 3
    assert {id_ for id_, status in statuses().items() if status == "pending"} == set(ids[-3:])
    assert to_the_end(do, lambda after: op.retry_batch(after, until=until), first.after) == [3, 2, 0]
    assert statuses() == dict.fromkeys(ids, "pending") | {other: "cancelled"}
    row = "SELECT DISTINCT attempt, worker, finished_at, delete_after FROM pgqueue_jobs WHERE status = 'pending'"
    assert db.execute(row).fetchall() == [(0, None, None, None)]


def test_only_those_that_match_are_retried_and_counting_says_how_many(
    do: Do, put: Put, statuses: Statuses, small_pages: None
) -> None:
    for n in range(20):
        put(status="failed", finished_at=PAST, kind=f"k{n % 2}", queue=f"q{n % 3}", errors=[f"code {n % 5}"])
    until, wanted = do(op.moment()), {"kind": "k1", "queue": "q0", "error_like": "CODE 3"}
    before = statuses()
    assert to_the_end(
        do, lambda after: op.retry_batch(after, until=until, dry_run=True, **wanted), op.FIRST_ENDING
    ) == [1, 0, 0, 0, 0, 0]
    assert statuses() == before, "counting changes nothing"
    assert sum(to_the_end(do, lambda after: op.retry_batch(after, until=until, **wanted), op.FIRST_ENDING)) == 1
    assert sum(to_the_end(do, lambda after: op.retry_batch(after, until=until), op.FIRST_ENDING)) == 19


def test_a_limit_is_kept_within_a_page(do: Do, put: Put, small_pages: None) -> None:
    for _ in range(5):
        put(status="failed", finished_at=PAST)
    until = do(op.moment())
    assert do(op.retry_batch(op.FIRST_ENDING, until=until, limit=2, dry_run=True)).jobs == 2
    assert do(op.retry_batch(op.FIRST_ENDING, until=until, limit=2)).jobs == 2


def test_a_job_that_fails_again_meanwhile_is_not_retried_for_ever(do: Do, queue: Queue, put: Put) -> None:
    put(status="failed", finished_at=PAST)
    until = do(op.moment())
    batch = do(op.retry_batch(op.FIRST_ENDING, until=until))
    (job,) = queue.claim([Want("mail", 1)], worker="w")
    queue.fail(job, "again", final=True)
    assert to_the_end(do, lambda after: op.retry_batch(after, until=until), batch.after) == [0]
    assert queue.get(job.id).status == "failed"


# -- purge -----------------------------------------------------------------------------------------------------


def test_purging_deletes_the_old_page_by_page_and_leaves_the_rest(
    do: Do, put: Put, statuses: Statuses, small_pages: None
) -> None:
    gone = [put(status=status, finished_at=PAST) for status in ["succeeded", "cancelled"] * 10]
    kept = [put(status="failed", finished_at=PAST), put(), put(status="running", started_at=PAST)]
    kept.append(put(status="succeeded", finished_at=do(op.moment())))
    assert do(op.span()) == (gone[0], kept[-1])
    assert sum(to_the_end(do, lambda after: op.purge_batch(after, 3600, dry_run=True), gone[0] - 1)) == 20
    assert len(statuses()) == 24
    assert to_the_end(do, lambda after: op.purge_batch(after, 3600), gone[0] - 1) == [15, 5, 0]
    assert sorted(statuses()) == kept
    everything = ("succeeded", "cancelled", "failed")
    assert do(op.purge_batch(gone[0] - 1, 3600, statuses=everything)).jobs == 1
    assert sorted(statuses()) == kept[1:]


def test_an_empty_table_has_nothing_to_walk(do: Do) -> None:
    assert do(op.span()) == (0, 0)
    assert do(op.purge_batch(-1, 0)) == (0, None)
    assert do(op.retry_batch(op.FIRST_ENDING, until=PAST)) == (0, None)
    assert do(op.clear_batch("default", until=PAST)) == (0, None)
    assert do(op.take_back()) == ([], [], [], [], None)


# -- clear -----------------------------------------------------------------------------------------------------


def test_clearing_cancels_what_is_pending_in_the_queue_and_nothing_else(do: Do, put: Put, queue: Queue) -> None:
    meant = [put(queue="a", priority=n % 3, run_at=PAST, errors=["an earlier attempt"]) for n in range(7)]
    later = put(queue="a", run_at=datetime(2100, 1, 1, tzinfo=UTC))
    kept = [put(queue="b"), put(queue="a", status="blocked"), put(queue="a", status="running")]
    until = do(op.moment())
    pushed_meanwhile = put(queue="a")
    assert do(op.clearable("a")) == 9
    assert to_the_end(do, lambda after: op.clear_batch("a", until=after, limit=4), until) == [4, 4, 0]
    assert [queue.get(id_).status for id_ in kept] == ["pending", "blocked", "running"]
    assert queue.get(pushed_meanwhile).status == "pending"
    for id_ in (*meant, later):
        job = queue.get(id_)
        assert (job.status, job.errors[-1]) == ("cancelled", "cleared from its queue")
        assert job.delete_after is not None
        assert job.finished_at is not None
        assert job.delete_after - job.finished_at == timedelta(days=1)
    assert queue.get(meant[0]).errors[0] == "an earlier attempt"
    assert queue.retry(meant[0]), "whoever cleared the wrong queue gets its jobs back"


# -- reset stuck jobs ------------------------------------------------------------------------------------------


def running(put: Put, db: psycopg.Connection[Any], **columns: object) -> int:
    """A running job on its first attempt of two, held for a minute, running for ten."""
    values = {"status": "running", "attempt": 1, "max_attempts": 2, "lease_token": 1, "worker": "w1"} | columns
    id_ = put(**values)
    db.execute(
        "UPDATE pgqueue_jobs SET lease_expires_at = coalesce(lease_expires_at, now() + interval '1 min'),"
        " started_at = now() - interval '10 min' WHERE id = %s",
        [id_],
    )
    return id_


def test_a_job_whose_lease_ran_out_is_taken_back_with_the_reason(
    do: Do, put: Put, db: psycopg.Connection[Any], queue: Queue
) -> None:
    lost = running(put, db, lease_expires_at=PAST)
    spent = running(put, db, lease_expires_at=PAST, max_attempts=1)
    held = running(put, db)
    assert do(op.stuck()) == (2, 0)
    assert do(op.take_back()) == ([lost], [spent], [], [], None)
    assert (queue.get(lost).status, queue.get(lost).errors) == ("pending", ["lease ran out, worker w1"])
    assert queue.get(spent).status == "failed"
    assert queue.get(spent).finished_at is not None
    assert queue.get(held).status == "running"
    assert do(op.take_back()) == ([], [], [], [], None), "sent again it finds nothing"


def test_a_running_job_without_a_lease_is_lost_too(do: Do, put: Put, queue: Queue) -> None:
    by_hand = put(status="running", attempt=1)
    assert do(op.stuck()) == (1, 0)
    assert do(op.take_back()).retried == [by_hand]
    assert queue.get(by_hand).errors == ["lease ran out, worker unknown"]


def test_older_than_takes_jobs_from_living_workers_whose_reports_are_then_stale(
    do: Do, put: Put, db: psycopg.Connection[Any], queue: Queue
) -> None:
    old = running(put, db)
    young = queue.push("young").id
    (young_job,) = queue.claim([Want("young", 1)], worker="w2")
    assert do(op.stuck(300)) == (0, 1)
    assert do(op.take_back(older_than=300)).retried == [old]
    assert queue.get(old).errors == ["taken back by an operator while running, worker w1"]
    (again,) = queue.claim([Want("mail", 1)], worker="w3")
    with pytest.raises(LeaseLost):
        queue.complete(again._replace(lease_token=1))
    queue.complete(again)
    queue.complete(young_job)
    assert queue.get(young).status == "succeeded"


def test_taking_back_goes_on_from_batch_to_batch(do: Do, put: Put, db: psycopg.Connection[Any]) -> None:
    ids = [running(put, db, lease_expires_at=PAST, queue=f"q{n % 2}") for n in range(5)]
    taken, after = [], op.FIRST_STUCK
    while after is not None:
        batch = do(op.take_back(after, limit=2))
        taken.append(batch.retried)
        after = batch.after
    assert [len(batch) for batch in taken] == [2, 2, 1]
    assert sorted(id_ for batch in taken for id_ in batch) == ids


def test_a_row_that_the_server_refuses_to_change_does_not_stall_the_rest(
    do: Do, put: Put, db: psycopg.Connection[Any], database: str
) -> None:
    ids = [running(put, db, lease_expires_at=PAST, payload="7" if n == 3 else "0") for n in range(6)]
    db.execute("ALTER TABLE pgqueue_jobs ADD CHECK (status <> 'pending' OR payload <> '7') NOT VALID")
    taken = do(op.take_back())
    assert (sorted(taken.retried), taken.refused) == (ids[:3] + ids[4:], [ids[3]])
    with psycopg.connect(database) as connection, pytest.raises(InvalidJob):
        run(connection, op.take_back())
