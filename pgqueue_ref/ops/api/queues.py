"""The endpoints of queues: pause, resume, and the overview of all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from pgqueue_ref.core.jobs import MAX_NAME
from pgqueue_ref.core.operations import pause, resume
from pgqueue_ref.ops.overview import overview

from . import paths  # noqa: F401 - registers the convertors
from .jobs import database
from .shapes import Json, PausedQueue, ShownOverview

router = APIRouter(prefix="/api/v1/queue", tags=["queues"])
QueueName = Annotated[str, Path(min_length=1, max_length=MAX_NAME)]


@router.post("/queues/{name:queue}/pause", response_model=PausedQueue)
async def pause_queue(request: Request, name: QueueName) -> Response:
    """Stop claims from a queue, for every worker; running attempts go on. Safe to repeat."""
    changed = await database(request).run(pause(name))
    return Json({"queue": name, "paused": True, "changed": changed})


@router.post("/queues/{name:queue}/resume", response_model=PausedQueue)
async def resume_queue(request: Request, name: QueueName) -> Response:
    """Undo `pause`. Safe to repeat."""
    changed = await database(request).run(resume(name))
    return Json({"queue": name, "paused": False, "changed": changed})


@router.get("/stats/overview", response_model=ShownOverview)
async def show_overview(request: Request) -> Response:
    """What is in the queues and how it flows, at a cost that does not grow with the table."""
    seen = await database(request).run(overview())
    rows, flows = [row._asdict() for row in seen.rows], [flow._asdict() for flow in seen.flows]
    return Json(seen._asdict() | {"rows": rows, "flows": flows})
