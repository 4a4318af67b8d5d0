"""What the tests of the command line share: a command run in this process, and rows as they may stand in the table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
import pytest

from pgqueue_ref.ops.app import run

PAST = datetime(2001, 1, 1, tzinfo=UTC)
SETTINGS = ("PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS", "PGQUEUE_MAX_IN_FLIGHT_JOBS")


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
