"""What operators do: cancel, retry, purge, pause, and look (get, list, stats)."""

from __future__ import annotations

from datetime import timedelta

import pytest

STATUSES = ("pending", "blocked", "running", "succeeded", "failed", "cancelled")
PAST = "2001-01-01T00:00Z"


# -- cancel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("by", ["id", "key"])
def test_a_job_that_is_not_terminal_is_cancelled(queue, put, row, status, by):
    job_id = put(status=status, external_key="k", lease_expires_at=PAST)
    before = row(job_id)
    cancelled = queue.cancel(job_id, ttl=90) if by == "id" else queue.cancel_key("mail", "k", ttl=90)
    after = row(job_id)
    if status in ("pending", "blocked", "running"):
        assert cancelled is True
        assert (after["status"], after["lease_expires_at"]) == ("cancelled", None)
        assert after["delete_after"] - after["finished_at"] == timedelta(seconds=90)
    else:
        assert cancelled is False
        assert after == before


def test_a_cancelled_job_stays_a_day_by_default_and_for_ever_when_asked(queue, row):
    day, ever = queue.push("mail").id, queue.push("mail", key="k").id
    queue.cancel(day)
    queue.cancel_key("mail", "k", ttl=None)
    assert row(day)["delete_after"] - row(day)["finished_at"] == timedelta(days=1)
    assert row(ever)["delete_after"] is None


def test_a_key_cancels_the_job_of_its_kind_alone(queue, row):
    mail, text = queue.push("mail", key="k").id, queue.push("text", key="k").id
    queue.cancel_key("text", "k")
    assert (row(mail)["status"], row(text)["status"]) == ("pending", "cancelled")


def test_a_running_attempt_is_told_of_the_cancellation_at_its_next_heartbeat(queue, core, take, row):
    job, other = take(), take()
    queue.cancel(job.id)
    assert queue.heartbeat_many([job, other]) == [job]
    with pytest.raises(core.LeaseLost):
        queue.complete(job)
    assert row(job.id)["status"] == "cancelled"


def test_a_job_that_does_not_exist_is_named(queue, core):
    queue.push("mail", key="k")
    for call in (lambda: queue.cancel(987), lambda: queue.retry(987), lambda: queue.get(987)):
        with pytest.raises(core.JobNotFound, match="987"):
            call()
    with pytest.raises(core.JobNotFound, match=r"mail.*'nobody'"):
        queue.cancel_key("mail", "nobody")


# -- retry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_a_failed_or_cancelled_job_gets_fresh_attempts_due_now(queue, core, put, row, status):
    spent = {"attempt": 5, "max_attempts": 5, "worker": "w", "errors": ["no"], "lease_token": 5}
    job_id = put(status=status, run_at="2100-01-01T00:00Z", finished_at=PAST, delete_after=PAST, **spent)
    before = row(job_id)
    retried = queue.retry(job_id)
    after = row(job_id)
    if status in ("failed", "cancelled"):
        assert retried is True
        assert (after["status"], after["attempt"], after["max_attempts"], after["worker"]) == ("pending", 0, 5, None)
        assert (after["finished_at"], after["delete_after"], after["errors"]) == (None, None, ["no"])
        assert after["lease_token"] == 5
        (job,) = queue.claim([core.Want("mail", 1)], worker="w")
        assert (job.attempt, job.lease_token) == (1, 6)
    else:
        assert retried is False
        assert after == before


def test_retry_forgets_a_deadline_that_passed_and_keeps_one_that_did_not(queue, core, put, row):
    late = put(status="cancelled", expires_at=PAST)
    timely = put(status="cancelled", expires_at="2100-01-01T00:00Z")
    assert queue.retry(late)
    assert queue.retry(timely)
    assert row(late)["expires_at"] is None
    assert row(timely)["expires_at"] is not None
    assert len(queue.claim([core.Want("mail", 5)], worker="w")) == 2


