"""docs/runbook.md is true: each section's commands and queries are run in order on a database that has its symptom;
they print what they say, show something, and mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from documents import sections
from waiting import until

from pgqueue_ref import core
from pgqueue_ref.core import Queue, Want, install
from pgqueue_ref.extensions import events
from pgqueue_ref.ops import doctor
from pgqueue_ref.ops.checks import Plan

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = sections((ROOT / "docs" / "runbook.md").read_text())
Db = psycopg.Connection[Any]
SYMPTOMS: dict[str, Callable[[Db], AbstractContextManager[None]]] = {}


def symptom(make: Callable[[Db], Iterator[None]]) -> Callable[[Db], Iterator[None]]:
    """Register what brings a database into the state that the section of this name is about; after the section has been
    played it goes on, and looks whether that is mended."""
    SYMPTOMS[make.__name__.replace("_", "-")] = contextmanager(make)
    return make


def levels(db: Db) -> dict[str, str]:
    """The doctor's findings."""
    dsn = db.info.dsn + f" password={db.info.password}"
    return {finding.check: finding.level for finding in doctor.examine(Plan(), dsn, sleep=lambda seconds: None)}


def statuses(db: Db) -> dict[int, str]:
    return dict(db.execute("SELECT id, status FROM pgqueue_jobs ORDER BY id").fetchall())


@contextmanager
def session(db: Db, name: str) -> Iterator[Db]:
    """A session of somebody else's, which the section may end."""
    other = psycopg.connect(db.info.dsn, password=db.info.password, application_name=name)
    try:
        yield other
    finally:
        other.close()


# -- the symptoms ----------------------------------------------------------------------------------------------


@symptom
def queue_not_moving(db: Db) -> Iterator[None]:
    queue = Queue(db)
    for name in ("Ada", "Grace", "Mary"):
        queue.push("hello", {"name": name})
    db.execute("UPDATE pgqueue_jobs SET run_at = now() - interval '12 min'")
    queue.pause("default")
    yield
    assert statuses(db) == {1: "succeeded", 2: "succeeded", 3: "succeeded", 4: "pending"}
    assert levels(db)["backlog"] == "OK"


@symptom
def failures_repeating(db: Db) -> Iterator[None]:
    db.execute("""
        INSERT INTO pgqueue_jobs (kind, payload, status, attempt, max_attempts, worker, created_at, run_at, started_at,
                                  finished_at, errors)
        SELECT 'thumbnail', jsonb_build_object('photo', n), 'failed', 3, 3, 'host:4711', now() - interval '5 min',
               now() - interval '90 s', now() - interval '61 s' + n * interval '1 s',
               now() - interval '60 s' + n * interval '1 s',
               ARRAY[CASE WHEN n % 6 = 1 THEN 'KeyError: size' ELSE 'ConnectionError: images.example refused' END]
        FROM generate_series(1, 12) AS n""")
    Queue(db).push("thumbnail", {"photo": 13})
    db.execute(events.SCHEMA_SQL)
    db.execute("""
        INSERT INTO pgqueue_events (job_id, attempt, type, status, queue, kind, worker, actor, message)
        SELECT 13, 1 + n % 9, 'failed', 'pending', 'default', 'thumbnail', 'host:4711', 'app pgqueue_ref:write',
               'TimeoutError: 30 s'
        FROM generate_series(1, 12) AS n""")
    yield
    assert [id_ for id_, status in statuses(db).items() if status == "failed"] == [1, 7], "what cannot succeed"
    assert Queue(db).paused() == []


@symptom
def stuck_jobs(db: Db) -> Iterator[None]:
    queue = Queue(db)
    for photo in (7, 8):
        queue.push("thumbnail", {"photo": photo})
    queue.claim([Want("thumbnail", 2)], worker="host:4711")
    db.execute("""
        UPDATE pgqueue_jobs SET created_at = now() - interval '13 min', run_at = now() - interval '13 min',
                                started_at = now() - interval '12 min',
                                lease_expires_at = now() + CASE id WHEN 2 THEN interval '-11 min' ELSE '10 min' END""")
    yield
    assert set(statuses(db).values()) == {"pending"}
    assert {levels(db)[check] for check in ("leases", "running")} == {"OK"}


