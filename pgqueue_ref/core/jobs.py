"""What goes in and comes out: jobs to push, claimed jobs, rows for people. Arguments are checked here, before
any statement is sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, datetime, timedelta
from typing import Any, NamedTuple, TypedDict

from .errors import InvalidJob
from .states import Status

Json = Any  # whatever json.dumps takes: None, bool, int, float, str, list, dict
Seconds = float | timedelta

DEFAULT_MAX_ATTEMPTS = 10
DEFAULT_LEASE = 60.0  # seconds
DEFAULT_TTL = 86_400.0  # seconds a succeeded or cancelled job stays to be looked at
MAX_NAME, MAX_KEY, MAX_ERROR = 255, 1024, 10_000  # bytes; bytes (schema.sql says why); characters
MAX_DEPTH = 200  # of a payload: Python reads about 990, less what is on the stack already
MAX_SECONDS = 3_153_600_000.0  # a hundred years: far from where an interval overflows


def seconds(value: Seconds, name: str) -> float:
    """A duration in seconds, refused when negative, not finite or over a hundred years."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(number, int | float) or not 0 <= number <= MAX_SECONDS:  # NaN fails both comparisons
        raise InvalidJob(f"{name} must be 0 to {MAX_SECONDS:.0f} seconds, not {number!r}")
    return float(number)


def whole(value: int, name: str, least: int = 1, most: int = 2_147_483_647) -> int:
    """A whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidJob(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


def text(value: str, name: str, limit: int = MAX_NAME) -> str:
    """A text of 1 to `limit` bytes of UTF-8 without NUL, which PostgreSQL cannot store."""
    if isinstance(value, str) and 0 < len(value) <= limit and "\0" not in value:
        if value.isascii():
            return value
        try:
            if len(value.encode()) <= limit:
                return value
        except UnicodeEncodeError:
            pass
    raise InvalidJob(f"{name} must be a text of 1 to {limit} bytes of UTF-8 without NUL, not {ellipsis(value)}")


def ellipsis(value: object) -> str:
    """A value for a message, cut to one short line."""
    if isinstance(value, str | bytes) and len(value) > 40:
        return f"{value[:20]!r}... ({len(value)} long)"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def depth(value: Json) -> int:
    """How deep lists and dicts are nested."""
    deepest, todo = 0, [(value, 0)]
    while todo:
        item, level = todo.pop()
        if isinstance(item, dict | list | tuple):
            deepest = max(deepest, level + 1)
            todo += [(inner, level + 1) for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(value: Json, name: str) -> str:
    """JSON text that jsonb takes: no NaN, no NUL, no lone surrogate."""
    try:
        encoded = _encode(value)
        if not encoded.isascii():
            encoded.encode()
        deep = encoded.count("[") + encoded.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH
    except Exception as error:  # a value's own methods may raise anything
        words = str(error).splitlines() or [type(error).__name__]
        raise InvalidJob(f"{name} is not JSON: {words[0][:200]}") from error
    if deep:
        raise InvalidJob(
            f"{name} is nested more than {MAX_DEPTH} deep, which a worker may not be able to read; flatten it"
        )
    # A backslash that is itself escaped may stand before u0000 quite legally.
    if "\\u0000" in encoded and "\\u0000" in encoded.replace("\\\\", ""):
        raise InvalidJob(f"{name} holds NUL (\\u0000), which PostgreSQL cannot store; remove or encode it")
    return encoded


def moment(value: datetime | None, name: str) -> datetime | None:
    """A moment with a time zone; a naive one would mean something else on each machine. Not in Python's first and last
    year: a session's time zone may move it out of what Python can read, and the claim would break on it."""
    if value is not None and (not isinstance(value, datetime) or value.utcoffset() is None):
        raise InvalidJob(f"{name} must be a datetime with a time zone, not {ellipsis(value)}")
    if value is not None and not MINYEAR < value.year < MAXYEAR:
        raise InvalidJob(f"{name} must lie in the years {MINYEAR + 1} to {MAXYEAR - 1}, not in {value.year}")
    return value


