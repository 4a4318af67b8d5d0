"""Whether a claim costs the same whatever lies behind it, on PostgreSQL 16 and 18."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_ref.core import Queue, Want, connect, install
from pgqueue_ref.worker.worker import PLANNER

from .measure import Bench, Bound, percentile, seconds

BATCH = 100
CLAIMS = 20  # in a round, of each mix

# name: jobs due, priorities they are spread over, jobs of the future, priorities of those
Mix = tuple[int, range, int, range]


def mixes(deep: int) -> dict[str, Mix]:
    """The first is what the others are compared with."""
    shallow = min(10_000, 10 * deep)
    return {
        f"{shallow:,} due": (shallow, range(1), 0, range(1)),
        f"{deep:,} due + {deep:,} future, one priority": (deep, range(1), deep, range(1)),
        f"{deep:,} due + {deep:,} future, ten priorities": (deep, range(10), deep, range(10)),
        f"5,000 due over ten priorities below {deep:,} future": (5_000, range(10), deep, range(10, 11)),
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The ordinary tests start no other server than they were given; one is enough to show that it works."""
    tiny = metafunc.config.getoption("benchmark_disable")
    metafunc.parametrize("host", ["given"] if tiny else ["embedded:18", "embedded:16"], indirect=True)


@pytest.fixture
def host(request: pytest.FixtureRequest, server: Any, provisioned: Any) -> Iterator[Any]:
    """The server under test; the session's own where that is it."""
    if request.param == "given" or server.describe().startswith(request.param.replace(":", " PostgreSQL ")):
        yield server
        return
    with provisioned(request.param) as other:
        yield other


@pytest.mark.benchmark(group="depth")
def test_a_claim_costs_the_same_whatever_lies_behind_it(bench: Bench, host: Any) -> None:
    deep = bench.scale.deep
    major = host.version.split(".")[0]
    bench.settings(batch=BATCH, claims=CLAIMS * bench.scale.rounds, server=host.describe())
    name = "pgq_depth"
    with psycopg.connect(host.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            _measure(bench, make_conninfo(host.dsn, dbname=name), mixes(deep), major)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _measure(bench: Bench, dsn: str, mixes: dict[str, Mix], major: str) -> None:
    connections = []
    for number, mix in enumerate(mixes.values()):
        # A schema for each; statement timeouts off: filling a million rows takes longer than a claim may.
        connection = connect(dsn, schema=f"mix_{number}", statement_timeout_ms=0, options=PLANNER)
        install(connection, f"mix_{number}")
        _fill(connection, mix)
        connections.append(connection)
    for connection in connections:
        for _ in range(10):  # prepared, and on the generic plan
            _claim(connection)

    measured: dict[str, list[float]] = {name: [] for name in mixes}

    def turn() -> None:
        # Claim by claim: a tenth of a second in which the disk is slow must not meet one mix alone.
        took = [[_claim(connection) for connection in connections] for _ in range(CLAIMS)]
        for name, samples in zip(mixes, zip(*took, strict=True), strict=True):
            measured[name].append(1e3 * percentile(samples, 0.5))

    connections[0].execute("CHECKPOINT")  # of the fill, now, so that it is not written while we measure
    bench.rounds(turn)
    base, *deep = mixes
    for name in deep:
        what = f"claim of {BATCH} p50, {name}, PostgreSQL {major}"
        bench.figure(what, "ms", measured[name], measured[base], base, Bound(most=1.5))
    for connection in connections:
        connection.close()


def _fill(connection: psycopg.Connection[Any], mix: Mix) -> None:
    due, priorities, future, above = mix
    rows = (
        "INSERT INTO pgqueue_jobs (kind, payload, priority, run_at) "
        "SELECT 'mail', '{{\"photo\": 7}}', %s + n %% %s, now() {} make_interval(secs => n * 0.01) "
        "FROM generate_series(1, %s) AS n"
    )
    connection.execute("ALTER TABLE pgqueue_jobs DISABLE TRIGGER USER")  # it would keep a second copy of them all
    for where, count, levels in (("-", due, priorities), ("+ interval '1 day' +", future, above)):
        connection.execute(rows.format(where), [levels.start, len(levels), count])
    connection.execute("ALTER TABLE pgqueue_jobs ENABLE TRIGGER USER")
    connection.execute("VACUUM ANALYZE pgqueue_jobs")


def _claim(connection: psycopg.Connection[Any]) -> float:
    """Seconds of one claim. What it took is completed and replaced, so that the depth stays."""
    queue, taken = Queue(connection), []
    took = seconds(lambda: taken.extend(queue.claim([Want("mail", BATCH)], worker="bench")))
    assert len(taken) == BATCH
    queue.complete_many(taken, ttl=0)
    connection.execute(
        "INSERT INTO pgqueue_jobs (kind, payload, priority) SELECT 'mail', '{\"photo\": 7}', unnest(%s::int[])",
        [[job.priority for job in taken]],
    )
    return took
