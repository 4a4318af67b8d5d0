"""`pgqueue-ref schedules`: what it says and does, also about bad input and missing tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from documents import sections

from pgqueue_ref.core import Queue
from pgqueue_ref.extensions import schedules

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "extensions" / "schedules.md"
Cli = Callable[..., Any]
Db = psycopg.Connection[Any]
SHAPE = {
    "name", "kind", "queue", "priority", "max_attempts", "payload", "metadata", "cron", "every", "at", "timezone",
    "next_at", "last_at", "runs", "max_runs", "expires_at", "paused_at", "created_at", "state",
}  # fmt: skip


@pytest.fixture
def tables(db: Db) -> None:
    db.execute(schedules.SCHEMA_SQL)


def stored(database: str) -> list[schedules.Schedule]:
    with Queue.connect(database) as queue:
        return queue.run(schedules.list_schedules())


def test_the_examples_of_the_manual_print_what_they_say(tables: None, play: Callable[[str], Any]) -> None:
    assert play(sections(MANUAL.read_text())["from-the-command-line-and-over-http"])


def test_every_command_speaks_json(tables: None, cli: Cli, database: str) -> None:
    added = cli("schedules", "add", "a b", "report", "--at", "2099-01-01T00:00+01:00", "--queue", "slow", "--json").json
    assert added.keys() == SHAPE | {"created"}
    assert (added["created"], added["at"], added["queue"]) == (True, "2098-12-31T23:00:00Z", "slow")
    again = cli("schedules", "add", "a b", "report", "--every", "60", "--json").json
    assert (again["created"], again["every"], again["at"]) == (False, 60.0, None)
    assert cli("schedules", "pause", "a b", "--json").json == {"name": "a b", "paused": True, "changed": True}
    assert cli("schedules", "resume", "a b", "--json").json == {"name": "a b", "paused": False, "changed": True}
    assert cli("schedules", "resume", "a b", "--json").json == {"name": "a b", "paused": False, "changed": False}
    assert cli("schedules", "run", "a b", "--json").json == {"id": 1, "created": True}
    (listed,) = cli("schedules", "list", "--json").json
    assert listed.keys() == SHAPE
    assert cli("schedules", "remove", "a b", "--yes", "--json").json == {"name": "a b", "removed": True}
    assert stored(database) == []


def test_a_list_goes_on_past_its_pages(tables: None, cli: Cli, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqueue_ref.ops.commands.schedules.PAGE", 2)
    db.execute(
        "INSERT INTO pgqueue_schedules (name, kind, every) SELECT n, 'report', 60 FROM generate_series(1, 4) AS n"
    )
    assert [schedule["name"] for schedule in cli("schedules", "list", "--json").json] == ["1", "2", "3", "4"]


def test_removing_asks_and_no_means_no(tables: None, cli: Cli, database: str) -> None:
    cli("schedules", "add", "nightly", "report", "--every", "60")
    code, out, err = cli("schedules", "remove", "nightly", answer="n")
    assert (code, out) == (1, "")
    assert err.endswith("nothing was changed\n")
    assert cli("schedules", "remove", "nightly").code == 2  # nobody can answer
    assert len(stored(database)) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("add x report", 1, "give cron, or every, or at"),
        ("add x report --cron noon", 1, "cron expression 'noon' is not understood"),
        ("add x report --cron '0 3 * * *' --timezone Mars", 1, "time zone 'Mars' is not known here"),
        ("add x report --every 60 --payload {", 2, "--payload is not JSON"),
        ("add x report --at tomorrow", 2, "--at is a moment with a time zone"),
        ("add x report --every 60 --expires-at 2027-01-01T00:00", 2, "--expires-at is a moment with a time zone"),
        ("add x", 2, "KIND"),
        ("pause x", 1, "there is no schedule 'x'"),
        ("resume x", 1, "there is no schedule 'x'"),
        ("run x", 1, "there is no schedule 'x'"),
        ("remove x --yes", 1, "there is no schedule 'x'"),
    ],
)
def test_bad_input_is_told_in_a_line(
    tables: None, cli: Cli, database: str, arguments: str, code: int, said: str
) -> None:
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", arguments)]
    done = cli("schedules", *words)
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.splitlines()
    assert said in line
    assert stored(database) == []


def test_without_its_table_it_says_what_makes_it(cli: Cli) -> None:
    assert "run `pgqueue-ref migrate`" in cli("schedules", "list").refusal