@symptom
def too_many_connections(db: Db) -> Iterator[None]:
    with session(db, "forgotten pool") as forgotten:
        forgotten.autocommit = True
        forgotten.execute("SELECT 1")
        yield
        with pytest.raises(psycopg.OperationalError):
            forgotten.execute("SELECT 1")


@symptom
def timeouts(db: Db) -> Iterator[None]:
    with session(db, "forgotten") as holder, session(db, "pgqueue_ref:write") as waiting:
        holder.execute("LOCK TABLE pgqueue_jobs")
        waiting.pgconn.send_query(b"SELECT count(*) FROM pgqueue_jobs")
        blocked = "SELECT cardinality(pg_blocking_pids(%s)) = 1"
        until(lambda: db.execute(blocked, [waiting.info.backend_pid]).fetchall() == [(True,)], "it waits for the lock")
        yield
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")


@symptom
def schema_missing(db: Db) -> Iterator[None]:
    db.execute("DROP TABLE pgqueue_jobs, pgqueue_queues")
    install(db, "blue")
    yield
    assert levels(db)["schema"] == "OK"


@symptom
def table_bloat(db: Db) -> Iterator[None]:
    with session(db, "forgotten") as pinning, pytest.MonkeyPatch.context() as patch:
        db.execute("ALTER TABLE pgqueue_jobs SET (autovacuum_enabled = false)")
        db.execute("ALTER TABLE pgqueue_jobs DISABLE TRIGGER ALL")
        Queue(db).push("mail")
        db.execute("INSERT INTO pgqueue_jobs (kind, status) SELECT 'mail', 'succeeded' FROM generate_series(1, 20000)")
        db.execute("VACUUM ANALYZE pgqueue_jobs")
        patch.setattr("pgqueue_ref.ops.checks.BLOAT_BYTES", 400_000)  # a table as small as this one is worth a word
        pinning.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pinning.execute("SELECT count(*) FROM pgqueue_queues")
        db.execute("DELETE FROM pgqueue_jobs WHERE id > 100")
        db.execute("VACUUM ANALYZE pgqueue_jobs")
        yield
        assert {levels(db)[check] for check in ("vacuum", "bloat")} == {"OK"}
        assert Queue(db).paused() == []
        with pytest.raises(psycopg.OperationalError):
            pinning.execute("SELECT 1")


@symptom
def database_rotated(db: Db) -> Iterator[None]:
    """As after a failover to a logical replica: a job whose worker is gone, and a sequence that begins again."""
    queue = Queue(db)
    queue.push("mail")
    queue.claim([Want("mail", 1)], worker="host:4711")
    db.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 min'")
    db.execute("ALTER SEQUENCE pgqueue_jobs_id_seq RESTART")
    yield
    assert statuses(db) == {1: "pending"}
    assert queue.push("mail").id == 2
    assert levels(db)["schema"] == "OK"


@symptom
def emergency_stop(db: Db) -> Iterator[None]:
    queue = Queue(db)
    for n in range(4):
        queue.push("mail", {"order": n}, queue="reports" if n == 3 else "default")
    running = queue.claim([Want("mail", 2)], worker="host:4711")
    yield
    assert set(statuses(db).values()) == {"pending"}
    assert queue.complete_many(running) == running, "what the stopped attempts report is stale"
    assert queue.paused() == []


@symptom
def clearing_a_queue(db: Db) -> Iterator[None]:
    for photo in (6, 7, 7, 8):
        Queue(db).push("thumbnail", {"photo": photo})
    Queue(db).push("monthly", queue="reports")
    yield
    assert statuses(db) == {1: "pending", 2: "cancelled", 3: "cancelled", 4: "pending", 5: "pending"}
    assert Queue(db).paused() == []


@symptom
def retention(db: Db) -> Iterator[None]:
    db.execute("""
        INSERT INTO pgqueue_jobs (kind, status, finished_at)
        SELECT 'mail', status, now() - days * interval '1 day'
        FROM unnest(ARRAY['succeeded', 'failed']) AS status, unnest(ARRAY[20, 40, 100]) AS days""")
    yield
    left = "SELECT status, count(*) FROM pgqueue_jobs GROUP BY 1 ORDER BY 1"
    assert db.execute(left).fetchall() == [("failed", 2), ("succeeded", 1)]


