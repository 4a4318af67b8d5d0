"""Run the queue's operations on SQLAlchemy connections and sessions, in the transaction these have open.

    with Session(engine) as session, session.begin():
        session.add(photo)
        queue(session).push("thumbnail", {"photo": photo.id})     # commits or rolls back with the photo

The statements go through `exec_driver_sql`: taking psycopg's connection out and writing on it would bypass
SQLAlchemy's transaction, and the rows would be lost at commit. The dialect must be `postgresql+psycopg`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection
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
