"""What the queue says when the server's own limits are met: max_connections and statement_timeout.

The limits are given to the server at its start, by every way of `spec`: to the container, to the embedded server.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import psycopg
import pytest

MAX_CONNECTIONS = 10
RESERVED = 3  # superuser_reserved_connections, PostgreSQL's default


@pytest.fixture(scope="module")
def small(spec: str, provisioned: Callable[..., Any]) -> Iterator[Any]:
    """A server with room for ten connections, and a role `app` that is no superuser."""
    with provisioned(spec, max_connections=str(MAX_CONNECTIONS)) as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
        yield server


@pytest.fixture(scope="module")
def hasty(spec: str, provisioned: Callable[..., Any], core: ModuleType) -> Iterator[Any]:
    """A server that cancels statements after half a second, with the queue's tables."""
    with provisioned(spec, statement_timeout="500ms") as server:
        with server.connect() as connection:
            connection.execute(core.SCHEMA_SQL)
        yield server


def assert_full(error: pytest.ExceptionInfo[Exception], words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "max_connections" in message  # what to do
    assert words in message  # what the server said
    assert isinstance(error.value.__cause__, psycopg.OperationalError)


def test_the_eleventh_connection_to_a_server_for_ten_is_a_connection_limit(small: Any, core: ModuleType) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(core.connect(small.dsn))
        with pytest.raises(core.ConnectionLimit) as error:
            core.connect(small.dsn)
    assert_full(error, "too many clients already")


def test_slots_reserved_for_superusers_are_a_connection_limit_for_others(small: Any, core: ModuleType) -> None:
    dsn = psycopg.conninfo.make_conninfo(small.dsn, user="app", password="app")
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS - RESERVED):
            stack.enter_context(core.connect(dsn))
        with pytest.raises(core.ConnectionLimit) as error:
            core.connect(dsn)
    assert_full(error, "reserved")


def test_a_full_server_serves_again_once_a_connection_is_closed(small: Any, core: ModuleType) -> None:
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(core.connect(small.dsn)) for _ in range(MAX_CONNECTIONS)]
        with pytest.raises(core.ConnectionLimit):
            core.connect(small.dsn)
        first.close()
        with connect_when_free(core, small.dsn) as again:
            assert again.execute("SELECT 1").fetchone() == (1,)


def connect_when_free(core: ModuleType, dsn: str) -> Any:
    """The server gives a slot back when its process has ended, shortly after the client has closed."""
    from pgqueue_ref.harness.server import until

    for _ in until(30, "does not give the slot back"):
        try:
            return core.connect(dsn)
        except core.ConnectionLimit:
            continue
    raise AssertionError("unreachable: until() raises")


def assert_cancelled(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, psycopg.errors.QueryCanceled)
    assert error.value.__cause__.sqlstate == "57014"


def test_a_statement_over_the_servers_timeout_is_a_statement_timeout(hasty: Any, core: ModuleType) -> None:
    with core.connect(hasty.dsn) as holder, core.connect(hasty.dsn, statement_timeout_ms=0) as connection:
        queue = core.Queue(connection)
        with holder.transaction():
            holder.execute("LOCK TABLE pgqueue_jobs IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(core.StatementTimeout) as error:
                queue.push("waits", key="one")
        assert_cancelled(error)
        # The connection is usable again, and what was cancelled has written nothing.
        pushed = queue.push("waits", key="one")
        assert pushed.created
        assert [job.id for job in queue.list_jobs(kind="waits")] == [pushed.id]


def test_a_bulk_push_that_is_cancelled_midway_writes_nothing(hasty: Any, core: ModuleType) -> None:
    jobs = [core.NewJob("bulk", key=str(number)) for number in range(2_000)]
    with core.connect(hasty.dsn) as holder, core.connect(hasty.dsn, statement_timeout_ms=0) as connection:
        queue = core.Queue(connection)
        with holder.transaction(force_rollback=True):
            core.Queue(holder).push("bulk", key="1999")  # uncommitted: whoever pushes this key waits
            with pytest.raises(core.StatementTimeout) as error:
                queue.push_many(jobs)
        assert_cancelled(error)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert queue.list_jobs(kind="bulk") == []
        assert queue.push("bulk", key="1999").created
