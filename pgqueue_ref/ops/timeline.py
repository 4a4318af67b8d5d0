"""All that is known of a job: what happened to it and what will, moment by moment; its result; what it waits for.

`pgqueue-ref show` prints it, the REST API answers it as a job's history, the page draws that. A row keeps one moment of
each sort: of its attempts only the newest, of its errors no time at all. Events know all of the past, where they are
installed and were on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pgqueue_ref.core import JobRow, Operation
from pgqueue_ref.core import operations as core
from pgqueue_ref.extensions import dependencies, events, installed, results
from pgqueue_ref.extensions.events import Event

EVENTS = 200  # of a job, the newest: one that snoozes may have a million
WAITS_FOR = 10  # parents of a blocked job
WORKERS = (" pgqueue_ref:claim", " pgqueue_ref:write")  # how they call their connections


class Moment(NamedTuple):
    """Something that happened to a job at a moment of the database's clock, or will happen then."""

    at: datetime
    event: str
    detail: str = ""


class Known(NamedTuple):
    """A job and what the extensions know of it: nothing where they are not installed. Of `waits_for` one more than
    `WAITS_FOR` says that there are more."""

    job: JobRow
    events: list[Event]
    result: results.Result | None
    waits_for: list[dependencies.Parent]

    @property
    def failure(self) -> Event | None:
        """The newest event that has a traceback."""
        return next((event for event in reversed(self.events) if event.traceback), None)


def known(job_id: int) -> Operation[Known]:
    """What is known of a job; raises `JobNotFound`."""
    job = yield from core.get(job_id)
    there = yield from installed(dependencies.DEPENDENCIES, events.EVENTS, results.RESULTS)
    happened: list[Event] = []
    result: results.Result | None = None
    waits_for: list[dependencies.Parent] = []
    if events.EVENTS.name in there:
        happened = (yield from events.newest(job_id=job_id, limit=EVENTS))[::-1]
    if results.RESULTS.name in there:
        result = (yield from results.get_many([job_id])).get(job_id)
    if job.status == "blocked" and dependencies.DEPENDENCIES.name in there:
        waits_for = yield from dependencies.parents(job_id, waiting=True, limit=WAITS_FOR + 1)
    return Known(job, happened, result, waits_for)


def timeline(job: JobRow, events: Sequence[Event] = ()) -> list[Moment]:
    """The moments of one job, oldest first; what its row and an event both know is told by the event."""
    waits, runs = job.status in ("pending", "blocked"), job.status == "running"
    moments = [Moment(job.created_at, "pushed", f"{job.kind} to queue {job.queue}")]
    if job.started_at:
        moments.append(Moment(job.started_at, "started", _attempt(job)))
    if job.run_at > job.created_at and (waits or not job.started_at):
        moments.append(Moment(job.run_at, "due", "again" if job.started_at else ""))
    if runs and job.lease_expires_at:
        moments.append(Moment(job.lease_expires_at, "lease ends", "unless the worker extends it"))
    if waits and job.expires_at:
        moments.append(Moment(job.expires_at, "expires", "not started by then: cancelled"))
    if job.finished_at:
        moments.append(Moment(job.finished_at, job.status, "" if job.started_at else "never started"))
    if job.delete_after:
        moments.append(Moment(job.delete_after, "deleted", "by the next cleanup"))
    told = {event.at for event in events}
    return sorted([*map(moment_of, events), *(m for m in moments if m.at not in told)], key=lambda moment: moment.at)


def moment_of(event: Event) -> Moment:
    """An event in words."""
    parts = [f"attempt {event.attempt}" if event.attempt else "", f"worker {event.worker}" if event.worker else ""]
    if not event.actor.endswith(WORKERS):
        parts.append(f"by {event.actor}")
    if event.type in ("failed", "rescued"):
        parts.append("no attempt left" if event.status == "failed" else "pending again")
    detail = ", ".join(filter(None, parts))
    if event.type == "pushed":
        detail = f"{event.kind} to queue {event.queue}, {detail}"
    message = (event.message or "").strip().splitlines()
    return Moment(event.at, event.type, ": ".join(filter(None, [detail, *message[:1]])))


def _attempt(job: JobRow) -> str:
    """Which attempt it was that started last; a row that was put back or retried has forgotten."""
    if job.worker is None:
        return "an attempt that was put back"
    return f"attempt {job.attempt} of {job.max_attempts or '?'}, worker {job.worker}"
