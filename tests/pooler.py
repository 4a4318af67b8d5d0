"""PgBouncer in transaction mode in front of a database, for the tests of workers behind one."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_ref.harness.binaries import give, temporary_directory, unprivileged_user
from pgqueue_ref.harness.server import free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
MISSING = "PgBouncer is not installed (Debian: apt-get install pgbouncer)"
# What a worker behind it is started with: the pooler shares server connections, and refuses start-up options.
WORKER = ("--no-listen", "--statement-timeout-ms", "0")
START_SECONDS = 30.0


class Pooler:
    """A running PgBouncer; `dsn` leads through it, to any database of the server. A context manager."""

    def __init__(self, dsn: str, *, size: int) -> None:
        """`size`: server connections for everybody. Raises `RuntimeError` where PgBouncer does not start."""
        self._user = unprivileged_user()  # PgBouncer refuses to run as root
        self._directory = Path(temporary_directory(self._user))
        server, port = conninfo_to_dict(dsn), free_port()
        kept = {key: server[key] for key in ("host", "port", "user", "password") if key in server}
        target = make_conninfo("", **kept)
        self._config = self._directory / "pgbouncer.ini"
        self._config.write_text(
            f"""[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
server_login_retry = 1
"""
        )
        give(self._config, self._user)
        self.dsn = make_conninfo("", host="127.0.0.1", port=port, user=server["user"], dbname=server["dbname"])
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and return when it answers."""
        user = self._user
        privileges = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        with (self._directory / "log").open("wb") as log:
            command = [str(PROGRAM), "-q", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **privileges)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not start: {(self._directory / 'log').read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL; `start()` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it and remove what it wrote."""
        self.kill()
        shutil.rmtree(self._directory)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn).close()
        except psycopg.OperationalError:
            return False
        return True
