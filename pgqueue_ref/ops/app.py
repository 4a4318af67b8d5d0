"""The command line's frame: the Typer app, the settings, and how commands print, ask and refuse. `run` runs them.

It promises: what the queue refuses is one line on stderr that says what to do, without traceback or password, and
exit code 1; wrong usage is one line too, and 2; Ctrl-C is 130, as in a shell. Results go to stdout, questions and
progress to stderr. Names and messages come from whoever pushes: no terminal sequence or markup in them takes effect.
Every setting is an environment variable with an option of the same name; giving the option sets the variable, which is
where the core, the migrations and the worker's processes read it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_ref import __version__
from pgqueue_ref.core import QueueError

if TYPE_CHECKING:
    from rich.table import Table

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

    try:
        result = app(args=list(arguments) or ["--help"], prog_name="pgqueue-ref", standalone_mode=False)
        sys.stdout.flush()
    except QueueError as error:
        return complain(error, 1)
    except typer.TyperException as error:
        return complain(f"{error.format_message()} (see pgqueue-ref --help)", error.exit_code)
    except typer.Abort:  # Ctrl-C or the end of input, at a question
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


def _export(parameter: typer.CallbackParam, value: Any) -> Any:
    """Set the option's environment variable; commands need not pass the value on."""
    if value is not None:
        os.environ[str(parameter.envvar)] = str(value)
    return value


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="PGQUEUE_DATABASE_URL",
        callback=_export,
        metavar="DSN",
        help="postgresql://user@host/database or key=value; the variable keeps a password out of process lists.",
    ),
]
Schema = Annotated[
    str | None, typer.Option(envvar="PGQUEUE_SCHEMA", callback=_export, help="Schema of the tables (search_path).")
]
StatementTimeout = Annotated[
    int | None,
    typer.Option(
        envvar="PGQUEUE_STATEMENT_TIMEOUT_MS",
        callback=_export,
        min=0,
        help="Milliseconds, 5000 unless given; 0 leaves the server's.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: JSON of the shape that docs/cli.md gives.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many rows it would change, and change none.")]


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


def print_json(value: Any) -> None:
    """JSON on stdout; moments in ISO 8601, tuples with names must be made dicts before."""
    typer.echo(json.dumps(value, indent=2, default=_encode, ensure_ascii=False))


def _encode(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()) -> Table:
    """A table for people. Whole numbers get separators (pass ids as text), None is a dash. Columns named in `right` are
    aligned there and never broken; elsewhere a name too long for the terminal goes on in the next line, whole.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        made.add_column(
            name, justify="right" if name in right else "left", no_wrap=name in right, overflow="fold", vertical="top"
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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()) -> None:
    """`table` on stdout; as wide as it needs where that is no terminal, so that each row is one line for grep."""
    from rich.console import Console

    console = Console()
    made = table(columns, rows, right=right)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(80, console.measure(made, options=console.options.update(width=100_000)).maximum)
    console.print(made)


# -- what is asked ---------------------------------------------------------------------------------------------


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if somebody says so. Without a terminal and without --yes it is wrong usage: nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(f"{question} Nothing was changed: there is no terminal to answer on; give --yes")
    if not typer.confirm(question, err=True):
        raise typer.Abort
