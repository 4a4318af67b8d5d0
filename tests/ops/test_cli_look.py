"""The commands that look: stats, watch, list, failed, show; for people and, with --json, for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import Queue, StatementTimeout, Want
from pgqueue_ref.extensions import dependencies
from pgqueue_ref.ops.api.shapes import ShownJob, ShownOverview
from pgqueue_ref.ops.commands import queues
from pgqueue_ref.ops.overview import overview

PAST = datetime(2001, 1, 1, tzinfo=UTC)
Cli = Callable[..., Any]
Put = Callable[..., int]
Db = psycopg.Connection[Any]
EVIL = "\x1b[2J[bold]\u202e\x9b1m"


def rows(text: str) -> list[list[str]]:
    """The lines of tables, split at two blanks."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if "  " in line.strip()]


# -- stats -----------------------------------------------------------------------------------------------------


@pytest.fixture
def busy(db: Db) -> None:
    """A queue in which something has happened and something is to be done."""
    db.execute("""
        INSERT INTO pgqueue_jobs (queue, kind, status, run_at, started_at, finished_at) VALUES
            ('a', 'mail', 'pending', now() - interval '10 min', NULL, NULL),
            ('a', 'mail', 'pending', now() + interval '10 min', NULL, NULL),
            ('a', 'mail', 'running', now(), now() - interval '4 min', NULL),
            ('a', 'mail', 'succeeded', now(), now() - interval '130 s', now() - interval '10 s'),
            ('a', 'mail', 'succeeded', now(), now() - interval '20 ms', now()),
            ('b', 'report', 'failed', now(), now() - interval '3 h', now() - interval '2 h')""")


def test_stats_counts_by_status_and_says_how_it_flows(cli: Cli, busy: None) -> None:
    code, out, err = cli("stats")
    assert (code, err) == (0, "")
    assert rows(out) == [
        ["queue", "kind", "pending", "blocked", "running", "succeeded", "failed", "cancelled"],
        ["a", "mail", "2", "-", "1", "2", "-", "-"],
        ["b", "report", "-", "-", "-", "-", "1", "-"],
        ["queue", "kind", "due", "oldest due", "oldest running", "last hour", "average", "p95"],
        ["a", "mail", "1", "10 min", "4 min", "2", "60 s", "2 min"],
        ["b", "report", "0", "-", "-", "0", "-", "-"],
    ]


def test_stats_for_programs_has_the_shape_of_the_api(cli: Cli, busy: None) -> None:
    seen = cli("stats", "--json").json
    assert seen.keys() == ShownOverview.model_fields.keys()
    ShownOverview.model_validate(seen)
    assert [(row["status"], row["jobs"]) for row in seen["rows"] if row["queue"] == "b"] == [("failed", 1)]
    (flow,) = (flow for flow in seen["flows"] if flow["queue"] == "a")
    assert (flow["due"], flow["finished_last_hour"]) == (1, 2)
    assert flow["average_seconds"] == pytest.approx(60.01)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", seen["at"])


def test_stats_of_an_empty_queue_says_so(cli: Cli) -> None:
    assert cli("stats").out.splitlines()[1:] == ["no jobs"]
    assert cli("stats", "--json").json["rows"] == []


def test_stats_names_paused_queues_and_estimates(
    cli: Cli, busy: None, db: Db, capsys: pytest.CaptureFixture[str]
) -> None:
    Queue(db).pause("a")
    assert "paused: a\n" in cli("stats").out
    (seen,) = queues._looks(0, 1)
    assert not isinstance(seen, Exception)
    unsure = [row._replace(estimated=row.status == "succeeded") for row in seen.rows]
    queues.print_rich(queues.report(seen._replace(estimated=True, rows=unsure)))
    out = capsys.readouterr().out
    assert "estimated from a sample" in out
    assert ["a", "mail", "2", "-", "1", "\N{ALMOST EQUAL TO}2", "-", "-"] in rows(out)


