"""What the conformance suite runs on: each test once for every runner that the tested copy of the core has.

A test is written once, against `queue`: the operations as plain synchronous calls, whatever runs them. psycopg's two
runners are always there. SQLAlchemy's two are there when SQLAlchemy is installed and a module `sqlalchemy` that drives
this very core lies beside it (`pgqueue_ref.sqlalchemy` beside `pgqueue_ref.core`); the header says which are run.

Needs psycopg and pytest alone. Tests share one database, emptied before each; those that change the schema take the
`database` fixture, which is fresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

Row = dict[str, Any]


def pytest_report_header(config: pytest.Config) -> str:
    name = config.getoption("--core-package")
    reason = _without_sqlalchemy(name)
    note = f" (SQLAlchemy's are not: {reason})" if reason else ""
    return f"core under test: {name}; runners: {', '.join(_runners(name))}{note}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runner" in metafunc.fixturenames:
        metafunc.parametrize("runner", _runners(metafunc.config.getoption("--core-package")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.name == "test_sqlalchemy.py" and _without_sqlalchemy(config.getoption("--core-package")):
        return True  # the header says so
    return None


def _beside(core_package: str) -> str:
    return f"{core_package.rpartition('.')[0]}.sqlalchemy"


def _without_sqlalchemy(core_package: str) -> str:
    """Why SQLAlchemy's runners cannot be tested; empty when they can."""
    name = _beside(core_package)
    try:
        if importlib.import_module(name).Queue is importlib.import_module(core_package).Queue:
            return ""
    except ModuleNotFoundError as error:
        return f"there is no module {error.name}"
    except (ImportError, AttributeError) as error:
        return f"{name}: {error}"
    return f"{name} drives another core"


# -- runners: the operations as synchronous calls --------------------------------------------------------------


class UndoError(Exception):
    """Leaves a transaction so that it rolls back."""


class Runner:
    """A queue on one connection of its own. Operations are its attributes; each commits, except in `transaction()`."""

    connection: Any
    queue: Any

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation.startswith("_"):
            raise AttributeError(operation)
        return lambda *args, **kwargs: self.call(operation, *args, **kwargs)

    def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.queue, operation)(*args, **kwargs)

    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        """The caller's transaction: committed at the end of the block, rolled back by an exception."""
        transaction: contextlib.AbstractContextManager[Any] = self.connection.transaction()
        return transaction

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """The caller's transaction, rolled back at the end of the block."""
        with contextlib.suppress(UndoError), self.transaction():
            yield
            raise UndoError

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """SQL that returns rows, on the runner's own connection."""
        return [tuple(row) for row in self.connection.execute(sql).fetchall()]

    def close(self) -> None:
        self.connection.close()


class Psycopg(Runner):
    def __init__(self, core: ModuleType, dsn: str, max_in_flight: int | None, autocommit: bool) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.queue = core.Queue(self.connection, max_in_flight=max_in_flight)