class PushOptions(TypedDict, total=False):
    """The optional fields of `NewJob`, for `push`."""

    queue: str
    key: str | None
    priority: int
    delay: Seconds
    run_at: datetime | None
    expires_at: datetime | None
    metadata: dict[str, Json] | None
    max_attempts: int | None


@dataclass(slots=True)
class NewJob:
    """A job to push, checked when it is made (`InvalidJob`).

    `key` makes the push idempotent per kind. `delay` (seconds or timedelta) counts from the database's clock;
    `run_at` names the moment instead. Not started by `expires_at`: never run. `max_attempts` None: the kind decides.
    """

    kind: str
    payload: Json = None
    queue: str = "default"
    key: str | None = None
    priority: int = 0
    delay: Seconds = 0.0
    run_at: datetime | None = None
    expires_at: datetime | None = None
    metadata: dict[str, Json] | None = None
    max_attempts: int | None = None
    encoded: str = field(init=False, repr=False, default="null")
    encoded_metadata: str = field(init=False, repr=False, default="{}")

    def __post_init__(self) -> None:
        text(self.kind, "kind")
        text(self.queue, "queue")
        if self.key is not None:
            text(self.key, "key", MAX_KEY)
        if self.priority != 0:
            whole(self.priority, "priority", -2_147_483_648)
        if self.delay != 0.0:
            self.delay = seconds(self.delay, "delay")
            if self.run_at is not None:
                raise InvalidJob("give delay or run_at, not both")
        moment(self.run_at, "run_at")
        moment(self.expires_at, "expires_at")
        if self.max_attempts is not None:
            whole(self.max_attempts, "max_attempts")
        if self.metadata is not None:
            if not isinstance(self.metadata, dict):
                raise InvalidJob(f"metadata must be a dict, not {ellipsis(self.metadata)}")
            self.encoded_metadata = encode(self.metadata, "metadata")
        self.encoded = encode(self.payload, "payload")


class Pushed(NamedTuple):
    """The id of a pushed job, and whether this push made it (False: its key already existed)."""

    id: int
    created: bool


class Position(NamedTuple):
    """A place in a kind's claim order; see `operations.claim`."""

    priority: int
    run_at: datetime
    id: int


@dataclass(slots=True)
class Want:
    """Up to `slots` jobs of one kind in one queue; `after` starts the look behind a position (a hint, see `claim`)."""

    kind: str
    slots: int
    queue: str = "default"
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    after: Position | None = None

    def __post_init__(self) -> None:
        text(self.kind, "kind")
        text(self.queue, "queue")
        whole(self.slots, "slots", most=100_000)
        whole(self.max_attempts, "max_attempts")


class Job(NamedTuple):
    """A claimed job: one attempt, held under `lease_token` until its lease runs out."""

    id: int
    queue: str
    kind: str
    external_key: str | None
    priority: int
    attempt: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    lease_token: int
    payload: Json
    metadata: dict[str, Json]


class JobRow(NamedTuple):
    """A job as it stands, every column; what `get` and `list_jobs` return."""

    id: int
    queue: str
    kind: str
    external_key: str | None
    priority: int
    status: Status
    attempt: int
    max_attempts: int | None
    run_at: datetime
    expires_at: datetime | None
    lease_token: int
    lease_expires_at: datetime | None
    worker: str | None
    errors: list[str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    delete_after: datetime | None
    payload: Json
    metadata: dict[str, Json]


class Rescued(NamedTuple):
    """Ids that went back to pending, ids that ended failed, ids whose rows refused the change (see `rescue`)."""

    retried: list[int]
    failed: list[int]
    refused: list[int]


class Chores(NamedTuple):
    """Which maintenance has something to do."""

    rescue: bool
    expire: bool
    cleanup: bool


class Stat(NamedTuple):
    """How many jobs a queue holds of a kind in a status; `due` of them could start now, the oldest since `oldest`."""

    queue: str
    kind: str
    status: Status
    jobs: int
    due: int
    oldest: datetime
