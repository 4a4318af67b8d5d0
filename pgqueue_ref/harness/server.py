"""Where PostgreSQL comes from: `provision(spec)` gives a running server.

Called by the test fixtures, the benchmarks, the load run and the quick start, all with the same option. It
promises:

- a tier asked for by name works or fails with one clear `ProvisionError`; only `auto` tries the next one, and
  says in one line on stderr which it took;
- a server that was started here listens on 127.0.0.1 only, keeps everything under one temporary directory
  and leaves neither process nor directory behind: after `close()`, after the interpreter's exit, or, by a
  watchdog, after a SIGKILL of this process;
- fsync and synchronous_commit are PostgreSQL's defaults (on) unless the caller's settings say otherwise;
- no password appears in `describe()`, in a repr or in an error.

Needs psycopg and the standard library; testcontainers only for the docker tier (see `containers`).
"""

# ruff: noqa: S603 - starting programs is this module's work; without a shell, from paths it found itself

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from pgqueue_ref.core import QueueError
from pgqueue_ref.core.connect import dsn_parameters
from pgqueue_ref.harness import binaries
from pgqueue_ref.harness.binaries import ProvisionError
from pgqueue_ref.harness.watchdog import Watchdog

__all__ = ["SPECS", "ProvisionError", "Server", "dsn_from_environment", "is_dsn", "provision"]

SPECS = "auto, docker[:IMAGE], embedded[:16|:18], local[:PATH], or a DSN such as postgresql://user@host/db"
START_SECONDS = 60.0  # crash recovery of a large load run counts as starting
STOP_SECONDS = 30.0
# Outside the ephemeral ranges of Linux and macOS: while the server is down, a client that reconnects in a
# loop could otherwise be given the server's own port as its source port, connect to itself and hold it.
PORTS = range(20_000, 32_000)

# Its input is the pid of the postmaster, or before that of initdb, or an empty line while there is neither. Both lead a
# process group; what they started may write for a moment after it was killed.
_WATCHDOG = """
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
  kill -QUIT "$pid" 2>/dev/null
  n=0; while [ -e "$1/data/postmaster.pid" ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
  kill -s KILL -- "-$pid" 2>/dev/null
fi
n=0; until rm -rf -- "$1" 2>/dev/null || [ $n -eq 50 ]; do sleep 0.1; n=$((n + 1)); done
"""


def provision(spec: str = "auto", *, settings: Mapping[str, str] | None = None) -> "Server":
    """Give the running server that `spec` (one of `SPECS`) describes.

    `settings` are server settings for a server that is started here, e.g. `{"max_connections": "10"}`.
    Raises `ProvisionError`, also for settings that the server refuses.
    """
    settings = dict(settings or {})
    if is_dsn(spec):
        return GivenServer(spec, settings)
    tier, _, detail = spec.partition(":")
    if spec == "auto":
        return _auto(settings)
    if tier == "docker":
        return _docker(detail, settings)
    if tier == "embedded":
        return LaunchedServer("embedded", lambda into: binaries.embedded(detail, into), settings)
    if tier == "local":
        return LaunchedServer("local", lambda _: binaries.local(detail), settings)
    named = f" {tier!r}" if tier.isalpha() else ""  # the rest is not echoed: a mistyped DSN holds a password
    raise ProvisionError(f"no such kind of PostgreSQL server{named}; use {SPECS}")


def is_dsn(spec: str) -> bool:
    """Whether `spec` is a connection string (URL or key=value) rather than the name of a tier."""
    return bool(re.match(r"postgres(ql)?(\+\w+)?://", spec)) or "=" in spec.partition(":")[0]


