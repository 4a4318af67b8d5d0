"""The API's connections: SQLAlchemy's asynchronous engine is the pool, and every operation is one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import psycopg
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from pgqueue_ref.core import Operation, conninfo
from pgqueue_ref.sqlalchemy import _translate as translate
from pgqueue_ref.sqlalchemy import run_async

from .settings import Settings

T = TypeVar("T")


class Database(Collector):
    """Runs the queue's operations on pooled connections.

    A connection is looked at before it is lent (one round trip), so that those of a server that was restarted are
    replaced unnoticed. READ COMMITTED is asked for, whatever the role's default: the bound of `push` needs it.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.pool_size + settings.max_overflow
        target = conninfo(application_name="pgqueue_ref:api")  # refuses a bad DSN now, not at the first request
        self.engine = create_async_engine(
            "postgresql+psycopg://",  # no more than that: SQLAlchemy never learns the password
            async_creator=lambda: psycopg.AsyncConnection.connect(target),
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_size=settings.pool_size,
            max_overflow=settings.max_overflow,
            pool_timeout=settings.pool_timeout,
            hide_parameters=True,
        )

    async def run(self, operation: Operation[T]) -> T:
        """The operation's result, committed. Raises `QueueError`s alone, also for a pool that is empty."""
        try:
            async with self.engine.begin() as connection:
                return await run_async(connection, operation)
        except SQLAlchemyError as error:  # lending a connection, BEGIN, COMMIT
            raise translate(error) from (error.orig if isinstance(error, DBAPIError) else error)

    def collect(self) -> Iterator[Metric]:
        """The pool, for Prometheus."""
        pool = self.engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)  # noqa: S101 - for the type checker: create_async_engine's
        held = GaugeMetricFamily("pgqueue_api_connections", "Database connections held now", labels=["state"])
        held.add_metric(["used"], pool.checkedout())
        held.add_metric(["idle"], pool.checkedin())
        yield held
        yield GaugeMetricFamily(
            "pgqueue_api_connections_max", "Connections that the pool lends at most", value=self._most
        )

    async def close(self) -> None:
        """Close the pool."""
        await self.engine.dispose()
