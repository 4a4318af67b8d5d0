"""Events: every way in which a job changes leaves one, and nothing else does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import Failure, InvalidJob, LockTimeout, NewJob, Queue, Want, connect
from pgqueue_ref.extensions import events
from pgqueue_ref.extensions.events import Event, Place
from pgqueue_ref.ops import operations as operators
from pgqueue_ref.worker import Ignore, Job, Kinds, Worker


@pytest.fixture(autouse=True)
def unlogged() -> Iterator[None]:
    """No log is captured: one with half a surrogate in it cannot be sent between pytest's processes."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def take(queue: Queue, count: int = 1, **options: Any) -> list[Job]:
    """Push jobs and claim them as worker w1."""
    queue.push_many([NewJob("mail", **options) for _ in range(count)])
    return queue.claim([Want("mail", count)], worker="w1")


def told(queue: Queue, job_id: int) -> list[tuple[str, str]]:
    """The types of a job's events, with the status that each left."""
    return [(event.type, event.status) for event in queue.run(events.timeline(job_id))]


def last(queue: Queue, job_id: int) -> Event:
    return queue.run(events.timeline(job_id))[-1]


def lose(queue: Queue, job: Job) -> None:
    queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = '2001-01-01' WHERE id = %s", [job.id])


# -- what happens to a job ---------------------------------------------------------------------------------------


def test_a_job_that_succeeds_is_pushed_claimed_and_succeeded(queue: Queue) -> None:
    (job,) = take(queue)
    queue.complete(job)
    pushed, claimed, succeeded = queue.run(events.timeline(job.id))
    assert told(queue, job.id) == [("pushed", "pending"), ("claimed", "running"), ("succeeded", "succeeded")]
    assert (pushed.queue, pushed.kind, pushed.attempt, pushed.worker) == ("default", "mail", 0, None)
    assert [(event.attempt, event.worker, event.message) for event in (claimed, succeeded)] == [(1, "w1", None)] * 2
    assert pushed.at == queue.get(job.id).created_at


def test_a_completion_that_deletes_its_row_is_a_success_as_well(queue: Queue) -> None:
    (job,) = take(queue)
    queue.complete(job, ttl=0)
    assert told(queue, job.id)[-1] == ("succeeded", "running")
    assert last(queue, job.id).worker == "w1"


def test_a_failure_says_what_went_wrong_and_what_became_of_the_job(queue: Queue) -> None:
    (job,) = take(queue, max_attempts=2)
    queue.fail(job, "no post office")
    (job,) = queue.claim([Want("mail", 1)], worker="w2")
    queue.fail(job, "no stamps")
    assert told(queue, job.id)[2:] == [("failed", "pending"), ("claimed", "running"), ("failed", "failed")]
    first, _, second = queue.run(events.timeline(job.id))[2:]
    assert (first.message, first.attempt, first.worker) == ("no post office", 1, "w1")
    assert (second.message, second.attempt, second.worker) == ("no stamps", 2, "w2")


def test_a_failure_that_leaves_the_kept_messages_as_they_were_is_told_all_the_same(queue: Queue) -> None:
    """The last few messages are equal, and the newest pushes out the oldest."""
    take(queue, max_attempts=9)
    for _ in range(3):
        queue.connection.execute("UPDATE pgqueue_jobs SET status = 'pending', run_at = now()")
        (job,) = queue.claim([Want("mail", 1)], worker="w1")
        queue.fail(job, "again", max_errors=1)
        assert (last(queue, job.id).type, last(queue, job.id).message) == ("failed", "again")


def test_snoozed_released_cancelled_retried_and_deleted_jobs_are_told_apart(queue: Queue) -> None:
    snoozed, released, cancelled, revived = take(queue, 4)
    queue.snooze(snoozed, 60)
    queue.release(released)
    queue.cancel(cancelled.id)
    queue.fail(revived, "broken", final=True)
    queue.retry(revived.id)
    assert (told(queue, snoozed.id)[-1], last(queue, snoozed.id).attempt) == (("snoozed", "pending"), 1)
    assert told(queue, released.id)[-1] == ("released", "pending")
    assert (told(queue, cancelled.id)[-1], last(queue, cancelled.id).worker) == (("cancelled", "cancelled"), "w1")
    assert told(queue, revived.id)[2:] == [("failed", "failed"), ("retried", "pending")]
    assert last(queue, revived.id).message is None
    queue.purge(0)
    queue.connection.execute("DELETE FROM pgqueue_jobs WHERE id = %s", [revived.id])
    assert told(queue, cancelled.id)[-1] == ("deleted", "cancelled")
    assert told(queue, revived.id)[-1] == ("deleted", "pending")


