"""Kinds to try the queue with: `pgqueue-ref dev` runs them, as would `worker --app pgqueue_ref.ops.demo:kinds`."""

from __future__ import annotations

import asyncio
from typing import Any

from pgqueue_ref.core import Job, constant
from pgqueue_ref.worker import Kinds

kinds = Kinds()


@kinds.register("hello")
async def hello(job: Job) -> str:
    """Succeeds; greets the payload's name."""
    return f"hello {_given(job, 'name', 'you')}"


@kinds.register("slow")
async def slow(job: Job) -> None:
    """Takes as many seconds as the payload says, ten at first."""
    await asyncio.sleep(min(float(_given(job, "seconds", 10)), 600))


@kinds.register("fail", max_attempts=2, backoff=constant(2))
async def fail(job: Job) -> None:
    """Fails twice, then for good."""
    raise RuntimeError(str(_given(job, "message", "asked to fail")))


def _given(job: Job, name: str, otherwise: Any) -> Any:
    return job.payload.get(name, otherwise) if isinstance(job.payload, dict) else otherwise
