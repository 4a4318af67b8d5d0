"""What the run and the worker processes that it starts share: a small file for each worker, mapped into memory.

A worker says that it has imported everything and waits (`cross`) until the run opens the gate, so that start-up is
not measured and two workers begin together. Every handler leaves an effect: the number of its job, when it began and
when it ended. That costs a microsecond and no statement, so the run can watch a drain without disturbing it, and
what a worker wrote outlives its SIGKILL. A handler is `handle` or `handle_blocking`, the same for every queue. Used
by the scenarios, the adapters and `handlers`.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PATH, SLOT, RUN = "PEERS_GATE", "PEERS_SLOT", "PEERS_RUN"  # environment of a worker; the last is the run's pid
# Words of a file: the gate is open, its worker has arrived, effects begun, then three for each effect.
OPEN, ARRIVED, BEGUN, FIRST = range(4)
WORDS = 3


class Effect(NamedTuple):
    """One run of a job's handler. Seconds on `time.monotonic`'s clock, one for all processes of a machine."""

    number: int  # of the job
    began: float
    ended: float  # 0: it did not


class Gate:
    """A worker's own side of it; `Gates` is the run's."""

    def __init__(self, path: Path) -> None:
        self._view = _map(path)
        self._next = FIRST

    @classmethod
    def of_worker(cls) -> Gate:
        """The gate that this process was started with; the process ends when the run that started it is gone."""
        _follow(int(os.environ[RUN]))
        return cls(_file(Path(os.environ[PATH]), int(os.environ[SLOT])))

    def cross(self) -> None:
        """Say that everything is imported, and wait until the run says go."""
        self._view[ARRIVED] = 1
        while not self._view[OPEN]:
            time.sleep(0.001)

    async def handle(self, job: Mapping[str, int]) -> None:
        """Run a job: take its `ms` milliseconds, if it has any, and leave an effect."""
        effect = self._begin(job["n"])
        if "ms" in job:
            await asyncio.sleep(job["ms"] / 1e3)
        self._view[effect + 2] = time.monotonic_ns()

    def handle_blocking(self, job: Mapping[str, int]) -> None:
        """`handle` for a worker without an event loop."""
        effect = self._begin(job["n"])
        if "ms" in job:
            time.sleep(job["ms"] / 1e3)
        self._view[effect + 2] = time.monotonic_ns()

    def _begin(self, number: int) -> int:
        """Where the effect is. Raises IndexError when it was made for far fewer jobs."""
        view, effect = self._view, self._next
        view[effect] = number
        view[effect + 1] = time.monotonic_ns()
        self._next = effect + WORDS
        view[BEGUN] += 1  # last: what is counted is there
        return effect


class Gates:
    """The run's side: the gates of `processes` workers, each with room for `capacity` effects."""

    def __init__(self, path: Path, processes: int, capacity: int) -> None:
        self.path = path
        self._views = []
        for slot in range(processes):
            with _file(path, slot).open("wb") as file:
                file.truncate(8 * (FIRST + WORDS * capacity))  # sparse: what is not written takes no room
            self._views.append(_map(_file(path, slot)))

    def open(self) -> None:
        """Let the workers go."""
        for view in self._views:
            view[OPEN] = 1

    def arrived(self) -> int:
        """How many workers wait."""
        return sum(view[ARRIVED] for view in self._views)

    def begun(self) -> list[int]:
        """Handlers that have begun, by worker."""
        return [view[BEGUN] for view in self._views]

    def effects(self) -> list[list[Effect]]:
        """All effects, by worker, in the order in which they began."""
        return [[_effect(view, place) for place in range(view[BEGUN])] for view in self._views]


def _effect(view: memoryview, place: int) -> Effect:
    at = FIRST + WORDS * place
    return Effect(view[at], view[at + 1] / 1e9, view[at + 2] / 1e9)


def _file(path: Path, slot: int) -> Path:
    return path.with_name(f"{path.name}.{slot}")


def _map(path: Path) -> memoryview:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def _follow(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
