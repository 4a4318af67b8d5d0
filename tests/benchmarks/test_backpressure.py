"""What a bounded push costs on top of an unbounded one, with the queue one job below its bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import Queue

from . import bare
from .measure import Bench, Bound

LIMITS = (12, 1_000)
TERMINAL = """
INSERT INTO pgqueue_jobs (kind, status, finished_at, delete_after)
SELECT 'mail', 'succeeded', now(), now() + interval '1 day' FROM generate_series(1, %s)
"""


@pytest.mark.benchmark(group="back-pressure")
@pytest.mark.parametrize("limit", LIMITS)
def test_a_bound_costs_what_its_limit_does_whatever_the_table_holds(
    bench: Bench, connection: psycopg.Connection[Any], databases: Callable[[], str], limit: int
) -> None:
    pushes, terminal = max(5, bench.scale.pushes // 5), bench.scale.many
    bench.settings(pushes=pushes, limit=limit, terminal_rows=terminal)
    with psycopg.connect(databases(), autocommit=True) as laden:
        laden.execute(TERMINAL, [terminal])
        for each in (connection, laden):
            each.execute("INSERT INTO pgqueue_jobs (kind) SELECT 'mail' FROM generate_series(2, %s)", [limit])
            each.execute("VACUUM ANALYZE pgqueue_jobs")
        sides = Queue(connection), Queue(connection, max_in_flight=limit), Queue(laden, max_in_flight=limit)
        rounds: list[list[float]] = []
        bench.rounds(lambda: rounds.append(_turns(sides, pushes)))
    unbounded, bounded, beside_many = ([1e3 * took for took in side] for side in zip(*rounds, strict=True))
    name = f"push with max_in_flight={limit:,}"
    bench.figure(name, "ms", bounded, unbounded, "push without a bound")
    bench.figure(f"{name}, {terminal:,} terminal rows", "ms", beside_many, bounded, "without them", Bound(most=1.5))


def _turns(sides: tuple[Queue, ...], pushes: int) -> list[float]:
    """Mean seconds of a push through each side; each job is taken away again, so that the bound stays one job off."""
    totals = [0.0] * len(sides)
    for _ in range(pushes):
        for index, queue in enumerate(sides):
            began = time.perf_counter()
            pushed = queue.push("mail")
            totals[index] += time.perf_counter() - began
            queue.connection.execute(bare.DELETE, [[pushed.id]])
    return [total / pushes for total in totals]