@symptom
def vacuum_and_analyze(db: Db) -> Iterator[None]:
    yield
    analysed = "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relname = 'pgqueue_jobs'"
    until(lambda: db.execute(analysed).fetchall() == [(True,)], "the statistics know of it")


@symptom
def with_psql_alone(db: Db) -> Iterator[None]:
    """Something of everything; jobs 7 and 4 have twins on which the commands' own operations do the same."""
    queue = Queue(db)
    db.execute("""
        INSERT INTO pgqueue_jobs (id, kind, status, attempt, max_attempts, worker, lease_expires_at, run_at, started_at,
                                  finished_at, errors)
        SELECT id, 'mail', status, 1, 3, 'w', lease, '2001-01-01', '2001-01-02', ended, ARRAY['no']
        FROM (VALUES (1, 'succeeded', NULL::timestamptz, now()), (2, 'pending', NULL, NULL), (4, 'failed', NULL, now()),
                     (5, 'failed', NULL, now()), (7, 'running', now(), NULL), (8, 'running', now(), NULL),
                     (9, 'running', now(), NULL)) AS job (id, status, lease, ended)""")
    queue.pause("default")
    with session(db, "pgqueue_ref:claim"):
        yield
    queue.retry(5)
    queue.cancel(8)
    same = """
        SELECT to_jsonb(job) - '{id,run_at,finished_at,delete_after}'::text[], run_at > '2026-01-01',
               finished_at IS NULL, delete_after - finished_at
        FROM pgqueue_jobs AS job WHERE id = %s"""
    for by_hand, twin in ((4, 5), (7, 8)):
        assert db.execute(same, [by_hand]).fetchall() == db.execute(same, [twin]).fetchall()
    assert queue.paused() == ["default"]


# -- the tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SYMPTOMS)
def test_a_section_shows_its_symptom_and_mends_it(
    section: str, db: Db, play: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SYMPTOMS[section](db):
        play(RUNBOOK[section])


def test_every_section_with_something_to_run_is_run() -> None:
    assert {name for name, text in RUNBOOK.items() if re.search("^```(console|sql)", text, re.MULTILINE)} == set(
        SYMPTOMS
    )


def test_where_the_doctor_sends_somebody_there_is_a_section() -> None:
    sources = [path.read_text() for path in (ROOT / "pgqueue_ref").rglob("*.py")]
    sent = {found for text in sources for found in re.findall(r"(?:runbook\.md#|\{_RUNBOOK\})([\w-]+)", text)}
    assert sent
    assert sent <= RUNBOOK.keys()


def test_the_alerts_are_the_doctor_s() -> None:
    """The table's figures, in the order in which it has them."""
    from pgqueue_ref.ops import checks

    figures = (
        f"| {checks.span(checks.WAITING_WARN)} | {checks.span(checks.WAITING_FAIL)} |",
        f"| | {checks.span(checks.RESCUE_PATIENCE)} |",
        f"| {checks.span(checks.LONG_RUN)} | |",
        f"| {checks.FAILED_BURST}, and twice as many as before | |",
        f"| {checks.span(checks.PINNED_WARN)} | {checks.span(checks.PINNED_FAIL)} |",
        f"| {checks.DEAD_ROWS:,}, and more than live ones | |",
    )
    rows = re.findall(r"^\| [^|]+? (\|.*\|)$", RUNBOOK["what-to-watch"], re.MULTILINE)[1:]
    assert tuple(rows) == figures


def test_the_autovacuum_figures_are_the_schema_s() -> None:
    text = RUNBOOK["vacuum-and-analyze"]
    settings = dict(re.findall(r"autovacuum_(\w+) = ([\d.]+)", core.SCHEMA_SQL))
    assert f"after {int(settings['vacuum_threshold']):,} dead rows" in text
    assert f"after {int(settings['vacuum_insert_threshold']):,} inserted" in text
    assert settings["analyze_scale_factor"] == "0.05"
    assert f"ANALYZE after {int(settings['analyze_threshold']):,} changes and 5 % of the rows" in text
