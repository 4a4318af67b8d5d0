"""PgBouncer in transaction mode: workers without LISTEN share fewer server connections than they hold."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from waiting import until

from pgqueue_ref.harness.binaries import give, temporary_directory, unprivileged_user
from pgqueue_ref.harness.server import free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
POOL = 3


@pytest.fixture
def pooled(database: str) -> Iterator[str]:
    """A DSN for `database` through a pooler that has three server connections for everybody."""
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    user = unprivileged_user()  # PgBouncer refuses to run as root
    directory = Path(temporary_directory(user))
    server, port = conninfo_to_dict(database), free_port()
    target = make_conninfo("", **{key: server[key] for key in ("host", "port", "user", "password") if key in server})
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"""[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {POOL}
"""
    )
    give(config, user)
    privileges = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    with (directory / "log").open("wb") as log:
        pooler = subprocess.Popen([PROGRAM, "-q", str(config)], stdout=log, stderr=log, **privileges)
    dsn = make_conninfo("", host="127.0.0.1", port=port, user=server["user"], dbname=server["dbname"])

    def answers() -> bool:
        assert pooler.poll() is None, (directory / "log").read_text()
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        until(answers, "the pooler answers")
        yield dsn
    finally:
        pooler.kill()
        pooler.wait()
        shutil.rmtree(directory)


def test_workers_behind_a_transaction_pooler_lose_nothing(pooled, bench, launch) -> None:
    bench.push("plain", 2000, payload=0.001)
    options = ("--no-listen", "--statement-timeout-ms", "0", "--max-concurrent-jobs", "50")
    workers = [launch(pooled, f"w{number}", *options) for number in range(3)]  # six connections over three
    until(lambda: bench.count("succeeded") == 2000, "all jobs run")
    for worker in workers:
        worker.signal(signal.SIGTERM)
    assert [worker.ends() for worker in workers] == [0, 0, 0]
    assert sum(worker.counts()["succeeded"] for worker in workers) == 2000
    assert sum(worker.counts()["stale"] for worker in workers) == 0
    assert all(worker.counts()["succeeded"] > 0 for worker in workers)
    assert not any("failed, next try" in worker.log() for worker in workers)
