"""Single jobs: push one, look at it, try it again, cancel it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pgqueue_ref.core import InvalidJob, Queue

from ..app import DatabaseUrl, Schema, StatementTimeout, app


@app.command()
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
    database_url: DatabaseUrl = None,
    schema: Schema = None,
    statement_timeout_ms: StatementTimeout = None,
) -> None:
    """Put one job in a queue; prints its id and whether it is new, as JSON."""
    decoded = _decode(payload)
    with Queue.connect(max_in_flight=max_in_flight_jobs) as connected:
        pushed = connected.push(kind, decoded, key=key, delay=delay, priority=priority, queue=queue)
    typer.echo(json.dumps(pushed._asdict()))


def _decode(payload: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"--payload is not JSON: {error}; write it like '{{\"photo\": 7}}'") from None
