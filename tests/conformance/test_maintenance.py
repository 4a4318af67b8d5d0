"""Rescue, expire and cleanup: what every worker does without a leader."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg.rows import dict_row

PAST = "2001-01-01T00:00Z"
FUTURE = "2100-01-01T00:00Z"
RUNNING = {"status": "running", "attempt": 1, "max_attempts": 5, "lease_token": 1, "worker": "w1"}


# -- rescue ------------------------------------------------------------------------------------------------------


def test_a_job_whose_lease_ran_out_is_pending_again_in_its_place(queue, core, take, lose, row):
    job = take(max_attempts=5, worker="host-7")
    lose(job)
    assert queue.rescue() == core.Rescued([job.id], [], [])
    after = row(job.id)
    assert (after["status"], after["attempt"], after["lease_token"], after["lease_expires_at"]) == (
        "pending",
        1,
        1,
        None,
    )
    assert after["errors"] == ["lease ran out, worker host-7"]
    assert (after["run_at"], after["finished_at"]) == (job.run_at, None)
    (again,) = queue.claim([core.Want("mail", 1)], worker="w2")
    assert (again.id, again.attempt, again.lease_token) == (job.id, 2, 2)


def test_a_job_whose_worker_dies_again_and_again_ends_failed(queue, core, take, lose, row):
    pushed = queue.push("mail")
    for attempt in (1, 2, 3):
        job = take(push=False, max_attempts=3)
        assert job.attempt == attempt
        lose(job)
        retried, failed, _ = queue.rescue()
        assert (retried, failed) == (([pushed.id], []) if attempt < 3 else ([], [pushed.id]))
    after = row(pushed.id)
    assert (after["status"], after["attempt"], len(after["errors"])) == ("failed", 3, 3)
    assert after["finished_at"] is not None
    assert after["delete_after"] is None
    assert queue.claim([core.Want("mail", 1)], worker="w") == []


def test_a_lease_that_has_not_run_out_is_left_alone(queue, take, row):
    job = take()
    before = row(job.id)
    assert queue.rescue() == ([], [], [])
    assert row(job.id) == before


@pytest.mark.parametrize("status", ["pending", "blocked", "succeeded", "failed", "cancelled"])
def test_only_running_jobs_are_rescued(queue, put, row, status):
    job_id = put(status=status, lease_expires_at=PAST)
    before = row(job_id)
    assert queue.rescue() == ([], [], [])
    assert row(job_id) == before


def test_rescue_keeps_the_newest_messages(queue, put, row):
    job_id = put(**RUNNING, lease_expires_at=PAST, errors=["a", "b", "c"])
    queue.rescue(max_errors=2)
    assert row(job_id)["errors"] == ["c", "lease ran out, worker w1"]


@pytest.mark.parametrize("limit", [1, 3, 10, 500])
def test_rescue_gets_through_all_of_them_in_batches(queue, put, limit):
    lost = [put(**RUNNING, lease_expires_at=PAST, queue=f"q{n % 3}") for n in range(10)]
    alive = [put(**RUNNING, lease_expires_at=FUTURE, queue=f"q{n % 3}") for n in range(5)]
    rescued = queue.rescue(limit=limit)
    assert sorted(rescued.retried) == lost
    assert {job.id for job in queue.list_jobs(status="running")} == set(alive)


@pytest.fixture
def poisoned(database):
    """A database in which a trigger of the user's refuses any change of jobs with a certain payload."""
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as db:
        db.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'house rule' USING ERRCODE = 'P0001'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON pgqueue_jobs FOR EACH ROW
                WHEN (old.payload = '"poison"') EXECUTE FUNCTION refuse()
        """)
        yield db


def put_lost(db, payloads):
    return [
        db.execute(
            """INSERT INTO pgqueue_jobs (kind, status, attempt, max_attempts, lease_expires_at, payload)
               VALUES ('mail', 'running', 1, 5, '2001-01-01', to_jsonb(%s::text)) RETURNING id""",
            [payload],
        ).fetchone()["id"]
        for payload in payloads
    ]


@pytest.mark.parametrize("limit", [1, 4, 500])
def test_poisonous_rows_cannot_stall_the_rest(open_queue, core, database, poisoned, limit):
    payloads = ["poison" if n in (0, 5, 6, 19) else "good" for n in range(20)]
    ids = put_lost(poisoned, payloads)
    rescued = open_queue(database, autocommit=True).rescue(limit=limit)
    assert sorted(rescued.refused) == [ids[n] for n in (0, 5, 6, 19)]
    assert sorted(rescued.retried) == [ids[n] for n in range(20) if n not in (0, 5, 6, 19)]
    found = poisoned.execute("SELECT status, count(*) AS n FROM pgqueue_jobs GROUP BY 1").fetchall()
    assert {row["status"]: row["n"] for row in found} == {"pending": 16, "running": 4}


@pytest.mark.parametrize("payloads", [["poison"], ["good", "poison", "good"]], ids=["alone", "among others"])
def test_a_poisonous_row_in_the_callers_transaction_is_the_callers_error(
    open_queue, core, database, poisoned, payloads
):
    put_lost(poisoned, payloads)
    queue = open_queue(database)
    with pytest.raises(core.QueueError, match="house rule"), queue.transaction():
        queue.rescue()
    found = poisoned.execute("SELECT status, count(*) AS n FROM pgqueue_jobs GROUP BY 1").fetchall()
    assert {row["status"]: row["n"] for row in found} == {"running": len(payloads)}


def test_rescue_in_a_transaction_belongs_to_it(queue, core, take, lose, row):
    job = take(max_attempts=5)
    lose(job)
    before = row(job.id)
    with queue.undone():
        assert queue.rescue().retried == [job.id]
    assert row(job.id) == before


# -- expire ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "blocked"])
def test_a_job_not_started_in_time_is_cancelled_and_says_why(queue, put, row, status):
    job_id = put(status=status, expires_at=PAST, errors=["no"])
    assert queue.expire() == 1
    after = row(job_id)
    assert (after["status"], after["errors"]) == ("cancelled", ["no", "expired before it started"])
    assert after["delete_after"] - after["finished_at"] == timedelta(days=1)
    assert queue.expire() == 0


def test_a_job_that_started_or_has_time_left_does_not_expire(queue, put, row):
    ids = [put(status=status, expires_at=PAST) for status in ("running", "succeeded", "failed", "cancelled")]
    ids += [put(expires_at=FUTURE), put()]
    before = [row(job_id) for job_id in ids]
    assert queue.expire() == 0
    assert [row(job_id) for job_id in ids] == before


def test_expire_works_in_bounded_steps_oldest_deadline_first(queue, put, row):
    ids = [put(expires_at=f"2001-01-{day:02}T00:00Z") for day in (5, 1, 4, 2, 3)]
    assert queue.expire(limit=2) == 2
    assert [row(job_id)["status"] == "cancelled" for job_id in ids] == [False, True, False, True, False]
    assert [queue.expire(limit=2) for _ in range(3)] == [2, 1, 0]


# -- cleanup -----------------------------------------------------------------------------------------------------


def test_cleanup_deletes_terminal_jobs_past_their_ttl_and_no_others(queue, put, row):
    gone = [put(status=status, delete_after=PAST) for status in ("succeeded", "cancelled")]
    kept = [put(status=status, delete_after=FUTURE) for status in ("succeeded", "cancelled")]
    kept += [put(status=status) for status in ("succeeded", "failed", "cancelled", "pending", "running", "blocked")]
    kept += [put(status=status, delete_after=PAST) for status in ("pending", "running", "blocked")]
    assert queue.cleanup() == 2
    assert [row(job_id) is None for job_id in gone + kept] == [True] * 2 + [False] * len(kept)
    assert queue.cleanup() == 0


def test_cleanup_works_in_bounded_steps_longest_overdue_first(queue, put, row):
    ids = [put(status="succeeded", delete_after=f"2001-01-{day:02}T00:00Z") for day in (5, 1, 4, 2, 3)]
    assert queue.cleanup(limit=2) == 2
    assert [row(job_id) is None for job_id in ids] == [False, True, False, True, False]
    assert [queue.cleanup(limit=2) for _ in range(3)] == [2, 1, 0]


def test_a_retried_job_is_not_cleaned_up(queue, put, row):
    job_id = put(status="cancelled", delete_after=PAST)
    queue.retry(job_id)
    assert queue.cleanup() == 0
    assert row(job_id)["status"] == "pending"


# -- chores ------------------------------------------------------------------------------------------------------


def test_chores_say_which_maintenance_has_something_to_do(queue, core, put):
    assert queue.chores() == core.operations.Chores(rescue=False, expire=False, cleanup=False)
    put(**RUNNING, lease_expires_at=FUTURE)
    put(expires_at=FUTURE)
    put(status="succeeded", delete_after=FUTURE)
    put(status="succeeded", expires_at=PAST)
    assert queue.chores() == (False, False, False)
    put(**RUNNING, lease_expires_at=PAST)
    assert queue.chores() == (True, False, False)
    put(expires_at=PAST)
    assert queue.chores() == (True, True, False)
    put(status="succeeded", delete_after=PAST)
    assert queue.chores() == (True, True, True)
    queue.rescue()
    queue.expire()
    queue.cleanup()
    assert queue.chores() == (False, False, False)
