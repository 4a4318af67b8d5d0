"""chancy: its asyncio executor. It has no way to delete a job when it is done; a pruner does so by age."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chancy import Chancy, Queue, Worker, job
from gate import Gate

from adapters.base import AsyncPeer, Payload, Sizes

CONCURRENCY = 2_000
FLUSH = 0.1  # seconds
CHUNK = 1_000


class Shared:
    """Where the handler, a module's function that chancy finds by name, finds this process's gate."""

    gate: Gate


@job(queue="default")
async def noop(n: int) -> None:  # noqa: ARG001, RUF100 - the payload's only field
    Shared.gate.count()


class ChancyPeer(AsyncPeer):
    package = "chancy"
    sizes = Sizes(push=1_000, push_many=3_000, drain=16_000)
    configuration = (
        f"push_many, batch_size={CHUNK:,}; AsyncExecutor, concurrency={CONCURRENCY:,}, eager_polling, "
        f"send_outgoing_interval={FLUSH:g}, LISTEN on, no default plugins, log level WARNING; finished rows stay"
    )
    tables = "chancy_jobs"
    counting = (
        "SELECT count(*) FILTER (WHERE state <> 'succeeded'), count(*) FILTER (WHERE state = 'succeeded')"
        " FROM chancy_jobs"
    )

    def make_app(self) -> Chancy:
        log = logging.getLogger("chancy")
        log.setLevel(logging.WARNING)
        return Chancy(self.dsn, no_default_plugins=True, log=log)

    async def connect(self) -> None:
        self.app = self.make_app()
        await self.app.pool.open()
        await self.app.migrate()
        queue = Queue(
            "default", concurrency=CONCURRENCY, executor=Chancy.Executor.Async, eager_polling=True, polling_interval=1
        )
        await self.app.declare(queue, upsert=True)

    async def disconnect(self) -> None:
        await self.app.pool.close()

    async def push_async(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self.app.push(noop.job.with_kwargs(**payload))

    async def push_many_async(self, payloads: Sequence[Payload]) -> None:
        jobs = [noop.job.with_kwargs(**payload) for payload in payloads]
        async for _ in self.app.push_many(jobs, batch_size=CHUNK):
            pass

    async def run_worker_async(self, gate: Gate) -> None:
        Shared.gate = gate
        gate.cross()
        async with self.make_app() as app:
            worker = Worker(app)
            worker.send_outgoing_interval = FLUSH
            async with worker:
                await worker.wait_for_shutdown()
