"""Whole queues: what is in them and how it flows, once or again and again; pause and resume."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_ref.core import ACTIVE, TERMINAL, QueueError, run
from pgqueue_ref.core import operations as core

from .. import operations as op
from ..app import (
    CHANGE,
    LOOK,
    AsJson,
    cell,
    command,
    complain,
    database,
    fits,
    print_json,
    print_rich,
    table,
)
from ..checks import span
from ..overview import Flow, Overview, overview

if TYPE_CHECKING:
    from rich.console import Group

Name = Annotated[str, typer.Argument(metavar="QUEUE")]
ABOUT = "\N{ALMOST EQUAL TO}"


# -- looking ---------------------------------------------------------------------------------------------------


@command(LOOK)
def stats(
    as_json: AsJson = False,
) -> None:
    """Count jobs by queue, kind and status, and say how they flow.

    Costs the same whatever the table holds: beyond what can be counted fast, the figures are estimated, and it says so.
    """
    with database() as connection:
        seen = run(connection, overview())
    if as_json:
        print_json(overview_json(seen))
    else:
        print_rich(report(seen))


@command(LOOK)
def watch(
    interval: Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int | None, typer.Option(min=1, help="Look so many times, then exit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show `stats` again and again, until Ctrl-C.

    In place on a terminal, elsewhere one after the other, with --json a line each. A database that goes away meanwhile
    is waited for.
    """
    from rich.console import Console, Group
    from rich.live import Live

    console = Console()
    screen = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    with screen or nullcontext():
        for turn, seen in enumerate(_looks(interval, count)):
            if isinstance(seen, QueueError):
                complain(seen, 1)
            elif as_json:
                print_json(overview_json(seen), indent=None)
            elif screen:
                screen.update(report(seen), refresh=True)
            else:
                print_rich(report(seen) if turn == 0 else Group("", report(seen)))


def _looks(interval: float, count: int | None) -> Iterator[Overview | QueueError]:
    """What is seen, or why nothing was; only the first look must succeed."""
    connection = database()
    try:
        for turn in itertools.count(1):
            try:
                connection = database() if connection.closed else connection
                seen: Overview | QueueError = run(connection, overview())
            except QueueError as error:
                if turn == 1:
                    raise
                connection.close()
                seen = error
            yield seen
            if turn == count:
                return
            time.sleep(interval)
    finally:
        connection.close()


def overview_json(seen: Overview) -> dict[str, Any]:
    """The overview as the REST API shows it (docs/api.md)."""
    rows, flows = [row._asdict() for row in seen.rows], [flow._asdict() for flow in seen.flows]
    return seen._asdict() | {"rows": rows, "flows": flows}


def report(seen: Overview) -> Group:
    """The overview for people: jobs by status, then what moves, for each queue and kind."""
    from rich.console import Group
    from rich.text import Text

    statuses = ACTIVE + TERMINAL
    counts: dict[tuple[str, str], dict[str, str]] = {}
    for row in seen.rows:
        counts.setdefault((row.queue, row.kind), {})[row.status] = f"{ABOUT if row.estimated else ''}{row.jobs:,}"
    jobs = [(*place, *(by.get(status) for status in statuses)) for place, by in counts.items()]
    flows = [
        (f.queue, f.kind, f.due, _span(f.oldest_due_seconds), _span(f.oldest_running_seconds), f.finished_last_hour,
         _took(f.average_seconds), _took(f.p95_seconds))
        for f in seen.flows
    ]  # fmt: skip
    moving = ("due", "oldest due", "oldest running", "last hour", "average", "p95")
    lines = [cell(seen.at)]
    if seen.estimated:
        lines.append(f"large table: figures with {ABOUT} and the last hour are estimated from a sample")
    if seen.paused:
        lines.append("paused: " + ", ".join(map(cell, seen.paused)))
    if not seen.rows:
        lines.append("no jobs")
        return Group(*map(Text, lines))
    tables = (
        table(("queue", "kind", *statuses), jobs, right=statuses),
        table(("queue", "kind", *moving), flows, right=moving),
    )
    if not all(map(fits, tables)):
        return Group(*map(Text, lines), *(Text(line) for flow in seen.flows for line in _in_lines(flow, counts)))
    return Group(*map(Text, lines), "", tables[0], "", tables[1])


def _in_lines(flow: Flow, counts: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    """One kind, in words, for a terminal that has no room for tables: a telephone's, or long names."""
    by = counts.get((flow.queue, flow.kind), {})
    moves = [f"{flow.due:,} due"]
    if flow.oldest_due_seconds is not None:
        moves.append(f"oldest due {span(flow.oldest_due_seconds)}")
    if flow.oldest_running_seconds is not None:
        moves.append(f"oldest running {span(flow.oldest_running_seconds)}")
    moves.append(f"last hour {flow.finished_last_hour:,}")
    if flow.average_seconds is not None:
        moves.append(f"average {_took(flow.average_seconds)}, p95 {_took(flow.p95_seconds)}")
    jobs = ", ".join(f"{by[status]} {status}" for status in ACTIVE + TERMINAL if status in by)
    return ["", f"{cell(flow.queue)}  {cell(flow.kind)}", *(f"  {line}" for line in (jobs, ", ".join(moves)) if line)]


def _span(seconds: float | None) -> str | None:
    return None if seconds is None else span(seconds)


def _took(seconds: float | None) -> str | None:
    """How long attempts take: mostly less than `span` can tell."""
    if seconds is None or seconds >= 120:
        return _span(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


# -- pause and resume ------------------------------------------------------------------------------------------


@command(CHANGE)
def pause(
    queue: Name,
    as_json: AsJson = False,
) -> None:
    """Stop all workers from claiming jobs of a queue.

    Until `resume`. Attempts that run go on, and pushes are taken.
    """
    with database() as connection:
        changed = run(connection, core.pause(queue))
        known = run(connection, op.in_use(queue))
    _say(queue, as_json, paused=True, changed=changed)
    if not known:
        complain(
            f"queue {queue!r} holds no job that waits or runs: is the name right? (pgqueue-ref resume undoes it)", 0
        )


@command(CHANGE)
def resume(
    queue: Name,
    as_json: AsJson = False,
) -> None:
    """Let workers claim from a paused queue again."""
    with database() as connection:
        changed = run(connection, core.resume(queue))
    _say(queue, as_json, paused=False, changed=changed)


def _say(queue: str, as_json: bool, *, paused: bool, changed: bool) -> None:
    if as_json:
        print_json({"queue": queue, "paused": paused, "changed": changed})
    else:
        state = "paused" if paused else "not paused"
        typer.echo(f"queue {cell(queue)} {f'is {state} now' if changed else f'was {state} already'}")
