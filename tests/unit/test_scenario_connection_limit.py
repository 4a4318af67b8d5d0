"""How many workers a server has connections for: with values, by what a server says about itself, by experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from loads import Load
from measured import MEASURED

from pgqueue_ref.capacity import plan
from pgqueue_ref.capacity.plan import Demand
from pgqueue_ref.harness.connections import Slots, safe_workers
from pgqueue_ref.harness.server import Server
from pgqueue_ref.harness.slo import Exit


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


# -- the scenario, played small ------------------------------------------------------------------------------------

# No bound on time: how long this machine takes says nothing here.
SLO = """
[[connection-limit.slo]]
metric = "found.workers_missing"
max = 0
breach = "correctness"
[[connection-limit.slo]]
metric = "found.workers_beyond_missing"
min = 1
breach = "correctness"
[[connection-limit.slo]]
metric = "found.pools_refused"
max = 0
breach = "correctness"
[[connection-limit.slo]]
metric = "found.pools_beyond_refused"
min = 1
breach = "correctness"
[[connection-limit.slo]]
metric = "found.surge_with_room_refused"
max = 0
breach = "correctness"
[[connection-limit.slo]]
metric = "found.unclassified"
max = 0
breach = "correctness"
"""
SMALL = ["seconds=1", "overlap=2", "crowd=3", "producers=2", "slots=4"]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    load = Load("embedded", tmp_path)  # its own server, whatever the others use: this one has few connections
    load.slo.write_text(SLO)
    return load


def options(*more: str) -> list[str]:
    parameters = [word for name in (*SMALL, *more) for word in ("--set", name)]
    return ["--scenario", "connection-limit", *parameters]


def planned(load: Load, name: str, surge: float) -> int:
    """The safe workers in a plan for the connections of which the run says that it was left with."""
    (source,) = [figure["meaning"] for figure in load.result()["found"] if figure["name"] == name]
    most, reserved, others = map(int, re.findall(r"(\d+) (?:connections|reserved|of others)", source))
    demand = Demand(rate=1, wait=1, max_connections=most, reserved=reserved, others=others, surge=surge)
    return plan.make(MEASURED, demand).safe_workers


def test_as_many_workers_and_pools_fit_as_the_formula_says_and_what_does_not_fit_loses_nothing(load: Load) -> None:
    code, output = load.run(*options())
    assert code == Exit.PASS, output
    found = {figure["name"]: figure["value"] for figure in load.result()["found"]}
    assert (found["workers_promised"], found["surge_promised"], found["pools_promised"]) == (3, 3, 2)
    assert min(found[name] for name in ("surge_refused", "refused_by_server", "refused_by_pool")) >= 1
    for name, surge in (("workers_promised", 1.0), ("surge_promised", 2.0)):
        assert planned(load, name, surge) == found[name], "a plan says what the experiment found"
    ledger = load.result()["ledger"]
    assert (ledger["lost"], ledger["unexpected"], ledger["duplicated"], ledger["failed"]) == (0, 0, 0, 0)


def test_a_formula_that_promises_too_much_is_refuted(load: Load) -> None:
    code, output = load.run(*options("per_worker=2", "crowd=2"))
    assert code == Exit.INCORRECT, output
    assert "FAIL connection-limit (exit 5): found.workers_missing is" in output


def test_somebody_elses_server_is_not_filled_up(database: str, tmp_path: Path) -> None:
    load = Load(database, tmp_path)
    load.slo.write_text(SLO)
    code, output = load.run(*options())
    assert code == Exit.CRASH_OR_USAGE
    (line,) = output.strip().splitlines()
    assert "cannot be given max_connections, superuser_reserved_connections" in line
    assert load.directories() == []
