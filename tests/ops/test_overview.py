"""The overview: exact while the table is small, near the truth and bounded in cost when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy

import pgqueue_ref.sqlalchemy as on_sqlalchemy
from pgqueue_ref.core import Queue, SchemaMissing, Want, connect, connect_async, run, run_async
from pgqueue_ref.core import operations as op
from pgqueue_ref.ops import overview as module
from pgqueue_ref.ops.overview import Flow, Overview, overview

SUCCEEDED = """
INSERT INTO pgqueue_jobs (queue, kind, status, created_at, run_at, started_at, finished_at, delete_after)
SELECT 'default', 'kind' || i % 4, 'succeeded', at, at, at, at + interval '2 s', at + interval '1 day'
FROM generate_series(1, {jobs}) AS i, LATERAL (SELECT now() - make_interval(secs => {jobs} - i) AS at) AS moment
"""


def bulk(connection: psycopg.Connection[Any], statement: str) -> None:
    """Insert many rows at once, without the trigger's work, and let the planner know."""
    connection.execute("ALTER TABLE pgqueue_jobs DISABLE TRIGGER ALL")
    connection.execute(statement)
    connection.execute("ALTER TABLE pgqueue_jobs ENABLE TRIGGER ALL")
    connection.execute("VACUUM ANALYZE pgqueue_jobs")


def jobs(result: Overview) -> dict[tuple[str, str, str], int]:
    return {(row.queue, row.kind, row.status): row.jobs for row in result.rows}


def plans(connection: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """How each statement of an overview was executed."""
    operation = overview()
    step = next(operation)
    while True:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {step.sql}"
        ((((plan,),),)) = connection.execute(explain, step.params or None).fetchall()
        yield plan["Plan"]
        try:
            step = operation.send(connection.execute(step.sql, step.params or None).fetchall())
        except StopIteration:
            return


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes, itself first."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def buffers(connection: psycopg.Connection[Any]) -> int:
    """The pages that all statements of an overview touch."""
    return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans(connection))


def test_a_small_table_is_counted_exactly_in_every_status(database: str) -> None:
    with Queue.connect(database) as queue, connect(database) as connection:
        for number in range(30):
            queue.push("mail", queue=f"q{number % 2}", priority=number % 3)
        for job in queue.claim([Want("mail", 9, "q0")], worker="me"):
            if job.id % 4 == 1:
                queue.complete(job)
            elif job.id % 4 == 2:
                queue.fail(job, "broken", final=True)
        queue.cancel(queue.push("report").id)
        connection.execute("UPDATE pgqueue_jobs SET status = 'blocked' WHERE id = 2")
        queue.pause("q1")
        result = run(connection, overview())
        stats = queue.stats()
    assert jobs(result) == {(stat.queue, stat.kind, stat.status): stat.jobs for stat in stats}
    assert {row.status for row in result.rows} >= {"pending", "blocked", "running", "succeeded", "cancelled"}
    by_group = {(row.queue, row.kind, row.status): row.oldest for row in result.rows if row.status != "blocked"}
    assert by_group == {(s.queue, s.kind, s.status): s.oldest for s in stats if s.status != "blocked"}
    assert not result.estimated
    assert not any(row.estimated for row in result.rows)
    assert result.paused == ["q1"]


def test_a_flow_says_what_is_due_how_old_it_is_and_how_the_last_hour_went(database: str) -> None:
    with connect(database) as connection:
        connection.execute("""
            INSERT INTO pgqueue_jobs (queue, kind, status, priority, run_at, started_at, finished_at) VALUES
                ('a', 'mail', 'pending', 5, now() - interval '10 s', NULL, NULL),
                ('a', 'mail', 'pending', 1, now() - interval '90 s', NULL, NULL),
                ('a', 'mail', 'pending', 1, now() + interval '90 s', NULL, NULL),
                ('a', 'late', 'pending', 0, now() + interval '90 s', NULL, NULL),
                ('a', 'mail', 'running', 0, now(), now() - interval '40 s', NULL),
                ('a', 'mail', 'failed', 0, now(), now() - interval '9 min', now() - interval '1 min'),
                ('a', 'old', 'succeeded', 0, now(), now() - interval '3 h', now() - interval '2 h')""")
        connection.execute("""
            INSERT INTO pgqueue_jobs (queue, kind, status, started_at, finished_at)
            SELECT 'a', 'mail', 'succeeded', now() - make_interval(mins => 30, secs => i), now() - interval '30 min'
            FROM generate_series(1, 100) AS i""")
        result = run(connection, overview())
    late, mail, old = result.flows
    assert late == Flow("a", "late", 0, None, None, 0, None, None)
    assert old == Flow("a", "old", 0, None, None, 0, None, None)
    assert (mail.queue, mail.kind, mail.due, mail.finished_last_hour) == ("a", "mail", 2, 101)
    assert mail.oldest_due_seconds is not None
    assert mail.oldest_due_seconds >= 90
    assert mail.oldest_running_seconds is not None
    assert mail.oldest_running_seconds >= 40
    assert mail.average_seconds == pytest.approx(50.5)
    assert mail.p95_seconds == pytest.approx(95)


