"""EXPLAIN guards: on 1,400,000 rows every hot statement uses its index and touches a bounded number of pages.

Each statement is planned twice: for the values given, as its first executions are, and as the generic plan that a
prepared statement may settle on. Both run for real, in a transaction that is rolled back. The bounds are several times
what was measured; a plan that reads the table or sorts it breaks them a hundredfold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue_ref.harness import plans
from pgqueue_ref.harness.server import provision
from pgqueue_ref.ops import operations as op

NEVER = datetime(2100, 1, 1, tzinfo=UTC)
Connection = psycopg.Connection[Any]

# Indexes are made afterwards: half the time. With `--dist loadfile` all of it is built once for each server.
ROWS = """
INSERT INTO pgqueue_jobs (kind, queue, status, external_key, run_at, finished_at, delete_after, attempt, max_attempts,
                          payload)
SELECT 'k' || n % 5, 'q' || n % 2, (ARRAY['succeeded', 'succeeded', 'succeeded', 'cancelled', 'failed'])[1 + n % 5],
       'done-' || n, now() - interval '1 day', now() - n * interval '1 second',
       CASE WHEN n % 5 < 4 THEN now() + n * interval '1 second' - interval '2000 seconds' END, 1, 10, '{"n": 1}'
FROM generate_series(1, 1000000) AS n;
INSERT INTO pgqueue_jobs (kind, queue, external_key, priority, run_at, expires_at, payload)
SELECT 'k' || n % 5, 'q' || n % 2, 'due-' || n, n % 3, now() - n * interval '1 millisecond',
       CASE WHEN n % 100 = 0 THEN now() + (n - 100000) * interval '1 second' END, '{"n": 1}'
FROM generate_series(1, 200000) AS n;
INSERT INTO pgqueue_jobs (kind, queue, external_key, priority, run_at, payload)
SELECT 'k' || n % 5, CASE WHEN n % 4 = 0 THEN 'later' ELSE 'q' || n % 2 END, 'future-' || n,
       n % 4, now() + interval '1 day' + n * interval '1 second', '{"n": 1}'
FROM generate_series(1, 200000) AS n;
INSERT INTO pgqueue_jobs (kind, queue, status, attempt, max_attempts, lease_token, lease_expires_at, worker)
SELECT 'k' || n % 5, 'q' || n % 2, 'running', 1, 10, 1, now() + (n - 200) * interval '1 minute', 'w'
FROM generate_series(1, 1000) AS n;
"""


@pytest.fixture(scope="module", params=["server", "embedded:16"])
def large(request: pytest.FixtureRequest, core: Any) -> Iterator[Connection]:
    """A connection to a database with the rows above, analyzed: on the run's server, and on PostgreSQL 16."""
    with contextlib.ExitStack() as stack:
        if request.param == "server":
            clone, template = request.getfixturevalue("_clone"), request.getfixturevalue("_template")
            dsn = make_conninfo(request.getfixturevalue("server").dsn, dbname=clone(template))
        else:
            dsn = stack.enter_context(provision(request.param)).dsn
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        core.install(connection)
        connection.execute("SET maintenance_work_mem = '256MB'; SET synchronous_commit = off")
        indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 'pgqueue_jobs' AND indexname NOT LIKE '%pkey'"
        for (index,) in connection.execute(indexes).fetchall():
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        connection.execute("ALTER TABLE pgqueue_jobs SET (autovacuum_enabled = off)")  # plans must not change meanwhile
        connection.execute(ROWS)
        core.install(connection)
        connection.execute("VACUUM (ANALYZE) pgqueue_jobs")
        yield connection


# -- the statements, as the operations send them ---------------------------------------------------------------


def first(operation: Any) -> Any:
    return next(operation)


def claim(core: Any, wants: list[Any]) -> Any:
    return first(core.operations.claim(wants, worker="w"))


def held(core: Any, operation: str, db: Connection, jobs: int = 100, **options: Any) -> Any:
    """A fenced batch; every third attempt is stale."""
    rows = db.execute("SELECT id FROM pgqueue_jobs WHERE status = 'running' ORDER BY id LIMIT %s", [jobs]).fetchall()
    attempts = [SimpleNamespace(id=row[0], lease_token=1 + (n % 3 == 0)) for n, row in enumerate(rows)]
    if operation == "fail_many":
        return first(core.operations.fail_many(core.Failure(attempt, "no", 5) for attempt in attempts))
    return first(getattr(core.operations, operation)(attempts, **options))


