"""A database connection that comes back: opened when needed, dropped when it breaks or says nothing for too long, one
statement at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg

from pgqueue_ref.core import DatabaseUnavailable, Operation, connect_async, run_async, translate

T = TypeVar("T")
_uniform = random.SystemRandom().uniform


@contextlib.contextmanager
def answered(connection: psycopg.AsyncConnection[Any], within: float) -> Iterator[None]:
    """Give the connection up when what is asked in here has no answer within that many seconds; raises
    `DatabaseUnavailable`.

    The statement timeout is the server's, and TCP's own timeouts do not see a proxy that still acknowledges what it
    forwards no more, or a server process that stands still. The socket is shut down under whoever waits, who then finds
    an ordinary broken connection. Cancelling the wait would not do: psycopg asks the server to cancel the statement,
    and waits for that answer.
    """
    late = False

    def hang_up() -> None:
        nonlocal late
        late = True
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(within, hang_up)
    try:
        yield
    except (psycopg.Error, DatabaseUnavailable) as error:
        if late:
            raise DatabaseUnavailable(f"no answer within {within:g} s: the connection is given up") from error
        raise
    finally:
        timer.cancel()


class Link:
    """`dsn` and `settings` as for `connect_async`; `patience`, in seconds, is how long one `run` may take; `prepare`
    False for poolers that share server connections."""

    def __init__(self, dsn: str | None, patience: float, *, prepare: bool = True, **settings: Any) -> None:
        self._dsn, self._settings, self._prepare, self._patience = dsn, settings, prepare, patience
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> psycopg.AsyncConnection[Any]:
        """The connection, made if there is none. Raises `ConnectionLimit` or `DatabaseUnavailable`."""
        if self._connection is None or self._connection.closed:
            self._connection = await connect_async(self._dsn, **self._settings)
            if not self._prepare:
                self._connection.prepare_threshold = None
        return self._connection

    @property
    def held(self) -> bool:
        """Whether it holds a connection now."""
        return self._connection is not None and not self._connection.closed

    async def run(self, *operations: Operation[Any]) -> list[Any]:
        """Run operations, several as one transaction; a broken connection is dropped, and the next call makes one."""
        async with self._lock:
            try:
                connection = await self.open()
                with answered(connection, self._patience):
                    if len(operations) == 1:
                        return [await run_async(connection, operations[0])]
                    try:
                        async with connection.transaction():
                            return [await run_async(connection, operation) for operation in operations]
                    except psycopg.Error as error:  # BEGIN or COMMIT
                        raise translate(error) from error
            except DatabaseUnavailable:
                await self.close()
                raise

    async def close(self) -> None:
        """Drop the connection; `run` makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Patience:
    """Delays for whoever waits until the database is back: exponential with full jitter, 0.1 s to 10 s."""

    def __init__(self) -> None:
        self._tries = 0

    def reset(self) -> None:
        """The database answered."""
        self._tries = 0

    def delay(self) -> float:
        """Seconds to wait before the next try."""
        self._tries += 1
        return _uniform(0.05, min(10.0, 0.1 * 2.0 ** min(self._tries, 10)))