def test_the_cost_is_bounded_and_does_not_grow_with_the_terminal_rows(database: str) -> None:
    with connect(database, statement_timeout_ms=0) as connection:
        bulk(connection, SUCCEEDED.format(jobs=60_000))
        before = buffers(connection)
        bulk(connection, SUCCEEDED.format(jobs=180_000))
        after = buffers(connection)
        ((pages,),) = connection.execute("SELECT pg_relation_size('pgqueue_jobs') / 8192").fetchall()
        result = run(connection, overview())
    assert pages > 2 * after
    assert after < 1.3 * before
    assert after < 2 * module.PAGES
    assert result.estimated
    assert all(row.estimated for row in result.rows)
    for status, count in jobs(result).items():
        assert count == pytest.approx(60_000, rel=0.15), status
    # One second between two jobs: the last hour has 3,600 of each load, every fourth of a kind.
    assert [flow.kind for flow in result.flows] == ["kind0", "kind1", "kind2", "kind3"]
    for flow in result.flows:
        assert flow.finished_last_hour == pytest.approx(1_800, rel=0.5), flow
        assert flow.average_seconds == pytest.approx(2)
        assert flow.p95_seconds == pytest.approx(2)


def test_the_planner_keeps_to_indexes_and_the_sample_when_it_takes_the_table_for_five_million_rows(
    database: str,
) -> None:
    with connect(database, statement_timeout_ms=0) as connection:
        bulk(connection, SUCCEEDED.format(jobs=60_000))
        connection.execute("ALTER TABLE pgqueue_jobs SET (autovacuum_enabled = off)")
        bulk(
            connection,
            "INSERT INTO pgqueue_jobs (kind, run_at) SELECT 'k' || i % 9, now() FROM generate_series(1, 3000) i",
        )
        failed = "INSERT INTO pgqueue_jobs (kind, status, finished_at) SELECT 'mail', 'failed', now()"
        bulk(connection, f"{failed} FROM generate_series(1, 3000)")
        connection.execute("UPDATE pg_class SET reltuples = 5000000 WHERE oid = 'pgqueue_jobs'::regclass")
        ((((believed,),),)) = connection.execute("EXPLAIN (FORMAT JSON) SELECT FROM pgqueue_jobs").fetchall()
        touched = buffers(connection)
        scans = [
            node for plan in plans(connection) for node in nodes(plan) if node.get("Relation Name") == "pgqueue_jobs"
        ]
    assert believed["Plan"]["Plan Rows"] == pytest.approx(5_000_000, rel=0.05)
    assert touched < 2 * module.PAGES
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan", "Sample Scan"}
    assert sum(node["Node Type"] == "Sample Scan" for node in scans) == 1


def test_a_table_that_is_large_but_holds_few_rows_is_counted_exactly(database: str) -> None:
    with connect(database, statement_timeout_ms=0) as connection:
        bulk(connection, SUCCEEDED.format(jobs=60_000))
        connection.execute("DELETE FROM pgqueue_jobs WHERE id % 1000 > 0")
        result = run(connection, overview())
    assert not result.estimated
    assert jobs(result) == {("default", "kind0", "succeeded"): 60}


def test_a_backlog_beyond_the_bound_is_estimated_from_the_sample(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, bound in {"PAGES": 50, "NEWEST": 500, "ROWS": 200, "ENTRIES": 1_000}.items():
        monkeypatch.setattr(module, name, bound)
    with connect(database, statement_timeout_ms=0) as connection:
        due = "INSERT INTO pgqueue_jobs (kind, status, finished_at, run_at) SELECT {}, now() - interval '1 h' FROM {}"
        bulk(connection, due.format("'big', 'pending', NULL", "generate_series(1, 20000)"))
        bulk(connection, due.format("'big', 'failed', now()", "generate_series(1, 5000)"))
        bulk(connection, due.format("'small', 'pending', NULL", "generate_series(1, 300)"))
        touched = buffers(connection)
        result = run(connection, overview())
    counts = jobs(result)
    assert result.estimated
    assert counts["default", "big", "pending"] == pytest.approx(20_000, rel=0.3)
    assert counts["default", "big", "failed"] == pytest.approx(5_000, rel=0.5)
    assert counts["default", "small", "pending"] == 300
    assert {(row.kind, row.status) for row in result.rows if row.estimated} == {("big", "pending"), ("big", "failed")}
    assert {flow.kind: flow.due for flow in result.flows}["big"] == counts["default", "big", "pending"]
    assert touched < 300


def test_more_priorities_than_are_looked_at_do_not_cost_more(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEVELS", 20)
    with connect(database) as connection:
        bulk(
            connection,
            "INSERT INTO pgqueue_jobs (kind, priority) SELECT 'k' || i % 3, i FROM generate_series(1, 3000) i",
        )
        touched = buffers(connection)
        result = run(connection, overview())
    assert jobs(result) == {("default", f"k{number}", "pending"): 1_000 for number in range(3)}
    assert touched < 400


def test_every_runner_runs_it(database: str) -> None:
    async def on_async() -> Overview:
        async with await connect_async(database) as connection:
            return await run_async(connection, overview())

    with Queue.connect(database) as queue:
        queue.push("mail", queue="100% sure")
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        result = on_sqlalchemy.run(connection, overview())
    engine.dispose()
    assert jobs(result) == jobs(asyncio.run(on_async())) == {("100% sure", "mail", "pending"): 1}


def test_a_missing_schema_is_said(empty_database: str) -> None:
    with connect(empty_database) as connection, pytest.raises(SchemaMissing):
        run(connection, overview())


def test_an_empty_queue_has_no_rows(database: str) -> None:
    with connect(database) as connection:
        result = run(connection, overview())
        assert run(connection, op.stats()) == []
    assert (result.rows, result.flows, result.paused, result.estimated) == ([], [], [], False)
