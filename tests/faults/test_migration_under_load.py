"""A live queue is migrated from its first revision to the newest while a worker drains it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from waiting import until

ROOT = Path(__file__).resolve().parents[2]
JOBS = 100_000
FILL = f"INSERT INTO pgqueue_jobs (kind, payload) SELECT 'plain', '0.01' FROM generate_series(1, {JOBS})"


def alembic(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
    environment = kept | {"PGQUEUE_DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_a_live_queue_is_migrated_and_loses_no_job_and_holds_none_up(
    empty_database: str, launch: Callable[..., Any]
) -> None:
    assert alembic(empty_database, "upgrade", "0001").returncode == 0
    with psycopg.connect(empty_database, autocommit=True) as db, psycopg.connect(empty_database) as writer:
        db.execute(FILL)
        db.execute("ANALYZE pgqueue_jobs")

        def succeeded() -> int:
            ((count,),) = db.execute("SELECT count(*) FROM pgqueue_jobs WHERE status = 'succeeded'").fetchall()
            return int(count)

        # A claim that waits longer than a migration may (2 s, migrations/env.py) is cancelled after twice that.
        # Not too fast: it must have jobs left when the migration ends, on whatever machine.
        slots = ("--max-concurrent-jobs", "5")
        worker = launch(make_conninfo(empty_database, options="-c lock_timeout=4s"), "live", *slots)
        worker.started()
        until(succeeded, "the worker drains")

        # Somebody's transaction is in the way: the migration gives up, and what stood behind it goes on.
        writer.execute("INSERT INTO pgqueue_jobs (kind) VALUES ('other')")
        refused = alembic(empty_database, "upgrade", "head")
        assert refused.stdout.splitlines()[-1] == "FAILED: canceling statement due to lock timeout"
        before = succeeded()
        until(lambda: succeeded() > before, "the worker goes on")
        writer.commit()

        done = alembic(empty_database, "upgrade", "head")
        assert done.returncode == 0, done.stdout
        assert alembic(empty_database, "current").stdout.endswith(" (head)\n")
        before = succeeded()
        assert before < JOBS, "the worker was done before the migration: nothing was shown"
        until(lambda: succeeded() > before, "the worker goes on")
        worker.signal(signal.SIGTERM)
        assert worker.ends() == 0
        attempts = db.execute("SELECT status, attempt, count(*) FROM pgqueue_jobs GROUP BY 1, 2 ORDER BY 1").fetchall()
    (_, zero, pending), (_, one, finished) = attempts
    assert (zero, one, pending + finished) == (0, 1, JOBS + 1)
    assert "claim failed" not in worker.log()
