"""From the start of a push to the start of its handler in another process, on CLOCK_MONOTONIC, which they share."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import Queue

from . import bare
from .measure import Bench, Bound, percentile
from .workers import Reports, listener, worker

RATE = 500  # jobs a second, steady
POLL = 0.2  # seconds, without LISTEN
# The lock that makes pushes notify (pgqueue_ref/worker/bell.py).
ASLEEP = """
SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Side:
    """Pushes numbered jobs into one database and reads when they were picked up."""

    def __init__(self, connection: psycopg.Connection[Any], reports: Reports, push: Callable[[int], Any]) -> None:
        self.connection, self._reports, self._push = connection, reports, push
        self._numbers = itertools.count()
        self._pushed: dict[int, int] = {}

    def one(self) -> float:
        """Push a job and wait for its pickup; returns milliseconds."""
        self.send()
        (latency,) = self.collect()
        return latency

    def send(self) -> None:
        """Push the next job."""
        number = next(self._numbers)
        self._pushed[number] = time.monotonic_ns()
        self._push(number)

    def collect(self) -> list[float]:
        """Milliseconds from push to pickup of each job sent since."""
        reports = self._reports.read(len(self._pushed))
        latencies = [(at - self._pushed.pop(number)) / 1e6 for number, at in reports]
        assert not self._pushed
        return latencies

    def settle(self) -> None:
        """Wait until everything is completed."""
        self._until("SELECT WHERE NOT EXISTS (SELECT FROM pgqueue_jobs)")

    def sleep(self) -> None:
        """Wait until everything is completed and the worker has lain down: it is idle then."""
        self.settle()
        self._until(ASLEEP)

    def _until(self, query: str) -> None:
        deadline = time.monotonic() + 60
        while self.connection.execute(query).fetchone() is None:
            assert time.monotonic() < deadline, query
            time.sleep(0.001)


@contextlib.contextmanager
def ours(dsn: str, directory: Path, *arguments: str) -> Iterator[Side]:
    """A worker process and the queue in front of it."""
    reports = Reports(directory / "ours")
    with (
        contextlib.closing(reports),
        psycopg.connect(dsn, autocommit=True) as connection,
        worker(*arguments, dsn=dsn, reports=reports, log=directory / "worker.log"),
    ):
        queue = Queue(connection)
        side = Side(connection, reports, lambda number: queue.push("pickup", number))
        _warm(side)
        yield side


@contextlib.contextmanager
def theirs(dsn: str, directory: Path) -> Iterator[Side]:
    """The bare listener and a bare INSERT in front of it."""
    reports = Reports(directory / "bare")
    with (
        contextlib.closing(reports),
        psycopg.connect(dsn, autocommit=True) as connection,
        listener(dsn=dsn, reports=reports, log=directory / "listener.log"),
    ):
        side = Side(connection, reports, lambda number: bare.push(connection, "pickup", number))
        _warm(side)
        yield side


def _warm(side: Side) -> None:
    """Until the process is up and its statements are prepared."""
    for _ in range(10):
        side.one()
    side.settle()


def _figures(bench: Bench, when: str, mine: list[list[float]], bares: list[list[float]]) -> None:
    for share, limit in ((0.5, 3.0), (0.99, 10.0)):
        bench.figure(
            f"pickup latency p{share * 100:.0f}, {when}", "ms",
            [percentile(samples, share) for samples in mine], [percentile(samples, share) for samples in bares],
            "LISTEN, claim by hand, bare INSERT", Bound(most=limit, ratio=False),
            samples=sum(map(len, mine)), over_all_samples=percentile(list(itertools.chain(*mine)), share),
        )  # fmt: skip


@pytest.mark.benchmark(group="pickup")
def test_an_idle_worker_with_listen_picks_up_at_once(
    bench: Bench, database: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    bench.settings(samples=bench.scale.pickups, worker="a process of the command line, defaults")
    mine: list[list[float]] = []
    bares: list[list[float]] = []
    with ours(database, tmp_path) as worker, theirs(databases(), tmp_path) as by_hand:

        def turn() -> None:
            mine.append([])
            bares.append([])
            for _ in range(bench.scale.pickups):
                for side, samples in ((worker, mine[-1]), (by_hand, bares[-1])):
                    side.sleep()
                    time.sleep(random.uniform(0.001, 0.03))
                    samples.append(side.one())

        bench.rounds(turn)
    _figures(bench, "idle worker with LISTEN", mine, bares)


@pytest.mark.benchmark(group="pickup")
def test_a_steady_stream_is_picked_up_at_once(
    bench: Bench, database: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    bench.settings(rate=RATE, seconds=bench.scale.steady, worker="a process of the command line, defaults")
    with ours(database, tmp_path) as worker, theirs(databases(), tmp_path) as by_hand:
        late = [0]

        def stream(side: Side) -> list[float]:
            began = time.monotonic()
            for number in range(int(RATE * bench.scale.steady)):
                wait = began + number / RATE - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                late[0] += wait < -0.010
                side.send()
            latencies = side.collect()
            side.settle()
            return latencies

        mine, bares = bench.rounds(lambda: stream(worker), lambda: stream(by_hand))
    bench.settings(pushes_more_than_10_ms_late=late[0])
    _figures(bench, f"steady {RATE} jobs/s", mine, bares)


@pytest.mark.benchmark(group="pickup")
def test_without_listen_the_poll_interval_bounds_the_pickup(bench: Bench, database: str, tmp_path: Path) -> None:
    count = max(3, bench.scale.pickups // 15)
    bench.settings(samples=count, poll_interval=POLL)
    with ours(database, tmp_path, "--no-listen", "--poll-interval", str(POLL)) as worker:

        def turn() -> float:
            latencies = []
            for _ in range(count):
                time.sleep(random.uniform(0, POLL))
                latencies.append(worker.one())
                worker.settle()
            return max(latencies)

        (worst,) = bench.rounds(turn)
    # The same 10 ms on top that a notified pickup is allowed.
    bench.figure(
        f"longest pickup without LISTEN, poll interval {POLL:g} s", "ms", worst, POLL * 1e3, "the poll interval",
        Bound(most=POLL * 1e3 + 10, ratio=False),
    )  # fmt: skip
