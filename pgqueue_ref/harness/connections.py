"""How many connections a server can give, and how many workers that makes.

PostgreSQL refuses an ordinary role as soon as `max_connections` less the reserved slots are in use, whoever uses them.
`safe_workers` is the formula; `Slots.read` asks a server for what goes into it. The scenario connection-limit confirms
both by experiment. Called by that scenario and by capacity planning; the formula itself needs no database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

WORKER = 3  # connections of a worker process: claims, endings, LISTEN; 2 with LISTEN off

# `reserved_connections` came with PostgreSQL 16. Only client backends take these slots: walsenders, autovacuum and
# background workers have slots of their own. The asking connection is counted as used: it is one.
SLOTS = """
SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int,
       coalesce(current_setting('reserved_connections', true), '0')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""


def safe_workers(
    max_connections: int, *, reserved: int, others: int = 0, per_worker: int = WORKER, surge: float = 1.0
) -> int:
    """How many workers, or pools, the server has connections for; 0 when not even one fits.

    `reserved` slots are kept from ordinary roles (superuser_reserved_connections + reserved_connections), `others` are
    the connections of everything else at its busiest. `per_worker` is what each may hold at most: 3 for this worker,
    pool_size + max_overflow for a pool. `surge` is how many times the workers exist while a deployment replaces them:
    2 when all new ones start before an old one stops. Raises `ValueError`.
    """
    if max_connections < 0 or reserved < 0 or others < 0 or per_worker < 1 or surge < 1:
        raise ValueError("connections must not be negative, per_worker at least 1, surge at least 1")
    return int(max(0, max_connections - reserved - others) / (per_worker * surge))


@dataclass(frozen=True, slots=True)
class Slots:
    """A server's connection slots: settings, and how many are in use now."""

    max_connections: int
    superuser_reserved: int
    role_reserved: int
    used: int

    @classmethod
    def read(cls, connection: psycopg.Connection[Any]) -> Slots:
        """Ask the server."""
        row = connection.execute(SLOTS).fetchone()
        assert row is not None  # noqa: S101  # for the type checker: a SELECT without FROM has one row
        return cls(*row)

    @property
    def reserved(self) -> int:
        """Slots that an ordinary role is never given."""
        return self.superuser_reserved + self.role_reserved

    @property
    def free(self) -> int:
        """Slots that an ordinary role could still have."""
        return max(0, self.max_connections - self.reserved - self.used)
