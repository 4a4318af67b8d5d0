"""chancy: its asyncio executor. It has no way to delete a job when it is done; a pruner does so by age."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chancy import Chancy, Queue, Worker, job
from chancy.plugins.leadership import Leadership
from chancy.plugins.recovery import Recovery
from gate import Gate

from adapters.base import AsyncPeer, Payload, Sizes

CONCURRENCY = 2_000
FLUSH = 0.1  # seconds
CHUNK = 1_000


class Shared:
    """Where the handler, a module's function that chancy finds by name, finds this process's gate."""

    gate: Gate


@job(queue="default")
async def noop(**payload: int) -> None:
    await Shared.gate.handle(payload)


class ChancyPeer(AsyncPeer):
    package = "chancy"
    sizes = Sizes(push=1_000, push_many=3_000, drain=16_000, deep=6_000)
    configuration = (
        f"push_many, batch_size={CHUNK:,}; AsyncExecutor, concurrency={CONCURRENCY:,}, eager_polling, "
        f"send_outgoing_interval={FLUSH:g}, LISTEN on, no default plugins, log level WARNING; finished rows stay"
    )
    recovery = (
        "its default plugins Leadership and Recovery, here with poll_interval=1, and the worker's "
        "heartbeat_poll_interval=1 and heartbeat_timeout (its pages on Recovery and Worker)"
    )
    tables = "chancy_jobs"
    counting = (
        "SELECT count(*) FILTER (WHERE state <> 'succeeded'), count(*) FILTER (WHERE state = 'succeeded')"
        " FROM chancy_jobs"
    )

    def make_app(self, lease: int | None = None) -> Chancy:
        log = logging.getLogger("chancy")
        log.setLevel(logging.WARNING)
        plugins = [] if lease is None else [Leadership(poll_interval=1, timeout=lease), Recovery(poll_interval=1)]
        return Chancy(self.dsn, plugins=plugins, no_default_plugins=True, log=log)

    async def connect(self) -> None:
        self.app = self.make_app(lease=1)  # with the plugins, for the sake of their tables
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

    async def run_worker_async(self, gate: Gate, lease: int | None) -> None:
        Shared.gate = gate
        gate.cross()
        options = {} if lease is None else {"heartbeat_poll_interval": 1, "heartbeat_timeout": lease}
        async with self.make_app(lease) as app:
            worker = Worker(app, **options)
            worker.send_outgoing_interval = FLUSH
            async with worker:
                await worker.wait_for_shutdown()
