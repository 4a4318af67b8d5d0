"""The kinds of `measure`: handlers that do nothing, so that what is measured is the worker and the server."""

from __future__ import annotations

from datetime import timedelta

from pgqueue_ref.worker import Job, Kinds

kinds = Kinds()


@kinds.register("nothing", terminal_ttl=timedelta(hours=1), concurrency=1_000)
async def nothing(job: Job) -> None:
    """Return at once."""
