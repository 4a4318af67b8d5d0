"""Wake-up: a push notifies its queue's channel while some worker sleeps, and only then."""

from __future__ import annotations

import psycopg
import pytest

ASLEEP = "SELECT pg_advisory_lock_shared(hashtextextended('pgqueue:asleep:' || current_schema() || ':' || %s, 0))"


@pytest.fixture
def listener(database):
    with psycopg.connect(database, autocommit=True) as connection:
        schema = connection.execute("SELECT current_schema()").fetchone()[0]
        connection.execute(f'LISTEN "pgqueue:{schema}"')
        yield connection


@pytest.fixture
def pusher(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def heard(listener, pusher):
    """The payloads that reached the listener. A marker sent last, and waited for, closes the list."""
    schema = pusher.execute("SELECT current_schema()").fetchone()[0]
    pusher.execute("SELECT pg_notify(%s, '(end)')", [f"pgqueue:{schema}"])
    found = []
    for notice in listener.notifies(timeout=30):
        if notice.payload == "(end)":
            return found
        found.append(notice.payload)
    raise AssertionError("the marker never came")


def test_a_push_notifies_while_a_worker_of_its_queue_sleeps(core, listener, pusher):
    listener.execute(ASLEEP, ["mail"])
    core.Queue(pusher).push("k", queue="mail")
    assert heard(listener, pusher) == ["mail"]


def test_a_push_does_not_notify_while_nobody_sleeps(core, listener, pusher):
    core.Queue(pusher).push("k", queue="mail")
    assert heard(listener, pusher) == []


def test_a_push_does_not_notify_the_sleepers_of_another_queue(core, listener, pusher):
    listener.execute(ASLEEP, ["other"])
    core.Queue(pusher).push("k", queue="mail")
    assert heard(listener, pusher) == []


def test_a_worker_that_got_up_is_not_notified(core, listener, pusher):
    listener.execute(ASLEEP, ["mail"])
    listener.execute("SELECT pg_advisory_unlock_all()")
    core.Queue(pusher).push("k", queue="mail")
    assert heard(listener, pusher) == []


def test_a_batch_notifies_once_for_each_queue(core, listener, pusher):
    for queue in ("a", "b"):
        listener.execute(ASLEEP, [queue])
    core.Queue(pusher).push_many(core.NewJob("k", n, queue="ab"[n % 2]) for n in range(100))
    assert sorted(heard(listener, pusher)) == ["a", "b"]


def test_jobs_that_are_not_due_do_not_notify(core, listener, pusher):
    listener.execute(ASLEEP, ["mail"])
    core.Queue(pusher).push("k", queue="mail", delay=60)
    assert heard(listener, pusher) == []


def test_a_sleeper_holds_up_no_pusher_and_a_pusher_leaves_no_lock(core, listener, pusher):
    listener.execute(ASLEEP, ["mail"])
    pusher.execute("SET lock_timeout = '10s'")
    core.Queue(pusher).push("k", queue="mail")
    core.Queue(pusher).push("k", queue="free")
    (locks,) = pusher.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    ).fetchone()
    assert locks == 0
