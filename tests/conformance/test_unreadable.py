"""JSON that PostgreSQL stores and Python does not read: refused at the push; by another hand in the table, it fails its
own job and no other."""

from __future__ import annotations

import json

import psycopg
import pytest

DEEP = "(repeat('[', 3000) || repeat(']', 3000))::jsonb"
LONG = "repeat('9', 10000)::jsonb"


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def reads_deep():
    """Python 3.13 does, as deep as jsonb goes."""
    try:
        json.loads("[" * 3000 + "]" * 3000)
    except RecursionError:
        return False
    return True


def test_a_payload_nested_too_deep_is_refused(queue, core, db):
    with pytest.raises(core.InvalidJob, match="deep"):
        queue.push("mail", nested(201))
    with pytest.raises(core.InvalidJob, match="deep"):
        queue.push("mail", metadata={"deep": nested(200)})
    assert db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone()["n"] == 0


def test_a_payload_nested_as_deep_as_allowed_and_brackets_in_its_texts_pass(queue, core):
    payload = [nested(199), "[" * 1000, [[], {}] * 500]
    queue.push("mail", payload)
    assert queue.claim([core.Want("mail", 1)], worker="w")[0].payload == payload


def test_unreadable_jobs_end_failed_at_their_claim_and_the_others_are_claimed(queue, core, db):
    good = [queue.push("mail", n).id for n in range(3)]
    for payload in (DEEP, LONG) if not reads_deep() else (LONG, LONG):
        db.execute(f"INSERT INTO pgqueue_jobs (kind, payload) VALUES ('mail', {payload})")
    assert [job.id for job in queue.claim([core.Want("mail", 10)], worker="w")] == good
    rows = db.execute("SELECT status, errors FROM pgqueue_jobs WHERE id <> ALL (%s) ORDER BY id", [good]).fetchall()
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert all("cannot be read" in row["errors"][0] for row in rows)


def test_people_get_an_unreadable_payload_as_its_text(queue, db):
    (job_id,) = (
        db.execute(f"INSERT INTO pgqueue_jobs (kind, payload) VALUES ('mail', {LONG}) RETURNING id").fetchone().values()
    )
    assert queue.get(job_id).payload == "9" * 10000
    assert queue.list_jobs()[0].payload == "9" * 10000


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("run_at", ["-infinity", "0001-01-01Z", "4000-01-01 BC"])
def test_a_moment_that_python_cannot_read_spoils_no_claim(core, database, run_at, zone):
    with psycopg.connect(database, autocommit=True, options=f"-c timezone={zone}") as connection:
        for moment in (run_at, "2020-01-01Z"):
            connection.execute("INSERT INTO pgqueue_jobs (kind, run_at) VALUES ('mail', %s)", [moment])
        assert len(core.Queue(connection).claim([core.Want("mail", 10)], worker="w")) == 2


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("many", [False, True], ids=["push", "push_many"])
def test_a_push_that_a_trigger_suppresses_is_an_error(queue, core, db, many, key):
    db.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    db.execute("CREATE TRIGGER nothing BEFORE INSERT ON pgqueue_jobs FOR EACH ROW EXECUTE FUNCTION nothing()")
    try:
        with pytest.raises(core.QueueError, match="trigger"):
            queue.push_many([core.NewJob("mail", key=key)]) if many else queue.push("mail", key=key)
    finally:
        db.execute("DROP TRIGGER nothing ON pgqueue_jobs; DROP FUNCTION nothing()")
