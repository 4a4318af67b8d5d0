"""Single jobs: push one, try it again, cancel it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pgqueue_ref.core import ACTIVE, JobNotFound, JobRow, Queue, run
from pgqueue_ref.core import operations as core
from pgqueue_ref.core.jobs import ellipsis

from .. import operations as op
from ..app import (
    CHANGE,
    AsJson,
    DryRun,
    WrongUsage,
    Yes,
    command,
    complain,
    confirm,
    database,
    print_json,
)
from .look import attempts


@command(CHANGE)
def push(
    kind: str,
    payload: Annotated[str, typer.Option(metavar="JSON", help="What the handler is given.")] = "null",
    key: Annotated[str | None, typer.Option(help="Push once: unique per kind while the job exists.")] = None,
    delay: Annotated[float, typer.Option(help="Seconds before it may start.")] = 0.0,
    priority: Annotated[int, typer.Option(help="Higher runs first.")] = 0,
    queue: str = "default",
    max_in_flight_jobs: Annotated[
        int | None, typer.Option(envvar="PGQUEUE_MAX_IN_FLIGHT_JOBS", help="Refuse when the queue holds that many.")
    ] = None,
) -> None:
    """Put one job in a queue.

    Prints its id and whether it is new, as JSON.
    """
    decoded = decode(payload)
    with Queue.connect(max_in_flight=max_in_flight_jobs) as connected:
        pushed = connected.push(kind, decoded, key=key, delay=delay, priority=priority, queue=queue)
    typer.echo(json.dumps(pushed._asdict()))


def decode(payload: str) -> Any:
    """What `--payload` holds. Raises `WrongUsage`."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(f"--payload is not JSON: {error}; write it like '{{\"photo\": 7}}'") from None


@command(CHANGE)
def retry(
    job_ids: Annotated[list[int], typer.Argument(metavar="ID...", min=1)],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Retry failed or cancelled jobs.

    They get fresh attempts, due now. Exit code 1 if one of them is neither.
    """
    retried: list[int] = []
    refused: dict[int, str] = {}
    with database() as connection:
        for job_id in dict.fromkeys(job_ids):
            try:
                if not dry_run and run(connection, core.retry(job_id)):
                    retried.append(job_id)
                    continue
                job = run(connection, core.get(job_id))
            except JobNotFound as error:
                refused[job_id] = str(error)
            else:
                if dry_run and job.status in ("failed", "cancelled"):
                    retried.append(job_id)
                else:
                    refused[job_id] = f"job {job_id} is {job.status}: only failed and cancelled jobs can be retried"
    if as_json:
        reasons = [{"id": job_id, "reason": reason} for job_id, reason in refused.items()]
        print_json({"retried": retried, "refused": reasons, "dry_run": dry_run})
    else:
        for job_id in retried:
            typer.echo(f"job {job_id} {'would be' if dry_run else 'is'} pending again")
        for reason in refused.values():
            complain(reason, 1)
    return 1 if refused else 0


@command(CHANGE)
def cancel(
    job_id: Annotated[int | None, typer.Argument(metavar="ID", min=1)] = None,
    kind: Annotated[str | None, typer.Option(help="Instead of the id, with --key.")] = None,
    key: Annotated[str | None, typer.Option(help="Instead of the id, with --kind.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Cancel a job that has not ended.

    One that runs is told at its next heartbeat, and what it reports is refused.
    """
    if (job_id is None) == (kind is None and key is None) or (kind is None) != (key is None):
        raise WrongUsage("name the job by its ID, or by --kind and --key")
    with database() as connection:
        job = run(connection, core.get(job_id) if job_id is not None else _by_key(str(kind), str(key)))
        changed = False
        if job.status in ACTIVE and not dry_run:
            confirm(f"Cancel 1 job, {job.kind} {job.id} ({job.status}, attempts {attempts(job)})?", yes=yes)
            changed = run(connection, core.cancel(job.id))
            job = run(connection, core.get(job.id))
    ended = job.status not in (*ACTIVE, "cancelled")  # perhaps while somebody thought about the question
    if as_json and not ended:
        print_json({"id": job.id, "status": job.status, "changed": changed, "dry_run": dry_run})
    elif ended:
        return complain(f"job {job.id} is {job.status} already: it cannot be cancelled any more", 1)
    elif job.status == "cancelled":
        typer.echo(f"job {job.id} is cancelled{'' if changed else ' already'}")
    else:
        typer.echo(f"would cancel 1 job: {job.id}, {job.status}")
    return 0


def _by_key(kind: str, key: str) -> core.Operation[JobRow]:
    jobs = yield from op.newest(kind=kind, key=key, limit=1)
    if not jobs:
        raise JobNotFound(f"{kind} job with key {ellipsis(key)} does not exist (any more)")
    return jobs[0]
