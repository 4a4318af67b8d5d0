"""`api` serves the queue over HTTP; `dev` runs everything at once, to try the queue with one command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer
from psycopg.conninfo import conninfo_to_dict

from pgqueue_ref.core import QueueError

from ..app import DEPLOY, WrongUsage, app, command
from .schema import migrate

if TYPE_CHECKING:
    import uvicorn

    from pgqueue_ref.ops.api.settings import Token
    from pgqueue_ref.worker import Worker

log = logging.getLogger("pgqueue_ref.api")

PATIENCE = 5.0  # seconds that `dev` gives attempts under way when it ends

Host = Annotated[
    str,
    typer.Option(envvar="PGQUEUE_API_HOST", help="Address to listen on; beyond loopback only with PGQUEUE_API_TOKEN."),
]
Port = Annotated[int, typer.Option(envvar="PGQUEUE_API_PORT", min=0, max=65_535, help="0: any that is free.")]
MaxInFlight = Annotated[
    int,
    typer.Option(
        envvar="PGQUEUE_MAX_IN_FLIGHT_JOBS", min=1, help="Answer 429 when a queue holds that many unfinished jobs."
    ),
]
TOKENS = (
    "PGQUEUE_API_TOKEN holds the tokens, name:read:secret or name:write:secret with commas between them. They are no"
    " option, because command lines can be seen by everybody on a machine. docs/api.md is the API's manual."
)


@command(DEPLOY, epilog=TOKENS)
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_in_flight_jobs: MaxInFlight = 12,
    pool_size: Annotated[
        int, typer.Option(envvar="PGQUEUE_API_POOL_SIZE", min=1, help="Database connections that are kept.")
    ] = 5,
    max_overflow: Annotated[
        int, typer.Option(envvar="PGQUEUE_API_MAX_OVERFLOW", min=0, help="Further ones while there is need.")
    ] = 5,
    pool_timeout: Annotated[
        float, typer.Option(envvar="PGQUEUE_API_POOL_TIMEOUT", min=0.0, help="Seconds that a request waits for one.")
    ] = 5.0,
    max_body: Annotated[
        int, typer.Option(envvar="PGQUEUE_API_MAX_BODY", min=1, help="Bytes of a request's body.")
    ] = 1_048_576,
    max_page: Annotated[
        int, typer.Option(envvar="PGQUEUE_API_MAX_PAGE", min=1, help="Jobs in a page of a list.")
    ] = 200,
) -> None:
    """Serve the queue over HTTP until SIGTERM or SIGINT: the API, a page for people, metrics."""
    from pgqueue_ref.ops.api import Settings, create_app
    from pgqueue_ref.ops.api.serve import obey_signals, server, url

    _log()
    with _listening(host, port) as (tokens, sockets):
        serving = server(
            create_app(Settings(tokens, max_in_flight_jobs, pool_size, max_overflow, pool_timeout, max_body, max_page))
        )
        obey_signals(serving)
        who = ", ".join(f"{token.name} ({token.scope})" for token in tokens) or "everybody on this machine"
        log.info("serving at %s, documents at /docs; lets in: %s", url(sockets), who)
        serving.run(sockets=sockets)


@app.command(epilog=TOKENS, rich_help_panel=DEPLOY)
def dev(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    postgres: Annotated[
        str, typer.Option(metavar="SPEC", help="embedded[:16|:18], docker[:IMAGE], local[:PATH] or a DSN.")
    ] = "embedded",
    application: Annotated[
        str, typer.Option("--app", metavar="MODULE:KINDS", help="Handlers to run; hello, slow and fail unless given.")
    ] = "pgqueue_ref.ops.demo:kinds",
    max_in_flight_jobs: MaxInFlight = 12,
) -> None:
    """Try the queue: a PostgreSQL of its own, the API, the page and a worker, until Ctrl-C. Needs the extra `load`."""
    from pgqueue_ref.ops.api import Settings, create_app
    from pgqueue_ref.ops.api.serve import server, url
    from pgqueue_ref.worker import Worker, load

    _log()
    log.setLevel(logging.WARNING)  # the page asks for news every few seconds
    kinds = load(application)
    with _ended_whole(), _listening(host, port) as (tokens, sockets), _provisioned(postgres) as database:
        migrate()
        worker = Worker(kinds, grace=PATIENCE)
        names = ", ".join(kind.name for kind in worker.kinds)
        welcome = WELCOME.format(here=url(sockets), kinds=names, queues=", ".join(worker.queues), database=database)
        serving = server(create_app(Settings(tokens, max_in_flight_jobs)))
        asyncio.run(_together(serving, sockets, worker, welcome))


WELCOME = """
  page      {here}/
  API       {here}/docs   try POST /api/v1/queue/jobs there
  worker    runs {kinds} from the queue {queues}
  database  {database}

Ctrl-C ends all of it.
"""


async def _together(serving: uvicorn.Server, sockets: list[socket.socket], worker: Worker, welcome: str) -> None:
    """Serve and work until a signal."""
    from pgqueue_ref.ops.api.serve import obey_signals

    obey_signals(serving)
    served = asyncio.create_task(serving.serve(sockets=sockets))
    broken = asyncio.create_task(worker.broken.wait())
    try:
        async with worker:
            typer.echo(welcome)
            await asyncio.wait([served, broken], return_when=asyncio.FIRST_COMPLETED)
    finally:
        broken.cancel()
        serving.should_exit = True
        await served
    if worker.broken.is_set():
        raise QueueError("the worker could not go on: its last line says why")


def _log() -> None:
    from pgqueue_ref.worker.serve import FORMAT

    logging.basicConfig(format=FORMAT, level=logging.INFO)
    for talkative in ("uvicorn", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


@contextmanager
def _ended_whole() -> Iterator[None]:
    """Whoever ends this, with whatever signal, before it serves: what was started is ended as well."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _listening(host: str, port: int) -> Iterator[tuple[tuple[Token, ...], list[socket.socket]]]:
    """The tokens of the environment, and sockets that these allow."""
    from pgqueue_ref.ops.api.serve import bind, close
    from pgqueue_ref.ops.api.settings import NotAllowed, parse_tokens

    try:
        tokens = parse_tokens(os.environ.get("PGQUEUE_API_TOKEN", ""))
        sockets = bind(host, port, with_tokens=bool(tokens))
    except NotAllowed as error:
        raise WrongUsage(str(error)) from error
    try:
        yield tokens, sockets
    finally:
        close(sockets)


@contextmanager
def _provisioned(spec: str) -> Iterator[str]:
    """A server that the environment then names, and words about it: for one that was started here, how to reach it from
    another terminal, with its password in a file.
    """
    from pgqueue_ref.harness.server import ProvisionError, provision

    try:
        server = provision(spec)
    except ProvisionError as error:
        raise QueueError(str(error)) from error
    with server, tempfile.NamedTemporaryFile("w", prefix="pgqueue-", suffix=".pgpass") as passwords:
        os.environ["PGQUEUE_DATABASE_URL"] = server.dsn
        if server.tier == "dsn":
            yield server.describe()
            return
        given = conninfo_to_dict(server.dsn)
        passwords.write(":".join(str(given[part]) for part in ("host", "port", "dbname", "user", "password")))
        passwords.flush()
        place = f"{quote(str(given['user']))}@{given['host']}:{given['port']}/{quote(str(given['dbname']))}"
        dsn = f"postgresql://{place}?passfile={quote(str(Path(passwords.name)), safe='')}"
        yield f"{server.describe()}, gone when this ends\n            export PGQUEUE_DATABASE_URL='{dsn}'"
