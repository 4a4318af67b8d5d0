"""Fixtures of the benchmarks: `bench` measures and records, `databases` gives as many fresh ones as are compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from .measure import FULL, QUICK, TINY, Bench

SETTINGS = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "autovacuum", "jit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: fewer rounds, fewer jobs")


@pytest.fixture
def bench(benchmark: Any, server: Any, pytestconfig: pytest.Config) -> Bench:
    """The benchmark under way."""
    quick = pytestconfig.getoption("--quick", default=False)
    scale = (QUICK if quick else FULL) if benchmark.enabled else TINY
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        shown = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in SETTINGS}  # type: ignore[index]  # SHOW has a row
    return Bench(benchmark, scale, {"server": server.describe(), "load_average": os.getloadavg()[0], **shown})


@pytest.fixture
def databases(database: str, _clone: Callable[[str], str], _template: str) -> Callable[[], str]:
    """`databases()`: DSN of one more fresh database with the schema."""
    return lambda: make_conninfo(database, dbname=_clone(_template))


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to the benchmark's database."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
