"""The commands that change single jobs or whole queues: retry, cancel, pause, resume; and how commands ask."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from waiting import until

from pgqueue_ref.core import Queue, Want

ROOT = Path(__file__).resolve().parents[2]
PAST = datetime(2001, 1, 1, tzinfo=UTC)
Cli = Callable[..., Any]
Put = Callable[..., int]
Statuses = Callable[[], dict[int, str]]
Db = psycopg.Connection[Any]


# -- retry -----------------------------------------------------------------------------------------------------


def test_retry_gives_fresh_attempts_and_a_second_one_is_refused(cli: Cli, put: Put, statuses: Statuses) -> None:
    failed = put(status="failed", finished_at=PAST, attempt=3, max_attempts=3)
    cancelled = put(status="cancelled", finished_at=PAST)
    code, out, err = cli("retry", failed, cancelled)
    assert (code, out, err) == (0, f"job {failed} is pending again\njob {cancelled} is pending again\n", "")
    assert statuses() == {failed: "pending", cancelled: "pending"}
    assert cli("retry", failed).refusal.endswith(
        f"job {failed} is pending: only failed and cancelled jobs can be retried"
    )


def test_retry_does_what_it_can_and_names_the_rest(cli: Cli, put: Put, statuses: Statuses) -> None:
    done, failed = put(status="succeeded", finished_at=PAST), put(status="failed", finished_at=PAST)
    code, out, err = cli("retry", done, 987, failed, failed)
    assert (code, out) == (1, f"job {failed} is pending again\n")
    assert [line.split(": ", 1)[1] for line in err.splitlines()] == [
        f"job {done} is succeeded: only failed and cancelled jobs can be retried",
        "job 987 does not exist (any more)",
    ]
    assert statuses() == {done: "succeeded", failed: "pending"}


def test_retry_for_programs_and_without_changing_anything(cli: Cli, put: Put, statuses: Statuses) -> None:
    failed, pending = put(status="failed", finished_at=PAST), put()
    code, out, err = cli("retry", failed, pending, "--dry-run")
    assert (code, out) == (1, f"job {failed} would be pending again\n")
    assert f"job {pending} is pending" in err
    assert statuses()[failed] == "failed"
    assert cli("retry", failed, "--dry-run", "--json").json == {"retried": [failed], "refused": [], "dry_run": True}
    assert cli("retry", failed, "--json").json == {"retried": [failed], "refused": [], "dry_run": False}
    code, out, err = cli("retry", failed, "--json")
    assert (code, err) == (1, "")
    reason = f"job {failed} is pending: only failed and cancelled jobs can be retried"
    assert json.loads(out) == {"retried": [], "refused": [{"id": failed, "reason": reason}], "dry_run": False}


def test_a_name_that_the_terminal_has_no_letters_for_is_shown_escaped(database: str, put: Put) -> None:
    put(kind="größe")
    env = os.environ | {"PGQUEUE_DATABASE_URL": database, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "pgqueue_ref", "list"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe" in done.stdout


# -- cancel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "blocked", "running"])
def test_cancel_asks_and_cancels(cli: Cli, put: Put, statuses: Statuses, status: str) -> None:
    id_ = put(status=status, attempt=1, max_attempts=3, external_key="k")
    code, out, err = cli("cancel", id_, answer="n")
    assert (code, out) == (1, "")
    assert f"Cancel 1 job, mail {id_} ({status}, attempts 1/3)?" in err
    assert err.endswith("pgqueue-ref: nothing was changed\n")
    assert statuses() == {id_: status}
    assert cli("cancel", id_, answer="y")[:2] == (0, f"job {id_} is cancelled\n")
    assert statuses() == {id_: "cancelled"}


def test_what_a_question_names_cannot_command_the_terminal(cli: Cli, put: Put) -> None:
    asked = cli("cancel", put(kind="mail\x1b]0;owned\a\x1b[31m\r"), answer="n").err
    assert "Cancel 1 job, mail" in asked
    assert not {"\x1b", "\a", "\r"} & set(asked)


def test_cancel_by_key_and_for_programs(cli: Cli, put: Put, statuses: Statuses) -> None:
    mail, other = put(external_key="k"), put(kind="text", external_key="k")
    by_key = ("cancel", "--kind", "mail", "--key", "k")
    expected = {"id": mail, "status": "pending", "changed": False, "dry_run": True}
    assert cli(*by_key, "--dry-run", "--json").json == expected
    assert cli(*by_key, "--dry-run").out == f"would cancel 1 job: {mail}, pending\n"
    assert statuses() == {mail: "pending", other: "pending"}
    expected = {"id": mail, "status": "cancelled", "changed": True, "dry_run": False}
    assert cli(*by_key, "--yes", "--json").json == expected
    assert statuses() == {mail: "cancelled", other: "pending"}


def test_a_second_cancel_changes_nothing_and_does_not_ask(cli: Cli, put: Put) -> None:
    id_ = put(status="cancelled", finished_at=PAST)
    assert cli("cancel", id_) == (0, f"job {id_} is cancelled already\n", "")
    assert cli("cancel", id_, "--json").json["changed"] is False


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_finished_job_cannot_be_cancelled(cli: Cli, put: Put, status: str) -> None:
    id_ = put(status=status, finished_at=PAST)
    for more in ([], ["--json"], ["--yes"], ["--dry-run"]):
        assert f"job {id_} is {status} already: it cannot be cancelled any more" in cli("cancel", id_, *more).refusal


def test_a_job_that_ends_while_somebody_thinks_is_not_cancelled(
    cli: Cli, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(db)
    queue.push("mail")
    (job,) = queue.claim([Want("mail", 1)], worker="w")
    monkeypatch.setattr("pgqueue_ref.ops.commands.jobs.confirm", lambda question, yes: queue.complete(job))
    assert "is succeeded already" in cli("cancel", job.id).refusal


def test_cancel_of_an_unknown_job_is_told(cli: Cli, put: Put) -> None:
    put(external_key="k")
    assert "job 987 does not exist" in cli("cancel", 987).refusal
    assert "text job with key 'k' does not exist" in cli("cancel", "--kind", "text", "--key", "k").refusal


@pytest.mark.parametrize("arguments", [[], ["7", "--key", "k"], ["--kind", "mail"], ["7", "--kind", "m", "--key", "k"]])
def test_cancel_needs_one_name_of_the_job(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli("cancel", *arguments)
    assert (code, out) == (2, "")
    assert "by its ID, or by --kind and --key" in err


# -- pause and resume ------------------------------------------------------------------------------------------


def test_a_paused_queue_is_not_claimed_from_until_it_is_resumed(cli: Cli, db: Db) -> None:
    queue = Queue(db)
    queue.push("mail", queue="slow")
    assert cli("pause", "slow") == (0, "queue slow is paused now\n", "")
    assert cli("pause", "slow").out == "queue slow was paused already\n"
    assert cli("pause", "slow", "--json").json == {"queue": "slow", "paused": True, "changed": False}
    assert queue.claim([Want("mail", 1, "slow")], worker="w") == []
    assert cli("resume", "slow") == (0, "queue slow is not paused now\n", "")
    assert cli("resume", "slow").out == "queue slow was not paused already\n"
    assert cli("resume", "slow", "--json").json == {"queue": "slow", "paused": False, "changed": False}
    assert len(queue.claim([Want("mail", 1, "slow")], worker="w")) == 1


def test_a_name_that_may_be_misspelt_is_paused_with_a_warning(cli: Cli, put: Put, db: Db) -> None:
    put(queue="slow", status="failed", finished_at=PAST)
    code, out, err = cli("pause", "slwo")
    assert (code, out) == (0, "queue slwo is paused now\n")
    assert "queue 'slwo' holds no job that waits or runs: is the name right?" in err
    assert Queue(db).paused() == ["slwo"]
    assert "queue must be a text of 1 to 255 bytes" in cli("pause", "").refusal


# -- how commands ask ------------------------------------------------------------------------------------------


@pytest.fixture
def process(database: str) -> Callable[..., subprocess.Popen[str]]:
    """A command as a process of its own, on the test's database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}

    def process(*arguments: object, **streams: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pgqueue_ref", *map(str, arguments)], cwd=ROOT, text=True,
            env=environment | {"PGQUEUE_DATABASE_URL": database}, **streams,
        )  # fmt: skip

    return process


