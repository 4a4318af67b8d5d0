"""The commands that change many jobs: retry-all, purge, clear, reset-stuck; counted, asked for, and cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.progress import Progress
from waiting import until

from pgqueue_ref.core import Operation, Queue, QueueError, Statement, Want
from pgqueue_ref.ops import operations as op

ROOT = Path(__file__).resolve().parents[2]
PAST = datetime(2001, 1, 1, tzinfo=UTC)
Cli = Callable[..., Any]
Put = Callable[..., int]
Statuses = Callable[[], dict[int, str]]
Db = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "BATCH", 2)
    monkeypatch.setattr(op, "PAGE", 3)


@pytest.fixture
def asked_an_hour_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that began an hour ago: so long somebody thought about its question."""
    monkeypatch.setattr(op, "moment", lambda: began())


def began() -> Operation[datetime]:
    ((moment,),) = yield Statement("SELECT now() - interval '1 h'")
    return moment


# -- retry-all -------------------------------------------------------------------------------------------------


@pytest.fixture
def failures(put: Put) -> list[int]:
    """Failed jobs, oldest failure first."""
    return [
        put(status="failed", finished_at=PAST + timedelta(days=n), kind=f"k{n % 2}", queue=f"q{n % 3}",
            errors=["Timeout" if n % 4 == 0 else "KeyError"])
        for n in range(12)
    ]  # fmt: skip


def pending(statuses: Statuses) -> list[int]:
    return [id_ for id_, status in statuses().items() if status == "pending"]


def test_retry_all_counts_asks_and_retries(cli: Cli, failures: list[int], statuses: Statuses) -> None:
    assert cli("retry-all", "--dry-run") == (0, "would retry 12 failed jobs\n", "")
    assert cli("retry-all", "--dry-run", "--json").json == {"jobs": 12, "dry_run": True}
    code, out, err = cli("retry-all", answer="")
    assert (code, out) == (1, "")
    assert "Retry 12 failed jobs?" in err
    assert pending(statuses) == []
    assert cli("retry-all", answer="y")[:2] == (0, "retried 12 failed jobs\n")
    assert pending(statuses) == failures
    assert cli("retry-all") == (0, "retried 0 failed jobs\n", ""), "there is nothing to ask about"


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--queue", "q1"], [1, 4, 7, 10]),
        (["--kind", "k1"], [1, 3, 5, 7, 9, 11]),
        (["--error-like", "timeout"], [0, 4, 8]),
        (["--limit", "5"], [0, 1, 2, 3, 4]),
        (["--limit", "2", "--error-like", "TIME%"], [0, 4]),
        (["--queue", "q2", "--kind", "k1", "--error-like", "key"], [5, 11]),
        (["--queue", "nobody"], []),
    ],
)
def test_retry_all_retries_what_the_options_choose(
    cli: Cli, failures: list[int], statuses: Statuses, options: list[str], chosen: list[int]
) -> None:
    assert cli("retry-all", *options, "--dry-run", "--json").json["jobs"] == len(chosen)
    assert cli("retry-all", *options, "--yes", "--json").json == {"jobs": len(chosen), "dry_run": False}
    assert pending(statuses) == [failures[n] for n in chosen]


def test_one_job_is_called_one(cli: Cli, failures: list[int]) -> None:
    assert cli("retry-all", "--limit", 1, "--yes").out == "retried 1 failed job\n"


# -- purge -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(put: Put, db: Db) -> dict[str, list[int]]:
    """Jobs that ended 40 and 10 days ago, by what they are."""
    ages = {"old": 40, "new": 10}
    made = {
        f"{age} {status}": [put(status=status, finished_at=PAST) for _ in range(7)]
        for age in ages
        for status in ("succeeded", "cancelled", "failed")
    } | {"active": [put(), put(status="running")]}
    for name, ids in made.items():
        age = ages.get(name.partition(" ")[0])
        if age:
            db.execute(
                "UPDATE pgqueue_jobs SET finished_at = now() - make_interval(days => %s) WHERE id = ANY (%s)",
                [age, ids],
            )
    return made