def test_a_handler_that_cancels_its_job_says_why(queue: Queue) -> None:
    (job,) = take(queue)
    queue.fail_many([Failure(job, "no longer wanted", cancel=True)])
    assert (last(queue, job.id).type, last(queue, job.id).message) == ("cancelled", "no longer wanted")


def test_a_lost_lease_is_a_rescue_whatever_is_left_to_the_job(queue: Queue) -> None:
    spent, again, taken_back = *take(queue, 1, max_attempts=1), *take(queue, 2)
    lose(queue, spent)
    lose(queue, again)
    queue.rescue()
    queue.run(operators.take_back(older_than=0))
    assert told(queue, spent.id)[-1] == ("rescued", "failed")
    assert told(queue, again.id)[-1] == ("rescued", "pending")
    assert told(queue, taken_back.id)[-1] == ("rescued", "pending")
    assert last(queue, again.id).worker == "w1"
    assert last(queue, again.id).message == "lease ran out, worker w1"


def test_a_job_not_started_in_time_has_expired_and_a_cleared_queue_was_cancelled(queue: Queue) -> None:
    now = queue.run(operators.moment())
    expired = queue.push("mail", expires_at=now).id
    assert queue.expire() == 1
    cleared = queue.push("mail").id
    queue.run(operators.clear_batch("default", until=queue.run(operators.moment())))
    assert told(queue, expired)[-1] == ("expired", "cancelled")
    assert (told(queue, cleared)[-1], last(queue, cleared).message) == (
        ("cancelled", "cancelled"),
        "cleared from its queue",
    )


BY_HAND = {
    "blocked": ("pending", "blocked"),
    "unblocked": ("blocked", "pending"),
    "failed": ("pending", "failed"),
    "cancelled": ("failed", "cancelled"),
    "retried": ("succeeded", "pending"),
    "released": ("running", "pending"),
    "succeeded": ("pending", "succeeded"),
    "claimed": ("pending", "running"),
}


@pytest.mark.parametrize("type_", BY_HAND)
def test_sql_by_hand_is_told_with_who_wrote_it(queue: Queue, extended: str, type_: str) -> None:
    was, became = BY_HAND[type_]
    job = queue.push("mail").id
    queue.connection.execute("UPDATE pgqueue_jobs SET status = %s, errors = '{old}'", [was])
    with psycopg.connect(extended, application_name="psql", autocommit=True) as connection:
        connection.execute("UPDATE pgqueue_jobs SET status = %s", [became])
        connection.execute("UPDATE pgqueue_jobs SET status = %s, priority = 7", [became])  # that is no change of status
        user = connection.info.user
    events_ = queue.run(events.timeline(job))
    told_by_hand = [event for event in events_ if event.actor == f"{user} psql"]
    assert [(event.type, event.status) for event in told_by_hand] == [(type_, became)]


def test_events_are_written_from_a_session_that_cannot_see_the_schema(queue: Queue, extended: str) -> None:
    job = queue.push("mail").id
    with psycopg.connect(extended, options="-c search_path=pg_catalog", autocommit=True) as connection:
        connection.execute("UPDATE public.pgqueue_jobs SET status = 'cancelled'")
    assert told(queue, job)[-1] == ("cancelled", "cancelled")


def test_an_event_is_there_if_and_only_if_its_change_is(queue: Queue, extended: str) -> None:
    with connect(extended) as connection:
        other = Queue(connection)
        with connection.transaction(force_rollback=True):
            job = other.push("mail").id
            assert told(other, job) == [("pushed", "pending")]
            assert told(queue, job) == []
        assert told(other, job) == []


TOUCHED = """SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0), n_tup_ins
             FROM pg_stat_xact_user_tables WHERE relname = 'pgqueue_events'"""


def test_a_job_that_exists_is_not_pushed_again(queue: Queue) -> None:
    job = queue.push("mail", key="a").id
    queue.push("mail", key="a")
    queue.push_many([NewJob("mail", key="a")])
    assert told(queue, job) == [("pushed", "pending")]


def test_a_heartbeat_does_not_touch_the_events(queue: Queue) -> None:
    jobs = take(queue, 100)
    with queue.connection.transaction():
        ((scans, inserted),) = queue.connection.execute(TOUCHED).fetchall()
        assert queue.heartbeat_many(jobs) == []
        assert queue.connection.execute(TOUCHED).fetchall() == [(scans, inserted)]
        queue.complete_many(jobs)
        assert queue.connection.execute(TOUCHED).fetchall() == [(scans, inserted + 100)]  # so it would have shown


