"""The command line, each command for real as a process, and what it says about bad input."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_ref import __version__
from pgqueue_ref.core import SCHEMA_SQL
from pgqueue_ref.ops import app as cli
from pgqueue_ref.worker import serve

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {  # DESIGN: each with an option of the same name
    "PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS", "PGQUEUE_MAX_IN_FLIGHT_JOBS",
    "PGQUEUE_MAX_CONCURRENT_JOBS", "PGQUEUE_WORKER_QUEUES", "PGQUEUE_POLL_INTERVAL", "PGQUEUE_EVENTS_DAYS",
    "PGQUEUE_API_HOST", "PGQUEUE_API_PORT", "PGQUEUE_API_POOL_SIZE", "PGQUEUE_API_MAX_OVERFLOW",
    "PGQUEUE_API_POOL_TIMEOUT", "PGQUEUE_API_MAX_BODY", "PGQUEUE_API_MAX_PAGE",
}  # fmt: skip
APP = """
from pgqueue_ref.worker import Kinds
kinds = Kinds()

@kinds.register("double")
def double(job):
    return 2 * job.payload
"""


def environment(dsn: str | None) -> dict[str, str]:
    # Without COLUMNS, which test processes have: tables are as wide as they need.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGQUEUE_", "COLUMNS"))}
    return kept | {"PYTHONPATH": str(ROOT)} | ({"PGQUEUE_DATABASE_URL": dsn} if dsn else {})


def pgqueue(*arguments: str, dsn: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgqueue_ref", *arguments],
        cwd=cwd, env=environment(dsn), capture_output=True, text=True,
    )  # fmt: skip


def succeeds(*arguments: str, dsn: str | None = None) -> str:
    """What the command printed; fails the test unless it succeeds without complaint."""
    done = pgqueue(*arguments, dsn=dsn)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str, dsn: str | None = None, code: int = 1) -> str:
    """The one line on stderr; fails the test unless that is all."""
    done = pgqueue(*arguments, dsn=dsn)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("pgqueue-ref: ")
    assert len(line) < 500
    return line


def jobs(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT kind, status, payload FROM pgqueue_jobs ORDER BY id").fetchall()


# -- what works ------------------------------------------------------------------------------------------------


def test_version_and_help_name_themselves() -> None:
    assert succeeds("--version") == f"pgqueue-ref {__version__}\n"
    for command in ("migrate", "schema", "worker", "push", "stats"):
        assert command in succeeds("--help")


def test_every_setting_has_an_option_of_the_same_name() -> None:
    found = set()
    for command in typer_commands():
        for parameter in command.params:
            if variable := parameter.envvar:
                found.add(variable)
                name = variable.removeprefix("PGQUEUE_").removeprefix("API_")
                assert "--" + name.lower().replace("_", "-") in parameter.opts
    assert found == SETTINGS


def typer_commands() -> list[Any]:
    from typer.main import get_command

    import pgqueue_ref.ops.commands  # noqa: F401 - registers them

    group: Any = get_command(cli.app)
    return list(group.commands.values())


def test_schema_prints_the_core_schema() -> None:
    assert succeeds("schema") == SCHEMA_SQL


def test_migrate_then_push_then_stats(empty_database: str) -> None:
    assert succeeds("migrate", dsn=empty_database).startswith("queue schema is at revision ")
    assert succeeds("migrate", dsn=empty_database).startswith("queue schema is at revision ")
    first = json.loads(succeeds("push", "mail", "--payload", '{"to": "é"}', "--key", "k", dsn=empty_database))
    again = json.loads(succeeds("push", "mail", "--key", "k", dsn=empty_database))
    assert (first["created"], again["created"], again["id"]) == (True, False, first["id"])
    succeeds("push", "mail", "--queue", "slow", "--priority", "-7", "--delay", "60", dsn=empty_database)
    seen = json.loads(succeeds("stats", "--json", dsn=empty_database))
    assert [(row["queue"], row["kind"], row["status"], row["jobs"]) for row in seen["rows"]] == [
        ("default", "mail", "pending", 1),
        ("slow", "mail", "pending", 1),
    ]
    assert jobs(empty_database)[0] == ("mail", "pending", {"to": "é"})
    table = succeeds("stats", dsn=empty_database)
    assert "slow" in table
    assert "mail" in table


def test_migrate_prints_sql_without_a_database(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(succeeds("migrate", "--sql"))
    assert succeeds("migrate", dsn=empty_database).startswith("queue schema is at revision ")


def test_options_win_over_variables_and_choose_the_schema(empty_database: str) -> None:
    elsewhere = "postgresql://nobody:hush@127.0.0.1:1/nothing"
    here = ("--database-url", empty_database, "--schema", "blue")
    succeeds("migrate", *here, dsn=elsewhere)
    succeeds("push", "mail", *here, dsn=elsewhere)
    assert "blue.pgqueue_jobs" in tables(empty_database)
    assert "public.pgqueue_jobs" not in tables(empty_database)
    assert [row["jobs"] for row in json.loads(succeeds("stats", "--json", *here, dsn=elsewhere))["rows"]] == [1]


def tables(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [name for (name,) in connection.execute("SELECT schemaname || '.' || tablename FROM pg_tables")]


def test_names_cannot_smuggle_terminal_sequences_or_markup_into_the_table(database: str) -> None:
    succeeds("push", "\x1b[31mred", dsn=database)
    succeeds("push", "[bold]x[/nothing]", dsn=database)
    table = succeeds("stats", dsn=database)
    assert "\x1b" not in table
    assert "[bold]x[/nothing]" in table


def test_worker_once_runs_what_is_due(database: str, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(APP)
    succeeds("push", "double", "--payload", "21", dsn=database)
    done = pgqueue("worker", "--app", "myapp:kinds", "--once", dsn=database, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert jobs(database) == [("double", "succeeded", 21)]


def test_worker_runs_until_sigterm_and_takes_only_its_queues(database: str, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(APP)
    succeeds("push", "double", "--payload", "1", "--queue", "c", dsn=database)
    succeeds("push", "double", "--payload", "2", "--queue", "b", dsn=database)
    worker = subprocess.Popen(
        [sys.executable, "-m", "pgqueue_ref", "worker", "--app", "myapp:kinds", "--queues", "a,b", "--name", "w7",
         "--max-concurrent-jobs", "2", "--poll-interval", "0.1", "--grace", "20", "--no-listen"],
        cwd=tmp_path, env=environment(database), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for _ in polls("the worker runs the job"):
            if ("double", "succeeded", 2) in jobs(database):
                break
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 0, errors
    assert jobs(database) == [("double", "pending", 1), ("double", "succeeded", 2)]


def test_the_worker_command_gives_every_option_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(app: str, **options: Any) -> int:
        given.update(options, app=app)
        return 3

    monkeypatch.setattr("pgqueue_ref.worker.serve", record)
    arguments = "--app m:k --queues a,b --max-concurrent-jobs 7 --poll-interval 2 --lease 9 --grace 3 --name me"
    code = cli.run(
        ["worker", "--once", "--no-listen", "--processes", "4", "--metrics-port", "9100", *arguments.split()]
    )
    assert code == 3
    assert given == {
        "app": "m:k", "queues": ["a", "b"], "max_concurrent_jobs": 7, "poll_interval": 2.0, "lease": 9.0, "grace": 3.0,
        "once": True, "processes": 4, "listen": False, "name": "me", "metrics_port": 9100,
        "metrics_host": "127.0.0.1",
    }  # fmt: skip
    assert given.keys() <= set(serve.__kwdefaults__) | {"app"}


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["stats"], ["push", "mail"], ["migrate"]])
def test_no_database_is_told(command: list[str]) -> None:
    assert "no database given: set PGQUEUE_DATABASE_URL" in refused(*command)


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://me:hush@host/db",
        "me:hush",
        "postgresql://me:hush@[::1/db",
        # Marks that end a password unless they are percent-encoded: what follows would be taken for host or port.
        "postgresql://me:x@hush@host/db",
        "postgresql://me:hush/x@host/db",
    ],
)
@pytest.mark.parametrize("command", ["stats", "migrate"])
def test_an_unknown_dsn_is_told_without_repeating_it(command: str, dsn: str) -> None:
    line = refused(command, dsn=dsn)
    assert "is not understood: write postgresql://" in line
    assert "hush" not in line


@pytest.mark.parametrize("command", ["stats", "migrate"])
def test_a_refused_connection_is_told_with_its_address(command: str) -> None:
    line = refused(command, dsn="postgresql://me:hush@127.0.0.1:1/db")
    assert "127.0.0.1" in line
    assert "Connection refused" in line
    assert "hush" not in line


@pytest.mark.parametrize("command", ["stats", "migrate"])
def test_a_wrong_password_is_told_without_it(command: str, database: str) -> None:
    # Of a user who does not exist: a server answers as for a wrong password, whatever its own users may do.
    line = refused(command, dsn=make_conninfo(database, user="pgq_nobody", password="hush-hush"))
    assert "pgq_nobody" in line
    assert "check" in line
    assert "hush-hush" not in line


def test_a_missing_database_is_told(server: Any) -> None:
    assert "no such database" in refused("stats", dsn=make_conninfo(server.dsn, dbname="pgq_nothing"))


def test_a_missing_schema_is_told_with_the_command_that_makes_it(empty_database: str) -> None:
    for command in (["stats"], ["push", "mail"], ["push", "mail", "--schema", "blue"]):
        assert "queue schema is missing or out of date: run `pgqueue-ref migrate`" in refused(
            *command, dsn=empty_database
        )
    assert [name for name in tables(empty_database) if "pgqueue" in name] == []


@pytest.fixture
def crowded(server: Any, database: str) -> Iterator[str]:
    """The DSN of a role that has no connection left."""
    role, password = f"pgq_{secrets.token_hex(5)}", secrets.token_hex(8)
    create = "CREATE ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT 0"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(create).format(sql.Identifier(role), sql.Literal(password)))
        yield make_conninfo(database, user=role, password=password)
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("command", [["stats"], ["push", "mail"], ["migrate"]])
def test_a_full_server_is_told(command: list[str], crowded: str, database: str) -> None:
    line = refused(*command, dsn=crowded)
    assert "no free connection: use fewer or raise max_connections" in line
    assert str(conninfo_to_dict(crowded)["password"]) not in line
    assert jobs(database) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mail", "--payload", "{to: you}"], "--payload is not JSON"),
        (["mail", "--payload", ""], "--payload is not JSON"),
        (["mail", "--payload", "NaN"], "payload is not JSON"),
        (["mail", "--payload", "[" * 20_000], "--payload is not JSON"),
        (["mail", "--payload", "9" * 20_000], "--payload is not JSON"),
        (["mail", "--payload", '{"name": "a\\u0000b"}'], "payload holds NUL"),
        (["mail", "--payload", '"\\ud800"'], "payload is not JSON"),
        ([""], "kind must be a text of 1 to 255 bytes"),
        (["mail", "--key", ""], "key must be a text of 1 to 1024 bytes"),
        (["mail", "--key", "k" * 100_000], "key must be a text of 1 to 1024 bytes"),
        (["mail", "--queue", "q" * 256], "queue must be a text of 1 to 255 bytes"),
        (["mail", "--delay", "-1"], "delay must be 0 to"),
        (["mail", "--delay", "nan"], "delay must be 0 to"),
        (["mail", "--delay", "1e300"], "delay must be 0 to"),
        (["mail", "--priority", "99999999999"], "priority must be a whole number"),
        (["mail", "--max-in-flight-jobs", "0"], "max_in_flight must be a whole number from 1"),
        # What no command line can carry.
        (["mail", "--key", "k" * 10_000_000], "key must be"),
        (["ma\0il"], "kind must be"),
        (["é" * 128], "kind must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_push_refuses_bad_input_and_writes_nothing(
    arguments: list[str],
    words: str,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database)
    # What the command line itself cannot read is wrong usage; what the queue refuses is not.
    assert cli.run(["push", *arguments]) == (2 if words.startswith("--payload") else 1)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert words in line
    assert len(line) < 500
    assert printed.out == ""
    assert jobs(database) == []


def test_a_busy_queue_refuses_and_says_when_to_come_back(database: str) -> None:
    succeeds("push", "mail", "--max-in-flight-jobs", "1", dsn=database)
    line = refused("push", "mail", "--max-in-flight-jobs", "1", dsn=database)
    assert "queue 'default' is busy: 1 of 1 jobs; retry in" in line
    assert len(jobs(database)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pusj"], "No such command 'pusj'"),
        (["push"], "Missing argument"),
        (["push", "mail", "--nope"], "No such option: --nope"),
        (["push", "mail", "--delay", "soon"], "Invalid value for '--delay'"),
        (["stats", "--statement-timeout-ms", "-1"], "Invalid value for '--statement-timeout-ms'"),
        (["worker"], "Missing option '--app'"),
        (["worker", "--app", "m:k", "--max-concurrent-jobs", "0"], "Invalid value for '--max-concurrent-jobs'"),
        (["stats", "postgresql://me:hush@host/db"], "unexpected extra argument"),
        (["stats", "host=h password=hush"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_without_a_password_and_exits_2(arguments: list[str], words: str) -> None:
    line = refused(*arguments, code=2)
    assert words in line
    assert "hush" not in line


def test_a_wrong_setting_is_told_with_its_variable(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_ = environment(database) | {"PGQUEUE_STATEMENT_TIMEOUT_MS": "soon"}
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue_ref", "stats"], cwd=ROOT, env=environment_, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "PGQUEUE_STATEMENT_TIMEOUT_MS" in done.stderr


@pytest.mark.parametrize(
    ("app", "words"),
    [("nonsense", "module:kinds"), ("no_such_module:kinds", "cannot import no_such_module"), ("json:kinds", "kinds")],
)
def test_a_worker_without_its_application_is_told(app: str, words: str, database: str) -> None:
    assert words in refused("worker", "--app", app, "--once", dsn=database)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_ops_extra_one_line_says_what_to_install(package: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; from pgqueue_ref.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "stats"], cwd=ROOT, env=environment(None), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pgqueue-ref: the command line needs {package}: pip install 'pgqueue-ref[ops]'\n"


def polls(what: str) -> Iterator[None]:
    """Iterate over polls of a condition; fails the test when the loop is not left in a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    pytest.fail(f"not within a minute: {what}")
