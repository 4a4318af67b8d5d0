"""A producer pushes each arrival once, however its commits end, and reports every failed try."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.producer import Producer
from pgqueue_ref.harness.traces import Arrival

ARRIVAL = Arrival(0.0, 0.25, "mail")
Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        ledger.create(connection)
        yield connection


class Reports(list[tuple[str, type[Exception] | None]]):
    def __call__(self, kind: str, latency: float, error: Exception | None) -> None:
        assert latency >= 0
        self.append((kind, type(error) if error else None))


class Connections:
    """Opens real connections; `kill` ends the server process of one of them."""

    def __init__(self, database: str, killer: Connection) -> None:
        self.database = database
        self.killer = killer
        self.opened: list[Connection] = []

    def __call__(self) -> Connection:
        self.opened.append(psycopg.connect(self.database, autocommit=True))
        return self.opened[-1]

    def kill(self, number: int) -> None:
        pid = self.opened[number].info.backend_pid
        self.killer.execute("SELECT pg_terminate_backend(%s)", (pid,))


def rows(connection: Connection) -> tuple[int, int]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pgqueue_jobs), (SELECT count(*) FROM loadtest_pushed)"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_a_push_and_its_record_are_committed_together(connection: Connection, database: str) -> None:
    connect, reports = Connections(database, connection), Reports()
    pushing = Producer(connect, ledger.DatabaseClock.measure(connection))
    before = time.monotonic()
    assert pushing.push("a", ARRIVAL, before, reports)
    pushing.close()
    assert rows(connection) == (1, 1)
    assert reports == [("mail", None)]
    (lag,) = connection.execute("SELECT extract(epoch FROM recorded_at - intended_at) FROM loadtest_pushed").fetchone()
    assert -0.01 < lag < 60
    assert connection.execute("SELECT payload, external_key FROM pgqueue_jobs").fetchone() == (
        {"service_seconds": 0.25},
        "a",
    )


def test_a_connection_that_died_before_the_push_is_replaced_and_reported(connection: Connection, database: str) -> None:
    connect, reports = Connections(database, connection), Reports()
    pushing = Producer(connect, ledger.DatabaseClock.measure(connection))
    connect.kill(0)
    assert pushing.push("a", ARRIVAL, time.monotonic(), reports)
    pushing.close()
    assert rows(connection) == (1, 1)
    assert [error is None for _, error in reports] == [False, True]


def test_a_commit_that_took_but_was_not_acknowledged_is_not_repeated(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, reports = Connections(database, connection), Reports()
    pushing = Producer(connect, ledger.DatabaseClock.measure(connection))
    push_once = pushing._push_once

    def lose_the_answer(*arguments: Any, **keywords: Any) -> None:
        push_once(*arguments, **keywords)
        if len(reports) == 0:
            connection.execute("DELETE FROM pgqueue_jobs")  # done and deleted already: the key is free again
            connect.kill(0)
            with ledger.translated():
                connect.opened[0].execute("SELECT 1")  # fails as the answer to COMMIT would have

    monkeypatch.setattr(pushing, "_push_once", lose_the_answer)
    assert pushing.push("a", ARRIVAL, time.monotonic(), reports)
    pushing.close()
    assert rows(connection) == (0, 1), "the job ran and went; a second one would have been an unexpected duplicate"


def test_an_arrival_that_cannot_be_pushed_is_given_up(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, reports = Connections(database, connection), Reports()
    monkeypatch.setattr(Producer, "give_up_after", 0.01)
    connection.execute("DROP TABLE pgqueue_jobs CASCADE")
    pushing = Producer(connect, ledger.DatabaseClock.measure(connection))
    assert not pushing.push("a", ARRIVAL, time.monotonic(), reports)
    pushing.close()
    assert len(reports) >= 1
    assert all(error is not None for _, error in reports)
