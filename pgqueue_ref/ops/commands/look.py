"""Looking at jobs: `list` the newest, the `failed` with their errors, `show` one with all that is known of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgqueue_ref.core import JobRow, Status, run
from pgqueue_ref.extensions import dependencies, results

from .. import operations as op
from ..app import (
    LOOK,
    AsJson,
    WrongUsage,
    cell,
    command,
    database,
    json_text,
    print_json,
    print_table,
    printable,
)
from ..timeline import WAITS_FOR, known, timeline

ERROR_LENGTH = 120  # characters of a message in a table

Queue = Annotated[str | None, typer.Option(help="Only of this queue.")]
Kind = Annotated[str | None, typer.Option(help="Only of this kind.")]
ErrorLike = Annotated[
    str | None,
    typer.Option(
        help="Only those whose newest error has this in it, in whatever case; with a % it is an ILIKE pattern."
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]


@command(LOOK, "list")
def list_(
    queue: Queue = None,
    kind: Kind = None,
    status: Annotated[Status | None, typer.Option(help="Only in this status.")] = None,
    key: Annotated[str | None, typer.Option(help="Only with this key.")] = None,
    limit: Limit = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only ids below: the last of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with database() as connection:
        jobs = run(
            connection,
            op.newest(queue=queue, kind=kind, status=status, key=key, before=before or op.MAX_ID, limit=limit),
        )
    following = str(jobs[-1].id) if len(jobs) == limit else None
    if as_json:
        print_json({"jobs": [job_json(job) for job in jobs], "next": following and int(following)})
        return
    columns = ("id", "queue", "kind", "key", "status", "attempts", "at")
    rows = [(str(j.id), j.queue, j.kind, j.external_key, j.status, attempts(j), at(j)) for j in jobs]
    print_table(columns, rows, right=("id", "attempts", "at"), unbroken=("status",))
    more(following)


@command(LOOK)
def failed(
    queue: Queue = None,
    kind: Kind = None,
    error_like: ErrorLike = None,
    limit: Limit = 50,
    before: Annotated[
        str | None, typer.Option(metavar="MOMENT/ID", help="What the page before named, to go on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List failed jobs with their errors, the last failure first."""
    start = None if before is None else op.Ending(*place(before))
    with database() as connection:
        jobs = run(
            connection,
            op.failed(queue=queue, kind=kind, error_like=pattern(error_like), before=start, limit=limit),
        )
    following = None
    if len(jobs) == limit and (ended := jobs[-1].finished_at):
        following = shown_place(ended, jobs[-1].id)
    if as_json:
        print_json({"jobs": [job_json(job) for job in jobs], "next": following})
        return
    columns = ("id", "queue", "kind", "attempts", "failed at", "error")
    rows = [(str(j.id), j.queue, j.kind, attempts(j), j.finished_at, newest_error(j)) for j in jobs]
    print_table(columns, rows, right=("id", "attempts", "failed at"))
    more(following)


@command(LOOK)
def show(
    job_id: Annotated[int, typer.Argument(metavar="ID", min=1)],
    as_json: AsJson = False,
) -> None:
    """Show one job: payload, errors, attempts, and what happened when."""
    with database() as connection:
        found = run(connection, known(job_id))
    job, result, waits_for, failure = found.job, found.result, found.waits_for, found.failure
    moments = timeline(job, found.events)
    if as_json:
        returned = {"result": result_json(result)} if result else {}
        waited = {"waits_for": [parent.id for parent in waits_for[:WAITS_FOR]]} if waits_for else {}
        print_json(job_json(job) | returned | waited | {"timeline": [moment._asdict() for moment in moments]})
        return
    typer.echo(f"job {job.id}: {job.status}")
    facts = {
        "queue": job.queue, "kind": job.kind, "key": job.external_key, "priority": job.priority,
        "attempts": attempts(job), "worker": job.worker, "due": job.run_at,
    }  # fmt: skip
    for name, value in facts.items():
        typer.echo(f"  {name:<9} {cell(value)}")
    if waits_for:
        more_than = "" if len(waits_for) <= WAITS_FOR else f", the first {WAITS_FOR} of them"
        _section(f"waits for{more_than}", "\n".join(map(_parent, waits_for[:WAITS_FOR])))
    _section("payload", json_text(job.payload))
    if job.metadata:
        _section("metadata", json_text(job.metadata))
    if result:
        _section("result", result.error or json_text(result.value))
    if job.errors:
        _section("errors, oldest first", "\n".join(job.errors))
    if failure:
        _section(f"traceback of attempt {failure.attempt}", failure.traceback or "")
    _section("timeline", "\n".join(f"{cell(m.at)}  {m.event:<10}  {m.detail}".rstrip() for m in moments))


def _parent(parent: dependencies.Parent) -> str:
    """A parent in words; its row is there until it has ended, unless triggers were off."""
    key = f" with key {parent.key}" if parent.key else ""
    return (
        f"job {parent.id}, {parent.kind}{key}: {parent.status}" if parent.status else f"job {parent.id}, which is gone"
    )


def _section(title: str, content: str) -> None:
    typer.echo(title)
    for line in content.splitlines():
        typer.echo(f"  {printable(line)}")


# -- what a job looks like -------------------------------------------------------------------------------------


def job_json(job: JobRow) -> dict[str, Any]:
    """A job as the REST API shows it (docs/api.md), and when it will be deleted."""
    row = job._asdict()
    return {"key" if name == "external_key" else name: row[name] for name in row if name != "lease_token"}


def result_json(result: results.Result) -> dict[str, Any]:
    """What a handler returned, as the REST API shows it, or why that was not kept."""
    return {name: value for name, value in result._asdict().items() if name != "job_id"}


def attempts(job: JobRow) -> str:
    """Attempts spent, of how many there are; the kind decides that at the first claim."""
    return f"{job.attempt}/{job.max_attempts or '?'}"


def at(job: JobRow) -> datetime | None:
    """The moment that matters in its status: when it is due, since when it is blocked or runs, when it ended."""
    return {"pending": job.run_at, "blocked": job.created_at, "running": job.started_at}.get(
        job.status, job.finished_at
    )


def newest_error(job: JobRow) -> str | None:
    """The first line of the newest message, cut to what fits a table."""
    lines = job.errors[-1].strip().splitlines() if job.errors else []
    if not lines:
        return None
    return lines[0] if len(lines[0]) <= ERROR_LENGTH else lines[0][: ERROR_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"


# -- what is asked for -----------------------------------------------------------------------------------------


def pattern(error_like: str | None) -> str | None:
    """Part of a message as the ILIKE pattern that finds it; who writes a % means one."""
    if error_like is None or "%" in error_like:
        return error_like
    return "%" + error_like.replace("\\", "\\\\").replace("_", "\\_") + "%"


def place(before: str) -> tuple[datetime, int]:
    """Where a page ended that was ordered by time."""
    moment, _, id_ = before.rpartition("/")
    try:
        ended = datetime.fromisoformat(moment)
        if ended.utcoffset() is not None and id_.isdecimal():
            return ended, int(id_)
    except ValueError:
        pass
    raise WrongUsage("--before is what the page before named, such as 2026-11-24T18:20:00+00:00/7")


def shown_place(at: datetime, id_: int) -> str:
    """What `place` reads."""
    return f"{at.astimezone(UTC).isoformat()}/{id_}"


def more(following: str | None) -> None:
    if following:
        typer.echo(f"there may be more: go on with --before {following}", err=True)
