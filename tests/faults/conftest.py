"""Workers as real processes, started through the command line, and the ledger that says what became of their jobs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from waiting import until

from pgqueue_ref.core import NewJob, Queue
from pgqueue_ref.harness import ledger

ROOT = Path(__file__).resolve().parents[2]

# What the workers run. Effects are committed before a handler returns, as the ledger wants it.
APP = """
import asyncio, os, signal
from pgqueue_ref.core import conninfo, constant
from pgqueue_ref.harness.ledger import EffectWriter
from pgqueue_ref.worker import Kinds

kinds = Kinds()
effects = EffectWriter(conninfo(os.environ["LEDGER_URL"], application_name="effects"))

async def record(job):
    clock = await effects.clock()
    await effects.record(job.id, job.attempt, job.external_key, job.kind, started=clock.now(), finished=clock.now())

@kinds.register("work", max_attempts=100, backoff=constant(0.2))
async def work(job):
    await asyncio.sleep(job.payload)
    await record(job)

@kinds.register("slow-once")
async def slow_once(job):
    if job.attempt == 1:
        await asyncio.sleep(job.payload)
    await record(job)

@kinds.register("fail-once", backoff=constant(0))
async def fail_once(job):
    if job.attempt == 1:
        raise ValueError("the first time")
    await record(job)

@kinds.register("hang-once")
async def hang_once(job):
    if job.attempt == 1:
        await asyncio.Event().wait()
    await record(job)

@kinds.register("plain")
async def plain(job):
    await asyncio.sleep(job.payload)

@kinds.register("kill", max_attempts=3)
async def kill(job):
    os.kill(os.getpid(), signal.SIGKILL)

@kinds.register("stubborn")
async def stubborn(job):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""


class Process:
    """A worker started from the command line; what it says is in `log()`."""

    def __init__(self, dsn: str, directory: Path, name: str, *options: str, ledger: str | None = None) -> None:
        self._log = directory / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
        environment |= {"PYTHONPATH": str(ROOT), "PGQUEUE_DATABASE_URL": dsn, "LEDGER_URL": ledger or dsn}
        command = [sys.executable, "-m", "pgqueue_ref", "worker", "--app", "app:kinds", "--name", name]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--poll-interval", "0.1", *options],
                cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # a group of its own, as a terminal would give it
            )  # fmt: skip
        self.pid = self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def started(self) -> None:
        until(lambda: "queues default; kinds" in self.log() or not self.running(), "the worker starts")
        assert self.running(), self.log()

    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)

    def ends(self) -> int:
        """Its exit code; what it said is printed, for a test that fails."""
        until(lambda: not self.running(), "the worker ends")
        print(self.log())
        return int(self._process.returncode)

    def counts(self) -> dict[str, int]:
        """What it says it did, at the end."""
        (told,) = re.findall(r"stopped: Counts\((.*)\)", self.log())
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", told)}

    def children(self) -> list[psutil.Process]:
        """Its worker processes, without Python's resource tracker."""
        found = []
        for child in psutil.Process(self.pid).children():
            try:
                if "resource_tracker" not in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """End it and what it started, whatever state they are in."""
        family = (
            [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)] if self.running() else []
        )
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`launch(dsn, name, *options)`: a worker process; all are killed at the end of the test. Its handlers record their
    effects at `ledger`, where that is given: by a way that has no fault."""
    (tmp_path / "app.py").write_text(APP)
    processes: list[Process] = []

    def launch(dsn: str, name: str, *options: str, ledger: str | None = None) -> Process:
        processes.append(Process(dsn, tmp_path, name, *options, ledger=ledger))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()


class Bench:
    """The queue's database with a ledger; asks on a new connection each time, so that the server may be restarted."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._pushed = 0
        with psycopg.connect(dsn) as connection:
            ledger.create(connection)

    def push(self, kind: str, count: int = 1, payload: Any = 0) -> list[int]:
        """Push jobs and record them in the ledger, in one transaction."""
        first, self._pushed = self._pushed, self._pushed + count
        with psycopg.connect(self.dsn) as connection:
            jobs = [NewJob(kind, payload, key=f"{number:06}") for number in range(first, first + count)]
            pushed = Queue(connection).push_many(jobs)
            for job, done in zip(jobs, pushed, strict=True):
                ledger.record_push(connection, str(job.key), done.id, kind, time.time(), measured=True)
        return [done.id for done in pushed]

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(sql, parameters).fetchall()

    def statuses(self) -> dict[str, int]:
        return dict(self.query("SELECT status, count(*) FROM pgqueue_jobs GROUP BY status"))

    def count(self, status: str) -> int:
        return self.statuses().get(status, 0)

    def ledger(self) -> ledger.Ledger:
        with psycopg.connect(self.dsn) as connection:
            return ledger.reconcile(connection)

    def attempts(self) -> set[tuple[str, int]]:
        """Every status and number of attempts spent that occurs."""
        return set(self.query("SELECT DISTINCT status, attempt FROM pgqueue_jobs"))

    def most_effects_of_an_attempt(self) -> int:
        return int(self.query("SELECT max(runs) FROM loadtest_effects")[0][0])


@pytest.fixture
def bench_on() -> Callable[[str], Bench]:
    """`bench_on(dsn)`, for a server of the test's own."""
    return Bench


@pytest.fixture
def bench(database: str) -> Bench:
    return Bench(database)
