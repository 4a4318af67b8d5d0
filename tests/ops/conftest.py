"""What tests of the command line, the API and its page share: a command run in this process, rows as they may stand in
the table, the API served for real, a browser."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from browsing import DESK, chromium
from playing import Player
from playwright.sync_api import Browser, Page

from pgqueue_ref.ops import doctor
from pgqueue_ref.ops.api import Settings, create_app
from pgqueue_ref.ops.api import serve as serving
from pgqueue_ref.ops.api.settings import parse_tokens
from pgqueue_ref.ops.app import run

PAST = datetime(2001, 1, 1, tzinfo=UTC)
SETTINGS = (
    "PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS", "PGQUEUE_MAX_IN_FLIGHT_JOBS",
    "PGQUEUE_EVENTS_DAYS",
)  # fmt: skip


class Done(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, ""), self
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one line on stderr of a command that was refused and printed nothing else."""
        assert (self.code, self.out) == (1, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("pgqueue-ref: ")
        return line


class Terminal(io.StringIO):
    """Somebody at a keyboard, who types this."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine counts, and none that a command's option sets stays."""
    for name in (*SETTINGS, "COLUMNS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def cli(
    database: str, settings: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`cli("cancel", 7, answer="y")`: runs a command on the test's database; without an answer there is no terminal."""

    def cli(*arguments: object, answer: str | None = None) -> Done:
        monkeypatch.setenv("PGQUEUE_DATABASE_URL", database)
        monkeypatch.setattr("sys.stdin", io.StringIO() if answer is None else Terminal(answer + "\n"))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return cli


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def put(db: psycopg.Connection[Any]) -> Callable[..., int]:
    """`put(column=value, ...)`: inserts a row as it stands, and gives its id."""

    def put(**columns: object) -> int:
        names = {"kind": "mail"} | columns
        insert = f"INSERT INTO pgqueue_jobs ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) RETURNING id"
        ((id_,),) = db.execute(insert, list(names.values())).fetchall()
        return int(id_)

    return put


@pytest.fixture
def statuses(db: psycopg.Connection[Any]) -> Callable[[], dict[int, str]]:
    """The status of every job by id."""
    return lambda: dict(db.execute("SELECT id, status FROM pgqueue_jobs ORDER BY id").fetchall())


@pytest.fixture
def play(
    cli: Callable[..., Done],
    database: str,
    db: psycopg.Connection[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Player:
    """Plays what a document shows on the test's database."""
    monkeypatch.setenv("PGTZ", "UTC")
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.0)
    return Player(cli, database, db, tmp_path)


# -- the API ---------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`serve(tokens, dsn=..., **settings)`: the API on the test's database or another, on a free port; its address."""
    running = []

    def serve(tokens: str = "", *, dsn: str = database, **settings: Any) -> str:
        monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
        sockets = serving.bind("127.0.0.1", 0, with_tokens=bool(tokens))
        server = serving.server(create_app(Settings(parse_tokens(tokens), **settings)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
        thread.start()  # the socket listens already: requests wait for it
        running.append((server, thread, sockets))
        return serving.url(sockets)

    yield serve
    for server, thread, sockets in running:
        server.should_exit = True
        thread.join(30)
        serving.close(sockets)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`visit(address)`: a page there in a new profile. The test fails when it logs an error, but for those that the
    pattern `faults` expects, or asks another origin for anything.
    """
    contexts, complaints = [], []

    def visit(address: str, *, faults: str = "", scheme: str = "light", **options: Any) -> Page:
        options.setdefault("viewport", DESK)
        context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        origin = re.match(r"\w+://[^/]+", address)[0]

        def console(message: Any) -> None:
            if message.type in ("error", "warning") and not (faults and re.search(faults, message.text)):
                complaints.append(f"{message.type}: {message.text}")

        page.on("console", console)
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on(
            "request", lambda request: request.url.startswith((f"{origin}/", "data:")) or complaints.append(request.url)
        )
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
