"""Many jobs at once: `retry-all`, `purge`, `clear`, `reset-stuck`.

All work alike. They count first and ask, unless --yes; --dry-run only counts. Then they change batch after batch, each
in a transaction of its own, so that workers go on beside them. Interrupted or refused midway they say how much was
done; the same command again does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import psycopg
import typer

from pgqueue_ref.core import Operation, QueueError, Status, run

from .. import operations as op
from ..app import (
    CHANGE,
    AsJson,
    DryRun,
    Yes,
    cell,
    command,
    complain,
    confirm,
    database,
    print_json,
    progress,
)
from ..checks import span
from .look import ErrorLike, Kind, Queue, pattern
from .queues import Name

P = TypeVar("P")
DAY = 86_400.0  # seconds


# -- the commands ----------------------------------------------------------------------------------------------


@command(CHANGE, "retry-all")
def retry_all(
    queue: Queue = None,
    kind: Kind = None,
    error_like: ErrorLike = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest failures first.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Retry failed jobs: all, or those that the options choose.

    They get fresh attempts, due now. What fails meanwhile is left as it is.
    """
    words, like = Words("retry", "retried", "failed job"), pattern(error_like)
    with database() as connection:
        until = run(connection, op.moment())

        def go(found: int | None, *, dry: bool) -> int:
            def batch(after: op.Ending, so_far: int) -> Operation[op.Batch[op.Ending]]:
                rest = None if limit is None else limit - so_far
                return op.retry_batch(
                    after, until=until, queue=queue, kind=kind, error_like=like, limit=rest, dry_run=dry
                )

            return in_batches(connection, words, batch, op.FIRST_ENDING, dry=dry, total=found, most=limit)

        carry_out(words, go, yes=yes, dry_run=dry_run, as_json=as_json)


