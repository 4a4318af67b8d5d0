"""What `provision` promises of each tier: which server comes, what is refused, and that nothing is left behind.

What every server that was started here does (kill, restart, set) is tested in tests/containers/test_lifecycle.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_ref.harness import binaries
from pgqueue_ref.harness.server import LaunchedServer, ProvisionError, Server, is_dsn, processes, provision, until

SECRET = "s3cret-w0rd"
VARIABLES = ("PGQUEUE_TEST_DSN", *(f"TEST_POSTGRES_{name}" for name in ("HOST", "PORT", "USER", "PASSWORD", "DB")))


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with provision("embedded") as server:
        yield server


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


def refusal(spec: str, **settings: str) -> str:
    with pytest.raises(ProvisionError) as error:
        provision(spec, settings=settings).close()
    message = str(error.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def answer(dsn: str, statement: str = "SELECT 1") -> Any:
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        row = connection.execute(statement).fetchone()
    return row and row[0]


# -- Given by a DSN ------------------------------------------------------------------------------------------


def test_a_dsn_gives_that_server_and_close_leaves_it_running(running: Server) -> None:
    with provision(running.dsn) as server:
        assert server.tier == "dsn"
        assert server.version == running.version
        assert answer(server.dsn) == 1
        assert server.describe() == f"dsn PostgreSQL {running.version} at 127.0.0.1:{urlsplit(running.dsn).port}"
        assert str(conninfo_to_dict(running.dsn)["password"]) not in server.describe() + repr(server)
    assert answer(running.dsn) == 1


def test_every_common_form_of_a_dsn_is_understood(running: Server) -> None:
    assert isinstance(running, LaunchedServer)
    url = running.dsn.replace("postgresql://", "postgresql+psycopg://")
    for dsn in (url, make_conninfo(running.dsn), make_conninfo(running.dsn, host=running.directory)):
        assert is_dsn(dsn)
        with provision(dsn) as server:
            assert server.dsn.startswith("postgresql://")
            assert answer(server.dsn) == 1


def test_special_characters_of_a_dsn_survive(running: Server) -> None:
    with running.connect() as connection:
        connection.execute("""CREATE ROLE "a/b@c" LOGIN PASSWORD 'x y:%?#'""")
        connection.execute("""CREATE DATABASE "d/e f" """)
    with provision(make_conninfo(running.dsn, user="a/b@c", password="x y:%?#", dbname="d/e f")) as server:
        assert answer(server.dsn, "SELECT current_user || ' ' || current_database()") == "a/b@c d/e f"


@pytest.mark.parametrize("action", ["start", "restart", "kill", "quit", "set"])
def test_a_given_server_is_not_ours_to_stop_or_configure(running: Server, action: str) -> None:
    with provision(running.dsn) as server, pytest.raises(ProvisionError, match="was not started here"):
        server.set(work_mem="1MB") if action == "set" else getattr(server, action)()
    assert "max_connections" in refusal(running.dsn, max_connections="10")


def test_a_wrong_password_fails_in_one_line_that_does_not_repeat_it(running: Server) -> None:
    assert "password authentication failed" in refusal(make_conninfo(running.dsn, password=SECRET))


def test_a_dsn_that_refuses_the_connection_fails_in_one_line() -> None:
    assert "127.0.0.1:1 was asked for and refuses" in refusal(f"postgresql://u:{SECRET}@127.0.0.1:1/x")


@pytest.mark.parametrize(
    "spec",
    [
        f"postgresql://u:{SECRET}@h:1/x?{SECRET}=1",
        f"postgresql://u:pass@{SECRET}@h/x",
        f"postgresql://u:{SECRET}/{SECRET}@h/x",
        f"host=h password='{SECRET}",
        f"postgresl://u:{SECRET}@h/x",
        f"mysql:{SECRET}",
        SECRET,
        "embeded",
        "",
        "docker-compose:x",
    ],
)
def test_a_bad_spec_fails_with_what_is_possible_and_without_what_may_be_a_password(spec: str) -> None:
    assert "postgresql://user" in refusal(spec)


def test_auto_takes_the_dsn_of_the_environment(
    running: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_TEST_DSN", running.dsn)
    with provision("auto") as server:
        assert server.tier == "dsn"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"pgqueue_ref: using {server.describe()}"]


def test_auto_takes_the_test_postgres_variables(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = conninfo_to_dict(running.dsn)
    monkeypatch.setenv("TEST_POSTGRES_PORT", str(dsn["port"]))
    monkeypatch.setenv("TEST_POSTGRES_PASSWORD", str(dsn["password"]))
    with provision("auto") as server:  # user, host and database have defaults
        assert server.tier == "dsn"
        assert answer(server.dsn, "SELECT current_user || current_database()") == "postgrespostgres"
    monkeypatch.setenv("TEST_POSTGRES_HOST", "127.0.0.1")
    monkeypatch.setenv("TEST_POSTGRES_USER", "postgres")
    monkeypatch.setenv("TEST_POSTGRES_DB", "template1")
    with provision("auto") as server:
        assert answer(server.dsn, "SELECT current_database()") == "template1"


@pytest.mark.parametrize("dsn", [f"postgresql://u:{SECRET}@127.0.0.1:1/x", f"nonsense {SECRET}"])
def test_auto_fails_rather_than_pass_over_a_dsn_that_was_asked_for(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_TEST_DSN", dsn)
    assert "DSN is not understood" in refusal("auto") or "was asked for and refuses" in refusal("auto")


# -- Started here ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", ["16", "18"])
def test_embedded_gives_the_version_that_was_asked_for(major: str) -> None:
    with provision(f"embedded:{major}", settings={"max_connections": "12"}) as server:
        assert server.describe() == f"embedded PostgreSQL {server.version}"
        assert server.version.split(".")[0] == major
        assert answer(server.dsn, "SHOW listen_addresses") == "127.0.0.1"
        assert answer(server.dsn, "SHOW max_connections") == "12"
        assert answer(server.dsn, "SHOW server_encoding") == "UTF8"


def test_local_gives_the_server_of_this_machine() -> None:
    try:
        place = binaries.local("")
    except ProvisionError as error:
        pytest.skip(str(error))
    with provision("local") as server:
        assert server.tier == "local"
        assert server.version.split(".")[0] == binaries.version_of(place)
        assert answer(server.dsn) == 1


@pytest.mark.parametrize("below", ["", "bin"])
def test_local_takes_a_path_to_an_installation_or_its_programs(below: str, tmp_path: Path) -> None:
    """Also from a directory that only we can enter: the programs are copied to where the server's user can."""
    programs = binaries.embedded("18", tmp_path)
    package = programs.parent.parent
    for path in (programs.parent, package.parent / f"{package.name}.libs", package / ".dylibs"):
        if path.is_dir():
            shutil.copytree(path, tmp_path / "private" / path.relative_to(package.parent), symlinks=True)
    (tmp_path / "private").chmod(0o700)
    install = tmp_path / "private" / programs.parent.relative_to(package.parent)
    with provision(f"local:{install / below}") as server:
        assert server.version.startswith("18.")


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("docker", "docker: no engine answers"),
        ("docker:postgres:16", "docker: no engine answers"),
        ("embedded:9", "embedded: PostgreSQL 9 is not in the installed wheels, which have 16, 18"),
        ("embedded:newest", "embedded: PostgreSQL newest is not in"),
        ("local:/nonexistent", "local: no PostgreSQL server programs (postgres and initdb) in /nonexistent"),
    ],
)
def test_a_tier_asked_for_by_name_fails_and_does_not_fall_back(spec: str, words: str) -> None:
    assert refusal(spec).startswith(words)


