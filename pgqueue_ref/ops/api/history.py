"""What is known of a job beside its row, where the extensions are installed: its events, what its handler returned; and
all of it at once, as `pgqueue-ref show` tells it and the page draws it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from pgqueue_ref.extensions import events, results
from pgqueue_ref.ops.timeline import WAITS_FOR, known, timeline

from .jobs import USUAL_PAGE, JobId, database
from .openapi import problems
from .problems import Refused
from .shapes import MAX_ID, Json, ShownEvents, ShownHistory, ShownParent, ShownResult, Utf8Route, shown

router = APIRouter(prefix="/api/v1/queue/jobs", tags=["jobs"], route_class=Utf8Route)


class Part(BaseModel):
    """Which of a job's events."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, le=MAX_ID, description="`next` of the page before")
    limit: int = Field(USUAL_PAGE, ge=1, le=1000)


@router.get("/{job_id:job}/history", response_model=ShownHistory, responses=problems("job_not_found"))
async def get_history(request: Request, job_id: JobId) -> Response:
    """A job and all that is known of it: what happened and will, its last traceback, its result, what it waits for."""
    found = await database(request).run(known(job_id))
    result, failure = found.result, found.failure
    return Json(
        {
            "job": shown(found.job),
            "timeline": [moment._asdict() for moment in timeline(found.job, found.events)],
            "traceback": failure and {"attempt": failure.attempt, "text": failure.traceback},
            "result": _result(result) if result and result.error is None else None,
            "waits_for": [
                {name: getattr(parent, name) for name in ShownParent.model_fields}
                for parent in found.waits_for[:WAITS_FOR]
            ],
        }
    )


@router.get("/{job_id:job}/events", response_model=ShownEvents)
async def list_events(request: Request, job_id: JobId, part: Annotated[Part, Query()]) -> Response:
    """What happened to a job, oldest first. Events outlive their job; one of which none are known has none."""
    found = await database(request).run(events.timeline(job_id, after=part.after, limit=part.limit))
    following = found[-1].id if len(found) == part.limit else None
    return Json({"events": [event._asdict() for event in found], "next": following})


@router.get("/{job_id:job}/result", response_model=ShownResult, responses=problems("job_not_found", "no_result"))
async def get_result(request: Request, job_id: JobId) -> Response:
    """What the handler returned. Results may outlive their job."""
    try:
        result = await database(request).run(results.get(job_id))
    except results.NoResult as error:
        raise Refused("no_result", str(error)) from error
    return Json(_result(result))


def _result(result: results.Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ShownResult.model_fields}
