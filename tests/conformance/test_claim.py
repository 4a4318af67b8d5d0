"""Claim: due jobs in order, each want's slots to itself, an attempt spent for each, nothing that must wait."""

from __future__ import annotations

from datetime import timedelta

import pytest


def ids(jobs):
    return [job.id for job in jobs]


def due(n):
    """run_at, n minutes ago."""
    return f"now() - make_interval(mins => {n})"


@pytest.fixture
def scrambled(db):
    """Ids of jobs put in a scrambled order, in the order in which they must be claimed."""
    rows = [(p, m) for p in (0, 5, -5, 2_147_483_647, -2_147_483_648) for m in (3, 1, 2, 1)]
    rows = rows[::2] + rows[1::2]
    for priority, minutes in rows:
        db.execute(f"INSERT INTO pgqueue_jobs (kind, priority, run_at) VALUES ('mail', {priority}, {due(minutes)})")
    # The due moments of one age differ by microseconds: make them equal, so that the id has to decide.
    db.execute("UPDATE pgqueue_jobs SET run_at = date_trunc('minute', run_at) - interval '1 hour'")
    found = db.execute("SELECT id, priority, run_at FROM pgqueue_jobs").fetchall()
    return [row["id"] for row in sorted(found, key=lambda row: (-row["priority"], row["run_at"], row["id"]))]


def test_the_order_is_priority_descending_then_run_at_then_id(queue, core, scrambled):
    assert ids(queue.claim([core.Want("mail", 100)], worker="w")) == scrambled


@pytest.mark.parametrize("slots", [1, 3])
def test_the_order_holds_however_few_are_claimed_at_a_time(queue, core, scrambled, slots):
    claimed = []
    while jobs := queue.claim([core.Want("mail", slots)], worker="w"):
        assert len(jobs) <= slots
        claimed += ids(jobs)
    assert claimed == scrambled


def test_jobs_of_one_batch_are_claimed_in_the_order_of_the_batch(queue, core):
    pushed = queue.push_many(core.NewJob("mail", n) for n in range(20))
    assert ids(queue.claim([core.Want("mail", 20)], worker="w")) == ids(pushed)


def test_a_claim_spends_an_attempt_and_takes_the_lease_from_the_clock_of_the_database(queue, core, row):
    pushed = queue.push("mail", {"to": "ada"}, key="k", priority=3, metadata={"m": 1})
    (job,) = queue.claim([core.Want("mail", 5, max_attempts=7)], worker="host-1", lease=timedelta(seconds=90))
    assert (job.id, job.queue, job.kind, job.external_key, job.priority) == (pushed.id, "default", "mail", "k", 3)
    assert (job.attempt, job.max_attempts, job.lease_token) == (1, 7, 1)
    assert (job.payload, job.metadata) == ({"to": "ada"}, {"m": 1})
    after = row(job.id)
    assert (after["status"], after["attempt"], after["lease_token"], after["worker"]) == ("running", 1, 1, "host-1")
    assert after["lease_expires_at"] - after["started_at"] == timedelta(seconds=90)
    assert (job.run_at, job.created_at) == (after["run_at"], after["created_at"])


def test_the_lease_token_grows_at_each_claim_and_is_never_reset(queue, core, put):
    job_id = put(lease_token=41, attempt=3)
    for token, attempt in ((42, 4), (43, 4), (44, 4)):  # a release gives the attempt back, the token stays spent
        (job,) = queue.claim([core.Want("mail", 1)], worker="w")
        assert (job.id, job.lease_token, job.attempt) == (job_id, token, attempt)
        queue.release(job)
    (job,) = queue.claim([core.Want("mail", 1)], worker="w")
    queue.fail(job, "no", final=True)
    queue.retry(job_id)
    (job,) = queue.claim([core.Want("mail", 1)], worker="w")
    assert (job.lease_token, job.attempt) == (46, 1)


def test_a_claimed_job_is_not_claimed_again(queue, core):
    queue.push("mail")
    assert len(queue.claim([core.Want("mail", 9)], worker="a")) == 1
    assert queue.claim([core.Want("mail", 9)], worker="b") == []


def test_nothing_wanted_is_nothing_claimed(queue):
    queue.push("mail")
    assert queue.claim([], worker="w") == []


def test_no_kind_exceeds_its_slots_or_blocks_another(queue, core):
    queue.push_many([core.NewJob("flood", priority=9)] * 50 + [core.NewJob("mail")] * 2)
    jobs = queue.claim([core.Want("flood", 3), core.Want("mail", 5), core.Want("idle", 5)], worker="w")
    assert sorted(job.kind for job in jobs) == ["flood"] * 3 + ["mail"] * 2


def test_kinds_that_nobody_wants_stay(queue, core):
    queue.push("mail")
    assert queue.claim([core.Want("text", 5)], worker="w") == []


def test_only_the_wanted_queue_is_looked_at(queue, core):
    a, b = queue.push("mail", queue="a"), queue.push("mail", queue="b")
    assert ids(queue.claim([core.Want("mail", 5, queue="b")], worker="w")) == [b.id]
    assert ids(queue.claim([core.Want("mail", 5, queue="a")], worker="w")) == [a.id]


