"""For the tests of an application: what was pushed, its jobs run at once, and a clock that the test moves.

    def test_an_order_is_confirmed(pgqueue):
        order(pgqueue.queue, item=7)
        pgqueue.assert_pushed("mail", payload={"template": "confirmation", "item": 7})
        assert pgqueue.drain(kinds).succeeded == 1

pytest finds the fixtures by itself where pgqueue-ref is installed. A copy of the core takes this file along, and
`pytest_plugins = ["yourapp._jobs.testing"]` in a conftest.py; `drain` needs the installed worker. docs/testing.md has
examples.

What the fixtures promise: in the database that PGQUEUE_TEST_DSN names they touch nothing but a schema of their own,
which goes when pytest ends; no test sees the jobs of another; several pytest processes may share the database.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

# From here, so that it is right beside a copied core as well: this package exports the core's names.
from . import SCHEMA_SQL, Job, JobRow, NewJob, Operation, Pushed, Queue, Seconds, Statement, conninfo, seconds

if TYPE_CHECKING:
    from pgqueue_ref.worker import Counts, Kinds

MAX_JOBS = 1000  # that `drain` runs before it takes them for endless
Handler = Callable[[Job], Any] | Callable[[Job], Awaitable[Any]]


# -- the clock -------------------------------------------------------------------------------------------------

# The queue calls now() without a schema, so a function of this name is taken for it where it comes first in the search
# path. pg_catalog is searched before everything unless the path names it, hence `schema, pg_catalog`. Defaults of
# columns keep the function that they were made with: the tables must be created under that path as well. What the clock
# does not reach: CURRENT_TIMESTAMP and its kin, clock_timestamp(), and sessions with another path.
CLOCK = """
CREATE TABLE {schema}.testing_clock (frozen_at timestamptz, shift interval NOT NULL DEFAULT '0');
INSERT INTO {schema}.testing_clock DEFAULT VALUES;
CREATE FUNCTION {schema}.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT coalesce(frozen_at, pg_catalog.now()) + shift FROM {schema}.testing_clock $$;
"""


def install_clock(connection: psycopg.Connection[Any], schema: str) -> None:
    """Put a now() that can be moved into a schema. Sessions of `clock_dsn` see it, others do not."""
    connection.execute(sql.SQL(CLOCK).format(schema=sql.Identifier(schema)))


def clock_dsn(dsn: str, schema: str) -> str:
    """The DSN with a search_path that finds the schema's tables, and its now() before PostgreSQL's own.

    PGQUEUE_SCHEMA must be empty where it is used, or that would be the whole path.
    """
    quoted = '"' + schema.replace('"', '""') + '"'
    return conninfo(dsn, schema="", options="-c search_path=" + re.sub(r"([\s\\])", r"\\\1", quoted) + ",pg_catalog")


class Clock:
    """The now() of a schema that has `install_clock`, for every session of `clock_dsn`, workers' among them."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def now(self) -> datetime:
        """What the queue takes for now, in UTC."""
        ((now,),) = self._queue.run(_rows("SELECT now()"))
        moment: datetime = now.astimezone(UTC)
        return moment

    def freeze(self, moment: datetime | None = None) -> datetime:
        """Stop the clock, at `moment` if given; returns where it stands."""
        if moment is not None and moment.utcoffset() is None:
            raise ValueError("freeze the clock at a moment with a time zone: a naive one differs between machines")
        self._queue.run(_rows(_FREEZE, moment=moment))
        return self.now()

    def advance(self, by: Seconds) -> datetime:
        """Move the clock forward by seconds or a timedelta, whether it stands or runs; returns where it is then."""
        self._queue.run(_rows(_ADVANCE, by=seconds(by, "by")))
        return self.now()

    def reset(self) -> None:
        """Back to PostgreSQL's own time, running."""
        self._queue.run(_rows(_RESET))


_FREEZE = "UPDATE testing_clock SET frozen_at = coalesce(%(moment)s::timestamptz, now()), shift = '0' RETURNING 1"
_ADVANCE = "UPDATE testing_clock SET shift = shift + make_interval(secs => %(by)s) RETURNING 1"
_RESET = "UPDATE testing_clock SET frozen_at = NULL, shift = '0' RETURNING 1"


def _rows(text: str, **params: Any) -> Operation[list[tuple[Any, ...]]]:
    return (yield Statement(text, params))


# -- the queue in a test ---------------------------------------------------------------------------------------