def rescue(core: Any, db: Connection) -> Any:
    """The second statement: the change of the candidates that the first one found."""
    operation = core.operations.rescue()
    lost = next(operation)
    return operation.send(core.run(db, once(lost)))


def once(statement: Any) -> Any:
    return (yield statement)


def keys(core: Any, count: int) -> list[Any]:
    return [core.NewJob(f"k{n % 5}", key=f"done-{n}" if n % 2 else f"new-{n}") for n in range(1, count + 1)]


def find_keys(core: Any, count: int) -> Any:
    jobs = keys(core, count)
    params = {"kind": [job.kind for job in jobs], "key": [job.key for job in jobs]}
    return core.Statement(core.operations.sql.FIND_KEYS, params)


def count_active(core: Any, limit: int, queue: str = "q0") -> Any:
    return core.Statement(core.operations.sql.COUNT_ACTIVE, {"queue": queue, "limit": limit})


def take_back(core: Any, db: Connection) -> Any:
    """The second statement: the change of the 199 that the first one found."""
    operation = op.take_back()
    stuck = next(operation)
    return operation.send(core.run(db, once(stuck)))


CLAIM, ACTIVE, KEY, PRIMARY = "pgqueue_jobs_claim", "pgqueue_jobs_active", "pgqueue_jobs_key", "pgqueue_jobs_pkey"
EXPIRY, CLEANUP, FAILED = "pgqueue_jobs_expiry", "pgqueue_jobs_cleanup", "pgqueue_jobs_failed"
# The statement, the indexes that it must use, and the pages that it may touch.
GUARDS: dict[str, tuple[Callable[[Any, Connection], Any], set[str], int]] = {
    "claim 1": (lambda core, db: claim(core, [core.Want("k0", 1, queue="q0")]), {CLAIM, PRIMARY}, 100),
    "claim 100": (lambda core, db: claim(core, [core.Want("k0", 100, queue="q0")]), {CLAIM, PRIMARY}, 6_000),
    "claim 100 of 10 wants": (
        lambda core, db: claim(core, [core.Want(f"k{n % 5}", 10, queue=f"q{n % 2}") for n in range(10)]),
        {CLAIM, PRIMARY},
        6_000,
    ),
    "claim of an unknown kind": (lambda core, db: claim(core, [core.Want("nobody", 100)]), {CLAIM}, 30),
    "claim where all is in the future": (
        lambda core, db: claim(core, [core.Want("k0", 100, queue="later")]),
        {CLAIM},
        50,
    ),
    "rescue, candidates": (lambda core, db: first(core.operations.rescue()), {ACTIVE}, 400),
    "rescue, change of 200": (rescue, {PRIMARY}, 12_000),
    "chores": (lambda core, db: first(core.operations.chores()), {ACTIVE, EXPIRY, CLEANUP}, 400),
    "expire 100": (lambda core, db: first(core.operations.expire(100)), {EXPIRY, PRIMARY}, 6_000),
    "cleanup 100": (lambda core, db: first(core.operations.cleanup(100)), {CLEANUP, PRIMARY}, 3_000),
    "find 1 key": (lambda core, db: find_keys(core, 1), {KEY}, 15),
    "find 100 keys": (lambda core, db: find_keys(core, 100), {KEY}, 1_500),
    "count active, limit 12": (lambda core, db: count_active(core, 12), {CLAIM, ACTIVE}, 400),
    "count active, limit 1000": (lambda core, db: count_active(core, 1_000), {CLAIM, ACTIVE}, 400),
    "count active of an empty queue": (lambda core, db: count_active(core, 12, "nobody"), {CLAIM, ACTIVE}, 30),
    "heartbeat 100": (lambda core, db: held(core, "heartbeat_many", db), {PRIMARY}, 3_000),
    "complete 100": (lambda core, db: held(core, "complete_many", db), {PRIMARY}, 5_000),
    "complete 100, TTL 0": (lambda core, db: held(core, "complete_many", db, ttl=0), {PRIMARY}, 3_000),
    "complete 2": (lambda core, db: held(core, "complete_many", db, 2), {PRIMARY}, 100),
    "release 100": (lambda core, db: held(core, "release_many", db), {PRIMARY}, 5_000),
    "fail 100": (lambda core, db: held(core, "fail_many", db), {PRIMARY}, 5_000),
    "cancel": (lambda core, db: first(core.operations.cancel(1_200_000)), {PRIMARY}, 100),
    "cancel by key": (lambda core, db: first(core.operations.cancel_key("k2", "due-77777")), {KEY, PRIMARY}, 100),
    "retry": (lambda core, db: first(core.operations.retry(500_004)), {PRIMARY}, 100),
    "retry 100 by kind": (
        lambda core, db: first(core.operations.retry_many(kind="k4", limit=100)),
        {FAILED, PRIMARY},
        6_000,
    ),
    "a page of purge": (lambda core, db: first(core.operations.purge(60, limit=100)), {PRIMARY}, 1_500),
    "get": (lambda core, db: first(core.operations.get(700_000)), {PRIMARY}, 15),
    "a page of the list": (lambda core, db: first(core.operations.list_jobs(after=900_000)), {PRIMARY}, 30),
    # Operators' batches, of `pgqueue_ref.ops.operations`.
    "the newest": (lambda core, db: first(op.newest()), {PRIMARY}, 30),
    "a queue in use": (lambda core, db: first(op.in_use("q0")), {CLAIM, ACTIVE}, 30),
    "a queue not in use": (lambda core, db: first(op.in_use("nobody")), {CLAIM, ACTIVE}, 30),
    "retry a page": (lambda core, db: first(op.retry_batch(op.FIRST_ENDING, until=NEVER)), {FAILED, PRIMARY}, 60_000),
    "retry a page, in the middle": (
        lambda core, db: first(op.retry_batch(op.Ending(datetime.now(UTC), 0), until=NEVER, kind="nobody")),
        {FAILED},
        3_000,
    ),
    "count a page to retry": (
        lambda core, db: first(op.retry_batch(op.FIRST_ENDING, until=NEVER, dry_run=True)),
        {FAILED},
        45_000,
    ),
    "the span of ids": (lambda core, db: first(op.span()), {PRIMARY}, 20),
    "purge a page": (lambda core, db: first(op.purge_batch(500_000, 60)), {PRIMARY}, 60_000),
    "count a page to purge": (lambda core, db: first(op.purge_batch(500_000, 60, dry_run=True)), {PRIMARY}, 3_000),
    "count the clearable": (lambda core, db: first(op.clearable("q0")), {CLAIM}, 20_000),
    "clear a batch": (lambda core, db: first(op.clear_batch("q0", until=NEVER)), {CLAIM, PRIMARY}, 60_000),
    "count the stuck": (lambda core, db: first(op.stuck(60)), {ACTIVE}, 400),
    "take back, candidates": (lambda core, db: first(op.take_back(older_than=60)), {ACTIVE}, 400),
    "take back 199": (take_back, {PRIMARY}, 12_000),
}
# Lists that are filtered: sent once, so planned for their values, which choose the index.
FILTERED: dict[str, tuple[Callable[[], Any], str, int]] = {
    "the last failures": (lambda: op.failed(), FAILED, 100),
    "the last failures of a queue": (lambda: op.failed(queue="q1"), FAILED, 300),
    "by kind and key": (lambda: op.newest(kind="k2", key="due-77777"), KEY, 15),
    "by queue": (lambda: op.newest(queue="q1"), PRIMARY, 100),
    "blocked": (lambda: op.newest(status="blocked"), ACTIVE, 400),
    "pending": (lambda: op.newest(status="pending"), PRIMARY, 1_500),
    "failures of one kind": (lambda: op.failed(kind="k4"), FAILED, 300),
}


@pytest.mark.parametrize("mode", plans.MODES)
@pytest.mark.parametrize("guard", GUARDS)
def test_a_statement_uses_its_index_and_touches_few_pages(core, large, guard, mode):
    statement, indexes, bound = GUARDS[guard]
    plan = plans.explain(large, *statement(core, large), mode)
    assert "pgqueue_jobs" not in plan.scanned, plan.text
    assert indexes <= plan.indexes, plan.text
    assert plan.buffers <= bound, plan.text


@pytest.mark.parametrize("filters", FILTERED)
def test_a_filtered_list_uses_the_index_of_its_filter(large, filters):
    operation, index, bound = FILTERED[filters]
    plan = plans.explain(large, *next(operation()), "custom")
    assert "pgqueue_jobs" not in plan.scanned, plan.text
    assert index in plan.indexes, plan.text
    assert plan.buffers <= bound, (plan.buffers, plan.text)