def dsn_from_environment() -> str | None:
    """The DSN that PGQUEUE_TEST_DSN or the TEST_POSTGRES_* variables give, None when none of them is set."""
    if dsn := os.environ.get("PGQUEUE_TEST_DSN"):
        return dsn
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "DB"}
    given = {key: os.environ.get(f"TEST_POSTGRES_{name}", "") for key, name in names.items()}
    if not any(given.values()):
        return None
    defaults = {"host": "127.0.0.1", "user": "postgres", "dbname": "postgres"}
    return _url(defaults | {key: value for key, value in given.items() if value})


def _auto(settings: dict[str, str]) -> "Server":
    if dsn := dsn_from_environment():  # asked for: must work or fail
        server: Server = GivenServer(dsn, settings)
        tried: list[str] = []
    else:
        server, tried = _first_tier(settings)
    passed_over = f" ({'; '.join(tried)})" if tried else ""
    sys.stderr.write(f"pgqueue_ref: using {server.describe()}{passed_over}\n")
    return server


def _first_tier(settings: dict[str, str]) -> tuple["Server", list[str]]:
    tried: list[str] = []
    for tier in ("docker", "embedded", "local"):
        try:
            return provision(tier, settings=settings), tried
        except ProvisionError as error:
            tried.append(str(error))
    raise ProvisionError(f"no PostgreSQL server found: {'; '.join(tried)}")


def _docker(image: str, settings: dict[str, str]) -> "Server":
    try:
        from pgqueue_ref.harness import containers
    except ModuleNotFoundError as error:
        raise ProvisionError(f"docker: the package {error.name} is not installed") from error
    return containers.DockerServer(image or containers.DEFAULT_IMAGE, settings)


class Server(ABC):
    """A running PostgreSQL server. A context manager; `close()` ends it if it was started here.

    `dsn` is a postgresql:// URL with the password, of a superuser unless the DSN was given by somebody else.
    `version` is like "18.4", `tier` one of dsn, docker, embedded, local.
    """

    tier: str
    dsn: str
    version: str
    where: str = ""  # what `describe()` adds about the place
    settings: dict[str, str]  # given on the server's command line, which wins over ALTER SYSTEM

    def describe(self) -> str:
        """One line for reports: tier, version and place, never the password."""
        return f"{self.tier} PostgreSQL {self.version}{self.where}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe()}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Start after `kill()` and wait until it accepts connections, same DSN. No-op while it runs."""

    @abstractmethod
    def restart(self) -> None:
        """Fast shutdown and start; open connections are lost. The DSN stays."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL the postmaster and all its children: a crash. `start()` recovers."""

    @abstractmethod
    def quit(self) -> None:
        """Immediate shutdown: sessions end without a goodbye, nothing is written down. `start()` recovers."""

    @abstractmethod
    def close(self) -> None:
        """Stop the server and remove everything it made. May be called twice."""

    def connect(self) -> psycopg.Connection:
        """An autocommit superuser connection to the DSN. Raises psycopg.OperationalError."""
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=10)

    def set(self, **gucs: object) -> None:
        """ALTER SYSTEM, then reload, or restart when a setting takes effect at the start only. None resets.

        New connections see the values when this returns. Raises `ProvisionError` for a refused setting.
        """
        overridden = gucs.keys() & self.settings.keys()
        with self.connect() as connection:
            for name, value in gucs.items():
                wanted = sql.SQL("DEFAULT") if value is None else sql.Literal(str(value))
                try:
                    connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), wanted))
                except psycopg.Error as error:
                    raise ProvisionError(f"{self.describe()} refused {name}: {_last_line(error)}") from error
            row = connection.execute(
                "SELECT count(*) FROM pg_settings WHERE context = 'postmaster' AND name = ANY(%s)",
                [list(gucs)],
            ).fetchone()
        for name in overridden:
            del self.settings[name]
        if overridden or row != (0,):
            self.restart()
        else:
            self._reload()

    def _reload(self) -> None:
        with self.connect() as connection:
            before = connection.execute("SELECT pg_conf_load_time()").fetchone()
            connection.execute("SELECT pg_reload_conf()")
        for _ in until(START_SECONDS, "does not reload its configuration", self):
            with self.connect() as connection:  # a new one inherits what the postmaster has read
                if connection.execute("SELECT pg_conf_load_time()").fetchone() != before:
                    return

    def _read_version(self) -> None:
        """Set `version`. Raises psycopg.OperationalError while the server does not accept connections."""
        with self.connect() as connection:
            row = connection.execute("SHOW server_version").fetchone()
        self.version = str(row[0]).split()[0] if row else "?"


