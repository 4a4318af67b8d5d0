"""What a worker with nothing to do asks of the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .measure import Bench, Bound
from .workers import worker

TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'pgqueue_ref:%%'"
REPORTED = 11.0  # seconds: what an idle backend has not reported at once it reports after 10; here, its start


@pytest.fixture
def undisturbed(server: Any) -> Iterator[str]:
    """Autovacuum visits every database once a minute, and its transactions would be counted as the worker's."""
    if server.tier == "dsn":  # somebody else's server: it is left alone, and the report says so
        yield "on, its transactions are counted"
        return
    server.set(autovacuum="off")
    yield "off"
    server.set(autovacuum=None)


@pytest.mark.benchmark(group="idle")
def test_an_idle_worker_costs_next_to_nothing(
    bench: Bench, server: Any, database: str, undisturbed: str, tmp_path: Path
) -> None:
    bench.settings(seconds=bench.scale.idle, poll_interval=1.0, autovacuum=undisturbed)
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    # Looked at from another database, whose transactions are not counted; nobody else is in this one.
    with psycopg.connect(server.dsn, autocommit=True) as outside, worker(dsn=database, log=tmp_path / "log"):

        def ask(query: str) -> int:
            row = outside.execute(query, [name]).fetchone()
            assert row
            return int(row[0])

        def tick() -> tuple[int, float]:
            """The counter and the moment when it next moves: no part of an interval is counted."""
            before, deadline = ask(TRANSACTIONS), time.monotonic() + 30
            while (now := ask(TRANSACTIONS)) == before:
                assert time.monotonic() < deadline, "the worker does not poll"
                time.sleep(0.005)
            return now, time.monotonic()

        def watch() -> tuple[float, int]:
            while ask(CONNECTIONS) < 3:
                time.sleep(0.01)
            if bench.enabled:
                time.sleep(REPORTED)
            first, began = tick()
            time.sleep(bench.scale.idle)
            last, ended = tick()
            return (last - first) / (ended - began), ask(CONNECTIONS)

        ((result,),) = bench.rounds(watch, rounds=1)
    rate, connections = result
    once, held = Bound(most=1.0, ratio=False), Bound(most=3, ratio=False)
    bench.figure("idle worker, poll interval 1 s", "transactions/s", [rate], 1.0, "one for each poll interval", once)
    bench.figure("idle worker", "connections", [connections], 3, "what it may hold", held)
