"""What concurrency tests share: connections of their own, threads that must end, and waiting for another's wait.

A test knows that somebody waits because pg_stat_activity and pg_blocking_pids() say so, never because time passed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

Connection = psycopg.Connection[Any]
PATIENCE = 20.0  # seconds until a condition that should come true counts as never


@pytest.fixture
def connect(database: str, background: Any) -> Iterator[Callable[..., Connection]]:
    """Opens connections to the test's database: `connect()` autocommit, `connect(autocommit=False)` not."""
    with contextlib.ExitStack() as stack:

        def connect(*, autocommit: bool = True, options: str = "") -> Connection:
            # A test that deadlocks or waits for ever must fail, not hang.
            dsn = make_conninfo(database, options=f"-c statement_timeout=60000 {options}")
            connection = psycopg.connect(dsn, autocommit=autocommit)
            stack.callback(connection.close)
            return connection

        try:
            yield connect
        finally:
            # A failed test leaves threads waiting for locks; `background`, which outlives this, waits for its threads.
            with psycopg.connect(database, autocommit=True) as connection:
                others = "datname = current_database() AND pid <> pg_backend_pid()"
                connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    """The observer."""
    return connect()


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread: `background(queue.push, "mail")` gives its future."""
    with ThreadPoolExecutor(64) as threads:
        yield threads.submit


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    """Polls until a condition holds; fails, naming it, when it never does."""

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.002)

    return wait_until


@pytest.fixture
def wait_for_block(db: Connection, wait_until: Callable[..., None]) -> Callable[..., None]:
    """Waits until the server says that `waiter` waits for a lock of `holder`'s: `wait_for_block(waiter, holder)`."""

    def wait_for_block(waiter: Connection, holder: Connection, event: str | None = None) -> None:
        def blocked() -> bool:
            row = db.execute(
                """SELECT %s = ANY (pg_blocking_pids(pid)) AND wait_event_type = 'Lock'
                      AND (%s::text IS NULL OR wait_event = %s) FROM pg_stat_activity WHERE pid = %s""",
                [holder.info.backend_pid, event, event, waiter.info.backend_pid],
            ).fetchone()
            return row == (True,)

        wait_until(blocked, f"backend {waiter.info.backend_pid} waits for {holder.info.backend_pid}")

    return wait_for_block
