"""Databases for the extensions' tests: with all of them installed, or with the ones that a test names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_ref.core import Queue
from pgqueue_ref.extensions import EXTENSIONS


@pytest.fixture(scope="session")
def _extended_template(server: Any, _clone: Callable[[str], str], _template: str) -> str:
    """A database with the core's schema and every extension's."""
    name = _clone(_template)
    with psycopg.connect(make_conninfo(server.dsn, dbname=name), autocommit=True) as connection:
        for extension in EXTENSIONS:
            connection.execute(extension.schema_sql)
    return name


@pytest.fixture
def extended(database: str, _clone: Callable[[str], str], _extended_template: str) -> str:
    """DSN of a fresh database in which every extension is installed."""
    return make_conninfo(database, dbname=_clone(_extended_template))


@pytest.fixture
def queue(extended: str) -> Iterator[Queue]:
    """The queue there, on an autocommit connection."""
    with Queue.connect(extended) as queue:
        yield queue
