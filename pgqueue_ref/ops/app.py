"""The command line's frame: the Typer app, the settings, and how commands print, ask and refuse. `run` runs them.

It promises: what the queue refuses is one line on stderr that says what to do, without traceback or password, and
exit code 1; wrong usage is one line too, and 2; Ctrl-C is 130, as in a shell. Results go to stdout, questions and
progress to stderr. Names and messages come from whoever pushes: no terminal sequence or markup in them takes effect.
Every setting is an environment variable with an option of the same name; giving the option sets the variable, which is
where the core, the migrations and the worker's processes read it.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pgqueue_ref import __version__
from pgqueue_ref.core import QueueError, connect

if TYPE_CHECKING:
    import psycopg
    from rich.console import RenderableType
    from rich.table import Table

Function = TypeVar("Function", bound=Callable[..., Any])

EXIT_CODES = (
    "Exit codes: 0 done; 1 refused by the queue, the database or whoever was asked; 2 wrong usage, also a command that"
    " asks first where nobody can answer; 130 interrupted."
)

# Pretty tracebacks would print local variables, a DSN among them.
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A PostgreSQL job queue: its schema, its workers, its operations.",
    epilog=EXIT_CODES,
)


class WrongUsage(typer.TyperException):
    """A command that cannot be carried out as it was given."""

    exit_code = 2


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    from . import commands  # noqa: F401 - registers them; only here, because they import this module

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal or a file that cannot hold a name shows its escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="pgqueue-ref", standalone_mode=False)
        sys.stdout.flush()
    except QueueError as error:
        return complain(error, 1)
    except typer.TyperException as error:
        return complain(f"{error.format_message()} (see pgqueue-ref --help)", error.exit_code)
    except typer.Abort:  # no, or the end of input, at a question
        return complain("nothing was changed", 1)
    except BrokenPipeError:  # as `| head` does; the interpreter would complain of it once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def complain(what: object, exit_code: int) -> int:
    """One line on stderr. Usage errors may quote an argument, so what looks like a password goes."""
    line = " ".join(printable(str(what).replace("\n", " ")).split())
    line = re.sub(r"(://[^\s:/@]*:)[^\s/]+@", r"\1***@", line)
    line = re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&')]+)", r"\1***", line)
    sys.stderr.write(f"pgqueue-ref: {line}\n")
    return exit_code


# -- settings --------------------------------------------------------------------------------------------------


def export(parameter: typer.CallbackParam, value: Any) -> Any:
    """The callback of an option that sets its environment variable: its command need not pass the value on."""
    if value is not None:
        os.environ[str(parameter.envvar)] = str(value)
    return value


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="PGQUEUE_DATABASE_URL",
        callback=export,
        metavar="DSN",
        help="postgresql://user@host/database or key=value; the variable keeps a password out of process lists.",
    ),
]
Schema = Annotated[
    str | None, typer.Option(envvar="PGQUEUE_SCHEMA", callback=export, help="Schema of the tables (search_path).")
]
StatementTimeout = Annotated[
    int | None,
    typer.Option(
        envvar="PGQUEUE_STATEMENT_TIMEOUT_MS",
        callback=export,
        min=0,
        help="Milliseconds, 5000 unless given; 0 leaves the server's.",
    ),
]
SETTINGS = {"database_url": DatabaseUrl, "schema": Schema, "statement_timeout_ms": StatementTimeout}
# Where the help lists a command.
LOOK, CHANGE, DEPLOY = "Look", "Change", "Deploy"

AsJson = Annotated[bool, typer.Option("--json", help="For scripts: JSON of the shape that docs/cli.md gives.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many rows it would change, and change none.")]


def command(
    panel: str, name: str | None = None, *, epilog: str | None = None, group: typer.Typer = app
) -> Callable[[Function], Function]:
    """Register a command of the queue, in this panel of the help: besides its own options it has those of `SETTINGS`,
    which it need not know, because `export` hands them on. (`app.command` registers one without.)
    """

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def with_settings(**options: Any) -> Any:
            return function(**{option: options[option] for option in own})

        own = inspect.signature(function, eval_str=True).parameters
        settings = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for option, annotation in SETTINGS.items()
        ]
        shown = inspect.Signature([*own.values(), *settings])
        with_settings.__signature__ = shown  # type: ignore[attr-defined]  # read by inspect
        with_settings.__annotations__ = {
            parameter.name: parameter.annotation for parameter in shown.parameters.values()
        }
        group.command(name, rich_help_panel=panel, epilog=epilog)(with_settings)
        return function

    return register


def database() -> psycopg.Connection[tuple[Any, ...]]:
    """A connection by the settings, under a name of its own in pg_stat_activity."""
    return connect(application_name="pgqueue_ref:cli")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgqueue-ref {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The queue's command line."""


# -- what is printed -------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey rather than show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """JSON on stdout; without `indent` in one line. Tuples with names must be made dicts before."""
    typer.echo(json_text(value, indent=indent))


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """JSON as the REST API writes it, moments in UTC, and in plain letters what a terminal would obey."""
    try:
        text = json.dumps(value, indent=indent, default=_encode, ensure_ascii=False)
    except RecursionError:  # jsonb holds what Python can read but not indent
        text = json.dumps(value, default=_encode, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _encode(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    unbroken: Collection[str] = (),
) -> Table:
    """A table for people. Whole numbers get separators (pass ids as text), None is a dash. Columns named in `right` are
    aligned there and never broken, nor are those in `unbroken`; elsewhere a name too long for the terminal goes on in
    the next line, whole.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))  # two blanks between columns
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name in right or name in unbroken,
            overflow="fold",
            vertical="top",
        )
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def cell(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return printable(f"{value:,}" if isinstance(value, int) else str(value))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    unbroken: Collection[str] = (),
) -> None:
    """`table` on stdout."""
    print_rich(table(columns, rows, right=right, unbroken=unbroken))


def fits(renderable: RenderableType) -> bool:
    """Whether stdout is wide enough for it; what is no terminal always is."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return True
    return console.measure(renderable, options=console.options.update(width=100_000)).maximum <= console.width


def print_rich(renderable: RenderableType) -> None:
    """On stdout; as wide as it needs where that is no terminal, so that each row is one line for grep."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(80, console.measure(renderable, options=console.options.update(width=100_000)).maximum)
    console.print(renderable)


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Callable[[float, int], None]]:
    """A bar on stderr where that is a terminal, nothing elsewhere; tell it how far of `total`, and how many jobs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[jobs]:,} jobs"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total, jobs=0)
        yield lambda done, jobs: bar.update(task, completed=done, jobs=jobs)


# -- what is given ---------------------------------------------------------------------------------------------


def moment(option: str, given: str | None) -> datetime | None:
    """The moment that an option names."""
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given)
        if found.utcoffset() is not None:
            return found
    except ValueError:
        pass
    raise WrongUsage(f"{option} is a moment with a time zone, such as 2026-11-24T18:20:00+00:00")


# -- what is asked ---------------------------------------------------------------------------------------------


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if somebody says so. Without a terminal and without --yes it is wrong usage: nobody can answer."""
    if yes:
        return
    question = printable(question)
    if not sys.stdin.isatty():
        raise WrongUsage(f"{question} Nothing was changed: there is no terminal to answer on; give --yes")
    with redirect_stdout(sys.stderr):  # where input() would print a blank, into what the next program reads
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort as abort:
            if isinstance(abort.__context__, KeyboardInterrupt):  # it calls Ctrl-C and the end of input the same
                raise typer.Exit(complain("interrupted: nothing was changed", 130)) from None
            raise
    if not agreed:
        raise typer.Abort
