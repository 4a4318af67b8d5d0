"""The end of an attempt: complete, fail, snooze, release; and the heartbeat that holds it meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest

MINUTE = timedelta(seconds=60)


def claim_all(queue, core, **want):
    return queue.claim([core.Want("mail", 1000, **want)], worker="w")


# -- complete ----------------------------------------------------------------------------------------------------


def test_a_completed_job_stays_succeeded_for_its_ttl(queue, take, row):
    job = take()
    assert queue.complete(job, ttl=timedelta(hours=2)) is None
    after = row(job.id)
    assert (after["status"], after["lease_expires_at"], after["attempt"]) == ("succeeded", None, 1)
    assert after["delete_after"] - after["finished_at"] == timedelta(hours=2)


def test_a_completed_job_stays_a_day_by_default(queue, take, row):
    job = take()
    queue.complete(job)
    assert row(job.id)["delete_after"] - row(job.id)["finished_at"] == timedelta(days=1)


def test_a_job_completed_with_a_ttl_of_0_is_gone_at_once(queue, take, row):
    job = take()
    queue.complete(job, ttl=0)
    assert row(job.id) is None


def test_a_job_completed_without_a_ttl_stays_until_purged(queue, take, row):
    job = take()
    queue.complete(job, ttl=None)
    assert (row(job.id)["status"], row(job.id)["delete_after"]) == ("succeeded", None)
    queue.cleanup()
    assert row(job.id) is not None


@pytest.mark.parametrize("ttl", [60, 0, None])
def test_a_batch_is_completed_at_once_and_names_its_stale_ones(queue, core, take, row, db, ttl):
    queue.push_many([core.NewJob("mail")] * 5)
    jobs = claim_all(queue, core)
    queue.cancel(jobs[1].id)
    queue.release(jobs[3])
    before = [row(jobs[1].id), row(jobs[3].id)]
    assert queue.complete_many(jobs, ttl=ttl) == [jobs[1], jobs[3]]
    assert [row(jobs[1].id), row(jobs[3].id)] == before
    for n in (0, 2, 4):
        assert (row(jobs[n].id) or {"status": None})["status"] == ("succeeded" if ttl != 0 else None)


def test_a_batch_of_no_attempts_is_nothing_to_do(queue):
    assert queue.complete_many([]) == queue.release_many([]) == queue.heartbeat_many([]) == []
    assert queue.fail_many([]) == {}


def test_a_job_twice_in_a_batch_is_one(queue, take):
    job = take()
    assert queue.heartbeat_many([job, job]) == []
    assert queue.complete_many([job, job, job]) == []
    assert queue.complete_many([job, job]) == [job]


def test_ids_and_tokens_are_matched_in_pairs(queue, core, put, row):
    """The token of one job must not open another."""
    a, b = put(), put(lease_token=1)
    first, second = claim_all(queue, core)
    assert (first.id, first.lease_token, second.id, second.lease_token) == (a, 1, b, 2)
    before = row(a), row(b)
    crossed = [first._replace(lease_token=2), second._replace(lease_token=1)]
    assert queue.complete_many(crossed) == queue.heartbeat_many(crossed) == queue.release_many(crossed) == crossed
    assert (row(a), row(b)) == before


def test_anything_with_an_id_and_a_token_is_an_attempt(queue, take, row):
    class Attempt:
        def __init__(self, job):
            self.id, self.lease_token = job.id, job.lease_token

    job = take()
    queue.heartbeat(Attempt(job))
    queue.complete(Attempt(job))
    assert row(job.id)["status"] == "succeeded"


def test_thousands_of_attempts_end_in_one_statement(queue, core, db):
    queue.push_many(core.NewJob("mail", n) for n in range(3_000))
    jobs = queue.claim([core.Want("mail", 3_000)], worker="w")
    assert queue.heartbeat_many(jobs) == []
    assert set(queue.fail_many(core.Failure(job, "no") for job in jobs[:1_000]).values()) == {"pending"}
    assert queue.release_many(jobs[1_000:2_000]) == []
    assert queue.complete_many(jobs) == jobs[:2_000]
    found = db.execute("SELECT status, count(*) AS n FROM pgqueue_jobs GROUP BY 1").fetchall()
    assert {row["status"]: row["n"] for row in found} == {"pending": 2_000, "succeeded": 1_000}


# -- fail --------------------------------------------------------------------------------------------------------


def test_a_failed_attempt_is_tried_again_after_its_delay_by_the_clock_of_the_database(queue, core, row):
    pushed = queue.push("mail")
    with queue.transaction():  # now() is one moment within a transaction
        (job,) = claim_all(queue, core)
        assert queue.fail(job, "no luck", delay=90) == "pending"
    after = row(pushed.id)
    assert after["run_at"] - after["started_at"] == timedelta(seconds=90)
    assert (after["status"], after["errors"], after["attempt"]) == ("pending", ["no luck"], 1)
    assert (after["lease_expires_at"], after["finished_at"], after["delete_after"]) == (None, None, None)
    assert claim_all(queue, core) == []


def test_a_delay_may_be_a_timedelta_or_none_at_all(queue, core, take, row):
    job = take()
    queue.fail(job, "no")
    (job,) = claim_all(queue, core)
    with queue.transaction():
        queue.heartbeat(job, lease=0)
        now = queue.execute("SELECT now()")[0][0]
        queue.fail(job, "no", delay=timedelta(minutes=5))
    assert row(job.id)["run_at"] - now == 5 * MINUTE


def test_a_job_ends_failed_when_its_attempts_are_spent(queue, core, row):
    pushed = queue.push("mail", max_attempts=3)
    ends = []
    while (jobs := claim_all(queue, core)) and len(ends) < 9:
        ends.append(queue.fail(jobs[0], f"no {jobs[0].attempt}"))
    assert ends == ["pending", "pending", "failed"]
    after = row(pushed.id)
    assert (after["status"], after["attempt"], after["errors"]) == ("failed", 3, ["no 1", "no 2", "no 3"])
    assert after["finished_at"] is not None
    assert after["delete_after"] is None  # it stays until somebody retries or purges it


def test_a_final_failure_spends_no_more_attempts(queue, take, row):
    job = take(max_attempts=9)
    assert queue.fail(job, "pointless", final=True, delay=60) == "failed"
    assert (row(job.id)["status"], row(job.id)["attempt"]) == ("failed", 1)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_newest_messages_are_kept(queue, core, row, kept):
    pushed = queue.push("mail", max_attempts=9)
    for n in range(5):
        (job,) = claim_all(queue, core)
        queue.fail(job, f"no {n}", max_errors=kept)
    assert row(pushed.id)["errors"] == [f"no {n}" for n in range(5)][-kept:]


def test_ten_messages_are_kept_by_default(queue, core, row):
    pushed = queue.push("mail", max_attempts=99)
    for n in range(13):
        (job,) = claim_all(queue, core)
        queue.fail(job, str(n))
    assert row(pushed.id)["errors"] == [str(n) for n in range(3, 13)]


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("x" * 50_000, "x" * 10_000),
        ("", ""),
        ("{NULL} \" ' \\ %s %(a)s, ÿ\n", "{NULL} \" ' \\ %s %(a)s, ÿ\n"),
    ],
    ids=["NUL", "surrogate", "long", "empty", "quotes"],
)
def test_no_message_stands_in_the_way_of_recording_the_failure(queue, take, row, message, stored):
    job = take()
    assert queue.fail(job, message) == "pending"
    assert row(job.id)["errors"] == [stored]


def test_a_batch_of_failures_keeps_each_with_its_own_message_delay_and_end(queue, core, row):
    queue.push_many([core.NewJob("mail", max_attempts=1), *[core.NewJob("mail")] * 4])
    with queue.transaction():
        jobs = claim_all(queue, core, max_attempts=5)
        failures = [
            core.Failure(jobs[4], "e"),
            core.Failure(jobs[0], "a", delay=60),
            core.Failure(jobs[2], "c", final=True),
            core.Failure(jobs[1], "b", delay=60),
            core.Failure(jobs[3], "d", cancel=True),
        ]
        ended = queue.fail_many(failures)
    statuses = ["failed", "pending", "failed", "cancelled", "pending"]
    assert ended == {(job.id, 1): status for job, status in zip(jobs, statuses, strict=True)}
    after = [row(job.id) for job in jobs]
    assert [job["status"] for job in after] == statuses
    assert [job["errors"] for job in after] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert after[1]["run_at"] - after[1]["started_at"] == MINUTE
    assert after[4]["run_at"] == after[4]["started_at"]
    assert [job["finished_at"] is None for job in after] == [False, True, False, False, True]
    assert [job["delete_after"] is None for job in after] == [True, True, True, False, True]


def test_a_batch_of_failures_leaves_out_the_stale(queue, core, row):
    queue.push_many([core.NewJob("mail")] * 2)
    lost, held = claim_all(queue, core)
    queue.release(lost)
    before = row(lost.id)
    assert queue.fail_many([core.Failure(lost, "x"), core.Failure(held, "y")]) == {(held.id, 1): "pending"}
    assert row(lost.id) == before


# -- snooze, release, heartbeat ----------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [90, timedelta(seconds=90)], ids=["seconds", "timedelta"])
def test_a_snoozed_job_comes_back_later_with_its_attempt_unspent(queue, core, row, delay):
    pushed = queue.push("mail")
    with queue.transaction():
        (job,) = claim_all(queue, core)
        queue.snooze(job, delay)
    after = row(pushed.id)
    assert after["run_at"] - after["started_at"] == timedelta(seconds=90)
    assert (after["status"], after["attempt"], after["lease_token"], after["errors"]) == ("pending", 0, 1, [])
    assert (after["worker"], after["lease_expires_at"]) == (None, None)
    assert claim_all(queue, core) == []


def test_a_released_job_keeps_its_place_and_its_attempt(queue, core, take, row):
    job = take()
    later = queue.push("mail")
    queue.release(job)
    after = row(job.id)
    assert (after["status"], after["attempt"], after["lease_token"], after["run_at"]) == ("pending", 0, 1, job.run_at)
    assert (after["worker"], after["lease_expires_at"]) == (None, None)
    assert [again.id for again in claim_all(queue, core)] == [job.id, later.id]


def test_a_batch_is_released_and_names_its_stale_ones(queue, core, row):
    queue.push_many([core.NewJob("mail")] * 3)
    jobs = claim_all(queue, core)
    queue.complete(jobs[1])
    assert queue.release_many(reversed(jobs)) == [jobs[1]]
    assert [row(job.id)["status"] for job in jobs] == ["pending", "succeeded", "pending"]


def test_a_heartbeat_extends_the_lease_from_the_clock_of_the_database_and_nothing_else(queue, core, row):
    pushed = queue.push("mail")
    with queue.transaction():
        (job,) = claim_all(queue, core)
    before = row(pushed.id)
    with queue.transaction():
        now = queue.execute("SELECT now()")[0][0]
        assert queue.heartbeat(job, lease=500) is None
    after = row(pushed.id)
    assert after["lease_expires_at"] - now == timedelta(seconds=500)
    for name in ("lease_expires_at", "xmin", "ctid"):
        del before[name], after[name]
    assert after == before


def test_one_heartbeat_serves_all_jobs_of_a_worker_and_names_those_no_longer_its_own(queue, core, put, row, db):
    queue.push_many([core.NewJob("mail", max_attempts=9)] * 6)
    jobs = claim_all(queue, core)
    queue.cancel(jobs[0].id)
    queue.complete(jobs[1])
    queue.complete(jobs[2], ttl=0)
    queue.fail(jobs[3], "no")
    untouched = [row(job.id) for job in jobs[:4]]
    stale = queue.heartbeat_many(jobs, lease=600)
    assert stale == jobs[:4]
    assert [row(job.id) for job in jobs[:4]] == untouched
    for job in jobs[4:]:
        assert row(job.id)["lease_expires_at"] - row(job.id)["started_at"] > 9 * MINUTE


def test_a_heartbeat_saves_a_lease_that_ran_out_but_was_not_rescued_yet(queue, take, lose, row):
    job = take()
    lose(job)
    queue.heartbeat(job)
    assert queue.rescue() == ([], [], [])
    assert row(job.id)["status"] == "running"


def test_a_completion_counts_though_the_lease_ran_out_where_nobody_rescued_it(queue, take, lose, row):
    job = take()
    lose(job)
    queue.complete(job)
    assert row(job.id)["status"] == "succeeded"


def test_no_index_holds_the_lease_so_that_a_heartbeat_is_heap_only(queue, db):
    found = db.execute("""
        SELECT indexrelid::regclass::text AS name FROM pg_index JOIN pg_attribute ON attrelid = indrelid
        WHERE indrelid = 'pgqueue_jobs'::regclass AND attname = 'lease_expires_at'
          AND (attnum = ANY (indkey::int2[]) OR pg_get_indexdef(indexrelid) LIKE '%lease_expires_at%')
    """).fetchall()
    assert found == []
