"""The workers' side of a load run: `pgqueue-ref worker --app loadtests._handlers:kinds`.

Every kind of the trace waits for as long as its payload says, then records its effect in the ledger, and
only then returns. A job with `stall_seconds` first runs a statement of that length, in its first attempt. Locust
does not import this file (its name begins with "_"); the load run names the kinds in the environment.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from pgqueue_ref.core import connect_async, conninfo
from pgqueue_ref.harness.ledger import EffectWriter
from pgqueue_ref.worker import Job, Kinds

SLOTS = int(os.environ.get("PGQUEUE_LOADTEST_SLOTS", "32"))
TTL = float(os.environ.get("PGQUEUE_LOADTEST_TTL", "86400"))  # seconds that a succeeded job stays

kinds = Kinds()
# The ledger is the run's: where the workers are to find no connection, it still has one.
effects = EffectWriter(conninfo(os.environ.get("PGQUEUE_LOADTEST_LEDGER"), application_name="loadtest effects"))


async def serve(job: Job) -> None:
    """Start by the database's clock, wait, record."""
    clock = await effects.clock()
    started = clock.now()
    if job.attempt == 1 and "stall_seconds" in job.payload:
        await stall(job.payload["stall_seconds"])
    await asyncio.sleep(job.payload["service_seconds"])
    await effects.record(job.id, job.attempt, job.external_key, job.kind, started=started, finished=clock.now())


async def stall(seconds: float) -> None:
    """A slow statement on a connection of its own; it has the statement timeout of this worker's environment."""
    async with await connect_async(application_name="loadtest handler") as connection:
        await connection.execute("SELECT pg_sleep(%s)", (seconds,))


for kind in os.environ.get("PGQUEUE_LOADTEST_KINDS", "").split(","):
    if kind:
        kinds.register(kind, concurrency=SLOTS, terminal_ttl=timedelta(seconds=TTL))(serve)