@command(CHANGE)
def purge(
    days: Annotated[float, typer.Argument(metavar="DAYS", min=0, help="They ended longer ago than that.")],
    include_failed: Annotated[
        bool, typer.Option("--include-failed", help="Failed jobs as well; else only succeeded and cancelled ones.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete jobs that ended more than DAYS ago.

    They are gone for good, and their keys are free again.
    """
    statuses: tuple[Status, ...] = ("succeeded", "cancelled")
    if include_failed:
        statuses += ("failed",)
    which = f" ({', '.join(statuses)}) that ended over {span(days * DAY)} ago"
    words = Words("delete", "deleted", "job", which)
    with database() as connection:
        until = run(connection, op.moment())
        first, last = run(connection, op.span())

        def go(found: int | None, *, dry: bool) -> int:
            def batch(after: int, so_far: int) -> Operation[op.Batch[int]]:
                return op.purge_batch(after, days * DAY, statuses=statuses, until=until, dry_run=dry)

            def place(after: int) -> int:
                return after - first

            return in_batches(connection, words, batch, first - 1, dry=dry, total=last - first, place=place)

        carry_out(words, go, yes=yes, dry_run=dry_run, as_json=as_json)


@command(CHANGE)
def clear(
    queue: Name,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Cancel all pending jobs of a queue.

    Those that run or are blocked go on. For a day the cancelled ones can be retried, and their keys are taken.
    """
    words = Words("cancel", "cancelled", "pending job", f" of queue {cell(queue)}")
    with database() as connection:
        until = run(connection, op.moment())

        def go(found: int | None, *, dry: bool) -> int:
            if dry:
                return run(connection, op.clearable(queue))

            def batch(after: object, so_far: int) -> Operation[op.Batch[Any]]:
                return op.clear_batch(queue, until=until)

            return in_batches(connection, words, batch, until, dry=dry, total=found)

        carry_out(words, go, yes=yes, dry_run=dry_run, as_json=as_json)


@command(CHANGE, "reset-stuck")
def reset_stuck(
    older_than: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Also those that run for longer, though a worker holds them."),
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Take running jobs back whose lease ran out.

    They are pending again, or failed where no attempt is left. With --older-than also jobs of workers that are alive:
    such a job may run twice at a time, and what the older attempt reports is refused.
    """
    with database() as connection:
        until = run(connection, op.moment())
        lost, held = run(connection, op.stuck(older_than, until=until))
        found = Words("", "", "job", " whose lease ran out").jobs(lost)
        if held:
            others = Words("", "", "job", " that workers still hold").jobs(held)
            found = f"{found} and {others}" if lost else others
        result: dict[str, Any] = {"lost": lost, "held": held, "dry_run": dry_run}
        if lost + held and not dry_run:
            confirm(f"Take back {found}?", yes=yes)
        result |= _take_back(connection, older_than, until, dry=dry_run or lost + held == 0)
    if as_json:
        print_json(result)
    elif dry_run or not (lost or held):
        typer.echo(f"found {found}")
    else:
        typer.echo(f"{result['pending']:,} pending again, {result['failed']:,} failed, {result['left']:,} left alone")
    if result["refused"]:
        return complain(f"the server refuses to change jobs {', '.join(map(str, result['refused']))}: see its log", 1)
    return 0


# -- what they share -------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """How a command calls what it does, and to which jobs."""

    do: str
    done: str
    noun: str
    which: str = ""

    def jobs(self, count: int) -> str:
        """So many of these jobs."""
        return f"{count:,} {self.noun}{'' if count == 1 else 's'}{self.which}"


class Go(Protocol):
    """Change the jobs, or with `dry` count them; answers how many. `found` is what counting found, if it was done."""

    def __call__(self, found: int | None, *, dry: bool) -> int: ...


def carry_out(words: Words, go: Go, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Count, ask, change, report."""
    found = go(None, dry=True) if dry_run or not yes else None
    jobs = found or 0
    if found != 0 and not dry_run:
        if found is not None:
            confirm(f"{words.do.capitalize()} {words.jobs(found)}?", yes=yes)
        jobs = go(found, dry=False)
    if as_json:
        print_json({"jobs": jobs, "dry_run": dry_run})
    else:
        typer.echo(f"{f'would {words.do}' if dry_run else words.done} {words.jobs(jobs)}")


def in_batches(
    connection: psycopg.Connection[Any],
    words: Words,
    batch: Callable[[P, int], Operation[op.Batch[P]]],
    start: P,
    *,
    dry: bool,
    total: int | None,
    place: Callable[[P], int] | None = None,
    most: int | None = None,
) -> int:
    """Run `batch(after, jobs so far)` to the end, or until `most` jobs; how many they were. The bar shows how far of
    `total` the work has come: by the number of jobs, or by the `place` of the last."""
    jobs, after = 0, start
    try:
        with progress("counted" if dry else words.done, total) as bar:
            while most is None or jobs < most:
                changed, following = run(connection, batch(after, jobs))
                jobs += changed
                if following is None:
                    break
                after = following
                bar(place(after) if place else jobs, jobs)
    except KeyboardInterrupt:
        # The server may have finished the batch under way before it was told to stop.
        so_far = "nothing was changed" if dry else f"at least {words.jobs(jobs)} {words.done}; once more does the rest"
        raise typer.Exit(complain(f"interrupted: {so_far}", 130)) from None
    except QueueError as error:
        if dry or not jobs:
            raise
        raise QueueError(f"{error}; before, {words.jobs(jobs)} {words.done}; once more does the rest") from error
    return jobs


def _take_back(
    connection: psycopg.Connection[Any], older_than: float | None, until: datetime, *, dry: bool
) -> dict[str, Any]:
    """All batches of `operations.take_back`, added up."""
    pending = failed = left = 0
    refused: list[int] = []
    after = None if dry else op.FIRST_STUCK
    try:
        while after is not None:
            taken = run(connection, op.take_back(after, older_than, until=until))
            pending, failed, left = pending + len(taken.retried), failed + len(taken.failed), left + len(taken.left)
            refused += taken.refused
            after = taken.after
    except KeyboardInterrupt:
        so_far = f"at least {pending:,} pending again, {failed:,} failed"
        raise typer.Exit(complain(f"interrupted: {so_far}; once more does the rest", 130)) from None
    except QueueError as error:
        if not pending + failed:
            raise
        raise QueueError(
            f"{error}; before, {pending:,} pending again, {failed:,} failed; once more does the rest"
        ) from error
    return {"pending": pending, "failed": failed, "left": left, "refused": refused}
