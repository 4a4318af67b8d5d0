"""The endpoints of jobs: push, look, retry, cancel. Each is one operation of the queue in one transaction."""

from __future__ import annotations

import base64
import contextlib
import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from pgqueue_ref.core import JobNotFound, JobRow, Operation, Status
from pgqueue_ref.core.operations import cancel, cancel_key, get, list_jobs, push_many, retry
from pgqueue_ref.ops.operations import Ending, failed, newest

from . import paths  # noqa: F401 - registers the convertors
from .database import Database
from .openapi import problems
from .problems import Refused
from .shapes import (
    MAX_ID,
    Batch,
    JobToPush,
    Json,
    Key,
    Name,
    Page,
    PushedBatch,
    PushedJob,
    ShownJob,
    Utf8Route,
    pushed,
    shown,
)

router = APIRouter(prefix="/api/v1/queue/jobs", tags=["jobs"], route_class=Utf8Route)
JobId = Annotated[int, Path(ge=1, le=MAX_ID)]

USUAL_PAGE = 50  # jobs


class Filters(BaseModel):
    """What a list is narrowed to. A misspelt filter is refused: without it the list would look complete."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = None
    queue: Name | None = None
    kind: Name | None = None
    key: Key | None = None
    limit: int | None = Field(None, ge=1)  # at most `Settings.max_page`: see `openapi`
    cursor: str | None = Field(None, max_length=100, description="`next` of the page before")


class ByKey(BaseModel):
    """The job that a push with this kind and key made."""

    model_config = ConfigDict(extra="forbid")

    kind: Name
    key: Key


def database(request: Request) -> Database:
    """The application's database."""
    found: Database = request.app.state.database
    return found


# -- push ------------------------------------------------------------------------------------------------------


@router.post(
    "",
    status_code=201,
    response_model=PushedJob,
    responses={200: {"model": PushedJob, "description": "The key exists: the same id"}, **problems("queue_busy")},
)
async def push_one(request: Request, job: JobToPush) -> Response:
    """Push a job. Safe to send again where it has a key: then the id is that of the first."""
    limit = request.app.state.settings.max_in_flight
    (answer,) = await database(request).run(push_many([job.checked()], max_in_flight=limit))
    headers = {"Location": f"{router.prefix}/{answer.id}"}
    return Json(pushed(answer), 201 if answer.created else 200, headers)


@router.post(
    "/batch",
    status_code=201,
    response_model=PushedBatch,
    responses={200: {"model": PushedBatch, "description": "All keys exist"}, **problems("queue_busy")},
)
async def push_batch(request: Request, batch: Batch) -> Response:
    """Push up to 1,000 jobs, all or none; answers in their order."""
    limit = request.app.state.settings.max_in_flight
    answers = await database(request).run(push_many([job.checked() for job in batch.jobs], max_in_flight=limit))
    content = {"jobs": [pushed(answer) for answer in answers]}
    return Json(content, 201 if any(answer.created for answer in answers) else 200)


# -- look ------------------------------------------------------------------------------------------------------


@router.get("", response_model=Page)
async def list_newest(request: Request, filters: Annotated[Filters, Query()]) -> Response:
    """Jobs, newest first; with the status `failed` the last failure first. `next` of a page is the `cursor` of the one
    after it."""
    most = request.app.state.settings.max_page
    limit = min(USUAL_PAGE, most) if filters.limit is None else filters.limit
    if limit > most:
        raise Refused("invalid_request", f"limit is {limit}: a page has {most} jobs at most")
    # One more than the page has, to know whether another follows.
    found = await database(request).run(_page(filters, limit + 1))
    jobs = found[:limit]
    following = _cursor(jobs[-1], filters) if found[limit:] else None
    return Json({"jobs": [shown(job) for job in jobs], "next": following})