@pytest.fixture
def failed(put):
    """Ids of failed jobs, oldest failure first; ids run the other way."""
    rows = [
        {"kind": kind, "queue": name, "errors": ["first", error], "finished_at": f"2001-01-{20 - n:02}T00:00Z"}
        for n, (kind, name, error) in enumerate(
            [
                ("mail", "a", "Timeout: 10 s"),
                ("mail", "b", "timeout again"),
                ("text", "a", "KeyError"),
                ("text", "b", "TIMEOUT"),
                ("mail", "a", "KeyError"),
            ]
        )
    ]
    return [put(status="failed", **columns) for columns in rows][::-1]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"kind": "mail"}, [0, 3, 4]),
        ({"queue": "a"}, [0, 2, 4]),
        ({"error_like": "%timeout%"}, [1, 3, 4]),
        ({"error_like": "first%"}, []),
        ({"kind": "mail", "queue": "a", "error_like": "%key%"}, [0]),
        ({"kind": "nobody"}, []),
        ({"limit": 2}, [0, 1]),
        ({"kind": "mail", "limit": 2}, [0, 3]),
    ],
    ids=str,
)
def test_failed_jobs_are_retried_by_filter_oldest_first_up_to_the_limit(queue, failed, put, row, filters, expected):
    others = [put(status=status, errors=["timeout"]) for status in STATUSES if status != "failed"]
    untouched = [row(job_id) for job_id in others]
    wanted = [failed[n] for n in expected]
    assert queue.retry_many(**filters) == sorted(wanted)
    assert [job_id for job_id in failed if row(job_id)["status"] == "pending"] == wanted
    assert [row(job_id) for job_id in others] == untouched


def test_retry_in_steps_gets_through_all_of_them(queue, failed):
    steps = [queue.retry_many(limit=2) for _ in range(4)]
    assert [len(step) for step in steps] == [2, 2, 1, 0]
    assert sorted(job_id for step in steps for job_id in step) == sorted(failed)


# -- purge -------------------------------------------------------------------------------------------------------


def test_purge_deletes_what_finished_longer_ago_but_failed_only_when_asked(queue, put, db):
    for status in STATUSES:
        for age in (1, 3):
            put(status=status, kind=f"{status} {age}")
            db.execute("UPDATE pgqueue_jobs SET finished_at = now() - make_interval(days => %s) WHERE kind = %s",
                       [age, f"{status} {age}"])  # fmt: skip
    kept = {f"{status} {age}" for status in STATUSES for age in (1, 3)}

    def kinds():
        return {row["kind"] for row in db.execute("SELECT kind FROM pgqueue_jobs")}

    assert queue.purge(timedelta(days=2)) == 2
    kept -= {"succeeded 3", "cancelled 3"}
    assert kinds() == kept
    assert queue.purge(timedelta(days=2), statuses=["failed"]) == 1
    kept -= {"failed 3"}
    assert kinds() == kept
    assert queue.purge(0, statuses=("succeeded", "failed", "cancelled")) == 3
    assert kinds() == {f"{status} {age}" for status in ("pending", "blocked", "running") for age in (1, 3)}
    assert queue.purge(0) == 0


def test_purge_gets_through_many_pages_and_over_gaps(queue, put, db):
    db.execute("""INSERT INTO pgqueue_jobs (kind, status, finished_at)
                  SELECT 'mail', CASE WHEN n % 3 = 0 THEN 'succeeded' ELSE 'pending' END, '2001-01-01'
                  FROM generate_series(1, 1000) AS n""")
    db.execute("DELETE FROM pgqueue_jobs WHERE id % 7 = 0")
    due = db.execute("SELECT count(*) AS n FROM pgqueue_jobs WHERE status = 'succeeded'").fetchone()["n"]
    assert queue.purge(60, limit=10) == due
    assert db.execute("SELECT count(*) AS n FROM pgqueue_jobs WHERE status = 'succeeded'").fetchone()["n"] == 0


