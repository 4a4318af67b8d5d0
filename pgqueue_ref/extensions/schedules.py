"""Schedules: jobs that the clock pushes, at the times of a cron expression, at intervals, or at one moment.

    run(connection, schedules.add("nightly", "report", cron="0 3 * * *", timezone="Europe/Berlin"))

Workers fire them as they do their other maintenance, without a leader. The promises:

- one job for each firing, however many workers there are: the row is locked, its job pushed and its next firing set in
  one statement, and the job's key names schedule and instant, `schedule:nightly:2027-03-28T01:00:00Z`;
- the database's now() is the only clock;
- what was missed while nothing ran is made up once, for the first instant that was missed; then follows the first one
  to come. What falls into a pause is dropped;
- cron keeps to the wall clock of its time zone. When clocks go back, a fixed hour fires once, and `*` as minute or hour
  all through both hours. When they go forward, what the missing hour would have fired fires at its end, once;
- a schedule that cannot be fired (its time zone is unknown here, a trigger refuses its job) holds up no other.

cronsim reads cron expressions, and follows Debian's cron (docs/adr/0006): install `pgqueue-ref[schedules]`. The others
need nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final, NamedTuple
from typing import Literal as OneOf
from zoneinfo import ZoneInfo

from pgqueue_ref.core import (
    ATOMIC,
    InvalidJob,
    Json,
    NewJob,
    Operation,
    Pushed,
    QueueError,
    Seconds,
    Statement,
    seconds,
)
from pgqueue_ref.core.jobs import ellipsis, moment, text, whole
from pgqueue_ref.core.operations import _intact, _loads

from .extension import Chore, Extension

NO_CRONSIM: Final = "cron schedules need cronsim: install pgqueue-ref[schedules]"
SCHEMA_SQL: Final = """
CREATE TABLE IF NOT EXISTS pgqueue_schedules (
    name         text        PRIMARY KEY,
    kind         text        NOT NULL,
    queue        text        NOT NULL DEFAULT 'default',
    priority     integer     NOT NULL DEFAULT 0,
    max_attempts integer,                               -- NULL: the kind decides
    payload      jsonb       NOT NULL DEFAULT 'null',
    metadata     jsonb       NOT NULL DEFAULT '{}',
    cron         text,                                  -- one of these three; `at` beside `every` is its first firing
    every        double precision,                      -- seconds
    at           timestamptz,
    timezone     text        NOT NULL DEFAULT 'UTC',    -- of `cron`
    next_at      timestamptz,                           -- the next firing; NULL: there is none
    last_at      timestamptz,                           -- the instant that fired last
    runs         integer     NOT NULL DEFAULT 0,        -- firings so far
    max_runs     integer,
    expires_at   timestamptz,                           -- from then on it does not fire
    paused_at    timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pgqueue_schedules_names CHECK (
        octet_length(name) BETWEEN 1 AND 255 AND octet_length(kind) BETWEEN 1 AND 255
        AND octet_length(queue) BETWEEN 1 AND 255),
    CONSTRAINT pgqueue_schedules_times CHECK (
        CASE WHEN cron IS NULL THEN num_nonnulls(every, at) > 0 ELSE num_nonnulls(every, at) = 0 END),
    CONSTRAINT pgqueue_schedules_bounds CHECK (every >= 1 AND max_runs >= 1 AND max_attempts >= 1)
);
-- What is due, and when the next one is.
CREATE INDEX IF NOT EXISTS pgqueue_schedules_due ON pgqueue_schedules (next_at, name)
    WHERE next_at IS NOT NULL AND paused_at IS NULL;
