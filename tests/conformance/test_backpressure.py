"""Back-pressure: `max_in_flight` bounds a queue's jobs that are not terminal; over it nothing is inserted."""

from __future__ import annotations

import pytest


def count(db):
    return db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone()["n"]


def test_a_full_queue_refuses_with_its_name_limit_count_and_advice(core, open_queue, db):
    queue = open_queue(max_in_flight=3)
    assert all(queue.push("mail", queue="outbox").created for _ in range(3))
    with pytest.raises(core.QueueBusy) as refused:
        queue.push("mail", queue="outbox")
    assert (refused.value.queue, refused.value.limit, refused.value.active) == ("outbox", 3, 3)
    assert refused.value.retry_after > 0
    assert "'outbox'" in str(refused.value)
    assert "3 of 3" in str(refused.value)
    assert count(db) == 3


@pytest.mark.parametrize(
    ("status", "counts"),
    [("pending", 1), ("blocked", 1), ("running", 1), ("succeeded", 0), ("failed", 0), ("cancelled", 0)],
)
def test_jobs_that_are_not_terminal_count(core, open_queue, put, db, status, counts):
    put(status=status)
    queue = open_queue(max_in_flight=1)
    if counts:
        with pytest.raises(core.QueueBusy):
            queue.push("mail")
    else:
        assert queue.push("mail").created
    assert count(db) == 2 - counts


def test_future_jobs_and_other_kinds_count(core, open_queue, db):
    queue = open_queue(max_in_flight=2)
    queue.push("mail", delay=3600)
    queue.push("text")
    with pytest.raises(core.QueueBusy):
        queue.push("page")
    assert count(db) == 2


def test_active_is_counted_up_to_the_limit(core, open_queue, put, db):
    for status in ("pending", "running", "blocked", "pending", "running"):
        put(status=status)
    with pytest.raises(core.QueueBusy) as refused:
        open_queue(max_in_flight=2).push("mail")
    assert (refused.value.limit, refused.value.active) == (2, 2)


def test_each_queue_has_its_own_bound(core, open_queue, db):
    queue = open_queue(max_in_flight=1)
    assert queue.push("mail", queue="a").created
    assert queue.push("mail", queue="b").created
    with pytest.raises(core.QueueBusy):
        queue.push("mail", queue="a")


def test_a_finished_job_makes_room(core, open_queue, take):
    bounded = open_queue(max_in_flight=1)
    job = take()
    with pytest.raises(core.QueueBusy):
        bounded.push("mail")
    bounded.complete(job)
    assert bounded.push("mail").created


def test_a_key_that_exists_passes_a_full_queue(core, open_queue, db):
    queue = open_queue(max_in_flight=2)
    first, second = queue.push("mail", key="a"), queue.push("mail", key="b")
    assert queue.push("mail", key="a") == (first.id, False)
    batch = [core.NewJob("mail", key=key) for key in ("b", "a", "b")]
    assert queue.push_many(batch) == [(second.id, False), (first.id, False), (second.id, False)]
    with pytest.raises(core.QueueBusy):
        queue.push_many([*batch, core.NewJob("mail", key="c")])
    assert count(db) == 2


def test_a_key_twice_in_a_batch_takes_one_place(core, open_queue, db):
    queue = open_queue(max_in_flight=2)
    answers = queue.push_many([core.NewJob("mail", key=key) for key in "abab"])
    assert [answer.created for answer in answers] == [True, True, False, False]
    assert count(db) == 2


def test_a_batch_that_does_not_fit_inserts_nothing_in_any_queue(core, open_queue, db):
    queue = open_queue(max_in_flight=3)
    queue.push_many([core.NewJob("mail", queue="b")] * 2)
    with pytest.raises(core.QueueBusy) as refused:
        queue.push_many([core.NewJob("mail", queue="a"), *[core.NewJob("mail", queue="b")] * 2])
    assert (refused.value.queue, refused.value.limit, refused.value.active) == ("b", 3, 2)
    assert count(db) == 2


def test_a_batch_that_can_never_fit_is_an_invalid_argument(core, open_queue, db):
    queue = open_queue(max_in_flight=3)
    with pytest.raises(core.InvalidJob, match="4 new jobs can never fit max_in_flight=3 of queue 'default'"):
        queue.push_many([core.NewJob("mail")] * 4)
    assert count(db) == 0
    assert len(queue.push_many([core.NewJob("mail")] * 3)) == 3


def test_a_batch_of_100_000_against_a_bound_is_refused_in_one_line(core, open_queue, db):
    with pytest.raises(core.InvalidJob) as refused:
        open_queue(max_in_flight=12).push_many([core.NewJob("mail")] * 100_000)
    assert "\n" not in str(refused.value)
    assert count(db) == 0


def test_refusal_leaves_the_callers_transaction_in_use(core, open_queue, db):
    queue = open_queue(max_in_flight=1)
    with queue.transaction():
        queue.push("mail")
        with pytest.raises(core.QueueBusy):
            queue.push("mail")
        queue.push("mail", queue="other")
    assert count(db) == 2


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_bound_is_refused_where_its_count_would_be_stale(core, open_queue, db, level):
    queue = open_queue(
        max_in_flight=5, options=rf"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    )
    with pytest.raises(core.QueueError, match="READ COMMITTED"):
        queue.push("mail")
    assert count(db) == 0


def test_retry_is_not_held_back(open_queue, put, db):
    put(status="pending")
    failed = put(status="failed")
    assert open_queue(max_in_flight=1).retry(failed) is True


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3"])
def test_a_bound_that_is_not_a_positive_whole_number_is_refused(core, open_queue, db, limit):
    with pytest.raises(core.InvalidJob, match="max_in_flight"):
        open_queue(max_in_flight=limit).push("mail")
    assert count(db) == 0


def test_without_a_bound_nothing_is_held_back(queue, core, put, db):
    for _ in range(20):
        put(status="running")
    assert queue.push("mail").created
