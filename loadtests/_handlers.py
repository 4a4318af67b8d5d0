"""The workers' side of a load run: `pgqueue-ref worker --app loadtests._handlers:kinds`.

Every kind of the trace waits for as long as its payload says, then records its effect in the ledger, and
only then returns. Locust does not import this file (its name begins with "_"); the load run names the
kinds in the environment.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from pgqueue_ref.core import conninfo
from pgqueue_ref.harness.ledger import EffectWriter
from pgqueue_ref.worker import Job, Kinds

SLOTS = int(os.environ.get("PGQUEUE_LOADTEST_SLOTS", "32"))
TTL = float(os.environ.get("PGQUEUE_LOADTEST_TTL", "86400"))  # seconds that a succeeded job stays

kinds = Kinds()
effects = EffectWriter(conninfo(application_name="loadtest effects"))


async def serve(job: Job) -> None:
    """Start by the database's clock, wait, record."""
    clock = await effects.clock()
    started = clock.now()
    await asyncio.sleep(job.payload["service_seconds"])
    await effects.record(job.id, job.attempt, job.external_key, job.kind, started=started, finished=clock.now())


for kind in os.environ.get("PGQUEUE_LOADTEST_KINDS", "").split(","):
    if kind:
        kinds.register(kind, concurrency=SLOTS, terminal_ttl=timedelta(seconds=TTL))(serve)
