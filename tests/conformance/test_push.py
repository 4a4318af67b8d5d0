"""Push: idempotent per (kind, key) while the row exists, answers in order, every field, bulk in chunks, all or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import psycopg
import pytest

STATUSES = ("pending", "blocked", "running", "succeeded", "failed", "cancelled")
SOON = datetime(2100, 2, 3, 4, 5, 6, 789012, tzinfo=timezone(timedelta(hours=5)))


def count(db: Any) -> int:
    return int(db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone()["n"])


def test_a_pushed_job_is_pending_and_due_with_the_defaults(queue, row):
    pushed = queue.push("mail")
    assert pushed.created is True
    job = row(pushed.id)
    assert (job["kind"], job["queue"], job["status"], job["external_key"]) == ("mail", "default", "pending", None)
    assert (job["priority"], job["attempt"], job["lease_token"], job["max_attempts"]) == (0, 0, 0, None)
    assert (job["payload"], job["metadata"], job["errors"]) == (None, {}, [])
    assert job["run_at"] == job["created_at"]
    assert all(job[name] is None for name in ("expires_at", "started_at", "finished_at", "delete_after", "worker"))


def test_push_stores_every_option(queue, row):
    pushed = queue.push(
        "mail",
        {"to": "ada"},
        queue="outbox",
        key="k",
        priority=-7,
        run_at=SOON,
        expires_at=SOON + timedelta(days=1),
        metadata={"trace": "t"},
        max_attempts=3,
    )
    job = row(pushed.id)
    assert (job["queue"], job["external_key"], job["priority"], job["max_attempts"]) == ("outbox", "k", -7, 3)
    assert (job["payload"], job["metadata"]) == ({"to": "ada"}, {"trace": "t"})
    assert (job["run_at"], job["expires_at"]) == (SOON, SOON + timedelta(days=1))


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)], ids=["int", "float", "timedelta"])
def test_a_delay_counts_from_the_clock_of_the_database(queue, core, row, delay):
    one, many = queue.push("mail", delay=delay), queue.push_many([core.NewJob("mail", delay=delay)])[0]
    for pushed in (one, many):
        assert row(pushed.id)["run_at"] - row(pushed.id)["created_at"] == timedelta(seconds=90)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1.5,
        10**40,
        "",
        "quote ' \" % %s %(a)s {} \\ \\u0000 \n",
        "Ünïcødé \N{PILE OF POO} \N{RIGHT-TO-LEFT OVERRIDE}",
        [],
        {},
        [1, [2, {"a": [None]}]],
        {"deep": {"er": [1, 2, {"": ""}]}},
        "x" * 1_000_000,
    ],
    ids=lambda payload: str(payload)[:12].encode("unicode_escape").decode(),
)
def test_a_payload_comes_back_as_it_went_in(queue, core, payload):
    ids = [queue.push("mail", payload).id, queue.push_many([core.NewJob("mail", payload)])[0].id]
    assert [queue.get(job_id).payload for job_id in ids] == [payload, payload]
    assert [job.payload for job in queue.claim([core.Want("mail", 9)], worker="w")] == [payload, payload]


def test_the_same_key_again_gives_the_first_id_and_changes_nothing(queue, row):
    first = queue.push("mail", {"n": 1}, key="k", priority=1)
    before = row(first.id)
    again = queue.push("mail", {"n": 2}, key="k", priority=2, queue="other", delay=9)
    assert (again.id, again.created) == (first.id, False)
    assert row(first.id) == before


@pytest.mark.parametrize("status", STATUSES)
def test_a_key_is_taken_for_as_long_as_the_row_exists_whatever_its_status(queue, core, put, row, status):
    job_id = put(external_key="k", status=status)
    before = row(job_id)
    assert queue.push("mail", key="k") == (job_id, False)
    assert queue.push_many([core.NewJob("mail", key="k")]) == [(job_id, False)]
    assert row(job_id) == before


def test_a_key_is_free_again_when_its_row_is_gone(queue, take):
    first = queue.push("mail", key="k")
    queue.complete(take(push=False), ttl=0)
    again = queue.push("mail", key="k")
    assert again.created
    assert again.id != first.id


def test_a_key_belongs_to_its_kind(queue, db):
    assert queue.push("mail", key="k").created
    assert queue.push("text", key="k").created
    assert count(db) == 2


def test_jobs_without_a_key_are_never_the_same(queue, core, db):
    ids = {queue.push("mail").id, queue.push("mail").id}
    ids |= {pushed.id for pushed in queue.push_many([core.NewJob("mail"), core.NewJob("mail")])}
    assert len(ids) == count(db) == 4


def test_keys_and_names_of_the_greatest_length_are_taken(queue, db):
    queue.push("k" * 255, queue="q" * 255, key="\N{PILE OF POO}" * 256)
    assert not queue.push("k" * 255, queue="q" * 255, key="\N{PILE OF POO}" * 256).created
    assert count(db) == 1


def test_names_that_look_like_sql_are_only_names(queue, core, row):
    name = "a'; DROP TABLE pgqueue_jobs; -- %s %(x)s \" $1 {}"
    pushed = queue.push(name, queue=name, key=name)
    (job,) = queue.claim([core.Want(name, 1, queue=name)], worker=name)
    assert (job.id, job.kind, job.queue, job.external_key) == (pushed.id, name, name, name)
    assert row(job.id)["worker"] == name


# -- many --------------------------------------------------------------------------------------------------------


def test_a_batch_of_none_is_no_job(queue, db):
    assert queue.push_many([]) == []
    assert count(db) == 0


def test_a_batch_answers_in_the_order_given(queue, core, row):
    keys = ["m", None, "z", "a", None, "b"]
    pushed = queue.push_many(core.NewJob("mail", n, key=key) for n, key in enumerate(keys))
    assert all(answer.created for answer in pushed)
    assert [row(answer.id)["payload"] for answer in pushed] == list(range(6))
    assert [row(answer.id)["external_key"] for answer in pushed] == keys


def test_each_job_of_a_batch_keeps_its_own_fields(queue, core, row):
    jobs = [
        core.NewJob("a"),
        core.NewJob("b", priority=5, queue="other", metadata={"x": 1}),
        core.NewJob("c", delay=60, max_attempts=2),
        core.NewJob("d", run_at=SOON, key="k"),
        core.NewJob("e", expires_at=SOON),
    ]
    a, b, c, d, e = (row(pushed.id) for pushed in queue.push_many(jobs))
    assert [job["kind"] for job in (a, b, c, d, e)] == list("abcde")
    assert [job["priority"] for job in (a, b, c, d, e)] == [0, 5, 0, 0, 0]
    assert [job["queue"] for job in (a, b, c, d, e)] == ["default", "other", "default", "default", "default"]
    assert [job["metadata"] for job in (a, b, c, d, e)] == [{}, {"x": 1}, {}, {}, {}]
    assert [job["max_attempts"] for job in (a, b, c, d, e)] == [None, None, 2, None, None]
    assert [job["external_key"] for job in (a, b, c, d, e)] == [None, None, None, "k", None]
    assert [job["expires_at"] for job in (a, b, c, d, e)] == [None, None, None, None, SOON]
    now = a["created_at"]
    assert [job["run_at"] for job in (a, b, c, d, e)] == [now, now, now + timedelta(seconds=60), SOON, now]


def test_a_key_twice_in_a_batch_is_one_job_created_by_its_first_occurrence(queue, core, row, db):
    keys = ["b", "a", "b", "a", "b"]
    pushed = queue.push_many([core.NewJob("mail", n, key=key) for n, key in enumerate(keys)])
    assert [answer.created for answer in pushed] == [True, True, False, False, False]
    assert [answer.id for answer in pushed[2:]] == [pushed[0].id, pushed[1].id, pushed[0].id]
    assert [row(answer.id)["payload"] for answer in pushed[:2]] == [0, 1]
    assert count(db) == 2


def test_the_same_batch_again_creates_nothing(queue, core, db):
    batch = [core.NewJob("mail", key=str(n % 7)) for n in range(20)]
    first, again = queue.push_many(batch), queue.push_many(batch)
    assert [answer.id for answer in again] == [answer.id for answer in first]
    assert not any(answer.created for answer in again)
    assert count(db) == 7


def test_a_batch_of_old_and_new_keys_creates_the_new_ones(queue, core, db):
    old = queue.push("mail", key="b")
    answers = queue.push_many([core.NewJob("mail", key=key) for key in "abc"])
    assert [answer.created for answer in answers] == [True, False, True]
    assert answers[1].id == old.id
    assert count(db) == 3


def test_a_batch_of_several_chunks_answers_each_job_with_its_own_row(queue, core, db):
    queue.push("mail", -1, key="key-7")
    jobs = [core.NewJob("mail", n, key=f"key-{n % 9_000}" if n % 2 else None) for n in range(12_001)]
    answers = queue.push_many(jobs)
    payloads = {row["id"]: row["payload"] for row in db.execute("SELECT id, payload FROM pgqueue_jobs")}
    assert len(answers) == 12_001
    assert len(payloads) == 6_001 + 4_500
    for n, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        first = n if job.key is None or n < 9_000 else n - 9_000
        assert payloads[answer.id] == (-1 if job.key == "key-7" else first)
        assert answer.created == (first == n and job.key != "key-7")
    keyless = [answer.id for job, answer in zip(jobs, answers, strict=True) if job.key is None]
    assert all(a < b for a, b in pairwise(keyless))


def test_a_batch_of_100_000_jobs_is_pushed(queue, core, db):
    answers = queue.push_many(core.NewJob("mail", n) for n in range(100_000))
    assert len({answer.id for answer in answers}) == count(db) == 100_000


def test_a_batch_that_the_server_refuses_in_its_last_chunk_leaves_nothing(open_queue, core, database):
    queue = open_queue(database)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("ALTER TABLE pgqueue_jobs ADD CONSTRAINT house_rule CHECK (payload <> '11999')")
        with pytest.raises(core.InvalidJob, match="house_rule"):
            queue.push_many(core.NewJob("mail", n) for n in range(12_000))
        assert db.execute("SELECT count(*) FROM pgqueue_jobs").fetchone() == (0,)
    assert queue.push("mail").created  # the connection is of use still


def test_expires_at_in_the_past_is_taken_and_never_run(queue, core):
    pushed = queue.push("mail", expires_at=datetime(2001, 1, 1, tzinfo=UTC))
    assert queue.claim([core.Want("mail", 1)], worker="w") == []
    assert queue.get(pushed.id).status == "pending"
