"""Two environments in one database, each in a schema of its own (PGQUEUE_SCHEMA): neither ever touches the other."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqueue_ref.core import Queue, QueueBusy, Want, conninfo
from pgqueue_ref.extensions import EXTENSIONS, schedules
from pgqueue_ref.worker import Counts, Kinds, Worker
from pgqueue_ref.worker.bell import LIE_DOWN

ROOT = Path(__file__).resolve().parents[2]


def command(dsn: str, schema: str, *arguments: str) -> str:
    """Run `pgqueue-ref` in an environment; fails the test unless it succeeds."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
    environment = kept | {"PGQUEUE_DATABASE_URL": dsn, "PGQUEUE_SCHEMA": schema, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue_ref", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dsn(server: Any, _clone: Callable[[str], str]) -> str:
    """A database with two environments, blue and green, as a deployment makes them."""
    dsn = make_conninfo(server.dsn, dbname=_clone("template0"))
    for schema in ("blue", "green"):
        command(dsn, schema, "migrate")
    return dsn


@pytest.fixture
def blue(dsn: str) -> Iterator[Queue]:
    yield from environment(dsn, "blue")


@pytest.fixture
def green(dsn: str) -> Iterator[Queue]:
    yield from environment(dsn, "green")


def environment(dsn: str, schema: str) -> Iterator[Queue]:
    with Queue.connect(conninfo(dsn, schema=schema)) as queue:
        yield queue
        tables = queue.connection.execute(
            """SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables
               WHERE schemaname = current_schema() AND tablename NOT LIKE '%alembic%'"""
        ).fetchone()
        queue.connection.execute(f"TRUNCATE {tables[0]}")


def turn(dsn: str, schema: str) -> Counts:
    """One turn of a worker there."""

    async def turn() -> Counts:
        kinds = Kinds()
        kinds.register("mail")(lambda job: job.payload)
        worker = Worker(kinds, dsn=conninfo(dsn, schema=schema))
        counts = await worker.run_once()
        await worker.close()
        return counts

    return asyncio.run(turn())


def test_each_has_every_table_and_public_has_none(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        find = "SELECT schemaname, count(*) FROM pg_tables WHERE tablename ~ 'pgqueue' GROUP BY 1 ORDER BY 1"
        ((first, blue), (second, green)) = connection.execute(find).fetchall()
    assert (first, second, blue) == ("blue", "green", green)
    assert blue >= 3 + len(EXTENSIONS)


def test_jobs_keys_claims_and_pauses_are_apart(blue: Queue, green: Queue) -> None:
    assert blue.push("mail", 1, key="k").created
    assert green.push("mail", 2, key="k").created
    blue.pause("default")
    assert green.paused() == []
    assert blue.claim([Want("mail", 9)], worker="w") == []
    assert [job.payload for job in green.claim([Want("mail", 9)], worker="w")] == [2]
    assert [job.status for job in blue.list_jobs()] == ["pending"]


def test_workers_run_rescue_and_schedule_in_their_own_only(dsn: str, blue: Queue, green: Queue) -> None:
    blue.push("mail")
    blue.claim([Want("mail", 1)], worker="died", lease=0)
    blue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s'")
    blue.run(schedules.add("tick", "mail", every=1))
    blue.connection.execute("UPDATE pgqueue_schedules SET next_at = now()")
    nothing = turn(dsn, "green")
    assert (nothing.claimed, nothing.rescued) == (0, 0)
    assert blue.run(schedules.get("tick")).runs == 0
    counts = turn(dsn, "blue")
    assert (counts.succeeded, counts.rescued, blue.run(schedules.get("tick")).runs) == (1, 1, 1)
    assert turn(dsn, "blue").succeeded == 1  # the rescued one
    assert green.stats() == []


def test_a_push_wakes_workers_of_its_own_environment_only(dsn: str, blue: Queue, green: Queue) -> None:
    with psycopg.connect(dsn, autocommit=True) as listener:
        for queue in (blue, green):
            queue.connection.execute(LIE_DOWN, [["default"]])  # as a worker that sleeps there
        for channel in ("pgqueue:blue", "pgqueue:green", "end"):
            listener.execute(f'LISTEN "{channel}"')
        with Queue.connect(conninfo(dsn, schema="blue")) as pusher:
            pusher.push("mail")
        listener.execute('NOTIFY "end"')
        heard = []
        for notification in listener.notifies():
            heard.append((notification.channel, notification.payload))
            if notification.channel == "end":
                break
    assert heard == [("pgqueue:blue", "default"), ("end", "")]


def test_the_bound_and_its_lock_are_apart(blue: Queue, green: Queue) -> None:
    blue.max_in_flight = green.max_in_flight = 1
    with blue.connection.transaction():
        blue.push("mail")  # holds the lock of blue's queue until the transaction ends
        green.push("mail")  # would wait for it until the statement timeout
        with pytest.raises(QueueBusy):
            green.push("mail")


def test_what_is_written_by_hand_from_elsewhere_stays_in_its_environment(dsn: str, blue: Queue, green: Queue) -> None:
    """Triggers do not go by the search_path of whoever fires them."""
    with psycopg.connect(conninfo(dsn, schema="green"), autocommit=True) as connection:
        connection.execute("INSERT INTO blue.pgqueue_jobs (kind) VALUES ('mail')")
    count = "SELECT count(*) FROM pgqueue_events"
    assert blue.connection.execute(count).fetchone() == (1,)
    assert green.connection.execute(count).fetchone() == (0,)


def test_the_command_line_looks_where_the_setting_says(dsn: str, blue: Queue, green: Queue) -> None:
    blue.push("mail")
    rows = {schema: json.loads(command(dsn, schema, "stats", "--json"))["rows"] for schema in ("blue", "green")}
    assert ([row["jobs"] for row in rows["blue"]], rows["green"]) == ([1], [])