def test_the_same_kind_in_two_queues_is_claimed_to_the_slots_of_each(queue, core):
    queue.push_many([core.NewJob("mail", queue=name) for name in "ab" for _ in range(5)])
    jobs = queue.claim([core.Want("mail", 2, queue="a"), core.Want("mail", 3, queue="b")], worker="w")
    assert sorted(job.queue for job in jobs) == ["a"] * 2 + ["b"] * 3


@pytest.mark.parametrize("status", ["blocked", "running", "succeeded", "failed", "cancelled"])
def test_only_pending_jobs_are_claimed(queue, core, put, row, status):
    job_id = put(status=status)
    before = row(job_id)
    assert queue.claim([core.Want("mail", 5)], worker="w") == []
    assert row(job_id) == before


def test_a_job_is_claimed_from_its_run_at_on(queue, core, put, db):
    pushed = queue.push("mail", delay=3600)
    assert queue.claim([core.Want("mail", 5)], worker="w") == []
    db.execute("UPDATE pgqueue_jobs SET run_at = now()")
    assert ids(queue.claim([core.Want("mail", 5)], worker="w")) == [pushed.id]


def test_future_jobs_of_high_priority_do_not_hide_due_ones_of_low(queue, core):
    queue.push_many([core.NewJob("mail", priority=9, delay=3600)] * 30)
    low = queue.push("mail", priority=-9)
    assert ids(queue.claim([core.Want("mail", 5)], worker="w")) == [low.id]


def test_a_job_past_its_deadline_is_never_claimed(queue, core, db):
    late, timely = queue.push("mail"), queue.push("mail")
    db.execute("UPDATE pgqueue_jobs SET expires_at = now() - interval '1 second' WHERE id = %s", [late.id])
    db.execute("UPDATE pgqueue_jobs SET expires_at = now() + interval '1 hour' WHERE id = %s", [timely.id])
    assert ids(queue.claim([core.Want("mail", 1)], worker="w")) == [timely.id]


def test_a_paused_queue_is_skipped_and_the_others_are_not(queue, core):
    queue.push_many([core.NewJob("mail", queue="a"), core.NewJob("mail", queue="b")])
    wants = [core.Want("mail", 5, queue="a"), core.Want("mail", 5, queue="b")]
    queue.pause("a")
    assert [job.queue for job in queue.claim(wants, worker="w")] == ["b"]
    queue.resume("a")
    assert [job.queue for job in queue.claim(wants, worker="w")] == ["a"]


def test_the_number_of_attempts_is_the_rows_and_else_the_wants(queue, core, row):
    own, none = queue.push("mail", max_attempts=3), queue.push("mail")
    jobs = queue.claim([core.Want("mail", 5, max_attempts=8)], worker="w")
    assert {job.id: job.max_attempts for job in jobs} == {own.id: 3, none.id: 8}
    assert row(none.id)["max_attempts"] == 8
    queue.release_many(jobs)
    jobs = queue.claim([core.Want("mail", 5, max_attempts=2)], worker="w")
    assert {job.id: job.max_attempts for job in jobs} == {own.id: 3, none.id: 8}


def test_each_want_gives_its_own_number_of_attempts(queue, core):
    queue.push_many([core.NewJob(kind, queue=name) for kind in ("mail", "text") for name in "ab"])
    wants = [core.Want(kind, 1, queue=name, max_attempts=n) for n, (kind, name) in enumerate(PAIRS, start=1)]
    jobs = queue.claim(wants, worker="w")
    assert {(job.kind, job.queue): job.max_attempts for job in jobs} == {pair: n for n, pair in enumerate(PAIRS, 1)}


PAIRS = [("text", "b"), ("mail", "a"), ("mail", "b"), ("text", "a")]


def test_a_look_behind_a_position_sees_what_comes_after_it(queue, core, scrambled):
    jobs = queue.claim([core.Want("mail", 7)], worker="w")
    last = jobs[-1]
    queue.release_many(jobs)
    after = core.Position(last.priority, last.run_at, last.id)
    assert ids(queue.claim([core.Want("mail", 100, after=after)], worker="w")) == scrambled[7:]
    assert ids(queue.claim([core.Want("mail", 100)], worker="w")) == scrambled[:7]


def test_positions_are_kept_apart_for_each_want(queue, core):
    queue.push_many([core.NewJob("mail", priority=p) for p in (3, 2, 1)])
    text = queue.push_many([core.NewJob("text", priority=p) for p in (3, 2, 1)])
    top = queue.claim([core.Want("mail", 1)], worker="w")[0]
    behind = core.Position(2, top.run_at + timedelta(days=1), 0)
    jobs = queue.claim([core.Want("mail", 9, after=behind), core.Want("text", 9)], worker="w")
    assert [job.priority for job in jobs if job.kind == "mail"] == [1]
    assert ids(job for job in jobs if job.kind == "text") == ids(text)


def test_a_lease_of_no_time_is_lost_at_once(queue, core):
    queue.push("mail")
    queue.claim([core.Want("mail", 1)], worker="w", lease=0)
    assert len(queue.rescue().retried) == 1
