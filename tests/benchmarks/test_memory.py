"""The resident size of a worker process over a long drain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import NewJob, Queue

from .drains import CONCURRENT
from .measure import Bench, Bound
from .workers import Reports, worker


@pytest.mark.benchmark(group="memory")
def test_a_worker_does_not_grow(
    bench: Bench, database: str, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    jobs = bench.scale.many
    bench.settings(jobs=jobs, max_concurrent_jobs=CONCURRENT)
    fifth = jobs // 5
    Queue(connection).push_many(NewJob("count", fifth) for _ in range(jobs))
    connection.execute("VACUUM ANALYZE pgqueue_jobs")
    reports = Reports(tmp_path / "reports")

    def watch() -> list[int]:
        slots = ("--max-concurrent-jobs", str(CONCURRENT))
        with worker(*slots, dsn=database, reports=reports, log=tmp_path / "log"):
            return [size for _, size in reports.read(5, patience=300)]

    ((sizes,),) = bench.rounds(watch, rounds=1)
    reports.close()
    megabytes = [size / 1e6 for size in sizes]
    name = f"resident size of a worker after {jobs:,} jobs"
    bench.figure(
        name, "MB", megabytes[-1:], megabytes[:1], f"after {fifth:,}", Bound(most=1.05), after_each_fifth=megabytes
    )
