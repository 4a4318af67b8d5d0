"""A standby is promoted when its primary dies: what was committed synchronously is there, what was not may be gone.

Two servers with streaming replication, and between them a line that can stand still. While it does, an asynchronous
primary goes on acknowledging what its standby will never have; a synchronous one acknowledges nothing more.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from waiting import until

from pgqueue_ref.core import SCHEMA_SQL, Queue

JOBS = 300


class Pair(NamedTuple):
    """A primary, its standby, the line between them, and a DSN that finds whichever can be written to."""

    primary: Any
    standby: Any
    line: Proxy
    dsn: str

    def fail_over(self) -> None:
        """The primary dies with what only it has; the standby takes over."""
        self.primary.kill()
        self.line.cut()
        with self.standby.connect() as connection:
            connection.execute("SELECT pg_promote()")


@pytest.fixture
def pair(request: pytest.FixtureRequest, provisioned) -> Iterator[Pair]:
    """`request.param`: the primary's synchronous_standby_names."""
    with provisioned("embedded") as primary, provisioned("embedded") as standby, Proxy(primary.dsn) as line:
        with primary.connect() as connection:
            connection.execute(SCHEMA_SQL)
        for server in (primary, standby):
            server.kill()  # a copy of a crashed cluster is one that recovers
        data = standby.directory / "data"
        owner = data.stat()
        shutil.rmtree(data)
        shutil.copytree(primary.directory / "data", data)
        follow = make_conninfo(line.dsn, application_name="standby")
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{follow}'\n")
        (data / "standby.signal").touch()
        for path in (data, *data.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
        addresses = [conninfo_to_dict(server.dsn) for server in (primary, standby)]
        standby.dsn = make_conninfo(primary.dsn, port=addresses[1]["port"])  # the password is the primary's, copied
        primary.start()
        standby.start()
        follows = "SELECT state FROM pg_stat_replication"
        with primary.connect() as connection:
            until(lambda: connection.execute(follows).fetchall() == [("streaming",)], "the standby follows")
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{request.param}'")
            connection.execute("SELECT pg_reload_conf()")
            state = "SELECT sync_state FROM pg_stat_replication"
            wanted = "sync" if request.param else "async"
            until(lambda: connection.execute(state).fetchall() == [(wanted,)], "it does so as asked")
        both = {name: ",".join(str(address[name]) for address in addresses) for name in ("host", "port")}
        yield Pair(primary, standby, line, make_conninfo(primary.dsn, target_session_attrs="read-write", **both))


def there(pair: Pair) -> int:
    with psycopg.connect(pair.dsn) as connection:
        return int(connection.execute("SELECT count(*) FROM pgqueue_jobs").fetchone()[0])


@pytest.mark.parametrize("pair", ["standby"], indirect=True, ids=["synchronous"])
def test_a_synchronous_standby_has_every_job_that_was_acknowledged_and_the_worker_goes_on_there(
    pair, bench_on, launch
) -> None:
    bench = bench_on(pair.dsn)
    bench.push("work", JOBS, payload=0.02)
    worker = launch(pair.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "10")
    until(lambda: bench.count("succeeded") > 30, "the drain goes on")
    pair.line.hold()
    acknowledged = threading.Event()

    def push() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(pair.primary.dsn) as connection:
            Queue(connection).push("work", 0, key="late")
            connection.commit()
            acknowledged.set()

    pushing = threading.Thread(target=push)
    pushing.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'"
    with pair.primary.connect() as observer:
        until(lambda: observer.execute(waits).fetchone() == (1,), "the push waits for the standby")
    pair.fail_over()
    pushing.join()
    assert not acknowledged.is_set()
    until(lambda: bench.count("succeeded") == JOBS, "all acknowledged jobs run")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.undrained, found.completed) == (0, 0, 0, JOBS)
    assert there(pair) == JOBS
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0


@pytest.mark.parametrize("pair", [""], indirect=True, ids=["asynchronous"])
def test_an_asynchronous_standby_lacks_what_it_had_not_received_when_the_primary_died(pair, bench_on, launch) -> None:
    """This is the limit of the guarantee, measured: acknowledged jobs are gone, and jobs that had run run again."""
    bench = bench_on(pair.dsn)
    bench.push("plain", JOBS)
    lag = "SELECT pg_current_wal_flush_lsn() = replay_lsn FROM pg_stat_replication"
    until(lambda: bench.query(lag) == [(True,)], "the standby has all of it")
    pair.line.hold()
    bench.push("plain", 50)  # acknowledged
    first = launch(pair.dsn, "first")
    until(lambda: bench.count("succeeded") == JOBS + 50, "all of them run")
    first.kill()
    pair.fail_over()
    assert there(pair) == JOBS, "the 50 are gone"
    assert bench.attempts() == {("pending", 0)}, "nobody knows that the others ran"
    launch(pair.dsn, "second")
    until(lambda: bench.count("succeeded") == JOBS, "they run again")
