"""What every command says without database, schema, login or rights: one line, exit code 1, no password."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from typer.main import get_command

import pgqueue_ref.ops.commands  # noqa: F401 - registers them
from pgqueue_ref.ops.app import app

Cli = Callable[..., Any]
# Every command that talks to the queue, with arguments that it would carry out.
COMMANDS = (
    "stats", "watch --count 1", "list", "failed", "show 1", "push mail", "retry 1", "retry-all --yes", "cancel 1 --yes",
    "pause default", "resume default", "purge 30 --yes", "clear default --yes", "reset-stuck --yes",
)  # fmt: skip
# Commands with tests of their own.
ELSEWHERE = {
    "migrate", "schema", "worker", "doctor", "capacity", "report", "api", "dev", "events", "schedules",
}  # fmt: skip


@pytest.fixture
def refusals(cli: Cli) -> Callable[..., dict[str, str]]:
    """What each command says with these options, for people and for programs; each is refused in one line."""

    def refusals(*options: object) -> dict[str, str]:
        forms = [
            command + form for command in COMMANDS for form in ("", " --json") if command + form != "push mail --json"
        ]
        return {form: cli(*form.split(), *options).refusal for form in forms}

    return refusals


def test_no_command_is_forgotten() -> None:
    commands: Any = get_command(app)
    assert set(commands.commands) - ELSEWHERE == {command.split()[0] for command in COMMANDS}


def test_no_database_given(refusals: Callable[..., dict[str, str]]) -> None:
    for command, line in refusals("--database-url", "").items():
        assert "no database given: set PGQUEUE_DATABASE_URL" in line, command


def test_no_server(refusals: Callable[..., dict[str, str]]) -> None:
    for command, line in refusals("--database-url", "postgresql://me:hush@127.0.0.1:1/db").items():
        assert "check that the database runs, and its address" in line, command
        assert "127.0.0.1" in line, command
        assert "hush" not in line, command


def test_no_schema(refusals: Callable[..., dict[str, str]]) -> None:
    for command, line in refusals("--schema", "elsewhere").items():
        assert "queue schema is missing or out of date: run `pgqueue-ref migrate`" in line, command


def test_a_wrong_password(refusals: Callable[..., dict[str, str]], database: str) -> None:
    # Of a user who does not exist: a server answers as for a wrong password, whatever its own users may do.
    nobody = make_conninfo(database, user="pgq_nobody", password="hush-hush")
    for command, line in refusals("--database-url", nobody).items():
        assert "login refused: check user and password" in line, command
        assert "hush" not in line, command


@pytest.fixture
def login(database: str) -> Iterator[tuple[str, str]]:
    """A role that may log in and nothing else, and its password."""
    role, password = f"pgq_{secrets.token_hex(5)}", secrets.token_hex(8)
    with psycopg.connect(database, autocommit=True) as connection:
        names = sql.Identifier(role), sql.Literal(password)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(*names))
        yield role, password
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_role_without_rights(refusals: Callable[..., dict[str, str]], database: str, login: tuple[str, str]) -> None:
    role, password = login
    for command, line in refusals("--database-url", make_conninfo(database, user=role, password=password)).items():
        assert "permission denied for table pgqueue_" in line, command
        assert password not in line, command


def test_a_locked_table_ends_in_a_statement_timeout(cli: Cli, database: str) -> None:
    with psycopg.connect(database) as migrating:
        migrating.execute("LOCK TABLE pgqueue_jobs")
        for command in ("stats", "list", "retry 1", "clear default --yes"):
            line = cli(*command.split(), "--statement-timeout-ms", 50).refusal
            assert "statement cancelled: raise PGQUEUE_STATEMENT_TIMEOUT_MS or find what held it up" in line, command