@pytest.mark.parametrize("status", ["pending", "blocked", "running", "sleeping"])
def test_purge_of_what_is_not_terminal_is_refused(queue, core, put, db, status):
    put(finished_at=PAST)
    with pytest.raises(core.InvalidJob, match="terminal"):
        queue.purge(1, statuses=["succeeded", status])
    assert db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone()["n"] == 1


# -- pause -------------------------------------------------------------------------------------------------------


def test_pause_and_resume_say_whether_they_changed_anything(queue):
    assert queue.paused() == []
    assert [queue.pause("b"), queue.pause("a"), queue.pause("b")] == [True, True, False]
    assert queue.paused() == ["a", "b"]
    assert [queue.resume("b"), queue.resume("b")] == [True, False]
    assert queue.paused() == ["a"]


def test_a_paused_queue_takes_jobs_and_lets_running_attempts_end(queue, core, take, row):
    job = take()
    queue.pause("default")
    assert queue.push("mail").created
    queue.heartbeat(job)
    queue.complete(job)
    assert row(job.id)["status"] == "succeeded"
    assert queue.claim([core.Want("mail", 5)], worker="w") == []


# -- looking -----------------------------------------------------------------------------------------------------


def test_get_returns_every_column(queue, core, take, row):
    queue.push("mail", {"n": 1}, key="k", queue="q", priority=2, metadata={"m": 1}, max_attempts=4)
    take(push=False, queue="q")
    job_id = queue.list_jobs()[0].id
    found, stored = queue.get(job_id)._asdict(), row(job_id)
    del stored["xmin"], stored["ctid"]
    assert found == stored


def test_list_goes_through_all_jobs_by_pages_in_the_order_of_ids(queue, core):
    pushed = [answer.id for answer in queue.push_many([core.NewJob("mail")] * 25)]
    pages, after = [], 0
    while page := queue.list_jobs(after=after, limit=10):
        pages.append([job.id for job in page])
        after = page[-1].id
        queue.push("mail") if len(pages) == 1 else None  # a job that is pushed meanwhile moves no page
    assert [len(page) for page in pages] == [10, 10, 6]
    assert [job_id for page in pages for job_id in page][:25] == pushed


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcd"),
        ({"kind": "mail"}, "ab"),
        ({"queue": "q"}, "bc"),
        ({"status": "failed"}, "cd"),
        ({"key": "k"}, "ad"),
        ({"kind": "text", "queue": "q", "status": "failed"}, "c"),
        ({"kind": "nobody"}, ""),
        ({"limit": 2}, "ab"),
    ],
    ids=str,
)
def test_list_filters(queue, put, filters, expected):
    put(worker="a", external_key="k")
    put(worker="b", queue="q")
    put(worker="c", queue="q", kind="text", status="failed")
    put(worker="d", external_key="k", kind="text", status="failed")
    assert "".join(job.worker for job in queue.list_jobs(**filters)) == expected


def test_stats_count_by_queue_kind_and_status(queue, core, put, row):
    assert queue.stats() == []
    put(run_at="2001-01-01T00:00Z")
    put(run_at="2002-01-01T00:00Z")
    future = put(run_at="2100-01-01T00:00Z", kind="text")
    running = put(status="running", started_at="2003-01-01T00:00Z", queue="a")
    done = put(status="succeeded", finished_at="2004-01-01T00:00Z")
    found = {(stat.queue, stat.kind, stat.status): (stat.jobs, stat.due, stat.oldest) for stat in queue.stats()}
    year = {n: (row(job_id) or {}) for n, job_id in enumerate((future, running, done))}
    assert {key: value[:2] for key, value in found.items()} == {
        ("default", "mail", "pending"): (2, 2),
        ("default", "text", "pending"): (1, 0),
        ("a", "mail", "running"): (1, 0),
        ("default", "mail", "succeeded"): (1, 0),
    }
    assert found["default", "mail", "pending"][2].year == 2001
    assert found["default", "text", "pending"][2] == year[0]["run_at"]
    assert found["a", "mail", "running"][2] == year[1]["started_at"]
    assert found["default", "mail", "succeeded"][2] == year[2]["finished_at"]
