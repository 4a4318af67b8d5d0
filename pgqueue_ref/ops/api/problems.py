"""Every error a client can meet, as a problem document (RFC 9457) with a stable `code`.

Whatever raises, below the routes or in the framework, ends in `problem()`. What the client is told comes from the table
here, or from the queue where it judged the client's own words; what the database said goes to the log alone.
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pgqueue_ref.core import (
    ConnectionLimit,
    DatabaseUnavailable,
    InvalidJob,
    JobNotFound,
    LockTimeout,
    QueueBusy,
    QueueError,
    SchemaMissing,
    StatementTimeout,
)
from pgqueue_ref.extensions.schedules import ScheduleNotFound

log = logging.getLogger("pgqueue_ref.api")

MEDIA_TYPE: Final = "application/problem+json"
DOCS: Final = "/docs"
MAX_MESSAGES = 20  # of one refused request


class Kind(NamedTuple):
    """A kind of error: its HTTP status, its title, and what to do about it where nothing better is known."""

    status: int
    title: str
    advice: str


PROBLEMS: Final[dict[str, Kind]] = {
    "invalid_request": Kind(422, "The request is not valid", "correct what `errors` names"),
    "invalid_job": Kind(422, "The queue refuses a value", "correct the value"),
    "body_too_large": Kind(413, "The body is too large", "push fewer jobs at once, or a reference to what is large"),
    "unauthorized": Kind(401, "A token is needed", "send `Authorization: Bearer SECRET` with a token of this server"),
    "read_only_token": Kind(403, "The token may only read", "use a token with the scope write"),
    "foreign_host": Kind(403, "Not the address of this server",
                         "without tokens only localhost is answered: set PGQUEUE_API_TOKEN to serve other names"),
    "foreign_origin": Kind(403, "Another site sent this",
                           "without tokens only this server's own pages are answered: set PGQUEUE_API_TOKEN"),
    "not_found": Kind(404, "There is nothing at this path", "see /docs for the paths"),
    "method_not_allowed": Kind(405, "The path does not know this method", "the header Allow names those it knows"),
    "job_not_found": Kind(404, "No such job", "it may have been deleted after its time to live"),
    "schedule_not_found": Kind(404, "No such schedule", "list the schedules for their names"),
    "no_result": Kind(409, "The job has no result", "ask again when it has succeeded; its kind must keep results"),
    "wrong_status": Kind(409, "The job's status does not allow it", "look at the job's status"),
    "queue_busy": Kind(429, "The queue is full", "wait as long as Retry-After says, then try again"),
    "schema_missing": Kind(503, "The queue's tables are missing or out of date", "run `pgqueue-ref migrate`"),
    "server_full": Kind(503, "The database has no free connection", "try again; fewer clients or more max_connections"),
    "pool_empty": Kind(503, "The API has no free connection", "try again; PGQUEUE_API_POOL_SIZE may be too small"),
    "database_unavailable": Kind(503, "The database cannot be reached", "try again; whether a change was made is not"
                                 " known, so push with a key"),
    "statement_timeout": Kind(504, "The database took too long", "nothing was changed; try again later"),
    "lock_timeout": Kind(504, "A lock was not granted in time", "nothing was changed; try again"),
    "internal_error": Kind(500, "The server failed", "its log says more"),
}  # fmt: skip

# The first that fits; `server_full` is told from `pool_empty` by the cause.
BY_ERROR: Final[tuple[tuple[type[QueueError], str], ...]] = (
    (InvalidJob, "invalid_job"),
    (JobNotFound, "job_not_found"),
    (ScheduleNotFound, "schedule_not_found"),
    (QueueBusy, "queue_busy"),
    (SchemaMissing, "schema_missing"),
    (ConnectionLimit, "server_full"),
    (DatabaseUnavailable, "database_unavailable"),
    (StatementTimeout, "statement_timeout"),
    (LockTimeout, "lock_timeout"),
)
# Seconds after which to try again where that may help: HTTP clients that retry by themselves wait for the header.
RETRY_AFTER: Final = {"server_full": 1, "pool_empty": 1, "database_unavailable": 5}
BY_STATUS: Final = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Finding(BaseModel):
    """One thing that is wrong with a request."""

    at: str = Field(description="Where: `body.kind`, `query.limit`")
    message: str


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `title` and `detail` are for people."""

    type: str = Field(description="A reference to the description of the code")
    title: str
    status: int
    detail: str
    code: str
    errors: list[Finding] | None = None


