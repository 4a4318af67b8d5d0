"""The disk of the cluster is full: what is refused is not there, what was acknowledged runs when there is room."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from waiting import until

from pgqueue_ref.core import SCHEMA_SQL, QueueError

SIZE = 600  # MB: the cluster, and the server's programs where their own place cannot be reached
LEFT = 3_000_000  # bytes


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A small file system that servers provisioned in the test put their directories on. (What the test itself writes
    has its place already, by `tmp_path`.)"""
    directory = Path(tempfile.mkdtemp(prefix="pgq-disk-"))
    directory.chmod(0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=0755", "pgq-disk", str(directory)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        refused = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError:
        refused = "there is no mount command"
    if refused:
        directory.rmdir()
        pytest.skip(f"a full disk needs a small file system, which cannot be mounted here: {refused}")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)
    directory.rmdir()


def fill(disk: Path) -> Path:
    """Leave next to nothing; removing the file that is returned makes room again."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - LEFT)
    return ballast


def test_a_full_disk_refuses_pushes_and_stops_work_and_loses_nothing(small_disk, provisioned, bench_on, launch) -> None:
    with provisioned("embedded", max_wal_size="64MB", min_wal_size="32MB") as server:
        assert server.directory.is_relative_to(small_disk)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(SCHEMA_SQL)
        bench = bench_on(server.dsn)
        bench.push("work", 1000, payload=0.02)
        worker = launch(server.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "10")
        until(lambda: bench.count("succeeded") > 50, "the drain goes on")
        ballast = fill(small_disk)
        acknowledged, refusals = 1000, []
        while len(refusals) < 5:  # whether an insert has no room (an error) or the WAL (a crash) is the server's luck
            try:
                bench.push("fail-once", 100, payload="x" * 2000)
                acknowledged += 100
            except (QueueError, psycopg.Error) as error:
                refusals.append(str(error).splitlines()[0])
        print(refusals)
        until(lambda: "next try in" in worker.log(), "the worker meets it too")
        ballast.unlink()
        server.start()  # where it crashed and could not recover
        until(lambda: bench.count("succeeded") == acknowledged, "all that was acknowledged runs")
        assert bench.query("SELECT count(*) FROM pgqueue_jobs") == [(acknowledged,)]
        found = bench.ledger()
        assert (found.lost, found.unexpected, found.undrained) == (0, 0, 0)
        worker.signal(signal.SIGTERM)
        assert worker.ends() == 0