# -- tracebacks --------------------------------------------------------------------------------------------------


def turn(database: str, *handlers: Callable[[Job], Any]) -> None:
    """One turn of a worker whose kinds are the handlers' names."""
    kinds = Kinds()
    for handler in handlers:
        kinds.register(handler.__name__, max_attempts=2)(handler)

    async def once() -> None:
        worker = Worker(kinds, dsn=database, name="w1")
        try:
            await worker.run_once()
        finally:
            await worker.close()

    asyncio.run(once())


async def mail(job: Job) -> None:
    _deliver(job)


def thread(job: Job) -> None:
    _deliver(job)


async def ignored(job: Job) -> None:
    raise Ignore("the shop is closed")


def _deliver(job: Job) -> None:
    raise ValueError(f"no \0 stamp \udc80 for {job.payload}")


def test_each_failure_of_a_batch_has_its_own_traceback(queue: Queue, extended: str) -> None:
    jobs = queue.push_many([NewJob(kind, number) for number, kind in enumerate(["mail", "thread", "mail", "ignored"])])
    turn(extended, mail, thread, ignored)
    for number, job in enumerate(jobs[:3]):
        failed = last(queue, job.id)
        assert (failed.type, failed.worker) == ("failed", "w1")
        lines = (failed.traceback or "").splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert __file__ in lines[1]  # the worker's own frames are left out
        assert "in _deliver" in failed.traceback
        assert lines[-1] == f"ValueError: no \N{REPLACEMENT CHARACTER} stamp ? for {number}"
    assert last(queue, jobs[3].id).message == "the shop is closed"
    assert last(queue, jobs[3].id).traceback is None


def test_a_refused_outcome_leaves_no_traceback(queue: Queue) -> None:
    held, lost = take(queue, 2)
    queue.cancel(lost.id)
    failures = [Failure(job, "broken") for job in (held, lost)]
    tracebacks = {(job.id, job.lease_token): f"trace of {job.id}" for job in (held, lost)}
    assert queue.run(events.fail_many(failures, tracebacks)) == {(held.id, held.lease_token): "pending"}
    assert last(queue, held.id).traceback == f"trace of {held.id}"
    assert last(queue, lost.id).traceback is None


def test_a_traceback_does_not_outlast_its_statement(queue: Queue) -> None:
    (job,) = take(queue)
    queue.run(events.fail_many([Failure(job, "broken", final=True)], {(job.id, job.lease_token): "trace"}))
    queue.retry(job.id)
    queue.claim([Want("mail", 1)], worker="w2")
    assert [event.traceback for event in queue.run(events.timeline(job.id))] == [None, None, "trace", None, None]


def test_of_a_long_traceback_the_end_is_kept(queue: Queue) -> None:
    (job,) = take(queue)
    text = "x" * 50_000 + "ValueError: the end"
    queue.run(events.fail_many([Failure(job, "broken")], {(job.id, job.lease_token): text}))
    assert last(queue, job.id).traceback == text[-events.MAX_TRACEBACK :]


def test_a_failure_is_recorded_where_events_are_not_installed(database: str) -> None:
    with Queue.connect(database) as queue:
        job = queue.push("mail").id
        turn(database, mail)
        assert queue.get(job).errors


# -- listing -----------------------------------------------------------------------------------------------------


def test_pages_go_through_all_events_once_newest_first(queue: Queue) -> None:
    take(queue, 25)  # fifty events in two instants
    seen: list[Event] = []
    place = None
    while page := queue.run(events.newest(before=place, limit=7)):
        seen += page
        place = Place(page[-1].at, page[-1].id)
    assert len({event.id for event in seen}) == len(seen) == 50
    assert [(event.at, event.id) for event in seen] == sorted(((e.at, e.id) for e in seen), reverse=True)


def test_a_timeline_goes_on_after_its_last_event(queue: Queue) -> None:
    (job,) = take(queue)
    queue.complete(job)
    first = queue.run(events.timeline(job.id, limit=2))
    rest = queue.run(events.timeline(job.id, after=first[-1].id))
    assert [event.type for event in first + rest] == ["pushed", "claimed", "succeeded"]


def test_events_are_found_by_type_job_and_time(queue: Queue) -> None:
    first, second = take(queue, 2)
    queue.fail(first, "broken")
    middle = queue.run(operators.moment())
    queue.fail(second, "broken")

    def found(**filters: Any) -> list[tuple[int, str]]:
        return [(event.job_id, event.type) for event in queue.run(events.newest(**filters))]

    assert found(type="failed") == [(second.id, "failed"), (first.id, "failed")]
    assert found(type="failed", job_id=first.id) == [(first.id, "failed")]
    assert found(since=middle) == [(second.id, "failed")]
    assert found(until=middle, type="failed") == [(first.id, "failed")]
    assert found(since=middle + timedelta(days=1)) == []