def test_stats_on_a_narrow_terminal_keeps_its_figures_whole(
    cli: Cli, busy: None, monkeypatch: pytest.MonkeyPatch, put: Put
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables = cli("stats").out
    assert max(map(len, tables.splitlines())) <= 80
    assert ["a", "mail", "1", "10 min", "4 min", "2", "60 s", "2 min"] in rows(tables)
    monkeypatch.setenv("COLUMNS", "40")  # a telephone
    lines = cli("stats").out.splitlines()
    assert max(map(len, lines)) <= 40
    said = " ".join(" ".join(lines).split())
    assert (
        "a mail 2 pending, 1 running, 2 succeeded 1 due, oldest due 10 min, oldest running 4 min, last hour 2,"
        " average 60 s, p95 2 min"
    ) in said
    monkeypatch.setenv("COLUMNS", "80")
    put(queue="q" * 40, kind="k" * 60)
    out = cli("stats").out
    assert max(map(len, out.splitlines())) <= 80
    assert f"{'q' * 40}{'k' * 60}" in "".join(out.split())


# -- watch -----------------------------------------------------------------------------------------------------


def test_watch_prints_one_look_after_the_other_where_there_is_no_terminal(cli: Cli, busy: None) -> None:
    code, out, err = cli("watch", "--interval", "0.1", "--count", "3")
    assert (code, err) == (0, "")
    assert sum(line == ["a", "mail", "2", "-", "1", "2", "-", "-"] for line in rows(out)) == 3


def test_watch_prints_a_line_of_json_for_each_look(cli: Cli, busy: None) -> None:
    code, out, _ = cli("watch", "--interval", "0.1", "--count", "2", "--json")
    assert code == 0
    assert [json.loads(line).keys() for line in out.splitlines()] == [ShownOverview.model_fields.keys()] * 2


def test_watch_draws_in_place_on_a_terminal(cli: Cli, busy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    code, out, _ = cli("watch", "--interval", "0.1", "--count", "2")
    assert code == 0
    assert "\x1b[1A" in out, "the cursor goes up again"
    assert out.endswith("\x1b[?25h"), "and is visible afterwards"


def test_watch_goes_on_when_the_database_comes_back(
    cli: Cli, busy: None, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def cut(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pgqueue_ref:cli' AND datname = current_database()"
            )

    monkeypatch.setattr(queues.time, "sleep", cut)
    code, out, err = cli("watch", "--count", "3", "--json")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "connection" in err


def test_watch_refuses_when_the_first_look_fails(cli: Cli, db: Db) -> None:
    db.execute("DROP TABLE pgqueue_jobs")
    assert "pgqueue-ref migrate" in cli("watch", "--count", "2").refusal


def test_watch_outlasts_a_statement_timeout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow() -> Any:
        raise StatementTimeout("statement cancelled")

    looks = [overview, too_slow, overview]
    monkeypatch.setattr(queues, "overview", lambda: looks.pop(0)())
    code, out, err = cli("watch", "--count", "3", "--interval", "0.1", "--json")
    assert (code, len(out.splitlines()), err) == (0, 2, "pgqueue-ref: statement cancelled\n")


# -- list ------------------------------------------------------------------------------------------------------


def test_list_shows_the_newest_first_with_the_moment_that_matters(cli: Cli, put: Put) -> None:
    moments = {name: PAST + timedelta(days=n) for n, name in enumerate(("created_at", "run_at", "started_at"))}
    pending = put(**moments, external_key="k-1")
    running = put(**moments, status="running", attempt=2, max_attempts=5, queue="slow")
    ended = put(**moments, status="cancelled", finished_at=PAST + timedelta(days=9))
    code, out, err = cli("list")
    assert (code, err) == (0, "")
    header, *lines = rows(out)
    assert header == ["id", "queue", "kind", "key", "status", "attempts", "at"]
    assert [(line[0], *line[4:6], line[6][:10]) for line in lines] == [
        (str(ended), "cancelled", "0/?", "2001-01-10"),
        (str(running), "running", "2/5", "2001-01-03"),
        (str(pending), "pending", "0/?", "2001-01-02"),
    ]
    assert [line[0] for line in rows(cli("list", "--status", "running").out)[1:]] == [str(running)]
    assert [line[0] for line in rows(cli("list", "--queue", "slow", "--kind", "mail").out)[1:]] == [str(running)]
    assert [line[0] for line in rows(cli("list", "--kind", "mail", "--key", "k-1").out)[1:]] == [str(pending)]


def test_list_for_programs_has_the_jobs_of_the_api_and_the_next_page(cli: Cli, put: Put) -> None:
    ids = [put(payload=json.dumps({"n": n})) for n in range(5)]
    first = cli("list", "--json", "--limit", 3).json
    assert [job["id"] for job in first["jobs"]] == ids[:1:-1]
    assert first["jobs"][0].keys() == {*ShownJob.model_fields, "delete_after"}
    ShownJob.model_validate(first["jobs"][0])
    assert first["jobs"][0]["payload"] == {"n": 4}
    second = cli("list", "--json", "--limit", 3, "--before", first["next"]).json
    assert [job["id"] for job in second["jobs"]] == ids[1::-1]
    assert second["next"] is None


def test_a_full_page_says_how_to_go_on(cli: Cli, put: Put) -> None:
    ids = [put(status="failed", finished_at=PAST, errors=["no"]) for _ in range(3)]
    assert cli("list", "--limit", 2).err == f"there may be more: go on with --before {ids[1]}\n"
    hint = cli("failed", "--limit", 2).err
    before = hint.split()[-1]
    assert hint == f"there may be more: go on with --before {before}\n"
    assert [line[0] for line in rows(cli("failed", "--before", before).out)[1:]] == [str(ids[0])]


# -- failed ----------------------------------------------------------------------------------------------------


def test_failed_shows_the_newest_error_of_the_last_failures(cli: Cli, put: Put) -> None:
    first = put(status="failed", finished_at=PAST, errors=["boom"], attempt=3, max_attempts=3)
    second = put(
        status="failed", finished_at=PAST - timedelta(days=1), errors=["x", "ValueError: 100%\nline two"], queue="slow"
    )
    without = put(status="failed", finished_at=PAST - timedelta(days=2))
    long = put(status="failed", finished_at=PAST - timedelta(days=3), errors=["e" * 500])
    header, *lines = rows(cli("failed").out)
    assert header == ["id", "queue", "kind", "attempts", "failed at", "error"]
    assert [(line[0], line[5]) for line in lines] == [
        (str(first), "boom"),
        (str(second), "ValueError: 100%"),
        (str(without), "-"),
        (str(long), "e" * 119 + "…"),
    ]
    jobs = cli("failed", "--json").json["jobs"]
    assert jobs[1]["errors"] == ["x", "ValueError: 100%\nline two"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("TIMEOUT", [0, 1]),
        ("out_of", [1]),
        ("100%", [2]),
        ("%100\\%%", [2]),
        ("a\\b", [3]),
        ("tim_out", []),
        ("%tim_out%", [0, 1]),
    ],
)
def test_error_like_is_a_part_of_the_message_or_a_pattern(cli: Cli, put: Put, wanted: str, found: list[int]) -> None:
    messages = ["Timeout: 10 s", "timeout, out_of luck", "100% full", "a\\b"]
    ids = [put(status="failed", finished_at=PAST, errors=[message]) for message in messages]
    jobs = cli("failed", "--error-like", wanted, "--json").json["jobs"]
    assert sorted(job["id"] for job in jobs) == [ids[n] for n in found]


@pytest.mark.parametrize("before", ["7", "yesterday/7", "2001-01-01T00:00:00/7", "2001-01-01T00:00:00Z/x", "/"])
def test_a_wrong_place_to_go_on_from_is_wrong_usage(cli: Cli, before: str) -> None:
    code, out, err = cli("failed", "--before", before)
    assert (code, out) == (2, "")
    assert "--before is what the page before named" in err


# -- show ------------------------------------------------------------------------------------------------------


def test_show_tells_all_that_is_known_of_a_job(cli: Cli, db: Db) -> None:
    queue = Queue(db)
    id_ = queue.push("mail", {"to": "you"}, key="k", priority=5, metadata={"tenant": "acme"}).id
    for n in range(2):
        (job,) = queue.claim([Want("mail", 1, max_attempts=2)], worker="host:1")
        queue.fail(job, f"ValueError: {n}\n  File x")
    code, out, err = cli("show", id_)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"job {id_}: failed"
    for line in ("  key       k", "  priority  5", "  attempts  2/2", "  worker    host:1", '    "to": "you"',
                 '    "tenant": "acme"', "  ValueError: 0", "  ValueError: 1", "    File x"):  # fmt: skip
        assert line in lines
    timeline = [re.split(r"\s{2,}", line.strip()) for line in lines[lines.index("timeline") + 1 :]]
    assert [moment[1:] for moment in timeline] == [
        ["pushed", "mail to queue default"],
        ["started", "attempt 2 of 2, worker host:1"],
        ["failed"],
    ]


def test_show_names_what_a_blocked_job_waits_for_as_far_as_that_is_small(cli: Cli, db: Db) -> None:
    queue = Queue(db)
    lonely = queue.connection.execute(
        "INSERT INTO pgqueue_jobs (kind, status) VALUES ('mail', 'blocked') RETURNING id"
    ).fetchone()[0]
    assert "waits for" not in cli("show", lonely).out  # the extension is not there
    db.execute(dependencies.SCHEMA_SQL)
    ids = [queue.push("page", key=f"k{n}" if n else None).id for n in range(12)]
    few = queue.run(dependencies.push("book", depends_on=ids[:2])).id
    many = queue.run(dependencies.push("book", depends_on=ids)).id
    waits = ["waits for", f"  job {ids[0]}, page: pending", f"  job {ids[1]}, page with key k1: pending", "payload"]
    lines = cli("show", few).out.splitlines()
    assert lines[lines.index("waits for") :][:4] == waits
    assert cli("show", few, "--json").json["waits_for"] == ids[:2]
    lines = cli("show", many).out.splitlines()
    assert len(lines[lines.index("waits for, the first 10 of them") : lines.index("payload")]) == 11
    queue.cancel(few)
    assert "waits for" not in cli("show", few).out


def test_show_for_programs_has_the_job_of_the_api_and_its_timeline(cli: Cli, db: Db) -> None:
    id_ = Queue(db).push("mail", [1, None], delay=3600, expires_at=datetime(2100, 1, 1, tzinfo=UTC)).id
    job = cli("show", id_, "--json").json
    assert job.keys() == {*ShownJob.model_fields, "delete_after", "timeline"}
    ShownJob.model_validate({name: job[name] for name in ShownJob.model_fields})
    assert [moment["event"] for moment in job["timeline"]] == ["pushed", "due", "expires"]
    assert job["timeline"][0]["at"] == job["created_at"]


@pytest.mark.parametrize(
    ("columns", "events"),
    [
        ({}, ["pushed"]),
        ({"run_at": "2001-01-02Z"}, ["pushed", "due"]),
        ({"status": "blocked", "expires_at": "2100-01-01Z"}, ["pushed", "expires"]),
        (
            {"status": "running", "started_at": "2001-01-02Z", "lease_expires_at": "2001-01-03Z", "worker": "w"},
            ["pushed", "started: attempt 1 of 3, worker w", "lease ends"],
        ),
        (
            {"started_at": "2001-01-02Z", "run_at": "2001-01-03Z", "worker": "w"},
            ["pushed", "started: attempt 1 of 3, worker w", "due: again"],
        ),
        (
            {"started_at": "2001-01-02Z", "run_at": "2001-01-03Z", "attempt": 0},
            ["pushed", "started: an attempt that was put back", "due: again"],
        ),
        (
            {"status": "cancelled", "finished_at": "2001-01-02Z", "delete_after": "2001-01-03Z"},
            ["pushed", "cancelled: never started", "deleted"],
        ),
        (
            {"status": "succeeded", "run_at": "2001-01-02Z", "started_at": "2001-01-03Z", "finished_at": "2001-01-04Z"},
            ["pushed", "started", "succeeded"],
        ),
    ],
)
def test_the_timeline_follows_the_status(cli: Cli, put: Put, columns: dict[str, object], events: list[str]) -> None:
    start = {"created_at": "2001-01-01Z", "run_at": "2001-01-01Z", "attempt": 1, "max_attempts": 3}
    moments = cli("show", put(**start | columns), "--json").json["timeline"]
    assert [moment["at"] for moment in moments] == sorted(moment["at"] for moment in moments)
    for moment, event in zip(moments, events, strict=True):
        name, _, detail = event.partition(": ")
        assert moment["event"] == name
        assert not detail or moment["detail"] == detail


def test_an_unknown_job_is_told(cli: Cli) -> None:
    assert cli("show", 987).refusal == "pgqueue-ref: job 987 does not exist (any more)"
    assert cli("show", 987, "--json").refusal == "pgqueue-ref: job 987 does not exist (any more)"
    code, out, err = cli("show", "seven")
    assert (code, out) == (2, "")
    assert "Invalid value for 'ID'" in err


def test_what_was_pushed_cannot_speak_to_the_terminal(cli: Cli, put: Put, db: Db) -> None:
    id_ = put(
        kind=EVIL, queue=EVIL, external_key=EVIL, worker=EVIL, status="failed", finished_at=PAST, errors=[EVIL, EVIL],
        payload=json.dumps({EVIL: EVIL}), metadata=json.dumps({"x": EVIL}),
    )  # fmt: skip
    Queue(db).pause(EVIL)
    for command in (["stats"], ["list"], ["failed"], ["show", id_]):
        for more in ([], ["--json"]):
            out = cli(*command, *more).out
            assert not set(out) & {"\x1b", "\u202e", "\x9b"}, command
            assert "[bold]" in out
    assert cli("show", id_, "--json").json["kind"] == EVIL


def test_what_python_cannot_read_or_indent_is_shown_as_it_stands(cli: Cli, put: Put) -> None:
    number, deep = put(payload="9" * 5_000), put(payload="[" * 900 + "]" * 900)
    assert cli("show", number, "--json").json["payload"] == "9" * 5_000
    assert "[[[[[" in cli("show", deep).out.replace(" ", "").replace("\n", "")
    assert cli("show", deep, "--json").json["id"] == deep
