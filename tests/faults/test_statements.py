"""Each statement of the worker is cut off in its middle, and each loses its answer after its commit.

A trigger holds the statement inside the server until the test lets it go, so that the fault comes at no other moment.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psycopg
import pytest
from proxy import Proxy
from waiting import until

JOBS = 5
PATIENT = ("--statement-timeout-ms", "0")  # however long the test takes
# Not a lock: the worker's lock timeout would end the wait on a busy machine.
GATE = """
CREATE TABLE closed AS SELECT;
CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    WHILE EXISTS (SELECT FROM closed) LOOP PERFORM pg_sleep(0.01); END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE UPDATE ON pgqueue_jobs FOR EACH ROW WHEN ({}) EXECUTE FUNCTION gate();
"""
# The statement: which change of a row it makes, the kind of job that leads to it, its payload.
STATEMENTS = {
    "claim": ("NEW.status = 'running' AND OLD.status = 'pending'", "work", 0.0),
    "complete": ("NEW.status = 'succeeded'", "work", 0.0),
    "heartbeat": ("NEW.status = 'running' AND OLD.status = 'running'", "slow-once", 3.0),
    "fail": ("NEW.status = 'pending' AND OLD.status = 'running'", "fail-once", 0.0),
}
# The lock of those that sleep by the bell, which pushes try.
BED = "hashtextextended('pgqueue:asleep:public:default', 0)"
ASLEEP = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"
WAITS = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event IN ('PgSleep', 'advisory')
   AND application_name LIKE 'pgqueue_ref:%%'
"""
TERMINATE = f"SELECT pg_terminate_backend(pid) FROM ({WAITS}) AS waiting"


@pytest.fixture
def line(database: str) -> Iterator[Proxy]:
    with Proxy(database) as proxy:
        yield proxy


@contextlib.contextmanager
def gate(bench, condition: str) -> Iterator[None]:
    """Meanwhile, updates that meet the condition wait in the server."""
    with psycopg.connect(bench.dsn) as connection:
        connection.execute(GATE.format(condition))
    yield
    bench.query("DELETE FROM closed RETURNING true")


def drained(bench, worker) -> None:
    until(lambda: bench.count("succeeded") == JOBS, "all jobs run")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.duplicated, found.completed) == (0, 0, 0, JOBS)
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_that_is_cut_off_in_its_middle_is_made_again(statement, bench, launch) -> None:
    condition, kind, payload = STATEMENTS[statement]
    with gate(bench, condition):
        bench.push(kind, JOBS, payload=payload)
        worker = launch(bench.dsn, "w", "--lease", "6", *PATIENT)
        until(lambda: bench.query(TERMINATE), f"the {statement} is cut off")
    drained(bench, worker)
    assert bench.attempts() == {("succeeded", 2 if statement == "fail" else 1)}  # nothing was half done
    assert worker.counts()["stale"] == 0
    assert "connection failed or lost" in worker.log()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_whose_answer_is_lost_after_its_commit_does_no_harm(statement, bench, launch, line) -> None:
    condition, kind, payload = STATEMENTS[statement]
    lease = {"claim": "2", "heartbeat": "6"}.get(statement, "60")  # it runs out, it is due, it must not run out
    worker = launch(line.dsn, "w", "--lease", lease, *PATIENT, ledger=bench.dsn)
    until(lambda: bench.query(ASLEEP), "it sleeps: its first look is over, which asks for chores in a transaction")
    with gate(bench, condition):
        bench.push(kind, JOBS, payload=payload)
        until(lambda: bench.query(WAITS), f"the {statement} is in the server")
        before = set(bench.query("SELECT id, xmin FROM pgqueue_jobs"))
        line.hold_answers()
    # On a busy machine not all jobs have ended by then: the statement is that of those which have.
    changed = until(lambda: before - set(bench.query("SELECT id, xmin FROM pgqueue_jobs")), "it commits")
    line.reset()
    line.mend()
    drained(bench, worker)
    again = statement in ("claim", "fail")  # nobody knows of the claimed ones until their leases run out
    assert bench.attempts() == {("succeeded", 2 if again else 1)}
    assert worker.counts()["stale"] == (len(changed) if statement in ("complete", "fail") else 0)


def test_a_worker_whose_listening_is_cut_off_as_it_lies_down_hears_of_later_jobs(bench, launch) -> None:
    with psycopg.connect(bench.dsn) as connection:
        connection.execute(f"SELECT pg_advisory_xact_lock({BED})")
        worker = launch(bench.dsn, "w", *PATIENT)
        until(lambda: bench.query(TERMINATE), "it is cut off as it lies down")
    until(lambda: bench.query(ASLEEP), "it lies down again")
    bench.push("work", JOBS)
    drained(bench, worker)
