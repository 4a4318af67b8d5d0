"""Run the queue's operations on SQLAlchemy connections and sessions, in the transaction these have open.

    with Session(engine) as session, session.begin():
        session.add(photo)
        queue(session).push("thumbnail", {"photo": photo.id})     # commits or rolls back with the photo

The statements go through `exec_driver_sql`: taking psycopg's connection out and writing on it would bypass
SQLAlchemy's transaction, and the rows would be lost at commit. The dialect must be `postgresql+psycopg`.

`metadata` describes the tables for Alembic's autogenerate, this project's and yours.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from .core import ATOMIC, AsyncQueue, ConnectionLimit, Operation, Queue, QueueError, translate

T = TypeVar("T")


def queue(connection: Connection | Session, *, max_in_flight: int | None = None) -> Queue:
    """The queue within a SQLAlchemy connection's or session's transaction; the caller commits."""
    return Queue(connection, max_in_flight=max_in_flight, run=run)


def async_queue(connection: AsyncConnection | AsyncSession, *, max_in_flight: int | None = None) -> AsyncQueue:
    """`queue` for SQLAlchemy's asyncio extension."""
    return AsyncQueue(connection, max_in_flight=max_in_flight, run=run_async)


def run(connection: Connection | Session, operation: Operation[T]) -> T:
    """Run an operation to its result; raises the queue's errors with SQLAlchemy's as cause."""
    try:
        target = connection.connection() if isinstance(connection, Session) else connection
        return _drive(target, operation)
    except SQLAlchemyError as error:  # checking a connection out
        raise _translate(error) from error


async def run_async(connection: AsyncConnection | AsyncSession, operation: Operation[T]) -> T:
    """`run` on the asyncio extension, which lends its connection to synchronous code in a greenlet."""
    try:
        target = await connection.connection() if isinstance(connection, AsyncSession) else connection
        return await target.run_sync(_drive, operation)
    except SQLAlchemyError as error:
        raise _translate(error) from error


def _drive(connection: Connection, operation: Operation[T]) -> T:
    try:
        step = next(operation)
        while True:
            if step is ATOMIC:
                _require_transaction(connection)
                step = operation.send([])
                continue
            try:
                # Without parameters the driver must get none, or it would look for placeholders.
                rows = [tuple(row) for row in connection.exec_driver_sql(step.sql, dict(step.params) or None)]
            except SQLAlchemyError as error:
                refused = _translate(error)
                refused.__cause__ = error.orig if isinstance(error, DBAPIError) else error
                step = operation.throw(refused)
            else:
                step = operation.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


def _require_transaction(connection: Connection) -> None:
    """SQLAlchemy begins by itself, except in its AUTOCOMMIT mode, where each statement would stand alone."""
    dbapi: Any = connection.connection.dbapi_connection
    if dbapi is not None and dbapi.autocommit:
        raise QueueError("this operation needs a transaction: use an engine that is not in AUTOCOMMIT mode")


def _translate(error: SQLAlchemyError) -> QueueError:
    if isinstance(error, PoolTimeoutError):
        return ConnectionLimit(f"the pool has no free connection: {str(error).splitlines()[0]}")
    if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.Error):
        return translate(error.orig)
    return QueueError(str(error).splitlines()[0])


# The tables as core/schema.sql and the extensions make them, where each line is explained; a test compares the two.
# Triggers are not part of it: MetaData knows none. Without the core's, which wakes workers, they poll.
metadata = MetaData()
_NOW, _ZERO = text("now()"), text("0")
_MOMENT = DateTime(timezone=True)


def _storage(**settings: float) -> dict[str, Any]:
    """Arguments for a `Table` with storage parameters.

    SQLAlchemy 2.0 knows those of indexes alone: there `create_all` sets the table's in a second statement.
    """
    if not sqlalchemy.__version__.startswith("2.0."):
        return {"postgresql_with": settings}

    def set_storage(table: Table, connection: Connection, **_: Any) -> None:
        name = connection.dialect.identifier_preparer.format_table(table)
        words = ", ".join(f"{key} = {value}" for key, value in settings.items())
        connection.execute(text(f"ALTER TABLE {name} SET ({words})"))

    return {"listeners": [("after_create", set_storage)]}