def asked(
    process: Callable[..., subprocess.Popen[str]], answer: str | signal.Signals, *arguments: object
) -> tuple[int, str, str]:
    """The exit code, stdout and what the terminal showed, when somebody answers the question with keys or Ctrl-C."""
    terminal, its_side = pty.openpty()
    running = process(*arguments, stdin=its_side, stderr=its_side, stdout=subprocess.PIPE)
    os.close(its_side)
    try:
        shown = ""
        while "[y/N]" not in shown:
            shown += os.read(terminal, 1000).decode()
        if isinstance(answer, str):
            os.write(terminal, answer.encode())
        else:
            running.send_signal(answer)
        out, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        os.close(terminal)
    return running.returncode, out, shown


def test_a_question_is_answered_on_a_terminal(
    process: Callable[..., subprocess.Popen[str]], put: Put, statuses: Statuses
) -> None:
    id_ = put()
    code, out, shown = asked(process, "n\n", "cancel", id_)
    assert (code, out) == (1, "")
    assert f"Cancel 1 job, mail {id_} (pending, attempts 0/?)?" in shown
    assert asked(process, signal.SIGINT, "cancel", id_)[:2] == (130, "")
    assert asked(process, "\x04", "cancel", id_)[:2] == (1, ""), "the end of input"
    assert statuses() == {id_: "pending"}
    assert asked(process, "y\n", "cancel", id_)[:2] == (0, f"job {id_} is cancelled\n"), "nothing but the result"
    assert statuses() == {id_: "cancelled"}


@pytest.mark.parametrize(
    "command", [["cancel", "1"], ["retry-all"], ["purge", "0"], ["clear", "default"], ["reset-stuck"]]
)
def test_without_a_terminal_nothing_is_changed_and_yes_is_asked_for(
    cli: Cli, put: Put, statuses: Statuses, command: list[str]
) -> None:
    rows = {put(): "pending", put(status="failed", finished_at=PAST): "failed",
            put(status="succeeded", finished_at=PAST): "succeeded",
            put(status="running", started_at=PAST): "running"}  # fmt: skip
    code, out, err = cli(*command)
    assert (code, out) == (2, "")
    assert " 1 " in err, "how many rows"
    assert "there is no terminal to answer on; give --yes" in err
    assert statuses() == rows
    assert cli(*command, "--yes").code == 0
    assert statuses() != rows


def test_ctrl_c_while_watching_leaves_with_130(process: Callable[..., subprocess.Popen[str]], put: Put) -> None:
    put()
    watching = process("watch", "--json", "--interval", "0.1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert watching.stdout
        assert until(watching.stdout.readline, "the first look is printed")
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=60)
    finally:
        watching.kill()
    assert (watching.returncode, err) == (130, "")
