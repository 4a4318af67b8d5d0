"""The ledger finds every lost, unexpected and duplicated job, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness import ledger

Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        ledger.create(connection)
        yield connection


def enqueue(connection: Connection, key: str, status: str = "succeeded") -> int:
    """A row as the queue leaves it, in the given state."""
    row = connection.execute(
        "INSERT INTO pgqueue_jobs (kind, external_key, status) VALUES ('mail', %s, %s) RETURNING id",
        (key, status),
    ).fetchone()
    assert row is not None
    return int(row[0])


def push(connection: Connection, key: str, status: str = "succeeded") -> int:
    with connection.transaction():
        job_id = enqueue(connection, key, status)
        ledger.record_push(connection, key, job_id, "mail", 1000.0, measured=True)
    return job_id


def run(database: str, *batches: list[tuple[int, int, str | None]], kind: str = "mail") -> None:
    """Handlers of one worker record effects; those of a batch at the same time."""

    async def work() -> None:
        writer = ledger.EffectWriter(database, "w1")
        for batch in batches:
            records = [writer.record(*row, kind, started=1001.0, finished=1002.0) for row in batch]
            await asyncio.gather(*records)
        await writer.close()

    asyncio.run(work())


def test_a_run_in_which_every_job_had_one_effect_is_closed(connection: Connection, database: str) -> None:
    jobs = [(push(connection, f"k{n}"), 1, f"k{n}") for n in range(50)]
    run(database, jobs[:20], jobs[20:])
    found = ledger.reconcile(connection)
    assert (found.pushed, found.effects, found.completed) == (50, 50, 50)
    assert (found.lost, found.unexpected, found.duplicated, found.recovered) == (0, 0, 0, 0)
    assert (found.failed, found.undrained) == (0, 0)


def test_a_committed_push_whose_job_vanished_is_lost(connection: Connection, database: str) -> None:
    jobs = [(push(connection, f"k{n}"), 1, f"k{n}") for n in range(100)]
    run(database, [job for job in jobs if job[2] != "k77"])
    connection.execute("DELETE FROM pgqueue_jobs WHERE external_key = 'k77'")
    found = ledger.reconcile(connection)
    assert (found.lost, found.lost_examples) == (1, ["k77"])
    assert (found.unexpected, found.duplicated, found.undrained) == (0, 0, 0)


def test_a_job_called_succeeded_that_never_ran_is_lost(connection: Connection) -> None:
    push(connection, "k", status="succeeded")
    assert ledger.reconcile(connection).lost == 1


@pytest.mark.parametrize("status", ["pending", "blocked", "running"])
def test_a_job_still_in_the_queue_is_undrained_and_not_lost(connection: Connection, status: str) -> None:
    push(connection, "k", status)
    found = ledger.reconcile(connection)
    assert (found.lost, found.undrained) == (0, 1)


@pytest.mark.parametrize("status", ["pending", "blocked", "running"])
def test_a_job_in_the_queue_that_no_producer_recorded_leaves_the_ledger_open(
    connection: Connection, status: str
) -> None:
    enqueue(connection, "ghost", status)
    connection.execute("INSERT INTO pgqueue_jobs (kind, status) VALUES ('mail', %s)", (status,))
    assert ledger.reconcile(connection).undrained == 2


def test_a_job_still_running_after_its_effect_leaves_the_ledger_open(connection: Connection, database: str) -> None:
    run(database, [(push(connection, "k", "running"), 1, "k")])
    found = ledger.reconcile(connection)
    assert (found.completed, found.undrained) == (1, 1)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_ended_without_success_is_counted_as_failed(connection: Connection, status: str) -> None:
    push(connection, "k", status)
    found = ledger.reconcile(connection)
    assert (found.lost, found.failed) == (0, 1)


def test_an_effect_that_no_producer_committed_is_unexpected(connection: Connection, database: str) -> None:
    phantom = enqueue(connection, "rolled-back")
    run(database, [(push(connection, "k"), 1, "k"), (phantom, 1, "rolled-back")])
    found = ledger.reconcile(connection)
    assert (found.unexpected, found.lost) == (1, 0)
    assert "rolled-back" in found.unexpected_examples[0]


def test_an_effect_without_a_key_is_unexpected(connection: Connection, database: str) -> None:
    run(database, [(enqueue(connection, "k"), 1, None)])
    assert ledger.reconcile(connection).unexpected == 1


def test_an_effect_under_another_jobs_key_is_unexpected_and_the_job_lost(connection: Connection, database: str) -> None:
    run(database, [(push(connection, "a"), 1, "a"), (push(connection, "b"), 1, "a")])
    found = ledger.reconcile(connection)
    assert (found.unexpected, found.lost, found.lost_examples) == (1, 1, ["b"])


def test_an_effect_of_another_kind_is_unexpected(connection: Connection, database: str) -> None:
    run(database, [(push(connection, "a"), 1, "a")], kind="other")
    found = ledger.reconcile(connection)
    assert (found.unexpected, found.lost) == (1, 1)


def test_two_keys_that_got_one_job_show_as_a_loss(connection: Connection, database: str) -> None:
    job = push(connection, "a")
    ledger.record_push(connection, "b", job, "mail", 1000.0, measured=True)
    run(database, [(job, 1, "a")])
    found = ledger.reconcile(connection)
    assert (found.lost, found.lost_examples) == (1, ["b"])


def test_a_job_that_ran_in_two_attempts_is_duplicated(connection: Connection, database: str) -> None:
    job = push(connection, "k")
    run(database, [(job, 1, "k")], [(job, 2, "k")])
    found = ledger.reconcile(connection)
    assert (found.duplicated, found.duplicated_examples) == (1, ["k"])
    assert (found.completed, found.effects, found.recovered) == (1, 2, 0)


def test_one_attempt_handed_out_three_times_counts_two_duplicates(connection: Connection, database: str) -> None:
    job = push(connection, "k")
    run(database, [(job, 1, "k"), (job, 1, "k")], [(job, 1, "k")])  # two in one commit, one in the next
    found = ledger.reconcile(connection)
    assert (found.duplicated, found.effects, found.completed) == (2, 3, 1)


def test_a_job_whose_first_attempt_left_no_effect_is_recovered(connection: Connection, database: str) -> None:
    run(database, [(push(connection, "k"), 2, "k")])
    found = ledger.reconcile(connection)
    assert (found.recovered, found.duplicated, found.lost) == (1, 0, 0)


def test_a_rolled_back_push_leaves_nothing_to_reconcile(connection: Connection) -> None:
    with connection.transaction(force_rollback=True):
        push(connection, "k")
    assert ledger.reconcile(connection).pushed == 0
    assert not ledger.already_pushed(connection, "k")


def test_a_producer_can_ask_whether_its_commit_took(connection: Connection) -> None:
    push(connection, "k")
    assert ledger.already_pushed(connection, "k")


def test_latencies_count_from_the_intended_instant_and_from_the_first_effect(
    connection: Connection, database: str
) -> None:
    job = push(connection, "k")
    run(database, [(job, 1, "k")])
    connection.execute(
        "INSERT INTO loadtest_effects VALUES (%s, 2, 'k', 'mail', 'w', 1, to_timestamp(9000), to_timestamp(9001))",
        (job,),
    )
    assert ledger.latencies(connection) == [(1000.0, 1.0, 2.0)]


def test_warm_up_jobs_are_reconciled_but_not_measured(connection: Connection, database: str) -> None:
    job = enqueue(connection, "w")
    ledger.record_push(connection, "w", job, "mail", 1000.0, measured=False)
    run(database, [(job, 1, "w")])
    assert ledger.reconcile(connection).completed == 1
    assert ledger.latencies(connection) == []


def test_progress_counts_the_time_that_waiting_jobs_have_waited_however_long_they_do(connection: Connection) -> None:
    push(connection, "k", "pending")  # intended in 1970
    first = ledger.recent(connection, ledger.Recent())
    again = ledger.recent(connection, first)
    for look in (first, again):
        assert (look.pushed, look.effects, look.settled) == (1, 0, 0)
        assert look.start_p99 is not None
        assert look.start_p99 > 1e9


def test_progress_takes_a_job_that_runs_for_started(connection: Connection) -> None:
    job = push(connection, "k", "running")
    connection.execute("UPDATE pgqueue_jobs SET started_at = to_timestamp(1003)")
    assert ledger.recent(connection, ledger.Recent())[2:4] == (3.0, job)


def test_progress_counts_a_job_once(connection: Connection, database: str) -> None:
    run(database, [(push(connection, "k"), 1, "k")])
    first = ledger.recent(connection, ledger.Recent())
    assert (first.pushed, first.effects, first.start_p99) == (1, 1, 1.0)
    again = ledger.recent(connection, first)
    assert again.start_p99 is None
    assert again.settled == first.settled > 0


def test_progress_shows_a_backlog_that_was_filled_in_the_counts_alone(connection: Connection) -> None:
    ledger.record_pushes(connection, ["f"], [enqueue(connection, "f", "pending")], "mail")
    assert ledger.recent(connection, ledger.Recent())[:4] == (1, 0, None, 0)


def test_a_failed_effect_write_fails_the_attempt_and_the_next_one_reconnects(
    connection: Connection, database: str
) -> None:
    job = push(connection, "k")

    async def work() -> None:
        writer = ledger.EffectWriter(database, "w1")
        await writer.record(job, 1, "k", "mail", started=1.0, finished=2.0)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with pytest.raises(psycopg.OperationalError):
            await writer.record(job, 2, "k", "mail", started=1.0, finished=2.0)
        await writer.record(job, 3, "k", "mail", started=1.0, finished=2.0)
        await writer.close()

    asyncio.run(work())
    assert ledger.reconcile(connection).effects == 2


def test_the_database_clock_agrees_with_the_server_within_its_error(connection: Connection) -> None:
    clock = ledger.DatabaseClock.measure(connection)
    before = clock.now()
    row = connection.execute(ledger.DatabaseClock.PROBE).fetchone()
    after = clock.now()
    assert row is not None
    assert before - clock.error <= row[0] <= after + clock.error
