"""The command line: the schema, a worker, and single operations for people and scripts. Called by `__main__`.

It promises: what the queue refuses is one line on stderr that says what to do, without traceback or password, and
exit code 1; wrong usage is one line too, and 2. Every setting is an environment variable with an option of the same
name; giving the option sets the variable, which is where the core, the migrations and the worker's processes read it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgqueue_ref import __version__
from pgqueue_ref.core import SCHEMA_SQL, InvalidJob, Queue, QueueError, SchemaMissing, Stat, translate

# Pretty tracebacks would print local variables, a DSN among them.
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A PostgreSQL job queue: its schema, its workers, its operations.",
)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        result = app(args=list(arguments) or ["--help"], prog_name="pgqueue-ref", standalone_mode=False)
    except QueueError as error:
        return _complain(error, 1)
    except typer.TyperException as error:
        return _complain(f"{error.format_message()} (see pgqueue-ref --help)", error.exit_code)
    return result if isinstance(result, int) else 0


def _complain(what: object, exit_code: int) -> int:
    """One line on stderr. Usage errors may quote an argument, so what looks like a password goes."""
    line = " ".join(str(what).split())
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


# -- the schema ------------------------------------------------------------------------------------------------


@app.command()
def schema() -> None:
    """Print the SQL that makes the tables, for psql or a review."""
    typer.echo(SCHEMA_SQL, nl=False)


@app.command()
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead; needs no database.")] = False,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
) -> None:
    """Bring the tables to this version. Safe to run from every deployment at once."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    try:
        command.upgrade(config, "head", sql=sql)
    except CommandError as error:
        refused = translate(error.__cause__) if isinstance(error.__cause__, psycopg.Error) else None
        if refused is None or isinstance(refused, SchemaMissing):  # whose advice is to do what was just tried
            refused = QueueError(str(error))
        raise refused from error
    if not sql:
        typer.echo(f"queue schema is at revision {ScriptDirectory.from_config(config).get_current_head()}")


def _migrations() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise QueueError("the migrations are not installed: reinstall pgqueue-ref from its wheel")


# -- workers ---------------------------------------------------------------------------------------------------


@app.command()
def worker(
    app: Annotated[str, typer.Option(metavar="MODULE:KINDS", help="Where the handlers are registered.")],
    worker_queues: Annotated[
        str,
        typer.Option("--queues", "--worker-queues", envvar="PGQUEUE_WORKER_QUEUES", help="Names, comma between them."),
    ] = "default",
    max_concurrent_jobs: Annotated[
        int, typer.Option(envvar="PGQUEUE_MAX_CONCURRENT_JOBS", min=1, help="Attempts at a time in one process.")
    ] = 100,
    poll_interval: Annotated[
        float, typer.Option(envvar="PGQUEUE_POLL_INTERVAL", help="Seconds between looks while nothing wakes it.")
    ] = 1.0,
    lease: Annotated[float, typer.Option(help="Seconds after which a dead worker's jobs run elsewhere.")] = 60.0,
    grace: Annotated[float, typer.Option(help="Seconds that attempts may go on after SIGTERM.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Run what is due, then exit.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    listen: Annotated[
        bool,
        typer.Option("--listen/--no-listen", help="LISTEN holds a third connection; a transaction pooler has none."),
    ] = True,
    name: Annotated[
        str | None, typer.Option(help="What jobs record as their worker; host and pid unless given.")
    ] = None,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
    statement_timeout_ms: StatementTimeout = None,
) -> int:
    """Run handlers until SIGTERM or SIGINT."""
    from pgqueue_ref.worker import serve

    return serve(
        app,
        queues=[queue.strip() for queue in worker_queues.split(",")],
        max_concurrent_jobs=max_concurrent_jobs,
        poll_interval=poll_interval,
        lease=lease,
        grace=grace,
        once=once,
        listen=listen,
        processes=processes,
        name=name,
    )


# -- operations ------------------------------------------------------------------------------------------------


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


@app.command()
def stats(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
    statement_timeout_ms: StatementTimeout = None,
) -> None:
    """Count jobs by queue, kind and status. Reads the whole table."""
    with Queue.connect() as connected:
        counts = connected.stats()
    if as_json:
        rows = [stat._asdict() | {"oldest": stat.oldest.isoformat()} for stat in counts]
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_stats(counts)


def _print_stats(counts: list[Stat]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("queue", "kind", "status")
    for name in ("jobs", "due", "oldest"):
        table.add_column(name, justify="right")
    for stat in counts:
        # Names come from whoever pushes: neither Rich's markup nor a terminal's escape sequences may pass.
        names = [name if name.isprintable() else repr(name) for name in (stat.queue, stat.kind)]
        oldest = stat.oldest.isoformat(" ", "seconds")
        table.add_row(*map(Text, names), stat.status, f"{stat.jobs:,}", f"{stat.due:,}", oldest)
    Console().print(table)
