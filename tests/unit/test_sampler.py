"""The sampler records what the server shows, and a server that goes away leaves a gap."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from pgqueue_ref.harness.connections import Slots
from pgqueue_ref.harness.sampler import COLUMNS, Sampler


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the state was not reached"
        time.sleep(0.01)


def test_samples_show_depth_by_status_and_connections(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True, application_name="bystander") as connection:
        connection.execute(
            "INSERT INTO pgqueue_jobs (kind, status) "
            "SELECT 'mail', s FROM unnest('{pending,pending,running,failed,succeeded}'::text[]) s"
        )
        sampler = Sampler(lambda: psycopg.connect(database, autocommit=True), tmp_path / "s.csv", interval=0.01)
        sampler.start()
        wait_for(lambda: len(sampler.samples) >= 3)
        sampler.stop()
        slots = Slots.read(connection)
    sample = sampler.samples[0]
    assert (sample["pending"], sample["running"], sample["failed"], sample["blocked"]) == (2, 1, 1, 0)
    assert json.loads(sample["by_application"])["bystander"] == 1
    assert sample["connections"] < sample["connection_limit"] == slots.max_connections - slots.reserved
    assert sample["wal_bytes"] == 0
    assert sample["table_bytes"] > 0
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(sampler.samples)


def test_a_lost_connection_is_counted_and_sampling_goes_on(database: str, tmp_path: Path) -> None:
    connections: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        connections.append(psycopg.connect(database, autocommit=True))
        return connections[-1]

    sampler = Sampler(connect, tmp_path / "s.csv", interval=0.01)
    sampler.start()
    wait_for(lambda: len(sampler.samples) >= 2)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (connections[0].info.backend_pid,))
    wait_for(lambda: len(connections) == 2)
    after = len(sampler.samples)
    wait_for(lambda: len(sampler.samples) > after)
    sampler.stop()
    assert sampler.failures == 1


def test_without_a_queue_there_is_no_sample(empty_database: str, tmp_path: Path) -> None:
    sampler = Sampler(lambda: psycopg.connect(empty_database, autocommit=True), tmp_path / "s.csv", interval=0.01)
    sampler.start()
    wait_for(lambda: sampler.failures >= 2)
    sampler.stop()
    assert sampler.samples == []
