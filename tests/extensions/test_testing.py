"""The fixtures for users' own suites: each test here is such a suite, run by pytest as they run theirs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
APP = """
from pgqueue_ref.worker import Kinds, RetryAfter
kinds = Kinds()

@kinds.register("order", terminal_ttl=None)
def order(job):
    return job.payload["item"] * 2

@kinds.register("mail", max_attempts=2)
async def mail(job):
    if job.payload == "bad":
        raise ValueError("no such address")
    if job.payload == "later" and job.attempt == 1:
        raise RetryAfter(60)
    return job.attempt
"""
CONFTEST = """
import pytest
from app import kinds

@pytest.fixture
def pgqueue_kinds():
    return kinds
"""
Suite = Callable[..., pytest.RunResult]


@pytest.fixture
def suite(pytester: pytest.Pytester, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Runs a user's suite, its warnings being errors, against an empty database: `suite(text, passed=2)`."""
    monkeypatch.setenv("PGQUEUE_TEST_DSN", empty_database)
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql://127.0.0.1:1/production")
    monkeypatch.setenv("PGQUEUE_SCHEMA", "production")
    pytester.makepyfile(app=APP, conftest=CONFTEST)
    pytester.makeini("[pytest]\nfilterwarnings = error")

    def suite(text: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile(test_app=text)
        result = pytester.runpytest_subprocess("-p", "no:locust", "-p", "no:schemathesis", *arguments)
        result.assert_outcomes(**outcomes)
        return result

    return suite


def left(dsn: str) -> list[str]:
    """What the database holds besides PostgreSQL's own."""
    with psycopg.connect(dsn) as connection:
        find = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'"
        return [name for (name,) in connection.execute(find)]


def test_jobs_are_asserted_drained_and_gone_at_the_end(suite: Suite, empty_database: str) -> None:
    suite(
        """
from unittest.mock import ANY
import pytest

def test_one(pgqueue):
    pgqueue.refute_pushed("order")
    pushed = pgqueue.queue.push("order", {"item": 7, "at": "now"}, key="k")
    job = pgqueue.assert_pushed("order", payload={"item": 7, "at": ANY}, key="k")
    assert job.id == pushed.id
    pgqueue.refute_pushed("order", key="other")
    pgqueue.refute_pushed("order", key=None)
    pgqueue.refute_pushed("order", queue="other")
    assert len(pgqueue.pushed("order")) == 1
    counts = pgqueue.drain()
    assert (counts.claimed, counts.succeeded) == (1, 1)
    assert pgqueue.assert_pushed("order").status == "succeeded"

def test_two_sees_nothing_of_one(pgqueue):
    pgqueue.refute_pushed("order")
    assert pgqueue.drain().claimed == 0

def test_pages(pgqueue):
    for n in range(150):
        pgqueue.queue.push("order", n)
    assert len(pgqueue.pushed("order")) == 150

def test_what_was_pushed_instead_is_said(pgqueue):
    with pytest.raises(AssertionError, match="no job is"):
        pgqueue.assert_pushed("order")
    pgqueue.queue.push("mail", {"to": "ada"})
    with pytest.raises(AssertionError, match=r"not pushed: 'order', key='k'\\nof other kinds: mail \\(1\\)"):
        pgqueue.assert_pushed("order", key="k")
    with pytest.raises(AssertionError, match=r"(?s)not pushed: 'mail', payload=3.*there are 1:.*payload=..to.: .ada."):
        pgqueue.assert_pushed("mail", payload=3)
    with pytest.raises(AssertionError, match=r"(?s)pushed 1 times: 'mail'.*key=None"):
        pgqueue.refute_pushed("mail")
""",
        passed=4,
    )
    assert left(empty_database) == ["public"]


def test_a_job_runs_inline_and_the_test_gets_what_it_returns_or_raises(suite: Suite) -> None:
    suite(
        """
import pytest
from pgqueue_ref import NewJob

def test_pushed_or_not(pgqueue):
    pushed = pgqueue.queue.push("order", {"item": 7})
    assert pgqueue.run_job(pushed) == pgqueue.run_job(pushed.id) == 14
    assert pgqueue.run_job(pgqueue.assert_pushed("order")) == 14
    assert pgqueue.run_job(NewJob("order", {"item": (4, 5)})) == [4, 5, 4, 5]  # as it comes out of JSON
    assert pgqueue.assert_pushed("order").status == "pending"  # nothing is written

def test_asynchronous_handlers_and_errors(pgqueue):
    assert pgqueue.run_job(NewJob("mail", "good")) == 1
    with pytest.raises(ValueError, match="no such address"):
        pgqueue.run_job(NewJob("mail", "bad"))
    assert pgqueue.run_job(NewJob("else", 3), handler=lambda job: job.payload) == 3

@pytest.mark.anyio
async def test_in_an_asynchronous_test(pgqueue):
    assert await pgqueue.arun_job(NewJob("mail", "good")) == 1
    assert await pgqueue.arun_job(NewJob("order", {"item": 1})) == 2
    pgqueue.queue.push("mail")
    assert (await pgqueue.adrain()).succeeded == 1

@pytest.fixture
def anyio_backend():
    return "asyncio"
""",
        passed=3,
    )


def test_the_database_s_clock_stands_still_and_moves_for_retries_leases_and_schedules(suite: Suite) -> None:
    suite(
        """
from datetime import UTC, datetime, timedelta
import pytest
from pgqueue_ref import Want
from pgqueue_ref.extensions import schedules

NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)

def test_retry(pgqueue):
    assert pgqueue.clock.freeze(NEW_YEAR) == NEW_YEAR
    job = pgqueue.queue.push("mail", "later")
    assert pgqueue.queue.get(job.id).created_at == NEW_YEAR
    assert pgqueue.drain().retried == 1
    assert pgqueue.drain().claimed == 0
    assert pgqueue.clock.advance(59) == NEW_YEAR + timedelta(seconds=59)
    assert pgqueue.drain().claimed == 0
    pgqueue.clock.advance(timedelta(seconds=1))
    assert pgqueue.drain().succeeded == 1

def test_lease(pgqueue):
    pgqueue.clock.freeze()
    pgqueue.queue.push("mail")
    (job,) = pgqueue.queue.claim([Want("mail", 1)], worker="died", lease=60)
    pgqueue.clock.advance(61)
    counts = pgqueue.drain()
    assert (counts.rescued, counts.succeeded) == (1, 1)

def test_schedule(pgqueue):
    pgqueue.clock.freeze(NEW_YEAR)
    pgqueue.queue.run(schedules.add("daily", "mail", cron="0 6 * * *"))
    pgqueue.refute_pushed("mail")
    pgqueue.clock.advance(timedelta(hours=6))
    pgqueue.queue.run(schedules.fire())
    pgqueue.assert_pushed("mail", key="schedule:daily:2030-01-01T06:00:00Z")

def test_real_time(pgqueue):
    before = pgqueue.clock.now()
    assert pgqueue.clock.advance(3600) - before >= timedelta(hours=1)
    pgqueue.clock.reset()
    assert pgqueue.clock.now() - before < timedelta(minutes=30)
    with pytest.raises(ValueError, match="time zone"):
        pgqueue.clock.freeze(datetime(2030, 1, 1))
""",
        passed=4,
    )


def test_truncating_lets_code_connect_by_itself_and_leaves_nothing(suite: Suite, empty_database: str) -> None:
    suite(
        """
import asyncio
from datetime import UTC, datetime
import pytest
from pgqueue_ref import Queue
from pgqueue_ref.worker import Worker

@pytest.fixture
def pgqueue_isolation():
    return "truncate"

NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)

def test_one(pgqueue, pgqueue_kinds):
    pgqueue.clock.freeze(NEW_YEAR)
    with Queue.connect() as queue:
        assert queue.push("mail").id == 1
        queue.pause("other")
    pgqueue.assert_pushed("mail")

    async def turn():
        worker = Worker(pgqueue_kinds)
        counts = await worker.run_once()
        await worker.close()
        return counts

    assert asyncio.run(turn()).succeeded == 1
    assert pgqueue.assert_pushed("mail").finished_at == NEW_YEAR

def test_two_starts_empty_with_the_real_time(pgqueue):
    pgqueue.refute_pushed("mail")
    assert pgqueue.queue.paused() == []
    assert pgqueue.clock.now() < NEW_YEAR
    assert pgqueue.queue.push("mail").id == 1
""",
        passed=2,
    )
    assert left(empty_database) == ["public"]


def test_mistakes_are_told_in_a_line(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    result = suite(
        """
import pytest
from pgqueue_ref import Queue, connect
from pgqueue_ref.worker import Kinds, Snooze

def test_connecting_by_itself_reaches_no_database(pgqueue):
    Queue.connect()

class TestOpen:
    @pytest.fixture
    def pgqueue_isolation(self):
        return "truncate"

    def test_transaction_left_open(self, pgqueue, request):
        connection = connect(pgqueue.dsn)
        request.config.kept = connection
        connection.execute("BEGIN; SELECT FROM pgqueue_jobs")

    def test_isolation_goes_on(self, pgqueue, request):
        request.config.kept.close()

class TestWord:
    @pytest.fixture
    def pgqueue_isolation(self):
        return "rollback"

    def test_word(self, pgqueue): ...

class TestHandlers:
    @pytest.fixture
    def pgqueue_kinds(self):
        return None

    def test_no_kinds(self, pgqueue):
        pgqueue.drain()

def test_endless(pgqueue):
    kinds = Kinds()
    @kinds.register("again")
    def again(job):
        raise Snooze(0)
    pgqueue.queue.push("again")
    pgqueue.drain(kinds)
""",
        passed=2,
        failed=3,
        errors=2,
    )
    for line in (
        "*no database given*",
        "*still has a transaction open*",
        "*transaction or truncate, not 'rollback'*",
        "*pass your Kinds, or have a fixture*",
        "*not drained after 1000 jobs*",
    ):
        result.stdout.fnmatch_lines_random(line)
    monkeypatch.delenv("PGQUEUE_TEST_DSN")
    result = suite("def test_it(pgqueue): ...", errors=1)
    result.stdout.fnmatch_lines_random("*set PGQUEUE_TEST_DSN to a database for tests*")


def test_a_copied_core_takes_it_along(
    pytester: pytest.Pytester, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_TEST_DSN", empty_database)
    shutil.copytree(ROOT / "pgqueue_ref" / "core", pytester.path / "yourapp" / "_jobs")
    shutil.copy(ROOT / "pgqueue_ref" / "testing.py", pytester.path / "yourapp" / "_jobs")
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makeconftest(
        "import sys\nsys.modules['pgqueue_ref'] = None  # not installed\npytest_plugins = ['yourapp._jobs.testing']"
    )
    pytester.makepyfile(
        """
from yourapp._jobs import NewJob

def test_it(pgqueue):
    pgqueue.queue.push("mail", 7)
    job = pgqueue.assert_pushed("mail", payload=7)
    assert pgqueue.run_job(job, handler=lambda job: job.payload) == 7
    pgqueue.clock.freeze()
"""
    )
    plugins = [argument for name in ("pgqueue", "locust", "schemathesis") for argument in ("-p", f"no:{name}")]
    result = pytester.runpytest_subprocess(*plugins, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert sys.modules["pgqueue_ref"] is not None


def test_a_sqlalchemy_session_s_pushes_are_seen_before_they_are_committed(database: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    from pgqueue_ref.sqlalchemy import queue
    from pgqueue_ref.testing import Pgqueue
    from pgqueue_ref.worker import Kinds

    kinds = Kinds()
    kinds.register("mail")(lambda job: job.payload)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    with Session(engine) as session:
        tested = Pgqueue(queue(session), kinds=kinds)
        tested.queue.push("mail", 7)
        assert tested.run_job(tested.assert_pushed("mail", payload=7)) == 7
        assert tested.drain().succeeded == 1
        session.rollback()
        tested.refute_pushed("mail")
    engine.dispose()
