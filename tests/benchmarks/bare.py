"""The counterparts: what a careful engineer writes by hand with psycopg, without a queue around it.

As a program (`python bare.py`) it is the counterpart of an idle worker: it listens, claims by hand and reports when
it has a job, as the handlers of `handlers.py` do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import psycopg

# One statement, no second scan, nobody waited for; no fence, no expiry, no pause, one queue and kind.
CLAIM = """
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs
    WHERE queue = 'default' AND kind = %(kind)s AND status = 'pending' AND run_at <= now()
    ORDER BY priority DESC, run_at, id LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue_jobs
SET status = 'running', attempt = attempt + 1, lease_token = lease_token + 1, worker = 'bare', started_at = now(),
    lease_expires_at = now() + interval '60 s'
WHERE id = ANY (ARRAY(SELECT id FROM picked))
RETURNING id, payload
"""
DELETE = "DELETE FROM pgqueue_jobs WHERE id = ANY (%s)"
SUCCEED = """
UPDATE pgqueue_jobs
SET status = 'succeeded', finished_at = now(), lease_expires_at = NULL, delete_after = now() + interval '1 day'
WHERE id = ANY (%s)
"""
INSERT = "INSERT INTO pgqueue_jobs (queue, kind, payload) VALUES (%s, %s, %s::jsonb) RETURNING id"
INSERT_MANY = """
INSERT INTO pgqueue_jobs (queue, kind, payload)
SELECT * FROM unnest(%s::text[], %s::text[], %s::jsonb[]) RETURNING id
"""
# What a specialist would write: arrays in binary, which the server need not parse for quotes.
INSERT_MANY_BINARY = """
INSERT INTO pgqueue_jobs (queue, kind, payload)
SELECT queue, kind, payload::jsonb FROM unnest(%b::text[], %b::text[], %b::text[]) AS new (queue, kind, payload)
RETURNING id
"""


def drain(dsn: str, kind: str, jobs: int, *, keep: bool, batch: int = 500) -> float:
    """Claim, do nothing, delete or keep, until the queue is empty; returns jobs a second."""
    end, done = SUCCEED if keep else DELETE, 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.perf_counter()
        while rows := connection.execute(CLAIM, {"kind": kind, "limit": batch}).fetchall():
            connection.execute(end, [[id_ for id_, _ in rows]])
            done += len(rows)
        took = time.perf_counter() - began
    assert done == jobs
    return done / took


def push(connection: psycopg.Connection[Any], kind: str, payload: Any) -> int:
    """One row."""
    row = connection.execute(INSERT, ("default", kind, json.dumps(payload))).fetchone()
    assert row
    return int(row[0])


def push_many(
    connection: psycopg.Connection[Any], kind: str, payloads: Sequence[Any], *, binary: bool = False
) -> list[int]:
    """Many rows in one statement."""
    columns = (["default"] * len(payloads), [kind] * len(payloads), [json.dumps(payload) for payload in payloads])
    return [id_ for (id_,) in connection.execute(INSERT_MANY_BINARY if binary else INSERT_MANY, columns)]


def listen(dsn: str) -> None:
    """Wait for a notification, claim, report, delete; for ever. Pushes notify while somebody holds the lock."""
    with psycopg.connect(dsn, autocommit=True) as ear, psycopg.connect(dsn, autocommit=True) as hand:
        ear.execute('LISTEN "pgqueue:public"')
        ear.execute("SELECT pg_advisory_lock_shared(hashtextextended('pgqueue:asleep:public:default', 0))")
        while True:
            while rows := hand.execute(CLAIM, {"kind": "pickup", "limit": 100}).fetchall():
                for _, number in rows:
                    report(number, time.monotonic_ns())
                hand.execute(DELETE, [[id_ for id_, _ in rows]])
            for _ in ear.notifies(timeout=1.0, stop_after=1):
                pass


if __name__ == "__main__":
    import os

    from handlers import report

    listen(os.environ["PGQUEUE_DATABASE_URL"])
