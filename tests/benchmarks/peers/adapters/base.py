"""What an adapter has to offer: `push`, `push_many`, `run_worker`, `counts`, and what it says of itself.

Connections are made by `open`, so that no measurement contains them. Another queue joins with a module that has these
and a line in `PEERS`; every scenario then runs it through them and nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import psycopg
from gate import Gate

T = TypeVar("T")
WORKER = Path(__file__).parents[1] / "worker.py"
Payload = dict[str, int]


class Counts(NamedTuple):
    """Jobs in the database: not finished, finished well and kept (None where finished ones are deleted)."""

    unfinished: int
    succeeded: int | None


class Sizes(NamedTuple):
    """How many jobs each measurement takes: about a second's worth, a slow queue must not take for ever."""

    push: int
    push_many: int
    drain: int  # with each number of processes
    deep: int = 0  # of those in front of a deep backlog


class Peer(ABC):
    """One queue in one database. `open` and `close` in the run; `run_worker` in a process of its own."""

    package: ClassVar[str]  # whose version is shown
    configuration: str
    recovery: ClassVar[str] = "none"  # what runs a dead worker's jobs again, and where that is documented
    without: ClassVar[dict[str, str]] = {}  # scenarios that it has no part in: why
    sizes: ClassVar[Sizes]
    counting: ClassVar[str]  # SQL: one row, the fields of `Counts`
    tables: ClassVar[str]  # what is emptied, with what refers to it

    def __init__(self, name: str, dsn: str) -> None:
        self.name, self.dsn = name, dsn
        self.version = version(self.package)

    def open(self) -> None:
        """Install the queue's tables and connect."""
        self.admin = psycopg.connect(self.dsn, autocommit=True)

    def close(self) -> None:
        """Disconnect."""
        self.admin.close()

    def clear(self) -> None:
        """Empty the queue."""
        self.admin.execute(f"TRUNCATE {self.tables} CASCADE")

    def settle(self) -> None:
        """Let no vacuum or checkpoint of what was before fall into the measurement, and the planner see what is."""
        self.admin.execute(f"VACUUM (ANALYZE) {self.tables}")
        self.admin.execute("CHECKPOINT")

    def counts(self) -> Counts:
        """What is in the database."""
        row = self.admin.execute(self.counting).fetchone()
        assert row is not None
        return Counts(*row)

    @abstractmethod
    def push(self, payloads: Sequence[Payload]) -> None:
        """Push one by one on one connection, each committed by itself."""

    @abstractmethod
    def push_many(self, payloads: Sequence[Payload]) -> None:
        """Push all in bulk."""

    @abstractmethod
    def run_worker(self, gate: Gate, lease: int | None = None) -> None:
        """Import what is needed, cross the gate, then run jobs with `gate.handle` until SIGTERM.

        `lease`: seconds after which a dead worker's jobs shall run elsewhere; the queue's own recovery is set up to
        that. None leaves it as the queue has it.
        """

    def worker_command(self, lease: int | None = None) -> list[str]:
        """How a worker process is started."""
        return [sys.executable, str(WORKER), self.name, *([] if lease is None else [str(lease)])]


class AsyncPeer(Peer):
    """A queue whose clients are coroutines: they run on one event loop, which lives as long as the connections."""

    uvloop: ClassVar[bool] = False

    def open(self) -> None:
        super().open()
        self.runner = asyncio.Runner(loop_factory=self.loop_factory())
        self.run(self.connect())

    def close(self) -> None:
        self.run(self.disconnect())
        self.runner.close()
        super().close()

    def loop_factory(self) -> Any:
        """uvloop where the queue's own command line uses it."""
        if not self.uvloop:
            return None
        import uvloop

        return uvloop.new_event_loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def push(self, payloads: Sequence[Payload]) -> None:
        self.run(self.push_async(payloads))

    def push_many(self, payloads: Sequence[Payload]) -> None:
        self.run(self.push_many_async(payloads))

    def run_worker(self, gate: Gate, lease: int | None = None) -> None:
        with asyncio.Runner(loop_factory=self.loop_factory()) as runner:
            runner.run(self.run_worker_async(gate, lease))

    @abstractmethod
    async def connect(self) -> None: ...

    @abstractmethod
    async def disconnect(self) -> None: ...

    @abstractmethod
    async def push_async(self, payloads: Sequence[Payload]) -> None: ...

    @abstractmethod
    async def push_many_async(self, payloads: Sequence[Payload]) -> None: ...

    @abstractmethod
    async def run_worker_async(self, gate: Gate, lease: int | None) -> None: ...
