"""What the workers of a chaos run execute. A job waits for as long as its payload says, then records its effect in the
ledger, and only then returns; some fail in their first attempt."""

from __future__ import annotations

import asyncio
import os

from pgqueue_ref.core import conninfo, constant
from pgqueue_ref.harness.ledger import EffectWriter
from pgqueue_ref.worker import Job, Kinds

kinds = Kinds()
effects = EffectWriter(conninfo(os.environ["CHAOS_LEDGER"], application_name="chaos effects"))


# So many attempts that no job ends `failed`, however often its worker is hit; a timeout, or the loss of an answer of
# the ledger's would keep a slot for ever.
@kinds.register("chaos", max_attempts=1000, backoff=constant(0.2), attempt_timeout=30)
async def chaos(job: Job) -> None:
    clock = await effects.clock()
    started = clock.now()
    await asyncio.sleep(job.payload["seconds"])
    if job.payload["fails"] and job.attempt == 1:
        raise RuntimeError("as it was asked to")
    await effects.record(job.id, job.attempt, job.external_key, job.kind, started=started, finished=clock.now())
