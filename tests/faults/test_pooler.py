"""PgBouncer in transaction mode: workers without LISTEN share fewer server connections than they hold."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pooler
import pytest
from waiting import until

POOL = 3


@pytest.fixture
def pooled(database: str) -> Iterator[str]:
    """A DSN for `database` through a pooler that has three server connections for everybody."""
    if pooler.PROGRAM is None:
        pytest.skip(pooler.MISSING)
    with pooler.Pooler(database, size=POOL) as started:
        yield started.dsn


def test_workers_behind_a_transaction_pooler_lose_nothing(pooled, bench, launch) -> None:
    options = (*pooler.WORKER, "--max-concurrent-jobs", "50")
    workers = [launch(pooled, f"w{number}", *options) for number in range(3)]  # six connections over three
    for worker in workers:
        worker.started()
    bench.push("plain", 2000, payload=0.001)
    until(lambda: bench.count("succeeded") == 2000, "all jobs run")
    for worker in workers:
        worker.signal(signal.SIGTERM)
    assert [worker.ends() for worker in workers] == [0, 0, 0]
    assert sum(worker.counts()["succeeded"] for worker in workers) == 2000
    assert sum(worker.counts()["stale"] for worker in workers) == 0
    assert all(worker.counts()["succeeded"] > 0 for worker in workers)
    assert not any("failed, next try" in worker.log() for worker in workers)