class GivenServer(Server):
    """Somebody's server, addressed by a DSN: nothing of it is started, stopped or configured here."""

    tier = "dsn"

    def __init__(self, dsn: str, settings: Mapping[str, str] | None = None) -> None:
        try:
            parameters = dsn_parameters(dsn)
        except QueueError as error:
            raise ProvisionError(str(error)) from None
        self.settings = {}
        self.dsn = _url({key: str(value) for key, value in parameters.items() if value is not None})
        host, port = parameters.get("host", "its default host"), parameters.get("port", 5432)
        self.where, self.version = f" at {host}:{port}", "?"
        try:
            self._read_version()
        except psycopg.Error as error:
            raise ProvisionError(f"PostgreSQL{self.where} was asked for and refuses: {_last_line(error)}") from error
        if settings:
            self._refuse(f"cannot be given {', '.join(sorted(settings))}")

    def _refuse(self, what: str) -> None:
        raise ProvisionError(f"{self.describe()} {what}: it was not started here; use --postgres embedded")

    def start(self) -> None:
        self._refuse("cannot be started")

    def restart(self) -> None:
        self._refuse("cannot be restarted")

    def kill(self) -> None:
        self._refuse("cannot be killed")

    def quit(self) -> None:
        self._refuse("cannot be shut down")

    def set(self, **gucs: object) -> None:
        self._refuse(f"cannot be given {', '.join(sorted(gucs))}")

    def close(self) -> None:
        """Nothing to end."""