"""

_COLUMNS = """name, kind, queue, priority, max_attempts, payload::text, metadata::text, cron, every, at, timezone,
       next_at, last_at, runs, max_runs, expires_at, paused_at, created_at,
       CASE WHEN next_at IS NULL OR expires_at <= now() THEN 'finished'
            WHEN paused_at IS NOT NULL THEN 'paused' ELSE 'active' END"""

# A firing's job. Its key names the instant, so that a schedule that was removed and added again cannot fire it twice.
_INSTANT = """replace(to_char({at} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000', '')"""
_KEY = f"'schedule:' || name || ':' || {_INSTANT}"
_PUSH = f"""
    INSERT INTO pgqueue_jobs (queue, kind, external_key, priority, payload, metadata, max_attempts, run_at, created_at)
    SELECT queue, kind, {_KEY}, priority, payload,
           metadata || jsonb_build_object('schedule', name, 'scheduled_at', {_INSTANT}), max_attempts, now(), now()
    FROM pgqueue_schedules"""
_ONCE = "ON CONFLICT (kind, external_key) WHERE external_key IS NOT NULL DO NOTHING"

# What is due, the longest due first, from behind the last of the batch before; pgqueue_schedules_due serves it. Locks
# nothing: `xmin` is the row's version, and FIRE goes by that.
DUE = f"""
SELECT now(), xmin::text, {_COLUMNS} FROM pgqueue_schedules
WHERE next_at <= now() AND paused_at IS NULL AND (expires_at IS NULL OR expires_at > now())
  AND (next_at, name) > (%(after)s, %(name)s)
ORDER BY next_at, name LIMIT %(limit)s
"""

# Fires those of a batch that are still as they were read and that nobody else is firing: each version is compared under
# its row's lock. Locks schedules in the order of names, skipping locked ones, and pushes in the order of keys (a push
# waits only for somebody who pushes the very same key). Sent again after a lost answer it finds other versions and does
# nothing. One statement, though push_many and an UPDATE in a transaction would do as well: so a batch that the server
# refuses can be halved, as `rescue` does, and no payload travels.
FIRE = f"""
WITH seen AS (
    SELECT * FROM unnest(%(names)s::text[], %(versions)s::text[], %(next)s::timestamptz[]) AS seen (name, version, next)
), due AS MATERIALIZED (
    SELECT schedule.name, schedule.next_at AS instant, seen.next
    FROM pgqueue_schedules AS schedule JOIN seen ON seen.name = schedule.name
    WHERE schedule.xmin::text = seen.version AND schedule.next_at <= now() AND schedule.paused_at IS NULL
    ORDER BY schedule.name FOR UPDATE OF schedule SKIP LOCKED
), pushed AS (
    {_PUSH.format(at="next_at")} WHERE name = ANY (ARRAY(SELECT name FROM due)) ORDER BY kind, 3
    {_ONCE} RETURNING id, kind, external_key
)
UPDATE pgqueue_schedules AS schedule SET next_at = due.next, last_at = due.instant, runs = runs + 1
FROM due WHERE schedule.name = due.name
RETURNING schedule.name, due.instant
"""

# A job for this very moment, or the one that somebody else asked for at the same. The schedule's row stays as it is.
RUN_NOW = f"""
WITH pushed AS ({_PUSH.format(at="now()")} WHERE name = %(name)s {_ONCE} RETURNING id)
SELECT id, true FROM pushed
UNION ALL
SELECT job.id, false FROM pgqueue_schedules AS schedule JOIN pgqueue_jobs AS job
    ON job.kind = schedule.kind AND job.external_key = {_KEY.format(at="now()")}
WHERE name = %(name)s AND NOT EXISTS (SELECT FROM pushed)
"""

# When the next firing is: the head of what lies ahead in pgqueue_schedules_due, past what will have expired.
NEXT = """
SELECT extract(epoch FROM min(next_at) - now())::float8 FROM pgqueue_schedules
WHERE next_at > now() AND paused_at IS NULL AND (expires_at IS NULL OR expires_at > next_at)
"""

# Asked only where cronsim is missing.
CRON = "SELECT name FROM pgqueue_schedules WHERE cron IS NOT NULL AND next_at IS NOT NULL ORDER BY name LIMIT 100"

NOW = "SELECT now()"
GET = f"SELECT {_COLUMNS} FROM pgqueue_schedules WHERE name = %(name)s"
LIST = f"SELECT {_COLUMNS} FROM pgqueue_schedules WHERE name > %(after)s ORDER BY name LIMIT %(limit)s"

# Waits for a firing or another change under way, and reads what came of it.
LOCK = f"SELECT now(), {_COLUMNS} FROM pgqueue_schedules WHERE name = %(name)s FOR UPDATE"

# Of two who add the same name the second waits, inserts nothing, and goes on with LOCK.
ADD = f"""
INSERT INTO pgqueue_schedules (name, kind, queue, priority, max_attempts, payload, metadata, cron, every, at, timezone,
                               max_runs, expires_at, next_at)
VALUES (%(name)s, %(kind)s, %(queue)s, %(priority)s, %(max_attempts)s, %(payload)s, %(metadata)s, %(cron)s, %(every)s,
        %(at)s, %(timezone)s, %(max_runs)s, %(expires_at)s, %(next_at)s)
ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}
"""

CHANGE = f"""
UPDATE pgqueue_schedules
SET kind = %(kind)s, queue = %(queue)s, priority = %(priority)s, max_attempts = %(max_attempts)s, payload = %(payload)s,
    metadata = %(metadata)s, cron = %(cron)s, every = %(every)s, at = %(at)s, timezone = %(timezone)s,
    max_runs = %(max_runs)s, expires_at = %(expires_at)s, next_at = %(next_at)s
WHERE name = %(name)s RETURNING {_COLUMNS}
"""

PAUSE = """
WITH target AS (SELECT FROM pgqueue_schedules WHERE name = %(name)s),
changed AS (UPDATE pgqueue_schedules SET paused_at = now() WHERE name = %(name)s AND paused_at IS NULL RETURNING name)
SELECT EXISTS (SELECT FROM target), EXISTS (SELECT FROM changed)
"""
RESUME = "UPDATE pgqueue_schedules SET paused_at = NULL, next_at = %(next_at)s WHERE name = %(name)s RETURNING name"
REMOVE = "DELETE FROM pgqueue_schedules WHERE name = %(name)s RETURNING name"

# -- when ------------------------------------------------------------------------------------------------------


class Timing(NamedTuple):
    """When a schedule fires: by `cron` in `timezone`, `every` so many seconds (first `at`), or once `at` a moment.

    All moments are in UTC: within any other zone Python calculates with the wall clock, which jumps.
    """

    cron: str | None
    every: float | None
    at: datetime | None
    timezone: str

    def first(self, now: datetime) -> datetime | None:
        """The first firing of a schedule that is added now. One moment that has passed fires at once."""
        return self.at if self.every is None and self.cron is None else self.following(self.at, now)

    def following(self, last: datetime | None, now: datetime) -> datetime | None:
        """The first firing after now, given the last one, or one that is still to come. Intervals are counted from it:
        a late firing shifts none after it."""
        if self.cron is not None:
            return cron_after(self.cron, self.timezone, now)
        if self.every is None:
            return last if last is not None and last > now else None
        step = timedelta(seconds=self.every)
        if last is None:
            return now + step
        return last if last > now else last + step * ((now - last) // step + 1)


def _cronsim() -> ModuleType | None:
    """cronsim, where it is installed: only cron schedules need it."""
    try:
        import cronsim
    except ImportError:
        return None
    return cronsim


def cron_after(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first match after `after`, in UTC; None if there is none in fifty years. Raises `InvalidJob`."""
    cronsim = _cronsim()
    if cronsim is None:
        raise InvalidJob(NO_CRONSIM)
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise InvalidJob(
            f"time zone {ellipsis(timezone)} is not known here: write one like Europe/Berlin, and install tzdata if"
            " the machine has no time zones of its own"
        ) from None
    try:
        if len(cron.split()) != 5:
            raise cronsim.CronSimError("five fields are needed")
        matches: Iterator[datetime] = cronsim.CronSim(cron, after.astimezone(zone))
        for wall in matches:
            # In the second of the two hours when clocks go back, cronsim takes fixed hours for those of the first.
            if (found := wall.astimezone(UTC)) > after:
                return found
    except cronsim.CronSimError as error:
        raise InvalidJob(
            f"cron expression {ellipsis(cron)} is not understood ({error}): minute hour day month weekday, such as"
            " '0 3 * * MON'"
        ) from None
    return None


def _within(next_at: datetime | None, runs: int, max_runs: int | None, expires_at: datetime | None) -> datetime | None:
    """The next firing, unless the schedule has ended by then."""
    spent = max_runs is not None and runs >= max_runs
    return None if next_at is None or spent or (expires_at is not None and next_at >= expires_at) else next_at


# -- what goes in and comes out --------------------------------------------------------------------------------

State = OneOf["active", "paused", "finished"]


class Schedule(NamedTuple):
    """A schedule as it stands. `next_at` is None when it will not fire again; `runs` does not count `run_now`."""

    name: str
    kind: str
    queue: str
    priority: int
    max_attempts: int | None
    payload: Json
    metadata: dict[str, Json]
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

    @property
    def timing(self) -> Timing:
        """When it fires."""
        return Timing(self.cron, self.every, self.at, self.timezone)


class Added(NamedTuple):
    """The schedule, and whether it is new (False: one of this name existed, and is now as given)."""

    schedule: Schedule
    created: bool


class Fired(NamedTuple):
    """What `fire` did: the schedules that fired with their instants, and why others could not."""

    fired: list[tuple[str, datetime]]
    refused: dict[str, str]


class ScheduleNotFound(QueueError):  # noqa: N818 - like the core's
    """No schedule has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {ellipsis(name)}")


# -- change ----------------------------------------------------------------------------------------------------


def add(
    name: str,
    kind: str,
    payload: Json = None,
    *,
    cron: str | None = None,
    every: Seconds | None = None,
    at: datetime | None = None,
    timezone: str = "UTC",
    max_runs: int | None = None,
    expires_at: datetime | None = None,
    queue: str = "default",
    priority: int = 0,
    metadata: dict[str, Json] | None = None,
    max_attempts: int | None = None,
) -> Operation[Added]:
    """Push a job of `kind` at the times of `cron` in `timezone`, `every` so many seconds, or once `at` a moment.

    Safe to repeat, so that an application can add its schedules whenever it starts: what has the name already becomes
    what is given, but stays paused and keeps its next firing unless its times are others. `every` fires first one
    interval from now, or `at` the moment given. `max_runs` firings in all, and none from `expires_at` on. The job's
    metadata gets `schedule` and `scheduled_at`. Raises `InvalidJob`, also for a cron expression that never matches.
    """
    job = NewJob(kind, payload, queue=queue, priority=priority, metadata=metadata, max_attempts=max_attempts)
    timing = _timing(cron, every, at, timezone)
    params = {
        "name": text(name, "name"), "kind": kind, "queue": queue, "priority": priority, "max_attempts": max_attempts,
        "payload": job.encoded, "metadata": job.encoded_metadata, **timing._asdict(),
        "max_runs": None if max_runs is None else whole(max_runs, "max_runs"),
        "expires_at": moment(expires_at, "expires_at"),
    }  # fmt: skip
    yield ATOMIC
    while True:
        ((now,),) = yield Statement(NOW)
        first = timing.first(now.astimezone(UTC))
        rows = yield Statement(ADD, params | {"next_at": _within(first, 0, max_runs, expires_at)})
        if rows:
            return Added(_schedule(rows[0]), created=True)
        held = yield from _lock(name)
        if held is None:
            continue  # removed in between
        now, schedule = held
        if schedule.timing != timing:
            next_at = timing.first(now)
        else:
            next_at = schedule.next_at or timing.following(schedule.last_at or timing.at, now)
        rows = yield Statement(CHANGE, params | {"next_at": _within(next_at, schedule.runs, max_runs, expires_at)})
        return Added(_schedule(rows[0]), created=False)


def _timing(cron: str | None, every: Seconds | None, at: datetime | None, timezone: str) -> Timing:
    """The times of a new schedule, checked as far as that needs no clock."""
    if (cron is not None) + (every is not None) > 1 or (cron is not None and at is not None):
        raise InvalidJob("give cron, or every, or at; with every, at is the first firing")
    if cron is None and every is None and at is None:
        raise InvalidJob("give cron, or every, or at: when is it to fire?")
    if every is not None and seconds(every, "every") < 1:
        raise InvalidJob(f"every must be at least 1 second, not {every!r}")
    if cron is not None:
        if cron_after(text(cron, "cron"), text(timezone, "timezone"), datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise InvalidJob(f"cron expression {ellipsis(cron)} matches no day in fifty years")
    elif timezone != "UTC":
        raise InvalidJob("timezone belongs to cron: intervals and moments have none")
    first = moment(at, "at")
    return Timing(cron, None if every is None else seconds(every, "every"), first and first.astimezone(UTC), timezone)


def pause(name: str) -> Operation[bool]:
    """Fire no more until `resume`; False if it was paused. Raises `ScheduleNotFound`."""
    ((found, changed),) = yield Statement(PAUSE, {"name": text(name, "name")})
    if not found:
        raise ScheduleNotFound(name)
    return bool(changed)


def resume(name: str) -> Operation[bool]:
    """Fire again, from the first time after now: what fell into the pause is dropped. False if it was not paused."""
    yield ATOMIC
    held = yield from _lock(name)
    if held is None:
        raise ScheduleNotFound(name)
    now, schedule = held
    if schedule.paused_at is None:
        return False
    next_at = schedule.next_at
    if next_at is not None and next_at <= now:
        next_at = schedule.timing.following(next_at, now)
    next_at = _within(next_at, schedule.runs, schedule.max_runs, schedule.expires_at)
    return bool((yield Statement(RESUME, {"name": name, "next_at": next_at})))


def run_now(name: str) -> Operation[Pushed]:
    """Push the schedule's job at once, paused or finished though it be. Its own firings stay as they are."""
    rows = yield Statement(RUN_NOW, {"name": text(name, "name")})
    if not rows:
        raise ScheduleNotFound(name)
    return Pushed._make(rows[0])


def remove(name: str) -> Operation[None]:
    """Forget the schedule; jobs that it pushed stay. Raises `ScheduleNotFound`."""
    if not (yield Statement(REMOVE, {"name": text(name, "name")})):
        raise ScheduleNotFound(name)


# -- look ------------------------------------------------------------------------------------------------------


def get(name: str) -> Operation[Schedule]:
    """One schedule; raises `ScheduleNotFound`."""
    rows = yield Statement(GET, {"name": text(name, "name")})
    if not rows:
        raise ScheduleNotFound(name)
    return _schedule(rows[0])


def list_schedules(*, after: str = "", limit: int = 100) -> Operation[list[Schedule]]:
    """Schedules in the order of their names, from the one after `after`."""
    params = {"after": after and text(after, "after"), "limit": whole(limit, "limit")}
    return [_schedule(row) for row in (yield Statement(LIST, params))]


def _lock(name: str) -> Operation[tuple[datetime, Schedule] | None]:
    """The schedule, locked, and the time."""
    rows = yield Statement(LOCK, {"name": text(name, "name")})
    return (rows[0][0].astimezone(UTC), _schedule(rows[0][1:])) if rows else None


def _schedule(row: Sequence[Any]) -> Schedule:
    try:
        payload, metadata = _loads(row[5]), _loads(row[6])
    except (ValueError, RecursionError):  # what jsonb takes and Python does not: people get the text
        payload, metadata = row[5], row[6]
    rest = (value.astimezone(UTC) if isinstance(value, datetime) else value for value in row[7:])
    return Schedule._make((*row[:5], payload, metadata, *rest))


# -- fire ------------------------------------------------------------------------------------------------------


def fire(limit: int = 100) -> Operation[Fired]:
    """Push a job for every schedule that is due, and set its next firing, in batches of `limit`.

    A batch that the server refuses is halved until the schedules to blame are found; these stay due. In an open
    transaction the error is raised.
    """
    result = Fired([], {})
    cursor = {"after": datetime(1, 1, 2, tzinfo=UTC), "name": ""}
    while True:
        rows = yield Statement(DUE, cursor | {"limit": whole(limit, "limit")})
        due = [(now.astimezone(UTC), version, _schedule(row)) for now, version, *row in rows]
        batches = [planned] if (planned := _planned(due, result)) else []
        while batches:
            batch = batches.pop()
            names, versions, following = (list(column) for column in zip(*batch, strict=True))
            try:
                fired = yield Statement(FIRE, {"names": names, "versions": versions, "next": following})
            except QueueError as error:
                if not (yield from _intact()):
                    raise
                if len(batch) == 1:
                    result.refused[batch[0][0]] = str(error)
                else:
                    batches += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            else:
                result.fired.extend((name, instant.astimezone(UTC)) for name, instant in fired)
        if len(rows) < limit:
            return result
        cursor = {"after": due[-1][2].next_at, "name": due[-1][2].name}


def _planned(due: list[tuple[datetime, str, Schedule]], result: Fired) -> list[tuple[str, str, datetime | None]]:
    """Name, version and next firing of those whose next firing can be told; the others are refused."""
    planned = []
    for now, version, schedule in due:
        try:
            following = schedule.timing.following(schedule.next_at, now)
        except InvalidJob as error:
            result.refused[schedule.name] = str(error)
        else:
            next_at = _within(following, schedule.runs + 1, schedule.max_runs, schedule.expires_at)
            planned.append((schedule.name, version, next_at))
    return planned


def next_due() -> Operation[float | None]:
    """Seconds until the next firing; None while nothing is planned. What is due already does not count."""
    ((due,),) = yield Statement(NEXT)
    return None if due is None else float(due)


LOOK = 5.0  # seconds between two looks while nothing is due sooner: somebody may add a schedule that is


def chore() -> Operation[Chore]:
    """What a worker does: `fire`, and say what could not be, cron schedules without cronsim before they are due."""
    fired, refused = yield from fire()
    if _cronsim() is None:
        refused |= {name: NO_CRONSIM for (name,) in (yield Statement(CRON))}
    due = yield from next_due()
    return Chore(len(fired), LOOK if due is None else min(due, LOOK), refused)


SCHEDULES: Final = Extension("schedules", "pgqueue_schedules", SCHEMA_SQL, chore)
