"""What a run was: versions, machine, server with its durability settings, git revision, command. No secrets.

Called by the load run; goes into manifest.json and the head of the report, so that two runs can be told
apart.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg

PACKAGES = ("pgqueue-ref", "psycopg", "locust", "gevent", "hdrhistogram")
# What decides how durable, how fast and how large; `fsync` and `synchronous_commit` are shown in every
# report.
SERVER_SETTINGS = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_sync_method", "shared_buffers",
    "work_mem", "max_connections", "max_wal_size", "checkpoint_timeout", "autovacuum", "autovacuum_naptime",
    "jit", "io_method", "data_checksums", "default_transaction_isolation",
)  # fmt: skip


def server_facts(connection: psycopg.Connection[Any], description: str) -> dict[str, Any]:
    """The server's version and settings; `description` says where it came from, without a password."""
    (version,) = connection.execute("SELECT version()").fetchone() or ("?",)
    rows = connection.execute(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) ORDER BY name",
        (list(SERVER_SETTINGS),),
    ).fetchall()
    return {"description": description, "version": version, "settings": dict(rows)}


def machine() -> dict[str, Any]:
    """This machine, as far as it bears on the figures."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def versions() -> dict[str, str]:
    """Versions of Python, libpq and the packages that took part."""
    found = {"python": platform.python_version(), "libpq": str(psycopg.pq.version())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def revision(root: Path) -> dict[str, Any] | None:
    """The git revision at `root`, and whether files differ from it; None outside a repository."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def command() -> str:
    """The command line of this process, with passwords masked."""
    words = [masked(word) for word in sys.argv[1:]]  # before quoting, which changes quotes inside a word
    return shlex.join([Path(sys.argv[0]).name, *words])


def masked(text: str) -> str:
    """`text` without the passwords that its DSNs hold."""
    text = re.sub(r"(://[^\s:/@]*:)\S*@", r"\1***@", text)
    text = re.sub(r"([?&]password=)[^\s&]+", r"\1***", text)  # in a URL, where & ends it
    # As libpq reads it: spaces around the sign, quotes or not, and a backslash before what would end it.
    return re.sub(r"(?<![?&])(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:\\.|\S)+)", r"\1***", text)


def _git(root: Path, *arguments: str) -> str:
    words: Sequence[str] = ("git", "-C", str(root), *arguments)
    done = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603  # fixed words
    return done.stdout.strip()


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1] if found else platform.machine()