class LaunchedServer(Server):
    """A server launched from binaries on this machine, as an unprivileged user when this process is root."""

    def __init__(self, tier: str, find_binaries: Callable[[Path], Path], settings: dict[str, str]) -> None:
        self.tier, self.settings, self.version = tier, settings, "?"
        self._user = binaries.unprivileged_user()
        self.directory = binaries.temporary_directory(self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = Watchdog(["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self.directory)])
        atexit.register(self.close)
        try:
            self._binaries = binaries.executable_by(self._user, find_binaries(self.directory), self.directory)
            self._initialise()
            self.start()
        except BaseException:
            self.close()
            raise

    def _initialise(self) -> None:
        password = secrets.token_urlsafe(24)
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        binaries.give(password_file, self._user)
        self._run(
            "initdb", "--pgdata", self.directory / "data", "--username=postgres", f"--pwfile={password_file}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        password_file.unlink()
        self._port = free_port()
        self.dsn = f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        options = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
        } | self.settings
        command = [str(self._binaries / "postgres"), "-D", str(self.directory / "data")]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "server.log").open("wb") as log:
            self._process = self._spawn(command, log)
        self._watchdog.tell(str(self._process.pid))
        for _ in until(START_SECONDS, "does not accept connections", self):
            if self._process.poll() is not None:
                self._gone()
                raise ProvisionError(f"{self.tier}: PostgreSQL did not start: {self._complaint()}")
            with contextlib.suppress(psycopg.OperationalError):
                self._read_version()
                return

    def restart(self) -> None:
        self._stop()
        self.start()

    def kill(self) -> None:
        if self._process is None:
            return
        postmaster = self._process.pid
        os.kill(postmaster, signal.SIGSTOP)  # it must not fork between the listing and the kill
        victims = {pid for pid, (parent, _) in processes() if parent == postmaster} | {postmaster}
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._gone()
        for _ in until(STOP_SECONDS, "has children that survive SIGKILL", self):
            # A zombie counts as gone: in a container, process 1 may never collect it.
            if not any(pid in victims and state != "Z" for pid, (_, state) in processes()):
                return

    def quit(self) -> None:
        if not self._ends_at(signal.SIGQUIT):
            self.kill()

    def close(self) -> None:
        if not self._watchdog.ours:
            return
        atexit.unregister(self.close)
        self._stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._watchdog.close()
        if self.directory.exists():
            raise ProvisionError(f"{self.describe()}: the directory {self.directory} could not be removed")

    def _stop(self) -> None:
        """Fast shutdown; immediate, then a kill, when that takes too long."""
        if not self._ends_at(signal.SIGINT):
            self.quit()

    def _ends_at(self, number: signal.Signals) -> bool:
        """Signal the postmaster; whether it ended in time, or was gone already."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                return False
            self._gone()
        return True

    def _gone(self) -> None:
        self._process = None
        self._watchdog.tell("")

    def _spawn(self, command: list[str], log: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Start `command` as the unprivileged user, away from our directory, terminal and PG* variables."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
        user = self._user
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.directory,
                env=environment | {"LC_ALL": "C"}, start_new_session=True,
                user=user.pw_uid if user else None, group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )  # fmt: skip
        except OSError as error:
            raise ProvisionError(f"{self.tier}: {command[0]} cannot be run: {error.strerror}") from error

    def _run(self, program: str, *arguments: object) -> None:
        process = self._spawn([str(self._binaries / program), *map(str, arguments)], subprocess.PIPE)
        self._watchdog.tell(str(process.pid))
        try:
            output, _ = process.communicate()
        except BaseException:  # interrupted: it would go on to write where `close` removes
            with contextlib.suppress(ProcessLookupError):  # it had just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # until what it started has let go of the pipe as well
            raise
        self._watchdog.tell("")
        if process.returncode:
            raise ProvisionError(f"{self.tier}: {program} failed: {_last_line(output.decode(errors='replace'))}")

    def _complaint(self) -> str:
        """The line of the server's log that says why it did not start."""
        lines = (self.directory / "server.log").read_text(errors="replace").splitlines()
        fatal = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line]
        return fatal[-1] if fatal else _last_line("\n".join(lines))


def processes() -> Iterator[tuple[int, tuple[int, str]]]:
    """(pid, (parent's pid, state letter)) of every process; from /proc, since slim images have no ps."""
    if Path("/proc/self/stat").exists():
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                yield int(stat.parent.name), (int(parent), state)
    else:
        command = ["/bin/ps", "-A", "-o", "pid=,ppid=,state="]
        table = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in table.stdout.splitlines():
            pid, parent, state = line.split()
            yield int(pid), (int(parent), state[0])


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on now."""
    for _ in range(1_000):
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ProvisionError(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}")


def until(seconds: float, what: str, server: Server | None = None) -> Iterator[None]:
    """Iterate over polls of a condition; raises `ProvisionError` when the loop is not left in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    raise ProvisionError(f"{server.describe() if server else 'docker:'} {what} within {seconds:.0f} s")


def _last_line(text: object) -> str:
    return next((line.strip() for line in reversed(str(text).splitlines()) if line.strip()), "no message")


def _url(parameters: Mapping[str, str]) -> str:
    """A postgresql:// URL of libpq parameters."""
    rest = dict(parameters)
    user, password, database = (quote(rest.pop(key, ""), safe="") for key in ("user", "password", "dbname"))
    host = ""
    if not re.search(r"[/,]", rest.get("host", "/")):  # sockets and lists of hosts go into the query
        host, port = rest.pop("host"), rest.pop("port", "")
        host = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    login = user + (f":{password}" if password else "")
    query = urlencode(rest, quote_via=quote)
    return f"postgresql://{login}{'@' if login else ''}{host}/{database}{'?' if query else ''}{query}"
