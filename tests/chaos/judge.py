"""What became of the jobs of a chaos run: the ledger, and an account of every attempt. Nothing is believed of the queue
but what two records agree on; see `pgqueue_ref.harness.ledger`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from pgqueue_ref.harness import ledger

# A worker waits that long for an answer that never comes, and at most that long between two tries to connect.
AFTERMATH = 10.0  # seconds


class Injected(NamedTuple):
    """A fault, from and to (the database's clock, epoch seconds), and the workers it hit, as the effects name them."""

    name: str
    began: float
    ended: float
    victims: list[str]


class Figure(NamedTuple):
    """A line of the verdict; without a bound it only tells."""

    name: str
    value: float
    unit: str
    bound: str
    ok: bool


# An attempt had its effect, and yet a later one ran: explained where its own worker was hit between its start and the
# end of the last.
UNEXPLAINED = """
SELECT count(*) FROM (
    SELECT worker, started_at, attempt < max(attempt) OVER jobs AS repeated, max(finished_at) OVER jobs AS over
    FROM loadtest_effects WINDOW jobs AS (PARTITION BY job_id)
) AS run
WHERE repeated AND NOT EXISTS (
    SELECT FROM unnest(%s::text[], %s::float8[], %s::float8[]) AS fault (victim, began, ended)
    WHERE victim = run.worker AND run.started_at <= to_timestamp(ended) AND run.over >= to_timestamp(began))
"""

# Every attempt that was spent either succeeded or left its message: that of its handler, or of the rescue. The rescue
# keeps ten of them.
UNACCOUNTED = """
SELECT count(*) FROM pgqueue_jobs
WHERE cardinality(errors) <> least(attempt - CASE WHEN status = 'succeeded' THEN 1 ELSE 0 END, 10)
"""
WITHOUT_EFFECT = """
SELECT count(*) FROM pgqueue_jobs AS job WHERE status = 'succeeded'
   AND NOT EXISTS (SELECT FROM loadtest_effects AS e WHERE e.job_id = job.id AND e.attempt = job.attempt)
"""
ATTEMPTS = """
SELECT sum(attempt), sum(lease_token - attempt),
       (SELECT count(*) FROM (SELECT unnest(errors) AS error FROM pgqueue_jobs) AS e WHERE error LIKE 'lease ran out%')
FROM pgqueue_jobs
"""
TWICE = "SELECT count(*) FROM loadtest_effects WHERE runs > 1"


def judge(connection: psycopg.Connection[Any], jobs: int, faults: Sequence[Injected], *, drained: bool) -> list[Figure]:
    """The verdict on a queue into which `jobs` jobs were pushed; `drained`: the wait for the last was not given up."""
    found = ledger.reconcile(connection)
    hits = [(victim, fault.began, fault.ended + AFTERMATH) for fault in faults for victim in fault.victims]
    columns = [list(column) for column in zip(*hits, strict=True)] if hits else [[], [], []]
    (attempts, given_back, lost_leases) = connection.execute(ATTEMPTS).fetchone() or (0, 0, 0)
    return [
        exactly("pushed", found.pushed, jobs, "jobs"),
        exactly("completed", found.completed, jobs, "jobs"),
        exactly("lost", found.lost, 0, "jobs"),
        exactly("unexpected", found.unexpected, 0, "effects"),
        exactly("not drained", int(not drained), 0, "times"),
        exactly("still in the queue", found.undrained, 0, "jobs"),
        exactly("ended failed or cancelled", found.failed, 0, "jobs"),
        Figure("ran again although they had run", found.duplicated, "runs", "", ok=True),
        exactly("of these, explained by no fault", count(connection, UNEXPLAINED, columns), 0, "runs"),
        exactly("handed out twice", count(connection, TWICE), 0, "attempts"),
        Figure("attempts", int(attempts or 0), "attempts", "", ok=True),
        exactly("of these, without an account", count(connection, UNACCOUNTED), 0, "jobs"),
        exactly("succeeded without their effect", count(connection, WITHOUT_EFFECT), 0, "jobs"),
        # Otherwise no fault cost anything, and the rest proves nothing.
        Figure("whose lease ran out", int(lost_leases), "attempts", ">= 1", ok=lost_leases >= 1),
        Figure("given back unspent", int(given_back or 0), "attempts", "", ok=True),
        Figure("recovered by a later attempt", found.recovered, "jobs", "", ok=True),
    ]


def injected(faults: Sequence[Injected], expected: Sequence[str]) -> list[Figure]:
    """How often each fault hit a worker; a run without one of those that it could have had proves less than it says."""
    times = Counter(fault.name for fault in faults if fault.victims)
    return [Figure(name, times[name], "times", ">= 1", ok=times[name] >= 1) for name in expected]


def exactly(name: str, value: int, wanted: int, unit: str) -> Figure:
    return Figure(name, value, unit, f"= {wanted}", ok=value == wanted)


def count(connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] = ()) -> int:
    (number,) = connection.execute(query, parameters or None).fetchone() or (0,)
    return int(number)
