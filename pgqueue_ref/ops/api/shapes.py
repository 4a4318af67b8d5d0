"""The JSON that goes in and out: models that check requests and describe both to OpenAPI."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pgqueue_ref.core import JobRow, NewJob, Pushed, Status
from pgqueue_ref.core.jobs import MAX_KEY, MAX_NAME, MAX_SECONDS
from pgqueue_ref.extensions.events import Type

MAX_BATCH: Final = 1000
MAX_INT: Final = 2_147_483_647
MAX_ID: Final = 2**63 - 1
RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _moment(value: object) -> datetime | None:
    """A moment with a time zone. The first and last year are refused: in the server's own zone such a moment may lie
    outside Python's calendar, and could be written but never read."""
    if value is None:
        return None
    if isinstance(value, str) and RFC_3339.fullmatch(value):
        given = datetime.fromisoformat(value.upper())
        if 1 < given.year < 9999:
            return given
    raise ValueError("write a moment like 2026-11-24T18:20:00Z, with a time zone")


def json_text(content: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8, moments in UTC."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(type(value).__name__)


class Json(Response):
    """A response of JSON. Pydantic's own encoder gives up on payloads nested as deep as the queue allows."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_text(content)


class Utf8Request(Request):
    """A request whose JSON is UTF-8, as RFC 8259 wants it. From bytes json.loads takes UTF-16 as well, and in UTF-8
    surrogates.
    """

    async def json(self) -> Any:
        """The body, decoded."""
        return json.loads((await self.body()).decode())


class Utf8Route(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, as FastAPI asks for it."""
        handler = super().get_route_handler()

        async def utf8(request: Request) -> Response:
            return await handler(Utf8Request(request.scope, request.receive))

        return utf8


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, description="1 to 255 bytes of UTF-8, without NUL")]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY, description="1 to 1,024 bytes of UTF-8, without NUL")]
Moment = Annotated[
    datetime | None,
    BeforeValidator(_moment),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}),
]


class JobToPush(BaseModel):
    """A job to push. Its `key` makes that idempotent per kind; `delay` or `run_at`, not both."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"kind": "hello", "payload": {"name": "you"}}]}
    )

    kind: Name
    payload: Any = Field(None, description="What the handler is given: any JSON, at most 200 deep")
    queue: Name = "default"
    key: Key | None = None
    priority: int = Field(0, ge=-MAX_INT - 1, le=MAX_INT, description="Higher runs first")
    delay: float = Field(0.0, ge=0, le=MAX_SECONDS, allow_inf_nan=False, description="Seconds before it may start")
    run_at: Moment = Field(None, description="Not before this moment")
    expires_at: Moment = Field(None, description="Not started by then: never run")
    metadata: dict[str, Any] = Field(default_factory=dict)
    max_attempts: int | None = Field(None, ge=1, le=MAX_INT, description="The kind decides unless given")

    def checked(self) -> NewJob:
        """The queue's own view of it; raises `InvalidJob`."""
        return NewJob(**dict(self))


class Batch(BaseModel):
    """Jobs that are pushed together, all or none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    jobs: list[JobToPush] = Field(min_length=1, max_length=MAX_BATCH)


class PushedJob(BaseModel):
    """The id of a pushed job, and whether this push made it: false when its key existed."""

    id: int
    created: bool


class PushedBatch(BaseModel):
    """The answers in the order of the request."""

    jobs: list[PushedJob]


class ShownJob(BaseModel):
    """A job as it stands. `errors` has the newest messages, oldest first."""

    id: int
    queue: str
    kind: str
    key: str | None
    priority: int
    status: Status
    attempt: int
    max_attempts: int | None
    payload: Any
    metadata: dict[str, Any]
    errors: list[str]
    worker: str | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    lease_expires_at: datetime | None


class ShownEvent(BaseModel):
    """Something that happened to a job; see docs/extensions/events.md."""

    id: int
    at: datetime
    job_id: int
    attempt: int
    type: Type
    status: Status
    queue: str
    kind: str
    worker: str | None
    actor: str
    message: str | None
    traceback: str | None


class ShownEvents(BaseModel):
    """Events of a job, oldest first; `next` goes on after them."""

    events: list[ShownEvent]
    next: int | None


class ShownResult(BaseModel):
    """What the handler of a job returned, and how many seconds it took."""

    job_id: int
    value: Any
    duration: float | None
    attempt: int
    queue: str
    kind: str
    worker: str | None
    stored_at: datetime
    delete_after: datetime | None


class ShownMoment(BaseModel):
    """Something that happened to a job, or will happen then, in words for people."""

    at: datetime
    event: str
    detail: str


class ShownTraceback(BaseModel):
    """Where an attempt failed."""

    attempt: int
    text: str


class ShownParent(BaseModel):
    """A job that another waits for; of one whose row is gone nothing but the id is known."""

    id: int
    kind: str | None
    key: str | None
    status: str | None


class ShownHistory(BaseModel):
    """A job with all that is known of it; null or empty is what never was, or whose extension is not installed."""

    job: ShownJob
    timeline: list[ShownMoment] = Field(description="Oldest first; the newest 200 events and what is to come")
    traceback: ShownTraceback | None = Field(description="Of the newest attempt that left one")
    result: ShownResult | None
    waits_for: list[ShownParent] = Field(description="What a blocked job waits for: ten of these jobs at most")


class Page(BaseModel):
    """Jobs, and the cursor of the next page."""

    jobs: list[ShownJob]
    next: str | None


class PausedQueue(BaseModel):
    """A queue, whether it is paused now, and whether this request changed that."""

    queue: str
    paused: bool
    changed: bool


class ShownRow(BaseModel):
    """The jobs of one queue, kind and status; `estimated`: not counted, but told from a sample."""

    queue: str
    kind: str
    status: Status
    jobs: int
    oldest: datetime | None
    estimated: bool


class ShownFlow(BaseModel):
    """How one kind moves through one queue."""

    queue: str
    kind: str
    due: int
    oldest_due_seconds: float | None
    oldest_running_seconds: float | None
    finished_last_hour: int
    average_seconds: float | None
    p95_seconds: float | None


class ShownOverview(BaseModel):
    """What is in the queues and how it flows; `estimated`: some rows and the last hour come from a sample."""

    at: datetime
    estimated: bool
    paused: list[str]
    rows: list[ShownRow]
    flows: list[ShownFlow]


class State(BaseModel):
    """How the server is."""

    status: str


def shown(job: JobRow) -> dict[str, Any]:
    """A job as `ShownJob` describes it."""
    row = job._asdict() | {"key": job.external_key}
    return {name: row[name] for name in ShownJob.model_fields}


def pushed(answer: Pushed) -> dict[str, Any]:
    """What `PushedJob` describes."""
    return answer._asdict()
