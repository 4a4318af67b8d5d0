"""A drain while a long transaction pins every dead index entry, with the worker's positions and without them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgqueue_ref.worker import worker

from .drains import drain, fill
from .measure import Bench, Bound


@pytest.mark.benchmark(group="pinned snapshot")
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "always-from-the-head"])
def test_a_drain_keeps_its_rate_under_a_pinned_snapshot(
    bench: Bench,
    database: str,
    connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    positions: bool,
) -> None:
    jobs = bench.scale.jobs
    tenth = jobs // 10
    bench.settings(jobs=jobs, positions=positions)
    if not positions:
        monkeypatch.setattr(worker, "LOOK_SHARE", 1.0)  # all its time may go into looks from the head
    first, last = [], []

    def ours() -> None:
        connection.execute("TRUNCATE pgqueue_jobs")
        with psycopg.connect(database) as pinning:
            pinning.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            pinning.execute("SELECT 1")  # takes the snapshot; the block ends after the drain
            fill(connection, jobs, truncate=False)
            start, before, end = drain(database, jobs, ttl=0, marks=(tenth, jobs - tenth))
        first.append(tenth / start)
        last.append(tenth / (end - before))

    bench.rounds(ours, rounds=None if positions else -(-bench.scale.rounds // 2))
    how = "" if positions else ", positions off (each claim from the head)"
    bench.figure(
        f"last tenth of {jobs:,} jobs under a pinned snapshot{how}", "jobs/s", last, first, "first tenth",
        Bound(least=0.8) if positions else None,
    )  # fmt: skip
