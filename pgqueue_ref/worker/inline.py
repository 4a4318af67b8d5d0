"""A worker without connections of its own: every statement goes through a queue that somebody lends it.

`pgqueue_ref.testing` drains with it, within a test's transaction. Turn it with `run_once`; it is not for `start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgqueue_ref.core import Operation, Queue

from .kinds import Kinds
from .link import Link
from .worker import Worker


class Lent(Link):
    """A link over somebody's queue. In an open transaction it runs in savepoints: an error does not spoil it."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(None, float("inf"))
        self._queue = queue

    async def run(self, *operations: Operation[Any]) -> list[Any]:
        """Run operations, all or none."""
        connection = self._queue.connection
        savepoint = getattr(connection, "transaction", None) or connection.begin_nested  # psycopg's, or SQLAlchemy's
        with savepoint():
            return [self._queue.run(operation) for operation in operations]

    async def close(self) -> None:
        """It stays open: it is somebody else's."""


class InlineWorker(Worker):
    """`Worker` on a lent queue, a synchronous one; it blocks the event loop while the server works."""

    def __init__(self, kinds: Kinds, queue: Queue, queues: Sequence[str]) -> None:
        self._lent = Lent(queue)
        super().__init__(kinds, queues=queues, listen=False, name="inline")

    def _links(self, dsn: str | None, listen: bool) -> tuple[Link, Link]:
        return self._lent, self._lent
