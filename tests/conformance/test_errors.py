"""What goes wrong at the server becomes an error of the queue's, in one line, with the driver's as its cause."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest

ATTEMPT = SimpleNamespace(id=1, lease_token=1)
CALLS = {
    "run": lambda queue, core: queue.run(core.operations.stats()),
    "push": lambda queue, core: queue.push("mail"),
    "push_many": lambda queue, core: queue.push_many([core.NewJob("mail")]),
    "claim": lambda queue, core: queue.claim([core.Want("mail", 1)], worker="w"),
    "complete": lambda queue, core: queue.complete(ATTEMPT),
    "complete_many": lambda queue, core: queue.complete_many([ATTEMPT], ttl=0),
    "fail": lambda queue, core: queue.fail(ATTEMPT, "no"),
    "fail_many": lambda queue, core: queue.fail_many([core.Failure(ATTEMPT, "no")]),
    "snooze": lambda queue, core: queue.snooze(ATTEMPT, 1),
    "snooze_many": lambda queue, core: queue.snooze_many([ATTEMPT], 1),
    "release": lambda queue, core: queue.release(ATTEMPT),
    "release_many": lambda queue, core: queue.release_many([ATTEMPT]),
    "heartbeat": lambda queue, core: queue.heartbeat(ATTEMPT),
    "heartbeat_many": lambda queue, core: queue.heartbeat_many([ATTEMPT]),
    "cancel": lambda queue, core: queue.cancel(1),
    "cancel_key": lambda queue, core: queue.cancel_key("mail", "k"),
    "retry": lambda queue, core: queue.retry(1),
    "retry_many": lambda queue, core: queue.retry_many(),
    "chores": lambda queue, core: queue.chores(),
    "rescue": lambda queue, core: queue.rescue(),
    "expire": lambda queue, core: queue.expire(),
    "cleanup": lambda queue, core: queue.cleanup(),
    "purge": lambda queue, core: queue.purge(1),
    "pause": lambda queue, core: queue.pause("default"),
    "resume": lambda queue, core: queue.resume("default"),
    "paused": lambda queue, core: queue.paused(),
    "stats": lambda queue, core: queue.stats(),
    "get": lambda queue, core: queue.get(1),
    "list_jobs": lambda queue, core: queue.list_jobs(),
}


def check(refused, sqlstate):
    """One line, and the driver's error behind it."""
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value.__cause__, psycopg.Error)
    assert refused.value.__cause__.sqlstate == sqlstate


def test_every_operation_is_called_here(core):
    operations = {name for name in vars(core.Queue) if not name.startswith("_")} - {"connect"}
    assert operations == set(CALLS)


def test_every_operation_says_that_the_schema_is_missing_and_how_to_create_it(open_queue, core, empty_database):
    queue = open_queue(empty_database)
    for call in CALLS.values():
        with pytest.raises(core.SchemaMissing, match=r"schema is missing.*migrate") as refused:
            call(queue, core)
        check(refused, "42P01")


def test_a_bounded_push_says_so_too(open_queue, core, empty_database):
    with pytest.raises(core.SchemaMissing):
        open_queue(empty_database, max_in_flight=5).push_many([core.NewJob("mail", key="k")])


def test_a_search_path_without_the_tables_is_a_missing_schema(open_queue, core, db):
    with pytest.raises(core.SchemaMissing):
        open_queue(options="-c search_path=nowhere").push("mail")


def test_a_schema_older_than_the_code_is_named_as_that(open_queue, core, database):
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("ALTER TABLE pgqueue_jobs DROP COLUMN metadata")
    with pytest.raises(core.SchemaMissing, match="out of date") as refused:
        open_queue(database).push("mail")
    check(refused, "42703")


