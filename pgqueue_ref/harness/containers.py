"""PostgreSQL in containers: the docker tier of `server.provision`, and an engine for it where none answers.

`DockerServer` runs one container through testcontainers on the engine that answers (DOCKER_HOST, the current
context or the default socket). `engine()` is for the container suites: it yields what the environment of
their processes must have, and where no engine answers it installs and starts Debian's for as long as its
block lasts. Nothing is left behind, also after a SIGKILL: a watchdog removes the container, and stops the
engine.
"""

# ruff: noqa: S603, S607 - starts apt-get and dockerd from the path, without a shell

import atexit
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import psycopg
from docker.errors import DockerException, NotFound
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import get_docker_host

from pgqueue_ref.harness.binaries import ProvisionError
from pgqueue_ref.harness.images import complaint
from pgqueue_ref.harness.server import START_SECONDS, STOP_SECONDS, Server, free_port, until
from pgqueue_ref.harness.watchdog import Watchdog

DEFAULT_IMAGE = "postgres:18"
RUN_VARIABLE = "PGQUEUE_CONTAINER_RUN"  # its value labels every container, so that a run can count its own
RUN_LABEL = "pgqueue_ref.run"
LINK = Path("/sys/class/net/docker0")

# Its input is the name of a container. An engine that is gone took its containers with it.
_REMOVE_CONTAINER = """
import contextlib, sys
name = [line.strip() for line in sys.stdin][-1:]
if name and name[0]:
    import docker
    with contextlib.suppress(Exception):
        docker.from_env().containers.get(name[0]).remove(force=True, v=True)
"""

# Its input is the pid of dockerd, its arguments the directory and the link to remove. On SIGTERM dockerd
# stops its containers and removes its pid file; processes and mounts below the directory are left only by
# a crash.
_STOP_ENGINE = """
while read -r line; do pid=$line; done
kill -TERM "$pid" 2>/dev/null
n=0; while [ -e "$1/docker.pid" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "$pid" 2>/dev/null
for process in $(grep -lsF -- "$1" /proc/[0-9]*/cmdline); do
  process=${process#/proc/}; process=${process%/cmdline}
  [ "$process" = $$ ] || kill -KILL "$process" 2>/dev/null
done
while read -r _ mount _; do case $mount in "$1"/*) umount -l "$mount";; esac; done < /proc/mounts
[ -z "$2" ] || ip link delete "$2"
rm -rf -- "$1"
"""


class _Container(PostgresContainer):
    def _connect(self) -> None:
        """Not here: the inherited wait goes on after the server has exited. `DockerServer` waits."""


class DockerServer(Server):
    """PostgreSQL in one container, published on a port that stays the same over restarts."""

    tier = "docker"

    def __init__(self, image: str, settings: Mapping[str, str]) -> None:
        self.settings, self.version, self.where = dict(settings), "?", f" ({image})"
        testcontainers_config.ryuk_disabled = True  # one image less to pull; the watchdog does its work
        if not _answers(address()):
            raise ProvisionError("docker: no engine answers")
        self._container = _Container(
            image, username="postgres", password=secrets.token_urlsafe(24), dbname="postgres", driver=None
        )
        local = self._container.get_docker_client().host() in ("localhost", "127.0.0.1")
        name = f"pgq-{secrets.token_hex(6)}"
        port = free_port()
        published = ("127.0.0.1", port) if local else port
        self._container.ports["5432"] = published  # type: ignore[assignment] # Docker takes an address, too
        arguments = [word for key, value in self.settings.items() for word in ("-c", f"{key}={value}")]
        self._container.with_name(name).with_command(["postgres", *arguments])
        self._container.with_kwargs(labels={RUN_LABEL: os.environ.get(RUN_VARIABLE, "")})
        self._watchdog = Watchdog([sys.executable, "-c", _REMOVE_CONTAINER])
        self._watchdog.tell(name)
        atexit.register(self.close)
        try:
            self._create(image)
        except BaseException:
            self.close()
            raise

    def _create(self, image: str) -> None:
        try:
            self._container.start()
        except DockerException as error:
            raise ProvisionError(f"docker: {image} does not start: {complaint(error)}") from error
        self._wait()

    def _wait(self) -> None:
        """Wait until it accepts connections on the published port; the first start of initdb has no TCP."""
        for _ in until(START_SECONDS, "does not accept connections", self):
            container = self._container.get_wrapped_container()
            container.reload()
            if container.status == "exited":
                lines = container.logs(tail=50).decode(errors="replace").strip().splitlines()
                fatal = [line.partition("FATAL:")[2].strip() for line in lines if "FATAL:" in line] or lines
                raise ProvisionError(f"docker: PostgreSQL did not start: {fatal[-1] if fatal else 'no message'}")
            # TimeoutError: testcontainers saw that it exited since; the next turn reads why.
            with contextlib.suppress(psycopg.OperationalError, ConnectionError, TimeoutError):
                self.dsn = self._container.get_connection_url()
                self._read_version()
                return

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        self._wait()

    def restart(self) -> None:
        self._container.get_wrapped_container().restart(timeout=int(STOP_SECONDS))
        self._wait()

    def kill(self) -> None:
        self._signal("SIGKILL")  # process 1 is the postmaster; the kernel ends the others with it

    def quit(self) -> None:
        self._signal("SIGQUIT")

    def _signal(self, name: str) -> None:
        container = self._container.get_wrapped_container()
        container.reload()
        if container.status != "running":
            return
        container.kill(name)
        container.wait()

    def set(self, **gucs: object) -> None:
        """As for every server, except settings that were given to the container: its command line is fixed."""
        if fixed := sorted(gucs.keys() & self.settings.keys()):
            raise ProvisionError(f"{self.describe()} was started with {', '.join(fixed)}: provision another one")
        super().set(**gucs)

    def close(self) -> None:
        if not self._watchdog.ours:
            return
        atexit.unregister(self.close)
        try:
            with contextlib.suppress(NotFound):
                self._container.stop()
            self._watchdog.tell("")
        finally:
            self._watchdog.close()