class Pgqueue:
    """A queue, and what a test asks of it. The fixture `pgqueue` is one; make others on any `Queue`.

        Pgqueue(pgqueue_ref.sqlalchemy.queue(session)).assert_pushed("mail")

    sees what the session has pushed and not committed. `kinds` are what `drain` and `run_job` take handlers from.
    """

    def __init__(self, queue: Queue, *, kinds: Kinds | None = None, dsn: str = "") -> None:
        self.queue, self.kinds, self.dsn = queue, kinds, dsn
        self.clock = Clock(queue)

    # What is not given is `...`, since None is a payload and a key like any other.

    def pushed(self, kind: str, *, payload: Any = ..., key: Any = ..., queue: Any = ...) -> list[JobRow]:
        """The jobs of a kind that are in the queue, whatever their status, oldest first.

        Given values must be equal to the job's; `unittest.mock.ANY` in a payload is equal to anything.
        """
        wanted = {"payload": payload, "external_key": key, "queue": queue}
        return [
            job
            for job in self._jobs(kind)
            if all(value is ... or value == getattr(job, name) for name, value in wanted.items())
        ]

    def assert_pushed(self, kind: str, *, payload: Any = ..., key: Any = ..., queue: Any = ...) -> JobRow:
        """Fail unless such a job was pushed, and say what was; returns the newest. See `pushed`.

        A job whose kind keeps nothing (`terminal_ttl=0`) is gone once it has run: assert before `drain`.
        """
        __tracebackhide__ = True
        found = self.pushed(kind, payload=payload, key=key, queue=queue)
        if not found:
            raise AssertionError(f"not pushed: {_described(kind, payload, key, queue)}\n{self._instead(kind)}")
        return found[-1]

    def refute_pushed(self, kind: str, *, payload: Any = ..., key: Any = ..., queue: Any = ...) -> None:
        """Fail if such a job was pushed."""
        __tracebackhide__ = True
        if found := self.pushed(kind, payload=payload, key=key, queue=queue):
            lines = "\n".join(map(_shown, found[:10]))
            raise AssertionError(f"pushed {len(found)} times: {_described(kind, payload, key, queue)}\n{lines}")

    def drain(self, kinds: Kinds | None = None) -> Counts:
        """Run every job that is due, and those these push, one worker's turn after the other; returns what it did.

        All that a worker does is done: retries are scheduled, results stored, schedules fired, lost leases rescued.
        Handlers that raise do not fail the test: look at the counts, or at the jobs. Retries and jobs with a delay
        are for later: move the clock. Fails after 1,000 jobs. In an asynchronous test `await adrain()`.
        """
        return asyncio.run(self.adrain(kinds))

    async def adrain(self, kinds: Kinds | None = None) -> Counts:
        """`drain`, on this event loop."""
        from pgqueue_ref.worker.inline import InlineWorker

        worker, idle = InlineWorker(self._kinds(kinds), self.queue, ["default"]), 0
        while idle < 2:  # the second look finds what the maintenance of the first has put back
            worker.queues = tuple({stat.queue for stat in self.queue.stats()}) or ("default",)
            idle = 0 if (await worker.run_once()).claimed else idle + 1
            if worker.counts.claimed > MAX_JOBS:
                raise AssertionError(f"not drained after {MAX_JOBS} jobs: do they push or snooze themselves for ever?")
        return worker.counts

    def run_job(self, job: NewJob | JobRow | Pushed | int, handler: Handler | None = None) -> Any:
        """Call the handler as a worker would: returns what it returns, raises what it raises. Writes nothing itself.

        `job` is one that was pushed, or its id, or a `NewJob` that never was. In an asynchronous test
        `await arun_job(...)`.
        """
        value = self._call(job, handler)
        return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value

    async def arun_job(self, job: NewJob | JobRow | Pushed | int, handler: Handler | None = None) -> Any:
        """`run_job`, on this event loop."""
        value = self._call(job, handler)
        return await value if inspect.isawaitable(value) else value

    def _call(self, job: NewJob | JobRow | Pushed | int, handler: Handler | None) -> Any:
        attempt = self._attempt(job)
        return (handler or self._kinds(None)[attempt.kind].handler)(attempt)

    def _attempt(self, job: NewJob | JobRow | Pushed | int) -> Job:
        """The job as a claim would give it."""
        if isinstance(job, NewJob):
            now, most = self.clock.now(), job.max_attempts or 1
            payload, metadata = json.loads(job.encoded), json.loads(job.encoded_metadata)
            return Job(0, job.queue, job.kind, job.key, job.priority, 1, most, now, now, 1, payload, metadata)
        row = job if isinstance(job, JobRow) else self.queue.get(job.id if isinstance(job, Pushed) else job)
        return Job(
            row.id, row.queue, row.kind, row.external_key, row.priority, row.attempt + 1,
            row.max_attempts or row.attempt + 1, row.run_at, row.created_at, row.lease_token + 1, row.payload,
            row.metadata,
        )  # fmt: skip

    def _kinds(self, kinds: Kinds | None) -> Kinds:
        found = kinds if kinds is not None else self.kinds
        if found is None:
            raise LookupError("no handlers: pass your Kinds, or have a fixture `pgqueue_kinds` return them")
        return found

    def _jobs(self, kind: str) -> Iterator[JobRow]:
        page = self.queue.list_jobs(kind=kind)
        while page:
            yield from page
            page = self.queue.list_jobs(kind=kind, after=page[-1].id)

    def _instead(self, kind: str) -> str:
        """What was pushed, for whoever expected something else."""
        jobs = list(self._jobs(kind))
        if jobs:
            more = [f"... {len(jobs) - 10} more"] if len(jobs) > 10 else []
            return "\n".join([f"of this kind there are {len(jobs)}:", *map(_shown, jobs[:10]), *more])
        others = Counter[str]()
        for stat in self.queue.stats():
            others[stat.kind] += stat.jobs
        return "of other kinds: " + ", ".join(f"{name} ({n})" for name, n in others.items()) if others else "no job is"


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _described(kind: str, payload: Any, key: Any, queue: Any) -> str:
    given = {"payload": payload, "key": key, "queue": queue}
    return ", ".join([repr(kind), *(f"{name}={value!r}" for name, value in given.items() if value is not ...)])


