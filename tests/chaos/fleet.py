"""What a chaos run breaks: a server, and four workers that reach it directly, over a line, and through a pooler."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pooler
import psycopg
from proxy import Proxy
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_ref.core import install
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.processes import WorkerProcess, start_worker
from pgqueue_ref.harness.server import Server

HERE = Path(__file__).parent
LEASE = 5.0  # seconds
SLOTS = 50  # jobs at once in one worker
OPTIONS = ("--lease", str(LEASE), "--max-concurrent-jobs", str(SLOTS), "--poll-interval", "0.5")
POOL = 3  # connections
START_SECONDS = 60.0


class Place(NamedTuple):
    """A worker's place: its way to the server, and the options that this way needs."""

    way: str
    dsn: str
    options: tuple[str, ...] = ()


class Fleet:
    """The workers by their places. `victims` says which processes a fault hits, as the ledger names them."""

    def __init__(self, server: Server, dsn: str, line: Proxy, pool: pooler.Pooler | None, logs: Path) -> None:
        self.server, self.dsn, self.line, self.pool = server, dsn, line, pool
        self.places = [Place("direct", dsn), Place("line", line.dsn), Place("line", line.dsn)]
        self.places.append(Place("pooler", pool.dsn, pooler.WORKER) if pool else Place("direct", dsn))
        self.workers: list[WorkerProcess] = []
        self._logs, self._started = logs, 0
        for number in range(len(self.places)):
            self.workers.append(self._start(number))
        for worker in self.workers:
            self._answers(worker)

    def victims(self, *ways: str) -> list[str]:
        """The workers on these ways; all without one."""
        pairs = zip(self.places, self.workers, strict=True)
        return [f"pid-{worker.pid}" for place, worker in pairs if not ways or place.way in ways]

    def replace(self, number: int) -> None:
        """Start another worker in the place of one that was killed, and wait until it works."""
        self.workers[number] = self._start(number)
        self._answers(self.workers[number])

    def dead(self) -> list[str]:
        """A line for each worker that ended unasked."""
        return [line for worker in self.workers if (line := worker.died())]

    def stop(self) -> list[str]:
        """SIGTERM to all; a line for each that did not end as it should."""
        for worker in self.workers:
            worker.ask_to_stop()
        return [line for worker in self.workers if (line := worker.wait(30, drained=True))]

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    def words(self) -> str:
        """The end of every log, for a run that failed."""
        logs = sorted(self._logs.glob("*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)

    def _start(self, number: int) -> WorkerProcess:
        place = self.places[number]
        self._started += 1
        environment: Mapping[str, str] = {
            "PGQUEUE_DATABASE_URL": place.dsn, "CHAOS_LEDGER": self.dsn, "PGQUEUE_SCHEMA": "",
        }  # fmt: skip
        options = (*OPTIONS, *place.options)
        return start_worker(
            self._started, app="app:kinds", root=HERE, logs=self._logs, environment=environment, options=options
        )

    def _answers(self, worker: WorkerProcess) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not worker.started:
            if worker.died() or time.monotonic() > deadline:
                raise RuntimeError(worker.died() or f"{worker.name} does not start")
            time.sleep(0.05)


@contextlib.contextmanager
def fleet(server: Server, logs: Path) -> Iterator[Fleet]:
    """A database of its own on the server, with schema and ledger, and workers on it."""
    name = f"pgq_chaos_{secrets.token_hex(4)}"
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = make_conninfo(server.dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        install(connection)
        ledger.create(connection)
    try:
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(Proxy(dsn))
            pool = stack.enter_context(pooler.Pooler(dsn, size=POOL)) if pooler.PROGRAM else None
            workers = Fleet(server, dsn, line, pool, logs)
            stack.callback(workers.kill)
            yield workers
    finally:
        with server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
