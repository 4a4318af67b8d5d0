"""Connections for the queue: any common DSN, the settings of the environment, errors in one line.

Settings: PGQUEUE_DATABASE_URL, PGQUEUE_SCHEMA (default: the server's search_path), PGQUEUE_STATEMENT_TIMEOUT_MS
(5000; 0 leaves the server's). They travel as start-up options; a pooler in transaction mode refuses those, so set them
on the role or database there, and leave PGQUEUE_SCHEMA empty and the timeout 0.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from .errors import InvalidJob, QueueError, translate
from .jobs import text, whole

MAX_SCHEMA: Final = 55  # bytes: with `pgqueue:` before it it names a channel, which has at most 63
SCHEMA_SQL: Final = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
# A hung server or a cut cable must become an error: 10 s to connect, 60 s to notice a dead peer.
PATIENCE: Final = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
                   "tcp_user_timeout": 60_000}  # fmt: skip
# Where part of a password passes for what errors and reports name. A bare @ or / ends it, and its rest is taken for the
# host, the port or the database; after an empty value, as in `host= password=x`, libpq takes all of it for the host.
_AMBIGUOUS: Final = re.compile(r"(host|dbname) .*@|port .*[^\d,]|.*(password=|[\0-\x1f])", re.DOTALL)


def conninfo(
    dsn: str | None = None,
    *,
    schema: str | None = None,
    statement_timeout_ms: int | None = None,
    application_name: str = "pgqueue_ref",
    options: str = "",
) -> str:
    """A libpq connection string from `postgresql://`, `postgresql+psycopg://` or key=value, with the queue's settings.

    What the DSN says itself wins; None means the environment; `options` are more start-up options (`-c name=value`).
    Raises `QueueError` without repeating the DSN, which may hold a password.
    """
    dsn = dsn if dsn is not None else os.environ.get("PGQUEUE_DATABASE_URL", "")
    if not dsn.strip():
        raise QueueError("no database given: set PGQUEUE_DATABASE_URL or pass a DSN such as postgresql://user@host/db")
    given = dsn_parameters(dsn)
    schema = schema if schema is not None else os.environ.get("PGQUEUE_SCHEMA", "")
    parts = [str(given.get("options") or ""), options]
    if schema:
        quoted = '"' + text(schema, "schema", MAX_SCHEMA).replace('"', '""') + '"'
        parts.append("-c search_path=" + re.sub(r"([\s\\])", r"\\\1", quoted))
    if timeout := _timeout(statement_timeout_ms):
        parts.append(f"-c statement_timeout={timeout}")
    defaults: dict[str, Any] = {"application_name": application_name, **PATIENCE}
    return make_conninfo("", **(defaults | given | {"options": " ".join(filter(None, parts))}))


def dsn_parameters(dsn: str) -> dict[str, Any]:
    """What a DSN says, by libpq's names. Raises `QueueError` without repeating any of it."""
    try:  # SQLAlchemy's driver suffix means nothing to libpq
        given: dict[str, Any] = conninfo_to_dict(re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn.strip()))
        if any(_AMBIGUOUS.match(f"{name} {value}") for name, value in given.items() if name != "password"):
            raise ValueError
    except (psycopg.Error, ValueError):  # libpq's own words may quote the DSN
        raise QueueError(
            "the DSN is not understood: write postgresql://user:password@host:port/database, with any"
            " of :/?#@ in the password percent-encoded, or host=... dbname=..."
        ) from None
    return given


def _timeout(statement_timeout_ms: int | None) -> int:
    if statement_timeout_ms is None:
        value = os.environ.get("PGQUEUE_STATEMENT_TIMEOUT_MS", "5000")
        if not value.isdecimal():
            raise InvalidJob(f"PGQUEUE_STATEMENT_TIMEOUT_MS must be a whole number of milliseconds, not {value!r}")
        statement_timeout_ms = int(value)
    return whole(statement_timeout_ms, "statement_timeout_ms", 0)


def connect(dsn: str | None = None, **settings: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection; `settings` as for `conninfo`. Raises `ConnectionLimit` or `DatabaseUnavailable`."""
    target = conninfo(dsn, **settings)
    try:
        return psycopg.connect(target, autocommit=True)
    except psycopg.Error as error:
        raise translate(error) from error


async def connect_async(dsn: str | None = None, **settings: Any) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """`connect` for asyncio."""
    target = conninfo(dsn, **settings)
    try:
        return await psycopg.AsyncConnection.connect(target, autocommit=True)
    except psycopg.Error as error:
        raise translate(error) from error


def install(connection: psycopg.Connection[Any], schema: str = "") -> None:
    """Create what is missing of the schema, all or nothing; two at once take turns."""
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('pgqueue:install', 0))")
            if schema:
                text(schema, "schema", MAX_SCHEMA)
                connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(schema)))
                connection.execute(SQL("SET LOCAL search_path TO {}").format(Identifier(schema)))
            connection.execute(SCHEMA_SQL)
    except psycopg.Error as error:
        raise translate(error) from error
