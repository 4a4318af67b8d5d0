"""How many workers a server has connections for, with values, and what a server says about itself."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness.connections import Slots, safe_workers
from pgqueue_ref.harness.server import Server


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ({"max_connections": 100, "reserved": 3}, 32),  # 97 / 3, the defaults of PostgreSQL
        ({"max_connections": 100, "reserved": 3, "per_worker": 2}, 48),  # LISTEN off
        ({"max_connections": 100, "reserved": 3, "per_worker": 15}, 6),  # 90 of 97: the rest is no seventh pool
        ({"max_connections": 100, "reserved": 3, "surge": 2.0}, 16),
        ({"max_connections": 100, "reserved": 3, "others": 40, "surge": 1.25}, 15),
        ({"max_connections": 12, "reserved": 3}, 3),  # exactly
        ({"max_connections": 11, "reserved": 3}, 2),  # one short of it
        ({"max_connections": 5, "reserved": 3}, 0),
        ({"max_connections": 10, "reserved": 3, "others": 50}, 0),
    ],
)
def test_as_many_workers_fit_as_connections_are_left(given: dict[str, Any], workers: int) -> None:
    assert safe_workers(**given) == workers


@pytest.mark.parametrize("wrong", [{"per_worker": 0}, {"surge": 0.5}, {"others": -1}])
def test_a_formula_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        safe_workers(100, reserved=3, **wrong)


def test_slots_of_a_server_count_every_client(server: Server) -> None:
    with server.connect() as connection, psycopg.connect(server.dsn), psycopg.connect(server.dsn):
        slots = Slots.read(connection)
        (wanted,) = connection.execute("SELECT current_setting('max_connections')::int").fetchone() or (0,)
    assert slots.max_connections == wanted
    assert slots.reserved >= 0
    assert slots.used >= 3  # others may use a given server as well
    assert slots.free == max(0, wanted - slots.reserved - slots.used)
