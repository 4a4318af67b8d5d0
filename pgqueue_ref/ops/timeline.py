"""What happened to a job and what will, moment by moment, from what its row remembers; `pgqueue-ref show` prints it.

A row keeps one moment of each sort: of its attempts only the newest, of its errors no time at all. Whoever knows more
of a job's past adds its moments in `timeline`, which puts them in order.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pgqueue_ref.core import JobRow


class Moment(NamedTuple):
    """Something that happened to a job at a moment of the database's clock, or will happen then."""

    at: datetime
    event: str
    detail: str = ""


def timeline(job: JobRow) -> list[Moment]:
    """The moments of one job, oldest first."""
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
    return sorted(moments, key=lambda moment: moment.at)


def _attempt(job: JobRow) -> str:
    """Which attempt it was that started last; a row that was put back or retried has forgotten."""
    if job.worker is None:
        return "an attempt that was put back"
    return f"attempt {job.attempt} of {job.max_attempts or '?'}, worker {job.worker}"
