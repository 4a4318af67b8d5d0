"""Run operations on psycopg connections. `pgqueue_ref.sqlalchemy` does the same on SQLAlchemy's.

A runner sends each statement, feeds the rows back, and turns driver errors into `QueueError`s, which an operation may
catch. It opens a transaction only for what must be atomic on an idle autocommit connection; any other is the caller's.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .errors import translate
from .operations import ATOMIC, Operation

T = TypeVar("T")


def needs_transaction(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether nothing but us would open a transaction here."""
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def run(connection: psycopg.Connection[Any], operation: Operation[T]) -> T:
    """Run an operation to its result on a psycopg connection, whatever its row factory."""
    try:
        with ExitStack() as stack:
            cursor = stack.enter_context(connection.cursor(row_factory=tuple_row))
            try:
                step = next(operation)
                while True:
                    if step is ATOMIC:
                        if needs_transaction(connection):
                            stack.enter_context(connection.transaction())
                        step = operation.send([])
                        continue
                    try:
                        rows = cursor.execute(step.sql, step.params or None).fetchall()
                    except psycopg.Error as error:
                        refused = translate(error)
                        refused.__cause__ = error
                        step = operation.throw(refused)
                    else:
                        step = operation.send(rows)
            except StopIteration as done:  # caught in here: the transaction would take it for a failure and roll back
                result: T = done.value
        return result
    except psycopg.Error as error:  # opening the cursor, BEGIN, COMMIT
        raise translate(error) from error


async def run_async(connection: psycopg.AsyncConnection[Any], operation: Operation[T]) -> T:
    """`run` for an asynchronous connection."""
    try:
        async with AsyncExitStack() as stack:
            cursor = await stack.enter_async_context(connection.cursor(row_factory=tuple_row))
            try:
                step = next(operation)
                while True:
                    if step is ATOMIC:
                        if needs_transaction(connection):
                            await stack.enter_async_context(connection.transaction())
                        step = operation.send([])
                        continue
                    try:
                        await cursor.execute(step.sql, step.params or None)
                        rows = await cursor.fetchall()
                    except psycopg.Error as error:
                        refused = translate(error)
                        refused.__cause__ = error
                        step = operation.throw(refused)
                    else:
                        step = operation.send(rows)
            except StopIteration as done:
                result: T = done.value
        return result
    except psycopg.Error as error:
        raise translate(error) from error