_jobs = Table(
    "pgqueue_jobs",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("lease_token", BigInteger, nullable=False, server_default=_ZERO),
    Column("run_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("expires_at", _MOMENT),
    Column("started_at", _MOMENT),
    Column("lease_expires_at", _MOMENT),
    Column("finished_at", _MOMENT),
    Column("delete_after", _MOMENT),
    Column("priority", Integer, nullable=False, server_default=_ZERO),
    Column("attempt", Integer, nullable=False, server_default=_ZERO),
    Column("max_attempts", Integer),
    Column("queue", Text, nullable=False, server_default=text("'default'")),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'pending'")),
    Column("external_key", Text),
    Column("worker", Text),
    Column("errors", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("payload", JSONB, nullable=False, server_default=text("'null'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    CheckConstraint(
        "status IN ('pending', 'blocked', 'running', 'succeeded', 'failed', 'cancelled')", name="pgqueue_jobs_status"
    ),
    CheckConstraint(
        "octet_length(queue) BETWEEN 1 AND 255 AND octet_length(kind) BETWEEN 1 AND 255 "
        "AND octet_length(external_key) BETWEEN 1 AND 1024",
        name="pgqueue_jobs_names",
    ),
    CheckConstraint("attempt >= 0 AND max_attempts >= 1", name="pgqueue_jobs_attempts"),
    **_storage(
        autovacuum_vacuum_scale_factor=0,
        autovacuum_vacuum_threshold=1000,
        autovacuum_vacuum_insert_scale_factor=0,
        autovacuum_vacuum_insert_threshold=100_000,
        autovacuum_analyze_scale_factor=0.05,
        autovacuum_analyze_threshold=1000,
        autovacuum_vacuum_cost_delay=0,
        fillfactor=70,
    ),
)
_column = _jobs.c

Index(
    "pgqueue_jobs_key",
    _column.kind,
    _column.external_key,
    unique=True,
    postgresql_where=text("external_key IS NOT NULL"),
)
Index(
    "pgqueue_jobs_claim",
    _column.queue,
    _column.kind,
    _column.priority.desc(),
    _column.run_at,
    _column.id,
    postgresql_where=text("status = 'pending'"),
)
Index(
    "pgqueue_jobs_active",
    _column.status,
    _column.queue,
    _column.id,
    postgresql_where=text("status IN ('running', 'blocked')"),
)
Index(
    "pgqueue_jobs_expiry",
    _column.expires_at,
    postgresql_where=text("expires_at IS NOT NULL AND status IN ('pending', 'blocked')"),
)
Index("pgqueue_jobs_cleanup", _column.delete_after, postgresql_where=text("delete_after IS NOT NULL"))
Index("pgqueue_jobs_failed", _column.finished_at, _column.id, postgresql_where=text("status = 'failed'"))

Table(
    "pgqueue_queues",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("paused_at", _MOMENT, nullable=False, server_default=_NOW),
    CheckConstraint("octet_length(queue) BETWEEN 1 AND 255", name="pgqueue_queues_queue_check"),
)

_events = Table(
    "pgqueue_events",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    Column("at", _MOMENT, server_default=_NOW, primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("worker", Text),
    Column(
        "actor",
        Text,
        nullable=False,
        server_default=text("session_user || coalesce(' ' || nullif(current_setting('application_name'), ''), '')"),
    ),
    Column("message", Text),
    Column("traceback", Text),
    PrimaryKeyConstraint("at", "id", name="pgqueue_events_pkey"),
)
Index("pgqueue_events_job", _events.c.job_id, _events.c.id)
Index(
    "pgqueue_events_type",
    _events.c.type,
    _events.c.at,
    _events.c.id,
    postgresql_where=text("type NOT IN ('pushed', 'claimed', 'succeeded')"),
)

_schedules = Table(
    "pgqueue_schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("queue", Text, nullable=False, server_default=text("'default'")),
    Column("priority", Integer, nullable=False, server_default=_ZERO),
    Column("max_attempts", Integer),
    Column("payload", JSONB, nullable=False, server_default=text("'null'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("cron", Text),
    Column("every", Double),
    Column("at", _MOMENT),
    Column("timezone", Text, nullable=False, server_default=text("'UTC'")),
    Column("next_at", _MOMENT),
    Column("last_at", _MOMENT),
    Column("runs", Integer, nullable=False, server_default=_ZERO),
    Column("max_runs", Integer),
    Column("expires_at", _MOMENT),
    Column("paused_at", _MOMENT),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    CheckConstraint(
        "octet_length(name) BETWEEN 1 AND 255 AND octet_length(kind) BETWEEN 1 AND 255 "
        "AND octet_length(queue) BETWEEN 1 AND 255",
        name="pgqueue_schedules_names",
    ),
    CheckConstraint(
        "CASE WHEN cron IS NULL THEN num_nonnulls(every, at) > 0 ELSE num_nonnulls(every, at) = 0 END",
        name="pgqueue_schedules_times",
    ),
    CheckConstraint("every >= 1 AND max_runs >= 1 AND max_attempts >= 1", name="pgqueue_schedules_bounds"),
)
Index(
    "pgqueue_schedules_due",
    _schedules.c.next_at,
    _schedules.c.name,
    postgresql_where=text("next_at IS NOT NULL AND paused_at IS NULL"),
)

_results = Table(
    "pgqueue_results",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("stored_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("delete_after", _MOMENT),
    Column("duration", Double),
    Column("attempt", Integer, nullable=False),
    Column("queue", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("worker", Text),
    Column("value", JSONB, nullable=False, server_default=text("'null'")),
    Column("error", Text),
)
Index("pgqueue_results_cleanup", _results.c.delete_after, postgresql_where=text("delete_after IS NOT NULL"))

_dependencies = Table(
    "pgqueue_dependencies",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("parent_id", BigInteger, primary_key=True, autoincrement=False),
    Column("needs", Text, nullable=False, server_default=text("'success'")),
    Column("callback", Boolean, nullable=False, server_default=text("false")),
    Column("outcome", Text),
    CheckConstraint("parent_id < job_id", name="pgqueue_dependencies_order"),
    CheckConstraint(
        "needs IN ('success', 'failure', 'end') AND outcome IN ('succeeded', 'failed', 'cancelled')",
        name="pgqueue_dependencies_words",
    ),
    **_storage(fillfactor=80, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=1000),
)
Index("pgqueue_dependencies_parent", _dependencies.c.parent_id)
