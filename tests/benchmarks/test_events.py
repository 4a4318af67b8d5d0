"""What it costs to write down what happens to each job: a drain with events on against one with events off."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import Queue
from pgqueue_ref.extensions import events

from .drains import BATCH, CONCURRENT, drain, fill
from .measure import Bench, Bound


@pytest.mark.benchmark(group="events")
@pytest.mark.parametrize("keep", [False, True], ids=["deleted", "kept"])
def test_a_drain_with_events_on(bench: Bench, database: str, connection: psycopg.Connection[Any], keep: bool) -> None:
    jobs, ttl = bench.scale.jobs, 86_400 if keep else 0
    bench.settings(jobs=jobs, batch=BATCH, max_concurrent_jobs=CONCURRENT, terminal_ttl=ttl)
    connection.execute(events.SCHEMA_SQL)
    queue = Queue(connection)

    def with_events() -> float:
        queue.run(events.enable())
        connection.execute("TRUNCATE pgqueue_events")
        fill(connection, jobs)
        speed = jobs / drain(database, jobs, ttl=ttl)[-1]
        assert connection.execute("SELECT count(*) FROM pgqueue_events").fetchone() == (3 * jobs,)
        return speed

    def without() -> float:
        queue.run(events.disable())
        fill(connection, jobs)
        return jobs / drain(database, jobs, ttl=ttl)[-1]

    on, off = bench.rounds(with_events, without)
    name = f"drain with events on, rows {'kept as succeeded' if keep else 'deleted'}"
    bench.figure(name, "jobs/s", on, off, "the same worker with events off", Bound(least=0.6))