class AsyncRunner(Runner):
    """Runs coroutines on an event loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.Runner()

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(coroutine)

    def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        return self.wait(getattr(self.queue, operation)(*args, **kwargs))

    def close(self) -> None:
        self.wait(self.connection.close())
        self.loop.close()


class AsyncPsycopg(AsyncRunner):
    def __init__(self, core: ModuleType, dsn: str, max_in_flight: int | None, autocommit: bool) -> None:
        super().__init__()
        self.connection = self.wait(psycopg.AsyncConnection.connect(dsn, autocommit=True))
        self.queue = core.AsyncQueue(self.connection, max_in_flight=max_in_flight)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        block = contextlib.AsyncExitStack()
        self.wait(block.enter_async_context(self.connection.transaction()))
        try:
            yield
        except BaseException as error:
            self.wait(block.__aexit__(type(error), error, error.__traceback__))
            raise
        self.wait(block.aclose())

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        async def fetch() -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = await (await self.connection.execute(sql)).fetchall()
            return rows

        rows: list[tuple[Any, ...]] = self.wait(fetch())
        return rows


class SQLAlchemy(Runner):
    def __init__(self, core: ModuleType, dsn: str, max_in_flight: int | None, autocommit: bool) -> None:
        from sqlalchemy import NullPool, create_engine

        options: Any = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool, **options
        )
        self.connection = engine.connect()
        self.queue = importlib.import_module(_beside(core.__name__)).queue(self.connection, max_in_flight=max_in_flight)

    def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        if self.connection.in_transaction():
            return super().call(operation, *args, **kwargs)
        with self.transaction():
            return super().call(operation, *args, **kwargs)

    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        transaction: contextlib.AbstractContextManager[Any] = self.connection.begin()
        return transaction

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.connection.exec_driver_sql(sql)]


class AsyncSQLAlchemy(AsyncRunner):
    def __init__(self, core: ModuleType, dsn: str, max_in_flight: int | None, autocommit: bool) -> None:
        from sqlalchemy import NullPool
        from sqlalchemy.ext.asyncio import create_async_engine

        super().__init__()
        options: Any = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(dsn),
            poolclass=NullPool,
            **options,
        )
        self.connection = self.wait(_entered(engine.connect()))
        beside = importlib.import_module(_beside(core.__name__))
        self.queue = beside.async_queue(self.connection, max_in_flight=max_in_flight)

    def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        if self.connection.in_transaction():
            return super().call(operation, *args, **kwargs)
        with self.transaction():
            return super().call(operation, *args, **kwargs)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        transaction = self.connection.begin()
        self.wait(_entered(transaction))
        try:
            yield
        except BaseException:
            self.wait(transaction.rollback())
            raise
        self.wait(transaction.commit())

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.wait(self.connection.exec_driver_sql(sql))]


async def _entered(awaitable: Any) -> Any:
    return await awaitable


PSYCOPG: dict[str, type[Runner]] = {"psycopg": Psycopg, "psycopg-async": AsyncPsycopg}
SQLALCHEMY: dict[str, type[Runner]] = {"sqlalchemy": SQLAlchemy, "sqlalchemy-async": AsyncSQLAlchemy}


def _runners(core_package: str) -> list[str]:
    return list(PSYCOPG) + ([] if _without_sqlalchemy(core_package) else list(SQLALCHEMY))


# -- fixtures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared(server: Any, _clone: Callable[[str], str], _template: str) -> str:
    """DSN of the database that tests share."""
    return make_conninfo(server.dsn, dbname=_clone(_template))


@pytest.fixture
def db(shared: str) -> Iterator[psycopg.Connection[Row]]:
    """A separate autocommit connection to the emptied database, to arrange and to look."""
    with psycopg.connect(shared, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SET lock_timeout = '10s'")  # a test that left a transaction open must not hang the next
        size = connection.execute("SELECT pg_relation_size('pgqueue_jobs') AS bytes").fetchone()
        if size and size["bytes"] > 1_000_000:
            connection.execute("TRUNCATE pgqueue_jobs")
        connection.execute("DELETE FROM pgqueue_jobs; DELETE FROM pgqueue_queues")  # a tenth of what TRUNCATE takes
        yield connection


OpenQueue = Callable[..., Runner]


@pytest.fixture
def open_queue(core: ModuleType, runner: str, shared: str) -> Iterator[OpenQueue]:
    """Opens a queue: `open_queue(dsn, max_in_flight=..., options="-c ...", autocommit=True)`, all optional.

    `autocommit` is for SQLAlchemy, psycopg's connections always are; `options` are the server's, for the connection.
    """
    with contextlib.ExitStack() as stack:

        def open_queue(
            dsn: str = shared, *, max_in_flight: int | None = None, options: str = "", autocommit: bool = False
        ) -> Runner:
            dsn = make_conninfo(dsn, options=options) if options else dsn
            opened = (PSYCOPG | SQLALCHEMY)[runner](core, dsn, max_in_flight, autocommit)
            stack.callback(opened.close)
            return opened

        yield open_queue


@pytest.fixture
def queue(open_queue: OpenQueue, db: psycopg.Connection[Row]) -> Runner:
    """The queue on the emptied database."""
    return open_queue()


@pytest.fixture
def row(db: psycopg.Connection[Row]) -> Callable[[int], Row | None]:
    """A job as the server holds it, None if there is none; `xmin` and `ctid` differ after any write."""

    def row(job_id: int) -> Row | None:
        return db.execute("SELECT *, xmin::text, ctid::text FROM pgqueue_jobs WHERE id = %s", [job_id]).fetchone()

    return row


@pytest.fixture
def put(db: psycopg.Connection[Row]) -> Callable[..., int]:
    """Puts a row straight into the table: `put(status="failed", attempt=3)`; returns its id."""

    def put(**columns: Any) -> int:
        columns = {"kind": "mail"} | columns
        names, marks = ", ".join(columns), ", ".join(f"%({name})s" for name in columns)
        inserted = db.execute(f"INSERT INTO pgqueue_jobs ({names}) VALUES ({marks}) RETURNING id", columns).fetchone()
        assert inserted is not None
        return int(inserted["id"])

    return put


@pytest.fixture
def take(core: ModuleType, queue: Runner) -> Callable[..., Any]:
    """Pushes a job (unless `push=False`) and claims it: `take(max_attempts=3, worker="w2", lease=5)`."""

    def take(*, push: bool = True, worker: str = "w1", lease: float = 60, **want: Any) -> Any:
        if push:
            queue.push("mail", {"to": "ada"})
        (job,) = queue.claim([core.Want("mail", 1, **want)], worker=worker, lease=lease)
        return job

    return take


@pytest.fixture
def lose(db: psycopg.Connection[Row]) -> Callable[[Any], None]:
    """Lets a job's lease run out."""

    def lose(job: Any) -> None:
        db.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 second' WHERE id = %s", [job.id])

    return lose
