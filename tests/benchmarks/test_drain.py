"""How fast one worker process drains a queue of no-op jobs, against a bare psycopg loop with the same batch."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from . import bare
from .drains import BATCH, CONCURRENT, drain, fill
from .measure import Bench, Bound


@pytest.mark.benchmark(group="drain")
@pytest.mark.parametrize(
    ("keep", "least", "how"), [(False, 0.6, "batch DELETE"), (True, 0.5, "batch UPDATE to succeeded")],
    ids=["deleted", "kept"],
)  # fmt: skip
def test_one_worker_drains_no_op_jobs(
    bench: Bench, database: str, connection: psycopg.Connection[Any], keep: bool, least: float, how: str
) -> None:
    jobs, ttl = bench.scale.jobs, 86_400 if keep else 0
    bench.settings(jobs=jobs, batch=BATCH, max_concurrent_jobs=CONCURRENT, terminal_ttl=ttl)

    def ours() -> float:
        fill(connection, jobs)
        return jobs / drain(database, jobs, ttl=ttl)[-1]

    def theirs() -> float:
        fill(connection, jobs)
        return bare.drain(database, "noop", jobs, keep=keep, batch=BATCH)

    worker, loop = bench.rounds(ours, theirs)
    name = f"drain of no-op jobs, one worker, rows {'kept as succeeded' if keep else 'deleted'}"
    bench.figure(name, "jobs/s", worker, loop, f"psycopg loop, claim {BATCH} + {how}", Bound(least=least))