@contextlib.contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Environment variables for processes that use the engine: one that answers, or one started here.

    Raises `ProvisionError` when there is none and none can be started, or when it could not be cleaned up.
    """
    if _answers(address()) or (_install() and _answers(address())):  # with systemd, the package starts a service
        yield {}
        return
    directory = Path(tempfile.mkdtemp(prefix="pgq-docker-"))
    had_link = LINK.exists()
    watchdog = Watchdog(["/bin/sh", "-c", _STOP_ENGINE, "watchdog", str(directory), "" if had_link else LINK.name])
    process = _start_engine(directory)
    watchdog.tell(str(process.pid))
    started = f"unix://{directory}/docker.sock"
    try:
        for _ in until(START_SECONDS, "dockerd does not answer"):
            if process.poll() is not None:
                log = (directory / "log").read_text(errors="replace").strip().splitlines()
                raise ProvisionError(f"docker: dockerd did not start: {log[-1] if log else 'no message'}")
            if _answers(started):
                break
        yield {
            "DOCKER_HOST": started,
            # Where this itself runs in a container, testcontainers would look for the engine outside it.
            "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
            "TC_HOST": "127.0.0.1",
        }
    finally:
        watchdog.close()
        process.wait()
    left = [str(path) for path in (directory, *([] if had_link else [LINK])) if path.exists()]
    if left:
        raise ProvisionError(f"docker: the engine was stopped, but {' and '.join(left)} could not be removed")


def address() -> str:
    """Where the configured engine should answer: DOCKER_HOST, the current context's, or the default socket."""
    return get_docker_host() or "unix:///var/run/docker.sock"


def _answers(where: str) -> bool:
    path = where.removeprefix("unix://")
    if path != where:
        with socket.socket(socket.AF_UNIX) as probe:  # Docker's client would leave its own socket open
            if probe.connect_ex(path):
                return False
    try:
        with contextlib.closing(docker.DockerClient(where)) as client:
            return bool(client.ping())
    except DockerException:
        return False


def _install() -> bool:
    """Install Debian's engine where it is missing; raises `ProvisionError` where that may not be done."""
    if os.geteuid() != 0:
        raise ProvisionError("docker: no engine answers, and only root may start one")
    if shutil.which("dockerd"):
        return False
    if not shutil.which("apt-get"):
        raise ProvisionError("docker: no engine answers, and one can be installed on Debian only; start yours")
    for command in (["update"], ["install", "-y", "--no-install-recommends", "docker.io", "iptables", "iproute2"]):
        result = subprocess.run(
            ["apt-get", "-q", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
        if result.returncode:
            reason = result.stdout.strip().splitlines()[-1:]
            raise ProvisionError(f"docker: no engine answers, and apt-get {command[0]} failed: {''.join(reason)}")
    return True


def _start_engine(directory: Path) -> subprocess.Popen[bytes]:
    """dockerd with everything below `directory`, publishing on 127.0.0.1 only, this machine's firewall untouched."""
    command = [
        "dockerd", f"--host=unix://{directory}/docker.sock", f"--data-root={directory}/data",
        f"--exec-root={directory}/exec", f"--pidfile={directory}/docker.pid",
        "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip=127.0.0.1",
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
