"""The extensions beside a worker: which of them are installed in its schema, and their maintenance when it is due.

Every worker does it, without a leader, on its writing connection and so between its endings. What fails in one of them
is logged and costs neither the others nor the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from pgqueue_ref.core import Operation, QueueError, SchemaMissing
from pgqueue_ref.extensions import EXTENSIONS, Chore, Extension, installed

from .link import Link

log = logging.getLogger("pgqueue_ref.worker")

BATCHES = 20  # of one chore in a row: the others want their turn
RETRY = 5.0  # seconds until a chore that failed is tried again


class Extras:
    """`pause` (seconds) is how often a chore runs at most, unless it says that there is more to do."""

    def __init__(self, link: Link, worker: str, pause: float) -> None:
        self.installed: frozenset[str] | None = None  # not asked yet
        self._link, self._worker, self._pause = link, worker, pause
        self._due: dict[str, float] = {}  # on this process's clock
        self._refused: dict[str, Mapping[str, str]] = {}  # what was said about it, and why

    async def find(self) -> None:
        """Ask which extensions are installed."""
        (self.installed,) = await self._link.run(installed(*EXTENSIONS))
        self._due = {name: self._due.get(name, 0.0) for name in self._chores()}

    def has(self, extension: Extension) -> bool:
        """Whether it is installed, as far as is known."""
        return extension.name in (self.installed or ())

    def _chores(self) -> dict[str, Callable[[], Operation[Chore]]]:
        return {one.name: one.chore for one in EXTENSIONS if one.chore and self.has(one)}

    async def turn(self) -> None:
        """Every chore once, due or not; raises what the database says."""
        for name, chore in self._chores().items():
            await self._do(name, chore)

    async def run(self) -> None:
        """Chores when they are due, until cancelled."""
        while True:
            for name, chore in self._chores().items():
                if self._due.get(name, float("inf")) <= time.monotonic():
                    try:
                        await self._do(name, chore)
                    except QueueError as error:
                        self._due[name] = time.monotonic() + RETRY
                        words = "maintenance of %s failed, next try in %g s: %s"
                        log.warning(words, name, RETRY, error, extra={"worker": self._worker})
                        if isinstance(error, SchemaMissing):  # it may be gone
                            with contextlib.suppress(QueueError):
                                await self.find()
            later = min(self._due.values(), default=RETRY) - time.monotonic()
            await asyncio.sleep(max(self._pause, later))

    async def _do(self, name: str, chore: Callable[[], Operation[Chore]]) -> None:
        for _ in range(BATCHES):
            ((done, due, refused),) = await self._link.run(chore())
            if done:
                log.debug("maintenance of %s: %d", name, done, extra={"worker": self._worker})
            for what, why in refused.items():
                if self._refused.get(name, {}).get(what) != why:
                    log.warning("maintenance of %s: %s: %s", name, what, why, extra={"worker": self._worker})
            self._refused[name] = refused
            self._due[name] = time.monotonic() + due
            if due > 0:
                break
