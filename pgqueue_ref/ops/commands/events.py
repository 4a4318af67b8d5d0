"""`events`: what happened to jobs. On and off, list, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_ref.core import Operation, run
from pgqueue_ref.extensions import events as op

from .. import operations
from ..app import (
    CHANGE,
    LOOK,
    AsJson,
    DryRun,
    Yes,
    app,
    command,
    database,
    moment,
    print_json,
    print_table,
)
from ..checks import span
from ..timeline import moment_of
from .batches import Words, carry_out, in_batches
from .look import Limit, more, place, shown_place

DAY = 86_400.0  # seconds

events = typer.Typer(help="What happened to jobs, written by triggers: list it, prune it, switch it on and off.")
app.add_typer(events, name="events", rich_help_panel=LOOK)

Moment = Annotated[str | None, typer.Option(metavar="MOMENT", help="Such as 2026-11-24T18:20:00+00:00.")]


@command(CHANGE, group=events)
def on() -> None:
    """Write down what happens to jobs, from now on."""
    with database() as connection:
        changed = run(connection, op.enable())
    typer.echo("events are written from now on" if changed else "events were on already")


@command(CHANGE, group=events)
def off() -> None:
    """Write nothing any more; what is written stays until it is pruned."""
    with database() as connection:
        changed = run(connection, op.disable())
    typer.echo("events are written no more" if changed else "events were off already")


@command(LOOK, "list", group=events)
def list_(
    job_id: Annotated[int | None, typer.Option("--job", metavar="ID", min=1, help="Only of this job.")] = None,
    type_: Annotated[op.Type | None, typer.Option("--type", help="Only of this type.")] = None,
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 50,
    before: Annotated[
        str | None, typer.Option(metavar="MOMENT/ID", help="What the page before named, to go on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List events, newest first. Those of a job stay when it is deleted."""
    start = None if before is None else op.Place(*place(before))
    bounds = {"since": moment("--since", since), "until": moment("--until", until)}
    with database() as connection:
        found = run(connection, op.newest(type=type_, job_id=job_id, before=start, limit=limit, **bounds))
    following = shown_place(found[-1].at, found[-1].id) if len(found) == limit else None
    if as_json:
        print_json({"events": [event._asdict() for event in found], "next": following})
        return
    rows = [(e.at, str(e.job_id), e.queue, e.kind, e.type, moment_of(e).detail) for e in found]
    print_table(("at", "job", "queue", "kind", "event", ""), rows, right=("at", "job"))
    more(following)


@command(CHANGE, group=events)
def prune(
    days: Annotated[float, typer.Argument(metavar="DAYS", min=0, help="They are older than that.")],
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete events older than DAYS, now. Workers do so by themselves; PGQUEUE_EVENTS_DAYS tells them when."""
    words = Words("delete", "deleted", "event", f" older than {span(days * DAY)}")
    with database() as connection:

        def go(found: int | None, *, dry: bool) -> int:
            if dry:
                return run(connection, op.count(days * DAY))

            def batch(after: int, so_far: int) -> Operation[operations.Batch[int]]:
                pruned = yield from op.prune(days * DAY)
                return operations.Batch(pruned, so_far + pruned if pruned == op.BATCH else None)

            return in_batches(connection, words, batch, 0, dry=dry, total=found)

        carry_out(words, go, yes=yes, dry_run=dry_run, as_json=as_json)
