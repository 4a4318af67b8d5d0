"""Container images of PostgreSQL: the official one where a registry answers, else one made on this machine.

Called by `tests/containers/run.py` before it runs the suites against each version. An image that is made here
holds the embedded server's programs and what they need of this machine's Linux, is tagged
`localtest/postgres:N`, never with the official name, and its entrypoint behaves like the official image's:
POSTGRES_USER, _PASSWORD and _DB, initdb into an empty PGDATA, a first start without TCP, server settings
as arguments (`-c name=value`).
"""

# ruff: noqa: S603 - asks ldd, found on the path, which libraries the server's own programs need

import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import docker
from docker.errors import DockerException

from pgqueue_ref.harness import binaries
from pgqueue_ref.harness.binaries import ProvisionError

MADE_HERE = "localtest/postgres"
PROGRAMS = Path("/usr/local/lib")  # in the image
TOOLS = ("bash", "cat", "chmod", "chown", "env", "id", "ls", "mkdir", "rm", "sed", "setpriv", "sleep")
DOCKERFILE = """FROM scratch
ADD root.tar /
ENV PATH={programs}/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/docker-entrypoint.sh"]
CMD ["postgres"]
"""
ENTRYPOINT = """#!/bin/bash
set -euo pipefail
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || set -- postgres "$@"
[ "$1" = postgres ] || exec "$@"
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:?is not set: PostgreSQL needs a superuser password}"
    : "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
    initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 \\
        --auth-local=trust --encoding=UTF8
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    echo "unix_socket_directories = '/var/run/postgresql'" >> "$PGDATA/postgresql.conf"
    pg_ctl start --wait -o "-c listen_addresses=''"
    if [ "$POSTGRES_DB" != postgres ]; then
        psql --host=/var/run/postgresql --username="$POSTGRES_USER" --dbname=postgres -v ON_ERROR_STOP=1 \\
            --set=db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
    fi
    pg_ctl stop --wait --mode=fast
    echo 'PostgreSQL init process complete; ready for start up.'
fi
exec "$@"
"""


def obtain(client: docker.DockerClient, major: str) -> tuple[str, str]:
    """The tag of an image of PostgreSQL `major` that this engine has now, and a line that says what it is.

    Raises `ProvisionError` when it can neither be pulled nor made.
    """
    official = f"postgres:{major}"
    try:
        if not client.images.list(official):
            client.images.pull("postgres", tag=major)
    except DockerException as error:
        reason = complaint(error)
    else:
        return official, f"{official}, the official image"
    tag = f"{MADE_HERE}:{major}"
    make(client, major, tag)
    return tag, f"{tag}, made here from the embedded PostgreSQL {major}; {official} cannot be pulled: {reason}"


def make(client: docker.DockerClient, major: str, tag: str) -> None:
    """Make an image of the embedded PostgreSQL `major`. Linux only: the programs are this machine's."""
    if sys.platform != "linux":
        raise ProvisionError(f"the image {tag} can be made on Linux only; pull postgres:{major} instead")
    with tempfile.TemporaryDirectory(prefix="pgq-") as scratch, tempfile.TemporaryDirectory(prefix="pgq-") as context:
        install = binaries.embedded(major, Path(scratch)).parent
        with tarfile.open(Path(context, "root.tar"), "w") as tar:
            programs = _add_server(tar, install)
            _add_system(tar, install)
        Path(context, "Dockerfile").write_text(DOCKERFILE.format(programs=programs))
        try:
            client.images.build(path=context, tag=tag, rm=True, forcerm=True)
        except DockerException as error:
            raise ProvisionError(f"the image {tag} could not be made: {complaint(error)}") from error


def complaint(error: Exception) -> str:
    """What the engine says, in one line."""
    said = getattr(error, "explanation", None) or str(error)
    return str(said).strip().splitlines()[0]


def _add_server(tar: tarfile.TarFile, install: Path) -> Path:
    """Add the programs at the same places to each other as in the wheel; returns where they are in the image."""
    package = install.parent
    libraries = package.parent / f"{package.name}.libs"
    for path in (install / "bin", install / "lib", install / "share", libraries):
        if path.is_dir():
            tar.add(path, _inside(path, package.parent), filter=_owned_by_root)
    return PROGRAMS / package.name / install.name


def _inside(path: Path, base: Path) -> str:
    return str(PROGRAMS / path.relative_to(base)).lstrip("/")


def _add_system(tar: tarfile.TarFile, install: Path) -> None:
    """Add a shell, the tools of the entrypoint, every shared library, the C.UTF-8 locale and two accounts."""
    tools = {name: shutil.which(name) for name in TOOLS}
    if missing := [name for name, path in tools.items() if path is None]:
        raise ProvisionError(f"an image cannot be made here without the programs {', '.join(missing)}")
    programs = [*filter(None, tools.values()), *map(str, (install / "bin").iterdir())]
    for library in _libraries([*programs, *map(str, (install / "lib").rglob("*.so"))]):
        if not library.is_relative_to(install.parent.parent):
            tar.add(library.resolve(), str(library).lstrip("/"), filter=_owned_by_root)
    for name, path in tools.items():
        tar.add(Path(str(path)).resolve(), f"bin/{name}", filter=_owned_by_root)
    _add(tar, "bin/sh", tarfile.SYMTYPE, link="bash")
    locale = Path("/usr/lib/locale/C.utf8")  # newer C libraries have it built in
    if locale.is_dir():
        tar.add(locale, str(locale).lstrip("/"), filter=_owned_by_root)
    _add(tar, "etc/passwd", text="root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n")
    _add(tar, "etc/group", text="root:x:0:\npostgres:x:999:\n")
    _add(tar, "tmp", tarfile.DIRTYPE, mode=0o1777)
    _add(tar, "usr/local/bin/docker-entrypoint.sh", text=ENTRYPOINT, mode=0o755)


def _libraries(programs: Iterable[str]) -> set[Path]:
    """The shared libraries of these programs and the loader itself, as ldd names them."""
    answer = subprocess.run(["/usr/bin/ldd", *programs], capture_output=True, text=True, check=False)
    return {Path(path).absolute() for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", answer.stdout, re.MULTILINE)}


def _add(
    tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, *, text: str = "", link: str = "", mode: int = 0o644
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname, member.mode = kind, len(text.encode()), link, mode
    tar.addfile(member, io.BytesIO(text.encode()))


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what only builds need; the ownership of a virtualenv means nothing in an image."""
    if member.name.endswith(".a"):
        return None
    member.uid = member.gid = 0
    member.mode |= 0o444 | (0o111 if member.isdir() else 0)
    return member
