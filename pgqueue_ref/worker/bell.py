"""Wakes a worker that sleeps. A hint: what it misses, the next poll finds.

A transaction that notifies holds one lock of the whole database through its flush to disk, so that pushers who all
notified would commit one after the other (32 of them: 390 a second, against 4,900 without). Therefore a push notifies
only when some worker sleeps. A sleeping worker holds a shared advisory lock for each of its queues; the trigger tries
the same lock exclusively, lets it go at once, and notifies where it could not have it. The lock dies with the session,
so a killed worker leaves nothing behind.

A push that tried the lock just before the worker took it, and commits just after the worker's last look, is heard by
nobody. So the worker looks again a few times after it lay down; what stays open longer waits for the poll.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import psycopg
from psycopg.sql import SQL, Identifier

from pgqueue_ref.core import connect_async, translate

from .link import answered

# The schema that the table is in, which is not always the first of the search_path.
_SCHEMA = """(SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
              WHERE pg_class.oid = 'pgqueue_jobs'::regclass)"""
CHANNEL = f"SELECT 'pgqueue:' || {_SCHEMA}"
# The key is the trigger's (core/schema.sql).
LIE_DOWN = f"""
SELECT pg_advisory_lock_shared(hashtextextended('pgqueue:asleep:' || {_SCHEMA} || ':' || queue, 0))
FROM unnest(%s::text[]) AS queue
"""
GET_UP = "SELECT pg_advisory_unlock_all()"


class Bell:
    """`ring` is called when a push may have come, and when the worker has lain down and should look once more. Whoever
    listens waits for ever; `patience` (seconds) is for the statements around it."""

    def __init__(self, dsn: str | None, queues: Sequence[str], ring: Callable[[], None], *, patience: float) -> None:
        self.covered_since: float | None = None  # on this process's clock: from then on pushes notify
        self.held = False  # whether it holds a connection now
        self._dsn, self._queues, self._ring, self._patience = dsn, list(queues), ring, patience
        self._asked = asyncio.Event()

    def cover(self) -> None:
        """The worker is about to sleep."""
        self._asked.set()

    async def run(self, connected: Callable[[], None]) -> None:
        """Listen until cancelled. Raises `QueueError` when the connection breaks."""
        try:
            await self._listen(connected)
        except psycopg.Error as error:
            raise translate(error) from error

    async def _listen(self, connected: Callable[[], None]) -> None:
        connection = await connect_async(self._dsn, application_name="pgqueue_ref:listen")
        try:
            async with connection:
                self.held = True
                with answered(connection, self._patience):
                    row = await (await connection.execute(CHANNEL)).fetchone()
                    await connection.execute(SQL("LISTEN {}").format(Identifier(str(row and row[0]))))
                connected()
                while True:
                    await self._asked.wait()
                    with answered(connection, self._patience):
                        await connection.execute(LIE_DOWN, [self._queues])
                    self._asked.clear()
                    self.covered_since = time.monotonic()
                    self._ring()
                    async for _ in connection.notifies(stop_after=1):
                        pass
                    self.covered_since = None
                    self._ring()
                    with answered(connection, self._patience):
                        await connection.execute(GET_UP)
        finally:
            self.held, self.covered_since = False, None
