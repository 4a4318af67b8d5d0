"""Processes under test, and the pipe through which their handlers report."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .handlers import PAIR

HERE = Path(__file__).parent
PATIENCE = 120.0  # seconds without a report before the benchmark gives up


class Reports:
    """Reads pairs of integers from a named pipe."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Open for writing as well: the pipe then never ends when a worker goes.
        self._pipe, self.path, self._rest = os.open(path, os.O_RDWR | os.O_NONBLOCK), path, b""

    def read(self, count: int, patience: float = PATIENCE) -> list[tuple[int, int]]:
        """The next `count` reports."""
        deadline, size = time.monotonic() + patience, count * PAIR.size
        while len(self._rest) < size:
            left = deadline - time.monotonic()
            assert left > 0, f"{count} reports expected, {len(self._rest) // PAIR.size} came"
            if select.select([self._pipe], [], [], left)[0]:
                self._rest += os.read(self._pipe, 65_536)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return [(first, second) for first, second in PAIR.iter_unpack(taken)]

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._pipe)


@contextlib.contextmanager
def process(*arguments: str, dsn: str, reports: Reports | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program of this directory beside the test; it is ended with the block."""
    environment = os.environ | {
        "PGQUEUE_DATABASE_URL": dsn,
        "BENCH_REPORTS": str(reports.path) if reports else "",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, *arguments], cwd=HERE, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield started
        assert started.poll() is None, f"it ended with exit code {started.returncode}: {log.read_text()[-500:]}"
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def worker(
    *arguments: str, dsn: str, log: Path, reports: Reports | None = None
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker process of `handlers:kinds`, started as a user starts it."""
    command = ("-m", "pgqueue_ref", "worker", "--app", "handlers:kinds", *arguments)
    return process(*command, dsn=dsn, reports=reports, log=log)


def listener(*, dsn: str, log: Path, reports: Reports) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The bare counterpart of an idle worker."""
    return process("bare.py", dsn=dsn, reports=reports, log=log)