def test_rare_types_are_found_without_walking_through_the_others(queue: Queue) -> None:
    queue.connection.execute("""
        INSERT INTO pgqueue_events (job_id, attempt, type, status, queue, kind)
        SELECT n, 1, CASE n WHEN 1 THEN 'failed' ELSE 'claimed' END, 'running', 'default', 'mail'
        FROM generate_series(1, 20000) AS n""")
    queue.connection.execute("ANALYZE pgqueue_events")
    generator = events.newest(type="failed")
    statement = next(generator)
    for _ in range(8):  # the server makes up its mind about a plan after five
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)" + statement.sql
        ((plan,),) = queue.connection.execute(explain, statement.params, prepare=True).fetchall()[0]
    assert plan["Plan"]["Actual Rows"] == 1
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 20


@pytest.mark.parametrize(
    "filters",
    [
        {"type": "eaten"},
        {"job_id": 0},
        {"limit": 0},
        {"since": "yesterday"},
        {"before": Place(datetime(2026, 1, 1), 1)},  # noqa: DTZ001 - that is what is wrong with it
    ],
    ids=str,
)
def test_a_filter_that_makes_no_sense_is_refused(queue: Queue, filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        queue.run(events.newest(**filters))


# -- on and off --------------------------------------------------------------------------------------------------


def test_events_can_be_switched_off_and_on(queue: Queue) -> None:
    assert queue.run(events.enabled())
    assert queue.run(events.disable()) is True
    assert queue.run(events.disable()) is False
    assert not queue.run(events.enabled())
    (job,) = take(queue)
    queue.complete(job, ttl=0)
    assert queue.run(events.newest()) == []
    assert queue.run(events.enable()) is True
    assert queue.run(events.enable()) is False
    assert told(queue, queue.push("mail").id) == [("pushed", "pending")]


def test_switching_gives_up_soon_behind_a_long_transaction(queue: Queue, extended: str) -> None:
    with psycopg.connect(extended) as busy:
        Queue(busy).push("mail")
        queue.connection.execute("SET lock_timeout = '60s'")  # the switch has its own
        with pytest.raises(LockTimeout):
            queue.run(events.disable())
    assert queue.run(events.enabled())


# -- pruning -----------------------------------------------------------------------------------------------------

OLD = "UPDATE pgqueue_events SET at = now() - interval '7 days 1 minute' WHERE job_id = %s"


def test_pruning_deletes_the_oldest_first_and_nothing_younger(queue: Queue) -> None:
    old, young = queue.push("mail").id, queue.push("mail").id
    (job,) = queue.claim([Want("mail", 1)], worker="w1")
    queue.complete(job)
    queue.connection.execute(OLD, [old])
    assert queue.run(events.prune(timedelta(days=7), limit=2)) == 2
    assert [event.type for event in queue.run(events.timeline(old))] == ["succeeded"]
    assert queue.run(events.prune(timedelta(days=7))) == 1
    assert queue.run(events.prune(timedelta(days=7))) == 0
    assert told(queue, young) == [("pushed", "pending")]


def test_two_that_prune_at_once_take_each_event_once_and_do_not_wait(queue: Queue, extended: str) -> None:
    queue.push_many([NewJob("mail") for _ in range(30)])
    with psycopg.connect(extended) as first, connect(extended, options="-c lock_timeout=1") as second:
        assert Queue(first).run(events.prune(0, limit=10)) == 10
        assert Queue(second).run(events.prune(0)) == 20


def test_a_worker_prunes_what_is_older_than_the_setting_says(
    queue: Queue, extended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = queue.push("other").id, queue.push("other").id
    queue.connection.execute(OLD, [old])
    monkeypatch.setenv("PGQUEUE_EVENTS_DAYS", "8")
    turn(extended, mail)
    assert told(queue, old)
    monkeypatch.delenv("PGQUEUE_EVENTS_DAYS")
    turn(extended, mail)
    assert (told(queue, old), told(queue, young)) == ([], [("pushed", "pending")])


@pytest.mark.parametrize("days", ["soon", "-1", "nan"])
def test_days_that_are_no_number_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, days: str) -> None:
    monkeypatch.setenv("PGQUEUE_EVENTS_DAYS", days)
    with pytest.raises(InvalidJob, match="PGQUEUE_EVENTS_DAYS must be a number of days"):
        next(events.chore())
