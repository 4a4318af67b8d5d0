"""The queues that are compared, each behind the same few operations. `run` uses them, `worker` runs their workers.

An adapter uses its queue as its own documentation shows, in the configuration that was fastest here; it says which in
`configuration`. Modules are imported when they are asked for: a package that is not installed costs its own row only.
"""

from __future__ import annotations

import importlib

from table import OURS

from .base import Counts, Peer

# Name of a row: module and class, and what the class is made with.
PEERS: dict[str, tuple[str, str, dict[str, object]]] = {
    OURS: ("ours", "Ours", {}),
    "procrastinate": ("procrastinate", "Procrastinate", {}),
    "pgqueuer psycopg": ("pgqueuer", "PgqueuerPsycopg", {}),
    "pgqueuer asyncpg": ("pgqueuer", "PgqueuerAsyncpg", {}),
    "chancy": ("chancy", "ChancyPeer", {}),
    "pgmq": ("pgmq", "Pgmq", {}),
    "bare, batch 100": ("bare", "Bare", {"batch": 100}),
    "bare, batch 1,000": ("bare", "Bare", {"batch": 1_000}),
}

__all__ = ["PEERS", "Counts", "Peer", "make"]


def make(name: str, dsn: str) -> Peer:
    """The adapter of a row, on a database of its own. Raises ImportError."""
    module, kind, options = PEERS[name]
    made: Peer = getattr(importlib.import_module(f"{__name__}.{module}"), kind)(name, dsn, **options)
    return made
