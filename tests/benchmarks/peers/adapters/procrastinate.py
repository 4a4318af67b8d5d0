"""procrastinate: an `App` on its psycopg connector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gate import Gate
from procrastinate import App, JobContext, PsycopgConnector

from adapters.base import AsyncPeer, Payload, Sizes

CONCURRENCY = 100
POOL = 20
CHUNK = 500


class Procrastinate(AsyncPeer):
    package = "procrastinate"
    sizes = Sizes(push=1_000, push_many=6_000, drain=1_000, deep=1_000)
    configuration = (
        f"PsycopgConnector, pool of {POOL}; batch_defer of {CHUNK:,}; "
        f"concurrency={CONCURRENCY}, delete_jobs='always', LISTEN on"
    )
    recovery = (
        "a periodic task of get_stalled_jobs and retry_job that one writes oneself (its how-to on stalled jobs), here "
        "each second with update_heartbeat_interval=1"
    )
    tables = "procrastinate_jobs"
    counting = "SELECT count(*), NULL FROM procrastinate_jobs WHERE queue_name = 'default'"

    def make_app(self) -> App:
        app = App(connector=PsycopgConnector(conninfo=self.dsn, min_size=1, max_size=POOL))
        self.task = app.task(name="noop", queue="default")(self.handle)
        return app

    async def handle(self, **payload: int) -> None:
        await self.gate.handle(payload)

    async def connect(self) -> None:
        self.app = self.make_app()
        await self.app.open_async()
        if not await self.app.check_connection_async():  # False while its tables are missing
            await self.app.schema_manager.apply_schema_async()

    async def disconnect(self) -> None:
        await self.app.close_async()

    async def push_async(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self.task.defer_async(**payload)

    async def push_many_async(self, payloads: Sequence[Payload]) -> None:
        for start in range(0, len(payloads), CHUNK):
            await self.task.batch_defer_async(*payloads[start : start + CHUNK])

    async def run_worker_async(self, gate: Gate, lease: int | None) -> None:
        self.gate = gate
        app = self.make_app()
        options: dict[str, Any] = {"concurrency": CONCURRENCY, "delete_jobs": "always", "listen_notify": True}
        if lease is not None:
            options |= {"update_heartbeat_interval": 1, "stalled_worker_timeout": lease}
            retry_stalled_jobs(app, lease)
        gate.cross()
        async with app.open_async():
            await app.run_worker_async(**options)


def retry_stalled_jobs(app: App, lease: int) -> None:
    """Register the task that its documentation has one write."""

    @app.periodic(cron="* * * * * *")  # the sixth field is seconds
    @app.task(name="retry_stalled_jobs", queue="maintenance", queueing_lock="retry_stalled_jobs", pass_context=True)
    async def retry(context: JobContext, timestamp: int) -> None:  # noqa: ARG001, RUF100 - what it is given
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=lease):
            await app.job_manager.retry_job(job)
