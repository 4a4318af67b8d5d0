"""`pgqueue-ref events` and the events in `pgqueue-ref show`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from documents import Step

from pgqueue_ref.core import Failure, Queue, Want
from pgqueue_ref.extensions import events

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Any]
Db = psycopg.Connection[Any]


@pytest.fixture
def installed(db: Db) -> None:
    db.execute(events.SCHEMA_SQL)


@pytest.fixture
def job(db: Db, installed: None) -> int:
    """A job that failed once, of worker w1, and then succeeded."""
    queue = Queue(db)
    db.execute("SET application_name = 'shop'")
    job_id = queue.push("mail", {"to": "ada"}).id
    db.execute("SET application_name = 'pgqueue_ref:write'")
    (job,) = queue.claim([Want("mail", 1)], worker="w1")
    traceback = (
        'Traceback (most recent call last):\n  File "shop.py", line 7, in mail\nConnectionError: no post office\n'
    )
    failure = Failure(job, "ConnectionError: no post office")
    queue.run(events.fail_many([failure], {(job.id, job.lease_token): traceback}))
    (job,) = queue.claim([Want("mail", 1)], worker="w1")
    queue.complete(job)
    db.execute("SET application_name = 'psql'")
    return job_id


def test_show_tells_each_attempt_who_pushed_and_the_last_traceback(cli: Cli, job: int) -> None:
    lines = cli("show", job).out.splitlines()
    told = [" ".join(line.split()[2:]) for line in lines[lines.index("timeline") + 1 :]]
    user = told[0].partition(" by ")[2].split()[0]
    assert told[:5] == [
        f"pushed mail to queue default, by {user} shop",
        "claimed attempt 1, worker w1",
        "failed attempt 1, worker w1, pending again: ConnectionError: no post office",
        "claimed attempt 2, worker w1",
        "succeeded attempt 2, worker w1",
    ]
    assert [line.split()[0] for line in told[5:]] == ["deleted"]
    start = lines.index("traceback of attempt 1")
    assert lines[start + 3].strip() == "ConnectionError: no post office"


def test_show_tells_what_the_row_knows_where_events_came_later(cli: Cli, db: Db, put: Callable[..., int]) -> None:
    job = put(status="failed", attempt=1, finished_at="2026-01-01")
    db.execute(events.SCHEMA_SQL)
    Queue(db).retry(job)
    assert [moment["event"] for moment in cli("show", job, "--json").json["timeline"]] == ["pushed", "retried"]


def test_list_goes_through_all_events_page_by_page(cli: Cli, db: Db, job: int) -> None:
    seen, before = [], []
    while True:
        page = cli("events", "list", "--limit", 2, *before, "--json").json
        seen += [event["type"] for event in page["events"]]
        if page["next"] is None:
            break
        before = ["--before", page["next"]]
    assert seen == ["succeeded", "claimed", "failed", "claimed", "pushed"]


def test_list_filters_by_job_type_and_time(cli: Cli, db: Db, job: int) -> None:
    other = Queue(db).push("mail").id
    assert "pushed" in cli("events", "list", "--job", other).out
    assert cli("events", "list", "--type", "failed", "--job", other, "--json").json["events"] == []
    (at,) = db.execute("SELECT at FROM pgqueue_events ORDER BY id DESC LIMIT 1").fetchone()
    found = cli("events", "list", "--since", at.isoformat(), "--json").json["events"]
    assert [event["job_id"] for event in found] == [other]
    assert len(cli("events", "list", "--until", at.isoformat(), "--json").json["events"]) == 6


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01", "2026-01-01T10:00"])
def test_list_refuses_a_moment_that_would_differ_from_machine_to_machine(
    cli: Cli, installed: None, moment: str
) -> None:
    done = cli("events", "list", "--since", moment)
    assert done.code == 2
    assert "--since is a moment with a time zone" in done.err


def test_nothing_of_a_message_takes_effect_on_the_terminal(cli: Cli, db: Db, installed: None) -> None:
    queue = Queue(db)
    queue.push("mail")
    (job,) = queue.claim([Want("mail", 1)], worker="w1")
    queue.fail(job, "\x1b[2J[bold]gone")
    out = cli("events", "list").out
    assert "\x1b" not in out
    assert "\\x1b[2J[bold]gone" in out


def test_switching_says_what_changed(cli: Cli, db: Db, installed: None) -> None:
    assert cli("events", "on").out == "events were on already\n"
    assert cli("events", "off").out == "events are written no more\n"
    assert cli("events", "off").out == "events were off already\n"
    Queue(db).push("mail")
    assert cli("events", "list", "--json").json["events"] == []
    assert cli("events", "on").out == "events are written from now on\n"


def test_prune_counts_asks_and_deletes_in_batches(cli: Cli, db: Db, job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    db.execute("UPDATE pgqueue_events SET at = now() - interval '40 days' WHERE type <> 'succeeded'")
    assert cli("events", "prune", 30, "--dry-run").out == "would delete 4 events older than 30 days\n"
    assert cli("events", "prune", 30, answer="n").code == 1
    assert cli("events", "prune", 30, answer="y").out == "deleted 4 events older than 30 days\n"
    assert cli("events", "prune", 30, "--yes", "--json").json == {"jobs": 0, "dry_run": False}
    assert len(cli("events", "list", "--json").json["events"]) == 1


@pytest.mark.parametrize("arguments", [["list"], ["on"], ["off"], ["prune", "1", "-y"]])
def test_without_the_extension_each_says_what_to_do(cli: Cli, arguments: list[str]) -> None:
    assert "run `pgqueue-ref migrate`" in cli("events", *arguments).refusal


def test_the_page_shows_what_the_commands_print(play: Callable[[str], list[Step]], db: Db, job: int) -> None:
    page = (ROOT / "docs" / "extensions" / "events.md").read_text()
    assert len(play(page.replace('"ada ', f'"{db.info.user} '))) == 6
