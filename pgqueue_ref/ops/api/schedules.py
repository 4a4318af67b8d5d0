"""The endpoints of schedules: list, add or change, pause, resume, run now, remove."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from pgqueue_ref.core import Operation
from pgqueue_ref.core.jobs import MAX_NAME, MAX_SECONDS
from pgqueue_ref.extensions import schedules as ext
from pgqueue_ref.extensions.schedules import Schedule, State

from . import paths  # noqa: F401 - registers the convertors
from .jobs import database
from .openapi import problems
from .shapes import MAX_INT, Json, Moment, Name, PushedJob, Utf8Route, pushed

router = APIRouter(prefix="/api/v1/queue/schedules", tags=["schedules"], route_class=Utf8Route)
ScheduleName = Annotated[str, Path(min_length=1, max_length=MAX_NAME)]
PAGE = 100
UNKNOWN = problems("schedule_not_found")


class Pages(BaseModel):
    """Which page of the list."""

    model_config = ConfigDict(extra="forbid")

    after: Name | None = Field(None, description="`next` of the page before")
    limit: int = Field(PAGE, ge=1, le=PAGE)


class ScheduleToAdd(BaseModel):
    """What is pushed, and when: by one of `cron`, `every` and `at`, which beside `every` is the first firing."""

    model_config = ConfigDict(
        extra="forbid", strict=True,
        json_schema_extra={"examples": [{"kind": "hello", "cron": "0 3 * * MON-FRI", "timezone": "Europe/Berlin"}]},
    )  # fmt: skip

    kind: Name
    payload: Any = Field(None, description="What the handler is given: any JSON, at most 200 deep")
    cron: Name | None = Field(None, description="Minute, hour, day of month, month, weekday")
    timezone: Name = Field("UTC", description="Of `cron`, such as Europe/Berlin")
    every: float | None = Field(None, ge=1, le=MAX_SECONDS, allow_inf_nan=False, description="Seconds")
    at: Moment = Field(None, description="Once, at this moment")
    max_runs: int | None = Field(None, ge=1, le=MAX_INT, description="Firings in all")
    expires_at: Moment = Field(None, description="None from this moment on")
    queue: Name = "default"
    priority: int = Field(0, ge=-MAX_INT - 1, le=MAX_INT, description="Higher runs first")
    metadata: dict[str, Any] = Field(default_factory=dict)
    max_attempts: int | None = Field(None, ge=1, le=MAX_INT, description="The kind decides unless given")


class ShownSchedule(BaseModel):
    """A schedule as it stands. `next_at` is null when it will not fire again."""

    name: str
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    payload: Any
    metadata: dict[str, Any]
    cron: str | None
    every: float | None
    at: datetime | None
    timezone: str
    next_at: datetime | None
    last_at: datetime | None
    runs: int
    max_runs: int | None
    expires_at: datetime | None
    paused_at: datetime | None
    created_at: datetime
    state: State


class ShownSchedules(BaseModel):
    """Schedules in the order of their names, and the `after` of the next page."""

    schedules: list[ShownSchedule]
    next: str | None


@router.get("", response_model=ShownSchedules)
async def list_schedules(request: Request, pages: Annotated[Pages, Query()]) -> Response:
    """Schedules, by name."""
    found = await database(request).run(ext.list_schedules(after=pages.after or "", limit=pages.limit))
    following = found[-1].name if len(found) == pages.limit else None
    return Json({"schedules": [schedule._asdict() for schedule in found], "next": following})


@router.put(
    "/{name:schedule}",
    status_code=201,
    response_model=ShownSchedule,
    responses={200: {"model": ShownSchedule, "description": "There was one of that name"}},
)
async def put_schedule(request: Request, name: ScheduleName, given: ScheduleToAdd) -> Response:
    """Add a schedule, or make the one of that name what is given. Safe to repeat: its next firing stays as it was,
    unless its times are others, and a paused one stays paused."""
    schedule, created = await database(request).run(ext.add(name, **dict(given)))
    return Json(schedule._asdict(), 201 if created else 200)


@router.get("/{name:schedule}", response_model=ShownSchedule, responses=UNKNOWN)
async def get_schedule(request: Request, name: ScheduleName) -> Response:
    """One schedule."""
    return Json((await database(request).run(ext.get(name)))._asdict())


@router.delete("/{name:schedule}", response_model=ShownSchedule, responses=UNKNOWN)
async def remove_schedule(request: Request, name: ScheduleName) -> Response:
    """Remove a schedule; jobs that it pushed stay. Answers with what it was."""
    return Json((await database(request).run(_removed(name)))._asdict())


@router.post("/{name:queue}/pause", response_model=ShownSchedule, responses=UNKNOWN)
async def pause_schedule(request: Request, name: ScheduleName) -> Response:
    """Fire no more until it is resumed. Safe to repeat."""
    return Json((await database(request).run(_then_get(ext.pause(name), name)))._asdict())


@router.post("/{name:queue}/resume", response_model=ShownSchedule, responses=UNKNOWN)
async def resume_schedule(request: Request, name: ScheduleName) -> Response:
    """Fire again, from the next time on. Safe to repeat."""
    return Json((await database(request).run(_then_get(ext.resume(name), name)))._asdict())


@router.post("/{name:queue}/run", status_code=201, response_model=PushedJob, responses=UNKNOWN)
async def run_schedule(request: Request, name: ScheduleName) -> Response:
    """Push the schedule's job now. Its own firings stay as they are."""
    return Json(pushed(await database(request).run(ext.run_now(name))), 201)


def _then_get(operation: Operation[bool], name: str) -> Operation[Schedule]:
    """The schedule after the operation, in one transaction."""
    yield from operation
    return (yield from ext.get(name))


def _removed(name: str) -> Operation[Schedule]:
    schedule = yield from ext.get(name)
    yield from ext.remove(name)
    return schedule