def _page(filters: Filters, limit: int) -> Operation[list[JobRow]]:
    """The jobs of a page. By id the failed ones would be sorted anew for each page, all of them."""
    given = filters.model_dump(include={"queue", "kind", "key"})
    if filters.status == "failed":
        return failed(**given, before=_ending(filters.cursor), limit=limit)
    return newest(**given, status=filters.status, before=_before(filters.cursor), limit=limit)


def _cursor(last: JobRow, filters: Filters) -> str:
    """Opaque to clients, so that its meaning may change."""
    place = f"before:{last.id}"
    if filters.status == "failed" and last.finished_at is not None:
        place = f"failed:{last.finished_at.isoformat()}/{last.id}"
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _before(cursor: str | None) -> int:
    return MAX_ID if cursor is None else _id(_place(cursor, "before"))


def _ending(cursor: str | None) -> Ending | None:
    if cursor is None:
        return None
    moment, _, number = _place(cursor, "failed").partition("/")
    try:
        return Ending(datetime.fromisoformat(moment).astimezone(UTC), _id(number))
    except (ValueError, OverflowError):  # of a moment that is none, or lies outside the calendar in UTC
        raise _not_ours() from None


def _place(cursor: str, wanted: str) -> str:
    """What stands in a cursor of this sort."""
    with contextlib.suppress(ValueError):  # as are the errors of base64 and UTF-8
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        sort, _, place = decoded.partition(":")
        if sort == wanted:
            return place
    raise _not_ours()


def _id(number: str) -> int:
    if re.fullmatch(r"\d{1,19}", number, re.ASCII) and 0 < int(number) <= MAX_ID:
        return int(number)
    raise _not_ours()


def _not_ours() -> Refused:
    return Refused("invalid_request", "cursor is not one that this list gave out: start without it")


@router.get("/{job_id:job}", response_model=ShownJob, responses=problems("job_not_found"))
async def get_one(request: Request, job_id: JobId) -> Response:
    """One job."""
    return Json(shown(await database(request).run(get(job_id))))


# -- change ----------------------------------------------------------------------------------------------------


@router.post("/{job_id:job}/retry", response_model=ShownJob, responses=problems("job_not_found", "wrong_status"))
async def retry_one(request: Request, job_id: JobId) -> Response:
    """Give a failed or cancelled job fresh attempts, due now. Not held back by the bound of pushes."""
    changed, job = await database(request).run(_then_get(retry(job_id), job_id))
    if not changed:
        raise Refused("wrong_status", f"job {job_id} is {job.status}: only failed and cancelled jobs can be retried")
    return Json(shown(job))


@router.post("/{job_id:job}/cancel", response_model=ShownJob, responses=problems("job_not_found", "wrong_status"))
async def cancel_one(request: Request, job_id: JobId) -> Response:
    """Cancel a job that has not ended; a running attempt learns of it at its next heartbeat. Safe to repeat."""
    return _cancelled(*await database(request).run(_then_get(cancel(job_id), job_id)))


@router.delete("", response_model=ShownJob, responses=problems("job_not_found", "wrong_status"))
async def cancel_by_key(request: Request, target: Annotated[ByKey, Query()]) -> Response:
    """Cancel the job with this kind and key. Its row stays, and with it the key, until its time to live is over."""
    return _cancelled(*await database(request).run(_by_key(target)))


def _then_get(operation: Operation[bool], job_id: int) -> Operation[tuple[bool, JobRow]]:
    """What the operation says, and the job afterwards, in one transaction."""
    changed = yield from operation
    return changed, (yield from get(job_id))


def _by_key(target: ByKey) -> Operation[tuple[bool, JobRow]]:
    changed = yield from cancel_key(target.kind, target.key)
    jobs = yield from list_jobs(kind=target.kind, key=target.key, limit=1)
    if not jobs:
        raise JobNotFound("the job was deleted meanwhile")
    return changed, jobs[0]


def _cancelled(changed: bool, job: JobRow) -> Response:
    if not changed and job.status != "cancelled":
        raise Refused("wrong_status", f"job {job.id} is {job.status} already: it cannot be cancelled any more")
    return Json(shown(job))
