"""Connections: every common DSN is understood, settings take effect, errors are one line and hold no secret."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_ref import core
from pgqueue_ref.worker.bell import LIE_DOWN

SECRET = "hunter2-tops3cret"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS"):
        monkeypatch.delenv(name, raising=False)


def refusal(dsn: str, kind: type[core.QueueError] = core.QueueError) -> str:
    """What both ways to connect say; neither may show the password, anywhere in the chain of errors."""
    with pytest.raises(kind) as refused:
        core.connect(dsn)
    with pytest.raises(kind) as refused_async:
        asyncio.run(core.connect_async(dsn))
    for error in (refused.value, refused_async.value):
        assert "\n" not in str(error)
        chained: BaseException | None = error
        while chained is not None:
            assert SECRET not in str(chained)
            assert SECRET not in repr(chained)
            chained = (
                chained.__cause__ or chained.__context__ if not chained.__suppress_context__ else chained.__cause__
            )
    return str(refused.value)


# -- DSNs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ada:pa%20ss@db.example:6543/app",
        "postgres://ada:pa%20ss@db.example:6543/app",
        "postgresql+psycopg://ada:pa%20ss@db.example:6543/app",
        "postgresql+psycopg_async://ada:pa%20ss@db.example:6543/app",
        "  postgresql://ada:pa%20ss@db.example:6543/app\n",
        "host=db.example port=6543 user=ada password='pa ss' dbname=app",
    ],
)
def test_every_common_form_of_a_dsn_is_understood(dsn):
    parts = conninfo_to_dict(core.conninfo(dsn))
    expected = {"host": "db.example", "port": "6543", "user": "ada", "password": "pa ss", "dbname": "app"}
    assert {name: parts[name] for name in expected} == expected


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://ada:{SECRET}@db/app",
        f"ada:{SECRET}@db",
        f"postgresql://ada:{SECRET}@[db/app",
        f"postgresql://ada:{SECRET}@db/app?nonsense=1",
        f"host=db passwort={SECRET}",
        f"host= password={SECRET}",
        f"host=db dbname= password={SECRET}",
        f"postgresql://ada:/{SECRET}@db/app",
        f"postgresql://ada:5432/{SECRET}@db/app",
        f"password='{SECRET}",
        SECRET,
    ],
)
def test_a_dsn_that_is_not_understood_is_refused_without_repeating_it(dsn):
    assert "postgresql://" in refusal(dsn)


@pytest.mark.parametrize("dsn", ["", "   "])
def test_no_dsn_at_all_says_which_setting_to_set(dsn):
    assert "PGQUEUE_DATABASE_URL" in refusal(dsn)
    with pytest.raises(core.QueueError, match="PGQUEUE_DATABASE_URL"):
        core.conninfo()


def test_settings_come_from_the_environment(monkeypatch, database):
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database)
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", "1234")
    monkeypatch.setenv("PGQUEUE_SCHEMA", 'odd "Schema\\ name')
    with core.connect() as connection:
        assert connection.autocommit
        assert connection.execute("SHOW statement_timeout").fetchone() == ("1234ms",)
        core.install(connection, 'odd "Schema\\ name')
        assert connection.execute("SELECT current_schema()").fetchone() == ('odd "Schema\\ name',)
        core.Queue(connection).push("mail")
        assert connection.execute('SELECT count(*) FROM "odd ""Schema\\ name".pgqueue_jobs').fetchone() == (1,)


def test_the_statement_timeout_is_5_seconds_unless_said_otherwise(database):
    for given, shown in ((None, "5s"), (0, "0"), (250, "250ms")):
        with core.connect(database, statement_timeout_ms=given) as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == (shown,)


def test_what_the_dsn_says_itself_wins(database):
    dsn = make_conninfo(database, application_name="mine", connect_timeout="3", options="-c work_mem=7MB")
    parts = conninfo_to_dict(core.conninfo(dsn))
    assert (parts["application_name"], parts["connect_timeout"]) == ("mine", "3")
    with core.connect(dsn) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("5s",)


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", ""])
def test_a_timeout_that_is_not_a_whole_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", value)
    with pytest.raises(core.InvalidJob, match="PGQUEUE_STATEMENT_TIMEOUT_MS"):
        core.conninfo("postgresql://localhost/app")


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_refused_connection_says_so():
    with socket.socket() as reserved:  # bound and not listening: nobody else can answer there
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        said = refusal(f"postgresql://ada:{SECRET}@127.0.0.1:{port}/app", core.DatabaseUnavailable)
    assert "refused" in said


def test_a_host_that_does_not_exist_says_so():
    said = refusal(f"postgresql://ada:{SECRET}@host.invalid/app", core.DatabaseUnavailable)
    assert "host.invalid" in said


def test_an_unknown_database_says_so(server: Any):
    with pytest.raises(core.DatabaseUnavailable, match=r"no such database.*nowhere_at_all"):
        core.connect(make_conninfo(server.dsn, dbname="nowhere_at_all"))


@pytest.fixture
def role(server: Any) -> Iterator[Callable[..., str]]:
    """Makes a role of its own, with `SECRET` as password and options, and gives its DSN."""
    name = f"pgq_{secrets.token_hex(5)}"
    identifier = sql.Identifier(name)

    def make(options: str = "") -> str:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} " + options).format(identifier, sql.Literal(SECRET))
            )
        return make_conninfo(server.dsn, user=name, password=SECRET)

    yield make
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(identifier))


def test_a_wrong_password_says_so_and_shows_none(server: Any, role):
    dsn = role()
    with psycopg.connect(server.dsn) as connection:
        methods = connection.execute("SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules").fetchone()
    if methods and "trust" in methods[0]:
        pytest.skip("the server given by --postgres trusts everybody: it has no wrong passwords")
    wrong = make_conninfo(dsn, password=f"not-{SECRET}")
    assert "login refused" in refusal(wrong, core.DatabaseUnavailable)


def test_a_full_server_is_a_connection_limit(role):
    dsn = role("CONNECTION LIMIT 1")
    with core.connect(dsn):
        said = refusal(dsn, core.ConnectionLimit)
    assert "free connection" in said
    core.connect(dsn).close()


# -- the schema --------------------------------------------------------------------------------------------------


def test_installing_again_or_at_once_is_installing_once(empty_database):
    def install(_: int) -> None:
        with core.connect(empty_database, schema="staging") as connection:
            core.install(connection, "staging")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(install, range(8)))
    install(8)
    with core.connect(empty_database, schema="staging") as connection:
        assert core.Queue(connection).push("mail").created


def test_a_schema_may_be_as_long_as_a_channel_allows(empty_database):
    longest = "s" * 55
    with (
        core.connect(empty_database, schema=longest) as sleeper,
        core.connect(empty_database, schema=longest) as pusher,
    ):
        core.install(pusher, longest)
        sleeper.execute(LIE_DOWN, [["default"]])
        assert core.Queue(pusher).push("mail").created
        with pytest.raises(core.InvalidJob, match="schema must be a text of 1 to 55 bytes"):
            core.install(pusher, longest + "s")
    with pytest.raises(core.InvalidJob, match="schema must be a text of 1 to 55 bytes"):
        core.connect(empty_database, schema=longest + "s")


def test_an_installation_that_fails_leaves_nothing(empty_database):
    with core.connect(empty_database) as connection:
        # In the way of the schema's last statements: a function cannot change its result.
        connection.execute("CREATE FUNCTION pgqueue_notify() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        with pytest.raises(core.QueueError, match="return type"):
            core.install(connection)
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'pgqueue%'").fetchone() == (0,)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgqueue_ref.core", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_module_prints_the_schema_and_applies_it(empty_database):
    printed = run()
    assert (printed.returncode, printed.stdout) == (0, core.SCHEMA_SQL)
    applied = run(empty_database)
    assert (applied.returncode, applied.stdout) == (0, "queue schema is in place\n")
    with core.Queue.connect(empty_database) as queue:
        assert queue.push("mail").created


def test_the_module_says_in_one_line_what_is_wrong(monkeypatch):
    for arguments, code in ((["--help"], 2), (["a", "b"], 2), ([f"mysql://ada:{SECRET}@db/app"], 1)):
        refused = run(*arguments)
        assert (refused.returncode, refused.stdout) == (code, "")
        assert refused.stderr.count("\n") == 1
        assert SECRET not in refused.stderr