def test_purge_deletes_the_old_but_not_the_failed(cli: Cli, ended: dict[str, list[int]], statuses: Statuses) -> None:
    which = "jobs (succeeded, cancelled) that ended over 30 days ago"
    assert cli("purge", 30, "--dry-run") == (0, f"would delete 14 {which}\n", "")
    assert cli("purge", 30, "--dry-run", "--json").json == {"jobs": 14, "dry_run": True}
    assert f"Delete 14 {which}?" in cli("purge", 30, answer="n").err
    assert len(statuses()) == 44
    assert cli("purge", 30, answer="yes")[:2] == (0, f"deleted 14 {which}\n")
    gone = {*ended["old succeeded"], *ended["old cancelled"]}
    assert statuses().keys() == {id_ for ids in ended.values() for id_ in ids} - gone


def test_purge_includes_the_failed_when_asked(cli: Cli, ended: dict[str, list[int]], statuses: Statuses) -> None:
    assert cli("purge", "0.5", "--include-failed", "--yes", "--json").json == {"jobs": 42, "dry_run": False}
    assert list(statuses()) == ended["active"]
    nothing = "deleted 0 jobs (succeeded, cancelled) that ended over 0 s ago\n"
    assert cli("purge", 0) == (0, nothing, ""), "there is nothing to ask about"


@pytest.mark.usefixtures("asked_an_hour_ago")
def test_purge_leaves_what_grew_old_at_the_question(cli: Cli, put: Put, statuses: Statuses, db: Db) -> None:
    _, young = (put(status="succeeded", finished_at=PAST) for _ in range(2))
    db.execute("UPDATE pgqueue_jobs SET finished_at = now() - interval '40 min' WHERE id = %s", [young])
    assert "Delete 1 job (succeeded, cancelled) that ended over 0 s ago?" in cli("purge", 0, answer="n").err
    assert cli("purge", 0, "--yes", "--json").json == {"jobs": 1, "dry_run": False}
    assert list(statuses()) == [young]


@pytest.mark.parametrize("days", ["-1", "soon", "nan", "1e300"])
def test_purge_refuses_what_is_no_number_of_days(
    cli: Cli, ended: dict[str, list[int]], statuses: Statuses, days: str
) -> None:
    code, out, err = cli("purge", "--yes", "--", days)
    assert code in (1, 2)
    assert (out, len(err.splitlines())) == ("", 1)
    assert len(statuses()) == 44


PURGE = """
import sys
from pgqueue_ref.ops import operations
from pgqueue_ref.ops.app import run
operations.BATCH = 2
sys.exit(run(["purge", "0", "--yes", *sys.argv[1:]]))
"""


