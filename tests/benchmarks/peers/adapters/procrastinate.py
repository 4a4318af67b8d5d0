"""procrastinate: an `App` on its psycopg connector."""

from __future__ import annotations

from collections.abc import Sequence

from gate import Gate
from procrastinate import App, PsycopgConnector

from adapters.base import AsyncPeer, Payload, Sizes

CONCURRENCY = 100
POOL = 20
CHUNK = 500


class Procrastinate(AsyncPeer):
    package = "procrastinate"
    sizes = Sizes(push=1_000, push_many=6_000, drain=1_000)
    configuration = (
        f"PsycopgConnector, pool of {POOL}; batch_defer of {CHUNK:,}; "
        f"concurrency={CONCURRENCY}, delete_jobs='always', LISTEN on"
    )
    tables = "procrastinate_jobs"
    counting = "SELECT count(*), NULL FROM procrastinate_jobs"

    def make_app(self) -> App:
        app = App(connector=PsycopgConnector(conninfo=self.dsn, min_size=1, max_size=POOL))
        self.task = app.task(name="noop", queue="default")(self.handle)
        return app

    async def handle(self, n: int) -> None:  # noqa: ARG002, RUF100 - the payload's only field
        self.gate.count()

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

    async def run_worker_async(self, gate: Gate) -> None:
        self.gate = gate
        app = self.make_app()
        gate.cross()
        async with app.open_async():
            await app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always", listen_notify=True)