class Refused(Exception):  # noqa: N818 - like the core's
    """A request that the API itself refuses."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def problem(
    code: str, detail: str = "", *, headers: dict[str, str] | None = None, errors: list[dict[str, str]] | None = None
) -> Response:
    """The response for a code of the table."""
    kind = PROBLEMS[code]
    document: dict[str, Any] = {
        "type": f"{DOCS}#{code}", "title": kind.title, "status": kind.status, "detail": detail or kind.advice,
        "code": code,
    }  # fmt: skip
    if errors:
        document["errors"] = errors
    # ASCII: what a client sent and a message quotes may hold what UTF-8 cannot encode.
    return Response(json.dumps(document), kind.status, headers, MEDIA_TYPE)


def handle_errors(app: FastAPI, routes: Sequence[Route]) -> None:
    """Answer every exception with a problem document. What is not named here ends in `gate` as `internal_error`."""
    app.state.routes = routes
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(QueueError, _of_queue)
    app.add_exception_handler(Refused, _refused)


async def _invalid(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    errors = [
        # The place may hold names from the request, so it is cut; its values are not repeated at all.
        {"at": ".".join(str(part)[:60] for part in item["loc"])[:200], "message": str(item["msg"])[:300]}
        for item in found[:MAX_MESSAGES]
    ]
    typed = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    in_body = any(item["loc"][:1] == ("body",) for item in found)
    hint = "send the body with `Content-Type: application/json`" if in_body and typed != "application/json" else ""
    return problem("invalid_request", hint, errors=errors)


async def _of_framework(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 413:
        return too_large(request.app.state.settings.max_body)
    headers = getattr(error, "headers", None)
    if status == 405:
        headers = {"Allow": _allowed(request)}
    # 400 is how FastAPI says that it could not read the JSON: nested too deep, not UTF-8, a number of 5,000 digits.
    detail = "the body is not JSON that can be read" if status == 400 else ""
    return problem(BY_STATUS.get(status, "internal_error"), detail, headers=headers)


def _allowed(request: Request) -> str:
    """The path's methods; those in Starlette's own header are of one of its routes."""
    matching = [route for route in request.app.state.routes if route.path_regex.match(request.url.path)]
    allowed = {method for route in matching for method in route.methods or ()}
    return ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))


async def _refused(request: Request, error: Exception) -> Response:
    return problem(error.code, error.detail) if isinstance(error, Refused) else internal(error)


async def _of_queue(request: Request, error: Exception) -> Response:
    code = next((code for kind, code in BY_ERROR if isinstance(error, kind)), "internal_error")
    if code == "server_full" and isinstance(error.__cause__, PoolTimeoutError):
        code = "pool_empty"
    if PROBLEMS[code].status >= 500:
        log.error("%s: %.300s", code, " ".join(str(error).split()))
    headers = {}
    if isinstance(error, QueueBusy):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif code in RETRY_AFTER:
        headers["Retry-After"] = str(RETRY_AFTER[code])
    own_words = PROBLEMS[code].status < 500 and not isinstance(error.__cause__, psycopg.Error)
    return problem(code, str(error) if own_words else "", headers=headers)


def too_large(most: int) -> Response:
    """The answer to a body of more than `most` bytes."""
    return problem("body_too_large", f"a body has {most:,} bytes at most: {PROBLEMS['body_too_large'].advice}")


def internal(error: BaseException) -> Response:
    """The answer to a fault of ours; the log gets one line with the place, never a value or a traceback."""
    place = next(iter(traceback.extract_tb(error.__traceback__)[-1:]), None)
    where = f"{place.filename}:{place.lineno}" if place else "unknown place"
    log.error("internal_error: %s at %s", type(error).__name__, where)
    return problem("internal_error")