def _shown(job: JobRow) -> str:
    return f"  {job.id}: payload={job.payload!r}, key={job.external_key!r}, queue={job.queue!r}, {job.status}"


# -- fixtures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pgqueue_dsn() -> str:
    """The database that tests use: PGQUEUE_TEST_DSN. Override it where yours comes from somewhere else."""
    dsn = os.environ.get("PGQUEUE_TEST_DSN", "")
    if not dsn:
        pytest.fail("set PGQUEUE_TEST_DSN to a database for tests, or override the fixture pgqueue_dsn", pytrace=False)
    return dsn


@pytest.fixture(scope="session")
def pgqueue_ddl() -> str:
    """The SQL that makes the tables: the core's, and the extensions' where they are installed."""
    try:
        from pgqueue_ref.extensions import EXTENSIONS
    except ModuleNotFoundError:
        return SCHEMA_SQL
    return "\n".join([SCHEMA_SQL, *(extension.schema_sql for extension in EXTENSIONS)])


@pytest.fixture(scope="session")
def _pgqueue_database(pgqueue_dsn: str, pgqueue_ddl: str) -> Iterator[str]:
    """DSN of a schema with the tables and a clock."""
    schema = f"pgqueue_test_{secrets.token_hex(5)}"
    dsn = clock_dsn(pgqueue_dsn, schema)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        try:
            install_clock(connection, schema)
            connection.execute(pgqueue_ddl)
            yield dsn
        finally:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture
def pgqueue_isolation() -> str:
    """How tests are kept apart. Override it, for a module or all of them, to return "truncate".

    "transaction": everything runs on `pgqueue.queue`, in a transaction that is rolled back. Fast, and blind to other
    connections. "truncate": PGQUEUE_DATABASE_URL is set, so that code under test and workers connect by themselves and
    commit; afterwards the tables are emptied.
    """
    return "transaction"


@pytest.fixture
def pgqueue_kinds() -> Kinds | None:
    """The application's handlers, for `drain` and `run_job`. Override it."""
    return None


@pytest.fixture
def pgqueue(
    _pgqueue_database: str, pgqueue_isolation: str, pgqueue_kinds: Kinds | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pgqueue]:
    """A queue in a database of its own, as far as the test can tell."""
    if pgqueue_isolation not in ("transaction", "truncate"):
        pytest.fail(f"pgqueue_isolation is transaction or truncate, not {pgqueue_isolation!r}", pytrace=False)
    truncate = pgqueue_isolation == "truncate"
    # What would connect by itself must not reach the real queue; and rows that it committed here would stay.
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", _pgqueue_database if truncate else "")
    monkeypatch.setenv("PGQUEUE_SCHEMA", "")
    with psycopg.connect(_pgqueue_database, autocommit=True) as connection:
        tested = Pgqueue(Queue(connection), kinds=pgqueue_kinds, dsn=_pgqueue_database if truncate else "")
        if truncate:
            yield tested
            _empty(connection)
            tested.clock.reset()
        else:
            with connection.transaction(force_rollback=True):
                yield tested


def _empty(connection: psycopg.Connection[Any]) -> None:
    """Empty all tables but the clock's. Fails where the test left a transaction open that holds one."""
    find = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename <> 'testing_clock'"
    tables = sql.SQL(", ").join(sql.Identifier(name) for (name,) in connection.execute(find))
    try:
        connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
    except psycopg.errors.QueryCanceled:
        pytest.fail("a connection of the test still has a transaction open, or a worker runs: close it", pytrace=False)
