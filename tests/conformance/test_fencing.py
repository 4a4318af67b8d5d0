"""A zombie, whose lease ran out, was rescued and claimed by another, changes nothing and gets `LeaseLost`."""

from __future__ import annotations

import pytest

ONE = {
    "complete": lambda queue, core, job: queue.complete(job),
    "complete, TTL 0": lambda queue, core, job: queue.complete(job, ttl=0),
    "complete, no TTL": lambda queue, core, job: queue.complete(job, ttl=None),
    "fail": lambda queue, core, job: queue.fail(job, "late"),
    "fail for good": lambda queue, core, job: queue.fail(job, "late", final=True),
    "snooze": lambda queue, core, job: queue.snooze(job, 60),
    "release": lambda queue, core, job: queue.release(job),
    "heartbeat": lambda queue, core, job: queue.heartbeat(job, lease=600),
}
MANY = {
    "complete_many": lambda queue, core, jobs: queue.complete_many(jobs),
    "complete_many, TTL 0": lambda queue, core, jobs: queue.complete_many(jobs, ttl=0),
    "release_many": lambda queue, core, jobs: queue.release_many(jobs),
    "heartbeat_many": lambda queue, core, jobs: queue.heartbeat_many(jobs, lease=600),
    "fail_many": lambda queue, core, jobs: left_out(jobs, queue.fail_many(core.Failure(job, "late") for job in jobs)),
}


def left_out(jobs, ended):
    return [job for job in jobs if (job.id, job.lease_token) not in ended]


def reclaimed(queue, take, lose):
    """The zombie's attempt, and the one of the worker that holds the job now."""
    zombie = take(worker="zombie", max_attempts=5)
    lose(zombie)
    assert queue.rescue().retried == [zombie.id]
    return zombie, take(push=False, worker="successor")


@pytest.mark.parametrize("report", ONE)
def test_a_zombie_changes_nothing_and_is_told(queue, core, take, lose, row, report):
    zombie, successor = reclaimed(queue, take, lose)
    before = row(zombie.id)
    with pytest.raises(core.LeaseLost) as refused:
        ONE[report](queue, core, zombie)
    assert (refused.value.job_id, refused.value.lease_token) == (zombie.id, zombie.lease_token)
    assert row(zombie.id) == before
    assert (before["worker"], before["attempt"], before["lease_token"]) == ("successor", 2, 2)
    queue.complete(successor)
    assert row(zombie.id)["status"] == "succeeded"


@pytest.mark.parametrize("report", MANY)
def test_a_zombie_in_a_batch_changes_nothing_and_is_named(queue, core, take, lose, row, report):
    zombie, _ = reclaimed(queue, take, lose)
    held = take(worker="zombie")
    before = row(zombie.id)
    assert MANY[report](queue, core, [held, zombie]) == [zombie]
    assert row(zombie.id) == before


@pytest.mark.parametrize("report", ONE)
def test_a_rescued_job_that_nobody_claimed_yet_is_lost_as_well(queue, core, take, lose, row, report):
    zombie = take(max_attempts=5)
    lose(zombie)
    queue.rescue()
    before = row(zombie.id)
    with pytest.raises(core.LeaseLost):
        ONE[report](queue, core, zombie)
    assert row(zombie.id) == before


@pytest.mark.parametrize("report", ONE)
def test_a_job_cancelled_meanwhile_stays_cancelled(queue, core, take, row, report):
    job = take()
    assert queue.cancel(job.id) is True
    before = row(job.id)
    with pytest.raises(core.LeaseLost):
        ONE[report](queue, core, job)
    assert row(job.id) == before


@pytest.mark.parametrize("report", ONE)
def test_a_deleted_job_does_not_come_back(queue, core, take, row, report):
    job = take()
    queue.complete(job, ttl=0)
    with pytest.raises(core.LeaseLost):
        ONE[report](queue, core, job)
    assert row(job.id) is None


@pytest.mark.parametrize("report", ONE)
def test_an_attempt_ends_once(queue, core, take, row, report):
    job = take()
    ONE["release"](queue, core, job)
    before = row(job.id)
    with pytest.raises(core.LeaseLost):
        ONE[report](queue, core, job)
    assert row(job.id) == before


def test_a_worker_that_claims_its_own_lost_job_again_holds_only_the_new_attempt(queue, core, take, lose, row):
    old = take(worker="w", max_attempts=5)
    lose(old)
    queue.rescue()
    new = take(push=False, worker="w")
    with pytest.raises(core.LeaseLost):
        queue.complete(old)
    queue.complete(new)
    assert row(new.id)["status"] == "succeeded"


def test_fresh_attempts_do_not_revive_an_old_lease(queue, core, take, row):
    """Retry sets attempts back to 0 but not the fence."""
    old = take()
    queue.fail(old, "no", final=True)
    queue.retry(old.id)
    new = take(push=False)
    assert (new.attempt, new.lease_token) == (1, 2)
    before = row(new.id)
    with pytest.raises(core.LeaseLost):
        queue.complete(old)
    assert row(new.id) == before
