"""`schedules`: what the clock pushes; look at it, add to it, stop it, run it now."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from pgqueue_ref.core import Operation, run
from pgqueue_ref.extensions import schedules as op
from pgqueue_ref.extensions.schedules import Schedule

from ..app import CHANGE, LOOK, AsJson, Yes, app, cell, command, confirm, database, moment, print_json, print_table
from .jobs import decode

schedules = typer.Typer(help="Jobs that are pushed by the clock: docs/extensions/schedules.md.")
app.add_typer(schedules, name="schedules", rich_help_panel=CHANGE)

Name = Annotated[str, typer.Argument(metavar="NAME")]
PAGE = 500


@command(LOOK, "list", group=schedules)
def list_all(as_json: AsJson = False) -> None:
    """Show all schedules, in the order of their names."""
    with database() as connection:
        found = run(connection, _all())
    if as_json:
        print_json([schedule._asdict() for schedule in found])
        return
    columns = ("name", "kind", "times", "state", "next", "last", "runs")
    print_table(columns, [(s.name, s.kind, times(s), s.state, s.next_at, s.last_at, s.runs) for s in found])


@command(CHANGE, group=schedules)
def add(
    name: Name,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Of the jobs it pushes.")],
    cron: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Minute hour day month weekday, such as '0 3 * * MON'.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of the cron expression.")] = "UTC",
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="An interval.")] = None,
    at: Annotated[str | None, typer.Option(metavar="MOMENT", help="Once; with --every, the first time.")] = None,
    payload: Annotated[str, typer.Option(metavar="JSON", help="What the handler is given.")] = "null",
    queue: str = "default",
    priority: Annotated[int, typer.Option(help="Higher runs first.")] = 0,
    max_attempts: Annotated[int | None, typer.Option(help="The kind decides unless given.")] = None,
    max_runs: Annotated[int | None, typer.Option(help="Fire so often, then no more.")] = None,
    expires_at: Annotated[str | None, typer.Option(metavar="MOMENT", help="Fire no more from then on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a schedule, or make the one of that name what is given.

    Safe to repeat: the next firing stays as it was unless the times are others. A moment is written like
    2027-03-28T03:00+02:00.
    """
    operation = op.add(
        name, kind, decode(payload), cron=cron, timezone=timezone, every=every, at=moment("--at", at),
        expires_at=moment("--expires-at", expires_at), max_runs=max_runs, queue=queue, priority=priority,
        max_attempts=max_attempts,
    )  # fmt: skip
    with database() as connection:
        schedule, created = run(connection, operation)
    if as_json:
        print_json(schedule._asdict() | {"created": created})
    else:
        said = "was added" if created else "was there, and is as given now"
        typer.echo(f"schedule {cell(name)} {said}; {_fires(schedule)}")


@command(CHANGE, group=schedules)
def pause(name: Name, as_json: AsJson = False) -> None:
    """Fire no more, until `resume`."""
    _switch(name, op.pause(name), as_json, paused=True)


@command(CHANGE, group=schedules)
def resume(name: Name, as_json: AsJson = False) -> None:
    """Fire again, from the next time on: what fell into the pause is dropped."""
    _switch(name, op.resume(name), as_json, paused=False)


@command(CHANGE, "run", group=schedules)
def run_now(name: Name, as_json: AsJson = False) -> None:
    """Push a schedule's job now; its own firings stay as they are."""
    with database() as connection:
        pushed = run(connection, op.run_now(name))
    if as_json:
        print_json(pushed._asdict())
    else:
        typer.echo(f"job {pushed.id} was pushed")


@command(CHANGE, group=schedules)
def remove(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Forget a schedule. Jobs that it pushed stay."""
    with database() as connection:
        schedule = run(connection, op.get(name))
        confirm(f"Remove schedule {cell(name)} ({schedule.kind}, {times(schedule)})?", yes=yes)
        run(connection, op.remove(name))
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        typer.echo(f"schedule {cell(name)} was removed")


# -- what is shown ---------------------------------------------------------------------------------------------


def times(schedule: Schedule) -> str:
    """When it fires, in a few words."""
    if schedule.cron is not None:
        return f"{schedule.cron} ({schedule.timezone})"
    if schedule.every is not None:
        return f"every {timedelta(seconds=schedule.every)}"  # exact, as `span` is not
    return f"once, {cell(schedule.at)}"


def _fires(schedule: Schedule) -> str:
    if schedule.state == "finished":
        return "it will not fire"
    return "it is paused" if schedule.state == "paused" else f"it fires at {cell(schedule.next_at)}"


def _all() -> Operation[list[Schedule]]:
    found = page = yield from op.list_schedules(limit=PAGE)
    while len(page) == PAGE:
        page = yield from op.list_schedules(after=page[-1].name, limit=PAGE)
        found = found + page
    return found


def _switch(name: str, operation: Operation[bool], as_json: bool, *, paused: bool) -> None:
    with database() as connection:
        changed = run(connection, operation)
    if as_json:
        print_json({"name": name, "paused": paused, "changed": changed})
    else:
        state = "paused" if paused else "not paused"
        typer.echo(f"schedule {cell(name)} {f'is {state} now' if changed else f'was {state} already'}")
