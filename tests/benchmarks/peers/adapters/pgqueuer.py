"""pgqueuer, on each of its drivers: one connection for the worker, as its tuning guide says, and uvloop, as its CLI."""

from __future__ import annotations

import asyncio
import json
import signal
from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
from gate import Gate
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, PsycopgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from adapters.base import AsyncPeer, Payload, Sizes

CHUNK = 5_000


class Pgqueuer(AsyncPeer):
    package = "pgqueuer"
    uvloop = True
    batch: int
    recovery = "built in: `run(heartbeat_timeout=...)` (its guide on heartbeats)"
    tables = "pgqueuer, pgqueuer_log, pgqueuer_statistics"
    counting = (
        "SELECT (SELECT count(*) FROM pgqueuer), (SELECT count(*) FROM pgqueuer_log WHERE status = 'successful')"
        " + (SELECT coalesce(sum(count), 0) FROM pgqueuer_statistics WHERE status = 'successful')"
    )

    @property
    def configuration(self) -> str:  # type: ignore[override]  # said once for both drivers
        return (
            f"durable tables, `pgq autovac`, uvloop; enqueue of {CHUNK:,}; one connection, batch_size={self.batch}, "
            "LISTEN on"
        )

    @abstractmethod
    async def driver(self) -> Any:
        """A driver on a connection of its own, and the connection in `self.connection`."""

    async def connect(self) -> None:
        self.queries = Queries(await self.driver())
        await self.queries.install()
        await self.queries.optimize_autovacuum()

    async def disconnect(self) -> None:
        await self.connection.close()

    async def push_async(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self.queries.enqueue("noop", json.dumps(payload).encode())

    async def push_many_async(self, payloads: Sequence[Payload]) -> None:
        for start in range(0, len(payloads), CHUNK):
            chunk = [json.dumps(payload).encode() for payload in payloads[start : start + CHUNK]]
            await self.queries.enqueue(["noop"] * len(chunk), list[bytes | None](chunk), [0] * len(chunk))

    async def run_worker_async(self, gate: Gate, lease: int | None) -> None:
        gate.cross()
        pgq = PgQueuer(await self.driver())

        @pgq.entrypoint("noop")
        async def noop(job: Job) -> None:
            await gate.handle(json.loads(job.payload or b"null"))

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pgq.shutdown.set)
        options = {} if lease is None else {"heartbeat_timeout": timedelta(seconds=lease)}
        await pgq.run(batch_size=self.batch, **options)
        await self.connection.close()


class PgqueuerPsycopg(Pgqueuer):
    sizes = Sizes(push=1_500, push_many=40_000, drain=20_000, deep=5_000)
    batch = 100

    async def driver(self) -> Any:
        self.connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        return PsycopgDriver(self.connection)


class PgqueuerAsyncpg(Pgqueuer):
    sizes = Sizes(push=1_500, push_many=40_000, drain=25_000, deep=10_000)
    batch = 100

    async def driver(self) -> Any:
        self.connection = await asyncpg.connect(self.dsn)
        return AsyncpgDriver(self.connection)
