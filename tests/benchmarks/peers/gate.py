"""What the run and the worker processes that it starts share: a small file mapped into memory.

A worker says that it has imported everything and waits (`cross`) until the run opens the gate, so that start-up is
not measured and two workers begin together. Every handler counts itself (`count`), which costs a fraction of a
microsecond and no statement, so that the run can watch a drain without disturbing it. Used by `run`, the adapters
and `handlers`.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

PATH, SLOT, RUN = "PEERS_GATE", "PEERS_SLOT", "PEERS_RUN"  # environment of a worker; the last is the run's pid
SLOTS = 8
FIELDS = 3  # of a slot: has arrived, jobs handled, when the first was (nanoseconds)


class Gate:
    """`slot` is a worker's own place; the run itself counts nothing."""

    def __init__(self, path: Path, slot: int = 0) -> None:
        size = 8 * (1 + SLOTS * FIELDS)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(size)
            self._view = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")
        self._arrived = 1 + slot * FIELDS
        self._handled, self._first = self._arrived + 1, self._arrived + 2

    # -- in a worker --------------------------------------------------------------------------------------------

    @classmethod
    def of_worker(cls) -> Gate:
        """The gate that this process was started with; the process ends when the run that started it is gone."""
        _follow(int(os.environ[RUN]))
        return cls(Path(os.environ[PATH]), int(os.environ[SLOT]))

    def cross(self) -> None:
        """Say that everything is imported, and wait until the run says go."""
        self._view[self._arrived] = 1
        while not self._view[0]:
            time.sleep(0.001)

    def count(self) -> None:
        """One job was handled; what every handler does, and all it does."""
        view = self._view
        if not view[self._handled]:
            view[self._first] = time.monotonic_ns()  # one clock for all processes of a machine
        view[self._handled] += 1

    # -- in the run ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Let the workers go."""
        self._view[0] = 1

    def arrived(self) -> int:
        """How many workers wait."""
        return sum(self._view[1::FIELDS])

    def handled(self) -> list[int]:
        """Jobs handled so far, by slot."""
        return list(self._view[2::FIELDS])

    def first(self) -> float:
        """When the first job of all was handled, on `time.monotonic`'s clock; raises ValueError before that."""
        return min(at for at in self._view[3::FIELDS] if at) / 1e9


def _follow(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
