"""What a push costs on one connection, against the bare INSERT of the same row, encoding included on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import NewJob, Queue

from . import bare
from .measure import Bench, Bound, in_turns

PAYLOAD = {"photo": 7, "sizes": [64, 256, 1024], "owner": "ada"}
MANY = 5_000  # jobs in one statement


@pytest.mark.benchmark(group="push")
def test_push_one_by_one(bench: Bench, connection: psycopg.Connection[Any]) -> None:
    bench.settings(pushes=bench.scale.pushes, payload=PAYLOAD)
    queue, count = Queue(connection), bench.scale.pushes
    ours, theirs = [], []

    def turn() -> None:
        mine, bares = in_turns(
            count, lambda: queue.push("mail", PAYLOAD), lambda: bare.push(connection, "mail", PAYLOAD)
        )
        ours.append(count / mine)
        theirs.append(count / bares)

    bench.rounds(turn)
    bench.figure("push one by one", "jobs/s", ours, theirs, "INSERT ... RETURNING id", Bound(least=0.85))


@pytest.mark.benchmark(group="push")
def test_push_many(bench: Bench, connection: psycopg.Connection[Any]) -> None:
    bench.settings(jobs_in_a_statement=MANY, statements=bench.scale.batches, payload=PAYLOAD)
    queue, jobs = Queue(connection), bench.scale.batches * MANY
    payloads = [PAYLOAD] * MANY
    made = [NewJob("mail", payload) for payload in payloads]
    sides: tuple[Callable[[], Any], ...] = (
        lambda: queue.push_many([NewJob("mail", payload) for payload in payloads]),
        lambda: queue.push_many(made),
        lambda: bare.push_many(connection, "mail", payloads),
        lambda: bare.push_many(connection, "mail", payloads, binary=True),
    )
    rounds: list[list[float]] = []

    def turn() -> None:
        connection.execute("TRUNCATE pgqueue_jobs")
        rounds.append([jobs / took for took in in_turns(bench.scale.batches, *sides)])

    bench.rounds(turn)
    ours, ready, plain, binary = zip(*rounds, strict=True)
    name, insert = f"push_many of {MANY:,}", "INSERT ... SELECT FROM unnest, json.dumps included"
    bench.figure(f"{name}, making the NewJobs included", "jobs/s", ours, plain, insert, Bound(least=0.85))
    bench.figure(f"{name}, making the NewJobs included", "jobs/s", ours, binary, "the same, arrays in binary")
    bench.figure(f"{name}, NewJobs made before", "jobs/s", ready, plain, insert)
