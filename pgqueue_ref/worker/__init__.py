"""Runs handlers. An application registers its kinds, and starts the worker from the command line or by itself:

kinds = Kinds()

@kinds.register("thumbnail", max_attempts=10, attempt_timeout=30, concurrency=100)
async def thumbnail(job: Job) -> dict: ...

pgqueue-ref worker --app myapp.jobs:kinds        # or: async with Worker(kinds): ...
"""

from pgqueue_ref.core import Job

from .kinds import COMPLETED, Cancel, Ignore, Kind, Kinds, RetryAfter, Snooze
from .serve import load, serve
from .worker import Worker
from .writer import Counts

__all__ = [
    "COMPLETED", "Cancel", "Counts", "Ignore", "Job", "Kind", "Kinds", "RetryAfter", "Snooze", "Worker",
    "load", "serve",
]  # fmt: skip