@pytest.mark.usefixtures("no_engine")
def test_auto_passes_over_an_engine_that_does_not_answer_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with provision("auto") as server:
        assert server.tier == "embedded"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"pgqueue_ref: using {server.describe()} (docker: no engine answers)"]


@pytest.mark.usefixtures("no_engine")
def test_auto_without_any_server_says_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel_places", lambda *_: ())
    monkeypatch.setattr(binaries, "_LOCAL_PLACES", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    message = refusal("auto")
    assert "docker: no engine answers" in message
    assert "embedded: no PostgreSQL wheel is installed" in message
    assert "local: no PostgreSQL server programs" in message


def test_a_temporary_directory_too_deep_for_a_socket_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with provision("embedded") as server:
        assert isinstance(server, LaunchedServer)
        assert answer(make_conninfo(server.dsn, host=server.directory)) == 1


# -- Nothing is left behind -----------------------------------------------------------------------------------


def family(server: Server) -> set[int]:
    """The processes of a server that was launched here."""
    postmaster = answer(server.dsn, "SELECT pg_read_file('postmaster.pid')").split()[0]
    return {int(postmaster)} | {pid for pid, (parent, _) in processes() if parent == int(postmaster)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid, (_, state) in processes() if pid in pids and state != "Z"}


@pytest.mark.parametrize("ending", ["close", "kill and close"])
def test_close_leaves_neither_process_nor_directory(ending: str) -> None:
    server = provision("embedded")
    assert isinstance(server, LaunchedServer)
    pids = family(server)
    assert len(pids) > 3
    assert alive(pids)
    if ending == "kill and close":
        server.kill()
    server.close()
    assert not alive(pids)
    assert not server.directory.exists()


def test_a_server_that_does_not_start_leaves_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(tempfile.mkdtemp(prefix="pgq-test-"))
    base.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    try:
        assert "shared_buffers" in refusal("embedded", shared_buffers="nonsense")
        assert list(base.iterdir()) == []
    finally:
        shutil.rmtree(base)


CHILD = """
import os, signal, sys
from pgqueue_ref.harness.server import provision
server = provision("embedded")
print(server.dsn, server.directory, flush=True)
{then}
"""
WAIT_FOR_A_SIGNAL = "sys.stdin.read()"


def importing(directory: object) -> dict[str, str]:
    """The environment in which `directory` comes first among what Python imports from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))}


def start_child(then: str, cwd: Path | None = None) -> tuple[subprocess.Popen[str], str, Path]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then=then)], cwd=cwd, env=importing(Path(binaries.__file__).parents[2]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    dsn, directory = child.stdout.readline().split()
    return child, dsn, Path(directory)


def finish(child: subprocess.Popen[str]) -> int:
    child.communicate(timeout=60)
    return child.returncode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_killed_leaves_neither_postmaster_nor_directory(number: signal.Signals) -> None:
    child, dsn, directory = start_child(WAIT_FOR_A_SIGNAL)
    pids = {int(answer(dsn, "SELECT pg_read_file('postmaster.pid')").split()[0])}
    child.send_signal(number)
    assert finish(child) == -number
    for _ in until(30, "is left behind by its parent"):
        if not alive(pids) and not directory.exists():
            break


# It stands for initdb on a busy machine: it and what it started write until they are killed.
SLOW_INITDB = """#!/bin/sh
directory=$2
write() { n=0; while [ $n -lt 20000 ]; do mkdir -p "$directory"; echo > "$directory/$n"; n=$((n + 1)); done }
trap '' INT QUIT TERM
mkdir "$directory"; echo $$ > "$directory/pid"
write &
write
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_ends_while_the_server_is_made_leaves_nothing(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory() as place:  # not tmp_path, which no account but this one reaches
        programs, made = Path(place, "bin"), Path(place, "made")
        for directory in (Path(place), programs, made):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        for program in ("initdb", "postgres"):
            (programs / program).write_text(SLOW_INITDB)
            (programs / program).chmod(0o755)
        child = subprocess.Popen(
            [sys.executable, "-c", f"from pgqueue_ref.harness.server import provision\nprovision('local:{programs}')"],
            env=importing(Path(binaries.__file__).parents[2]) | {"TMPDIR": str(made)},
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = until(60, "is not made")
        while not list(made.glob("pgq-*/data/9")):
            next(waiting)
        (pid,) = (int(path.read_text()) for path in made.glob("pgq-*/data/pid"))
        assert alive({pid})
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
        assert child.returncode == -number, said
        for _ in until(30, "is left behind by its parent"):
            if not alive({pid}) and not list(made.iterdir()):
                break


@pytest.mark.parametrize("then", ["", "server.kill()", "raise SystemExit(0)"])
def test_a_parent_that_forgets_to_close_leaves_nothing_when_it_exits(then: str) -> None:
    child, _, directory = start_child(then)
    assert finish(child) == 0
    assert not directory.exists()


def test_a_forked_child_that_exits_leaves_the_server_to_its_parent() -> None:
    fork = "if os.fork() == 0: sys.exit(0)\nos.wait()\nserver.connect().close()\nprint('still there')"
    child, _, directory = start_child(fork)
    output, _ = child.communicate(timeout=60)
    assert output.strip() == "still there"
    assert child.returncode == 0
    assert not directory.exists()


def test_a_server_starts_from_a_directory_that_its_user_cannot_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    child, dsn, _ = start_child(WAIT_FOR_A_SIGNAL, cwd=tmp_path)
    assert answer(dsn) == 1
    assert finish(child) == 0


# -- The fixtures ----------------------------------------------------------------------------------------------

SUITE = """
import psycopg
def test_passes(database):
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM made_by_schema").fetchone() == (0,)
def test_fails(empty_database):
    psycopg.connect(empty_database).execute("SELECT * FROM made_by_schema")
def test_fails_at_connect(server):
    psycopg.connect(server.dsn, user="nobody_here")
"""


@pytest.fixture
def run_suite(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a project that has tests/conftest.py, a core of its own, and nothing of ours but psycopg and pytest."""
    (tmp_path / "tests").mkdir()
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_suite.py").write_text(SUITE)
    (tmp_path / "acme_jobs.py").write_text('SCHEMA_SQL = "CREATE TABLE made_by_schema (); SELECT 1"')
    (tmp_path / "pgqueue_ref.py").write_text("raise ModuleNotFoundError('not installed')")

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:pgqueue",
            "--core-package",
            "acme_jobs",
            *options,
        ]
        return subprocess.run(
            command, cwd=tmp_path, env=importing(tmp_path), capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_reports_name_the_server_and_mask_the_password_beside_a_vendored_core(
    running: Server, run_suite: Callable[..., subprocess.CompletedProcess[str]], options: tuple[str, ...]
) -> None:
    with running.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS secretive")
        connection.execute(f"CREATE ROLE secretive SUPERUSER LOGIN PASSWORD '{SECRET}'")
        before = connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall()
        url = running.dsn.rpartition("@")[2]
        result = run_suite("--postgres", f"postgresql://secretive:{SECRET}@{url}", *options)
        assert connection.execute("SELECT datname FROM pg_database ORDER BY 1").fetchall() == before
    output = result.stdout + result.stderr
    assert "1 passed" in output
    assert "2 failed" in output
    assert output.count(f"PostgreSQL {running.version}") == 3  # beside each failure, and at the end
    assert SECRET not in output


def test_a_suite_without_the_harness_asks_for_a_dsn(
    run_suite: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = run_suite("--postgres", "embedded")
    assert "give a DSN instead" in result.stdout
    assert result.returncode == 1