def purging(database: str, *options: str) -> subprocess.Popen[str]:
    """`purge 0 --yes` in small batches, as a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
    return subprocess.Popen(
        [sys.executable, "-c", PURGE, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=kept | {"PGQUEUE_DATABASE_URL": database},
    )  # fmt: skip


@pytest.fixture
def held(put: Put, database: str, db: Db) -> Any:
    """30 jobs to purge, the 25th of which is locked, so that a purge stops there and waits; gives who holds it."""
    ids = [put(status="succeeded", finished_at=PAST) for _ in range(30)]
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM pgqueue_jobs WHERE id = %s FOR UPDATE", [ids[24]])
        yield holder


def waits(db: Db) -> bool:
    found = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:cli' AND wait_event_type = 'Lock'"
    return bool(db.execute(found + " AND datname = current_database()").fetchall())


def test_an_interrupted_purge_has_done_whole_batches_and_says_how_many(
    database: str, db: Db, statuses: Statuses, held: Any
) -> None:
    process = purging(database)
    try:
        until(lambda: waits(db), "the purge waits for the locked row")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == (
        "pgqueue-ref: interrupted: at least 20 jobs (succeeded, cancelled) that ended over 0 s ago deleted;"
        " once more does the rest\n"
    )
    assert len(statuses()) == 10
    held.rollback()
    out, err = purging(database, "--json").communicate(timeout=60)
    assert (json.loads(out)["jobs"], err) == (10, "")


def test_a_purge_that_is_refused_midway_says_what_was_done(cli: Cli, statuses: Statuses, held: Any) -> None:
    line = cli("purge", 0, "--yes", "--statement-timeout-ms", 1000).refusal
    assert "statement cancelled: raise PGQUEUE_STATEMENT_TIMEOUT_MS" in line
    assert "before, 20 jobs (succeeded, cancelled) that ended over 0 s ago deleted; once more does the rest" in line
    assert len(statuses()) == 10


def test_a_purge_whose_server_connection_is_cut_says_what_was_done(
    database: str, db: Db, statuses: Statuses, held: Any
) -> None:
    process = purging(database)
    try:
        until(lambda: waits(db), "the purge waits for the locked row")
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:cli'")
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (1, "")
    assert "connection failed or lost" in err
    assert "20 jobs" in err
    assert len(statuses()) == 10


def test_an_interruption_while_counting_has_changed_nothing(
    cli: Cli, ended: dict[str, list[int]], statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(op, "purge_batch", interrupted)
    assert cli("purge", 0) == (130, "", "pgqueue-ref: interrupted: nothing was changed\n")
    assert len(statuses()) == 44


def test_the_bar_of_a_purge_follows_the_ids_to_the_end(
    cli: Cli, ended: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int]] = []
    update = Progress.update

    def record(self: Progress, task: Any, **fields: Any) -> None:
        update(self, task, **fields)
        seen.append((self.tasks[0].percentage, fields["jobs"]))

    monkeypatch.setattr(Progress, "update", record)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    code, out, err = cli("purge", 0, "--yes", "--include-failed")
    assert (code, out.split()[:3]) == (0, ["deleted", "42", "jobs"])
    assert seen == sorted(seen)
    assert seen[-1] == (100, 42)
    assert "deleted" in err


# -- clear -----------------------------------------------------------------------------------------------------


def test_clear_cancels_the_pending_jobs_of_one_queue(cli: Cli, put: Put, statuses: Statuses) -> None:
    meant = [put(queue="slow") for _ in range(5)]
    kept = {put(queue="fast"): "pending", put(queue="slow", status="running"): "running",
            put(queue="slow", status="blocked"): "blocked"}  # fmt: skip
    assert cli("clear", "slow", "--dry-run") == (0, "would cancel 5 pending jobs of queue slow\n", "")
    assert "Cancel 5 pending jobs of queue slow?" in cli("clear", "slow", answer="n").err
    assert pending(statuses) == [*meant, next(iter(kept))]
    assert cli("clear", "slow", "--yes", "--json").json == {"jobs": 5, "dry_run": False}
    assert statuses() == dict.fromkeys(meant, "cancelled") | kept
    assert cli("clear", "slow") == (0, "cancelled 0 pending jobs of queue slow\n", "")


def test_what_was_cleared_by_mistake_comes_back(cli: Cli, put: Put, statuses: Statuses) -> None:
    ids = [put() for _ in range(4)]
    cli("clear", "default", "--yes")
    listed = cli("list", "--status", "cancelled", "--queue", "default", "--json").json["jobs"]
    assert cli("retry", *(job["id"] for job in listed)).code == 0
    assert pending(statuses) == ids


# -- reset-stuck -----------------------------------------------------------------------------------------------


@pytest.fixture
def stuck(db: Db) -> list[int]:
    """Two jobs whose lease ran out, the second on its last attempt; one that a worker has held for an hour."""
    queue = Queue(db)
    queue.push("mail")
    queue.push("mail", max_attempts=1)
    queue.push("mail")
    jobs = queue.claim([Want("mail", 3)], worker="w1")
    db.execute("UPDATE pgqueue_jobs SET started_at = now() - interval '1 h'")
    db.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 min' WHERE id <> %s", [jobs[2].id])
    return [job.id for job in jobs]


def test_reset_stuck_takes_back_what_nobody_holds(cli: Cli, stuck: list[int], statuses: Statuses) -> None:
    lost, spent, held = stuck
    assert cli("reset-stuck", "--dry-run") == (0, "found 2 jobs whose lease ran out\n", "")
    assert "Take back 2 jobs whose lease ran out?" in cli("reset-stuck", answer="n").err
    assert set(statuses().values()) == {"running"}
    assert cli("reset-stuck", answer="y")[:2] == (0, "1 pending again, 1 failed, 0 left alone\n")
    assert statuses() == {lost: "pending", spent: "failed", held: "running"}
    assert cli("reset-stuck") == (0, "found 0 jobs whose lease ran out\n", "")


def test_reset_stuck_takes_older_jobs_from_living_workers_when_asked(
    cli: Cli, stuck: list[int], statuses: Statuses
) -> None:
    words = "2 jobs whose lease ran out and 1 job that workers still hold"
    assert cli("reset-stuck", "--older-than", 600, "--dry-run").out == f"found {words}\n"
    dry = {"lost": 2, "held": 1, "dry_run": True, "pending": 0, "failed": 0, "left": 0, "refused": []}
    assert cli("reset-stuck", "--older-than", 600, "--dry-run", "--json").json == dry
    assert cli("reset-stuck", "--older-than", 7200, "--dry-run", "--json").json == dry | {"held": 0}
    assert f"Take back {words}?" in cli("reset-stuck", "--older-than", 600, answer="n").err
    done = dry | {"dry_run": False, "pending": 2, "failed": 1}
    assert cli("reset-stuck", "--older-than", 600, "--yes", "--json").json == done
    assert statuses() == {stuck[0]: "pending", stuck[1]: "failed", stuck[2]: "pending"}


@pytest.mark.usefixtures("asked_an_hour_ago")
def test_reset_stuck_leaves_what_grew_old_at_the_question(
    cli: Cli, stuck: list[int], statuses: Statuses, db: Db
) -> None:
    older, *young = stuck
    db.execute(
        "UPDATE pgqueue_jobs SET started_at = now() - interval '40 min', lease_expires_at = now() + interval '1 h'"
    )
    db.execute("UPDATE pgqueue_jobs SET started_at = now() - interval '2 h' WHERE id = %s", [older])
    assert "Take back 1 job that workers still hold?" in cli("reset-stuck", "--older-than", 600, answer="n").err
    assert cli("reset-stuck", "--older-than", 600, answer="y").out == "1 pending again, 0 failed, 0 left alone\n"
    assert statuses() == {older: "pending"} | dict.fromkeys(young, "running")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted: at least 1 pending again, 1 failed; once more does the rest"),
        (QueueError("no"), 1, "no; before, 1 pending again, 1 failed; once more does the rest"),
    ],
)
def test_reset_stuck_that_is_cut_short_says_what_was_done(
    cli: Cli, stuck: list[int], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    take_back = op.take_back

    def cut_short(after: tuple[str, int], *arguments: Any, **options: Any) -> Any:
        if after != op.FIRST_STUCK:
            raise error
        return take_back(after, *arguments, **options, limit=2)

    monkeypatch.setattr(op, "take_back", cut_short)
    assert cli("reset-stuck", "--yes") == (code, "", f"pgqueue-ref: {said}\n")


def test_reset_stuck_names_the_jobs_that_the_server_refuses_to_change(
    cli: Cli, stuck: list[int], statuses: Statuses, db: Db
) -> None:
    db.execute(f"ALTER TABLE pgqueue_jobs ADD CHECK (id <> {stuck[0]} OR status <> 'pending') NOT VALID")
    code, out, err = cli("reset-stuck", "--yes")
    assert (code, out) == (1, "0 pending again, 1 failed, 0 left alone\n")
    assert f"the server refuses to change jobs {stuck[0]}: see its log" in err
    assert statuses()[stuck[0]] == "running"
