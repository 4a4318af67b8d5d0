"""The endpoints of machines: /healthz and /readyz for whoever restarts processes and routes requests, /metrics.

The probes need no token. So that nobody can use the pool up with /readyz, one request at a time looks at the database,
and its finding is good for a second.
"""

from __future__ import annotations

import asyncio
import time
from typing import Self

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from pgqueue_ref.core import Operation, QueueError, SchemaMissing, Statement
from pgqueue_ref.core.operations import list_jobs, paused
from pgqueue_ref.ops.metrics import CONTENT_TYPE, Exposition

from .jobs import database
from .openapi import problems
from .shapes import Json, State

FRESH = 1.0  # seconds
VERSION_TABLE = "SELECT to_regclass('pgqueue_alembic_version') IS NOT NULL"
VERSION = "SELECT version_num FROM pgqueue_alembic_version"

router = APIRouter(tags=["probes"])


class Readiness:
    """Looks whether the queue can be used, at most once in `FRESH` seconds."""

    def __init__(self, known: frozenset[str], head: str | None) -> None:
        self.known, self.head = known, head
        self._lock, self._looked_at = asyncio.Lock(), float("-inf")
        self._finding: QueueError | None = None

    @classmethod
    def of_this_version(cls) -> Self:
        """For the revisions that came with this package."""
        from alembic.script import ScriptDirectory

        from pgqueue_ref.ops.commands.schema import migrations

        scripts = ScriptDirectory(str(migrations()))
        return cls(frozenset(script.revision for script in scripts.walk_revisions()), scripts.get_current_head())

    async def check(self, request: Request) -> None:
        """Raises what stands in the way."""
        async with self._lock:
            if time.monotonic() - self._looked_at >= FRESH:
                try:
                    await database(request).run(self._look())
                    self._finding = None
                except QueueError as error:
                    self._finding = error
                self._looked_at = time.monotonic()
        if self._finding is not None:
            raise self._finding

    def _look(self) -> Operation[None]:
        """The tables with all the columns that this code reads, and no revision older than its own.

        One that is not known is newer: a deployment migrates first, and what still runs goes on meanwhile.
        """
        yield from paused()
        yield from list_jobs(limit=1)
        ((migrated,),) = yield Statement(VERSION_TABLE)
        if migrated:  # else the core's own installer made the tables
            revisions = {revision for (revision,) in (yield Statement(VERSION))}
            if revisions <= self.known and revisions != {self.head}:
                raise SchemaMissing(f"queue schema is at revision {', '.join(revisions) or 'none'}, not {self.head}")


@router.get("/healthz", response_model=State)
async def healthz() -> Response:
    """The process answers. Says nothing about the database: a restart would not heal that."""
    return Json({"status": "ok"})


@router.get("/readyz", response_model=State, responses=problems("schema_missing"))
async def readyz(request: Request) -> Response:
    """Requests can be served: the database answers, and its schema is this version's."""
    await request.app.state.readiness.check(request)
    return Json({"status": "ready"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The queue for Prometheus. Answers 200 also when the database does not: then `pgqueue_up` is 0."""
    exposition: Exposition = request.app.state.exposition
    return Response(await exposition.render(database(request).run), media_type=CONTENT_TYPE)