@pytest.fixture
def blocker(shared, db):
    """A transaction of somebody else's, which holds the key 'k' and the lock of a job that it returns."""
    db.execute("INSERT INTO pgqueue_jobs (kind) VALUES ('mail')")
    with psycopg.connect(shared) as other:
        (job_id,) = other.execute("SELECT id FROM pgqueue_jobs FOR UPDATE").fetchone()
        other.execute("INSERT INTO pgqueue_jobs (kind, external_key) VALUES ('mail', 'k')")
        yield SimpleNamespace(connection=other, job_id=job_id)
        other.rollback()


WAITING = {
    "push": lambda queue, core, job_id: queue.push("mail", key="k"),
    "push_many": lambda queue, core, job_id: queue.push_many([core.NewJob("mail", key="k")]),
    "cancel": lambda queue, core, job_id: queue.cancel(job_id),
}


@pytest.mark.parametrize("waits", WAITING)
def test_a_statement_that_takes_too_long_is_a_statement_timeout(open_queue, core, blocker, waits):
    queue = open_queue(options="-c statement_timeout=100")
    with pytest.raises(core.StatementTimeout, match="PGQUEUE_STATEMENT_TIMEOUT_MS") as refused:
        WAITING[waits](queue, core, blocker.job_id)
    check(refused, "57014")
    blocker.connection.rollback()
    assert WAITING[waits](queue, core, blocker.job_id)  # the connection is of use still


@pytest.mark.parametrize("waits", WAITING)
def test_a_lock_that_is_not_granted_is_a_lock_timeout(open_queue, core, blocker, waits):
    queue = open_queue(options="-c lock_timeout=100")
    with pytest.raises(core.LockTimeout, match="another transaction holds it") as refused:
        WAITING[waits](queue, core, blocker.job_id)
    check(refused, "55P03")
    blocker.connection.rollback()
    assert WAITING[waits](queue, core, blocker.job_id)


def test_a_bounded_push_that_does_not_get_its_turn_is_a_lock_timeout(open_queue, core, db, shared):
    with psycopg.connect(shared) as other:
        core.Queue(other, max_in_flight=9).push("mail")
        with pytest.raises(core.LockTimeout):
            open_queue(max_in_flight=9, options="-c lock_timeout=100").push("mail")
        other.rollback()
    assert open_queue(max_in_flight=9).push("mail").created


@pytest.mark.parametrize("max_in_flight", [None, 9])
def test_a_connection_that_breaks_is_reported_with_its_cause(open_queue, core, db, max_in_flight):
    queue = open_queue(max_in_flight=max_in_flight)
    ((pid,),) = queue.execute("SELECT pg_backend_pid()")
    gone = db.execute("SELECT pg_terminate_backend(%s, 10000) AS gone", [pid]).fetchone()
    assert gone == {"gone": True}
    with pytest.raises(core.DatabaseUnavailable, match="connection") as refused:
        queue.push("mail")
    assert isinstance(refused.value.__cause__, psycopg.OperationalError)
    assert "\n" not in str(refused.value)
    assert db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone() == {"n": 0}


def test_a_server_that_only_reads_is_reported_in_its_own_words(open_queue, core, db):
    with pytest.raises(core.QueueError, match="read-only transaction") as refused:
        open_queue(options="-c default_transaction_read_only=on").push("mail")
    check(refused, "25006")


def test_a_value_that_the_server_refuses_is_an_invalid_job(open_queue, core, database):
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("ALTER TABLE pgqueue_jobs ADD CONSTRAINT house_rule CHECK (kind <> 'spam')")
    queue = open_queue(database)
    with pytest.raises(core.InvalidJob, match="house_rule") as refused:
        queue.push("spam")
    check(refused, "23514")
    assert queue.push("mail").created


def test_all_errors_of_the_queue_are_one_family(core):
    names = ("QueueBusy SchemaMissing StatementTimeout LockTimeout ConnectionLimit DatabaseUnavailable JobNotFound "
             "LeaseLost InvalidJob UnknownKind")  # fmt: skip
    assert all(issubclass(getattr(core, name), core.QueueError) for name in names.split())
    assert issubclass(core.ConnectionLimit, core.DatabaseUnavailable)
