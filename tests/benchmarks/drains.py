"""Filling the queue with no-op jobs, and draining it with a worker in this process; for several benchmarks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from pgqueue_ref.core import NewJob, Queue, Seconds
from pgqueue_ref.worker import Job, Kinds, Worker

BATCH = 500  # what the worker claims at a time, and the bare loop
CONCURRENT = 1_000


def fill(connection: psycopg.Connection[Any], jobs: int, *, truncate: bool = True) -> None:
    """Start from an empty table, push, and leave nothing for autovacuum to do in the middle."""
    if truncate:
        connection.execute("TRUNCATE pgqueue_jobs")
    Queue(connection).push_many(NewJob("noop", {"n": number}) for number in range(jobs))
    connection.execute("VACUUM ANALYZE pgqueue_jobs")


def drain(dsn: str, jobs: int, *, ttl: Seconds, marks: tuple[int, ...] = ()) -> list[float]:
    """Drain `jobs` with one worker; returns the seconds at which each of `marks`, and then all, had been completed."""
    return asyncio.run(_drain(dsn, jobs, ttl, (*marks, jobs)))


async def _drain(dsn: str, jobs: int, ttl: Seconds, marks: tuple[int, ...]) -> list[float]:
    kinds = Kinds()

    @kinds.register("noop", terminal_ttl=ttl)
    async def noop(job: Job) -> None:
        pass

    worker = Worker(kinds, dsn=dsn, max_concurrent_jobs=CONCURRENT)
    times = []
    await worker.start()
    try:
        began = time.perf_counter()
        for mark in marks:
            while worker.counts.succeeded < mark:  # noqa: ASYNC110 - the worker has no event for it, and needs none
                await asyncio.sleep(0.002)
            times.append(time.perf_counter() - began)
    finally:
        await worker.stop()
    assert worker.counts.succeeded == worker.counts.claimed == jobs
    return times
