"""Measures this queue against its peers, all in the same run on the same server (`nox -s peers`).

Four measurements: push one by one on one connection, bulk push, and the drain of a backlog of no-op jobs with one and
with two worker processes. The queues take turns within each measurement of each round, so that a disturbance meets all
of them, and the medians over the rounds are compared. A drain lasts from the first handler to the moment when the
database shows every job done; starting processes and importing is not in it. After each measurement the database is
asked whether all jobs are there, or done exactly once, and every worker process must have had its part.

Prints a table; `--summary FILE` writes the figures as JSON. Exit code 0 if every bound is met, 1 if not, with what was
missed; a queue that could not be measured has missed its bounds, and its row says why.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapters import OURS, PEERS, Counts, Peer, make
from gate import PATH, RUN, SLOT, Gate

from pgqueue_ref.harness.server import ProvisionError, Server, provision
from pgqueue_ref.harness.watchdog import Watchdog

HERE = Path(__file__).parent
ROUNDS, QUICK_ROUNDS = 5, 3
START_SECONDS, DRAIN_SECONDS, STOP_SECONDS = 30.0, 60.0, 5.0
# Ours as a multiple of theirs: more than, at least.
FASTER_THAN = ("procrastinate", "pgqueuer psycopg", "pgqueuer asyncpg", "chancy")
AT_LEAST = {"pgmq": 0.8}
SHOWN_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")


Payload = dict[str, int]
# Yields where the other queues have their turns, returns jobs a second.
Measurement = Generator[None, None, float]


class WrongError(Exception):
    """A measurement that did not do what it claims to have measured."""


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="peers", description=str(__doc__).splitlines()[0])
    parser.add_argument("--postgres", default="embedded:18", metavar="SPEC", help="where PostgreSQL comes from")
    parser.add_argument("--quick", action="store_true", help=f"medians of {QUICK_ROUNDS} rather than {ROUNDS}")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: stopped by SIGTERM"))
    began = time.monotonic()
    try:
        with provision(options.postgres) as server, scratch_directory():
            shown = describe(server)
            print("\n".join(f"{name}: {value}" for name, value in shown.items()), flush=True)
            comparison = Comparison(server)
            comparison.run(QUICK_ROUNDS if options.quick else ROUNDS)
    except ProvisionError as error:
        sys.exit(f"peers: {error}")
    shown["load average"] = f"{min(comparison.loads):.1f} to {max(comparison.loads):.1f}, this run's own included"
    figures = comparison.figures()
    print(f"\n{comparison.table()}\n\nload average: {shown['load average']}; {time.monotonic() - began:.0f} s")
    if options.summary:
        options.summary.write_text(json.dumps({"server": shown, "figures": figures}, indent=2) + "\n")
    missed = [row for row in figures if not row["ok"]]
    for row in missed:
        print(f"MISSED {row['name']}: {row['value']} {row['unit']} ({row['bound']})")
    print("FAIL" if missed else "PASS")
    return 1 if missed else 0


@contextlib.contextmanager
def scratch_directory() -> Iterator[None]:
    """One directory for this process's temporary files; it goes however the process ends."""
    directory = tempfile.mkdtemp(prefix="pgq-peers-")
    watchdog = Watchdog(["/bin/sh", "-c", 'cat > /dev/null; rm -rf -- "$1"', "watchdog", directory])
    tempfile.tempdir = directory
    try:
        yield
    finally:
        tempfile.tempdir = None
        watchdog.close()


def describe(server: Server) -> dict[str, str]:
    """What the run stands on."""
    with server.connect() as connection:
        values = [connection.execute(f"SHOW {name}").fetchone() for name in SHOWN_SETTINGS]
    settings = {name: str(value[0]) for name, value in zip(SHOWN_SETTINGS, values, strict=True) if value}
    return {"server": server.describe(), **settings, "cpus": str(os.cpu_count()), "python": sys.version.split()[0]}


# -- measurements ------------------------------------------------------------------------------------------------


def payloads(count: int) -> list[Payload]:
    """The same small payload for every queue."""
    return [{"n": number} for number in range(count)]


def pushing(peer: Peer, push: Callable[[list[Payload]], None], count: int, slices: int) -> Measurement:
    """In slices: the speed of a shared disk or processor changes from one moment to the next."""
    jobs = payloads(count)
    peer.clear()
    peer.settle()
    seconds, step = 0.0, -(-count // slices)
    for start in range(0, count, step):
        yield
        part = jobs[start : start + step]
        gc.collect()
        began = time.perf_counter()
        push(part)
        seconds += time.perf_counter() - began
    if (counts := peer.counts()).unfinished != count:
        raise WrongError(f"pushed {count} jobs, the database has {counts.unfinished}")
    return count / seconds


def push_one_by_one(peer: Peer) -> Measurement:
    """On one connection, each committed by itself."""
    return (yield from pushing(peer, peer.push, peer.sizes.push, 40))


def push_in_bulk(peer: Peer) -> Measurement:
    """In calls of some thousands."""
    return (yield from pushing(peer, peer.push_many, peer.sizes.push_many, 6))


def drain_with_one(peer: Peer) -> Measurement:
    """With one worker process."""
    return (yield from drain(peer, 1))


def drain_with_two(peer: Peer) -> Measurement:
    """With two worker processes."""
    return (yield from drain(peer, 2))


def drain(peer: Peer, processes: int) -> Measurement:
    """In one go: nothing of another queue runs meanwhile."""
    yield
    count = peer.sizes.drain
    with tempfile.TemporaryDirectory(prefix="pgq-peers-") as scratch:
        gate = Gate(Path(scratch, "gate"))
        with workers(peer, processes, Path(scratch)) as alive:
            peer.clear()
            peer.push_many(payloads(count))
            peer.settle()
            until(lambda: gate.arrived() == processes, START_SECONDS, alive, "the workers did not start")
            gate.open()
            until(lambda: sum(gate.handled()) >= count, DRAIN_SECONDS, alive, "handlers did not run for all jobs")
            until(lambda: peer.counts().unfinished == 0, DRAIN_SECONDS, alive, "jobs were left unfinished")
            seconds = time.monotonic() - gate.first()
        check(gate.handled()[:processes], peer.counts(), count)
    return count / seconds


def check(handled: list[int], counts: Counts, count: int) -> None:
    """Every job once, and a part for every process; raises WrongError."""
    if sum(handled) != count or counts.unfinished:
        raise WrongError(f"{count} jobs, handlers ran {sum(handled)} times, {counts.unfinished} unfinished")
    if counts.succeeded not in (None, count):
        raise WrongError(f"{count} jobs, {counts.succeeded} recorded as succeeded")
    if not all(handled):
        raise WrongError(f"a worker process did nothing: {handled}")


@contextlib.contextmanager
def workers(peer: Peer, processes: int, scratch: Path) -> Iterator[Callable[[], None]]:
    """Worker processes, ended at exit; yields what raises when one of them is not alive."""
    started: list[subprocess.Popen[bytes]] = []
    log = Path(scratch, "log")
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": peer.dsn, PATH: str(scratch / "gate"), RUN: str(os.getpid())}

    def alive() -> None:
        if any(worker.poll() is not None for worker in started):
            lines = log.read_text(errors="replace").strip().splitlines()
            raise WrongError(f"a worker process ended: {lines[-1] if lines else 'it wrote nothing'}")

    try:
        with log.open("ab") as output:
            for slot in range(processes):
                worker = subprocess.Popen(
                    peer.worker_command(), cwd=HERE, env=environment | {SLOT: str(slot)},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                started.append(worker)
        yield alive
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # what was to be measured is over
                worker.kill()
                worker.wait()


def until(condition: Callable[[], bool], patience: float, alive: Callable[[], None], complaint: str) -> None:
    """Wait for a condition; raises WrongError."""
    deadline = time.monotonic() + patience
    while not condition():
        alive()
        if time.monotonic() > deadline:
            raise WrongError(f"{complaint} within {patience:g} s")
        time.sleep(0.002)


MEASUREMENTS: dict[str, Callable[[Peer], Measurement]] = {
    "push one by one": push_one_by_one,
    "bulk push": push_in_bulk,
    "drain, 1 process": drain_with_one,
    "drain, 2 processes": drain_with_two,
}


# -- the comparison ----------------------------------------------------------------------------------------------


class Comparison:
    """The queues, each in a database of its own on `server`, and what was measured of them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.peers: dict[str, Peer] = {}
        self.failed: dict[str, str] = {}  # why a queue has no row
        self.rates: dict[tuple[str, str], list[float]] = {}
        self.loads: list[float] = []

    def run(self, rounds: int) -> None:
        """Measure everything so many times."""
        for number, name in enumerate(PEERS):
            self.guarded(name, lambda name=name, number=number: self.add(name, f"peer_{number}"))
        for turn in range(rounds):
            for what, measure in MEASUREMENTS.items():
                self.measure(what, measure, turn)
                self.loads.append(os.getloadavg()[0])
                print(f"round {turn + 1} of {rounds}, {what}: {self.latest(what)}", flush=True)
        for peer in self.peers.values():
            peer.close()

    def add(self, name: str, database: str) -> None:
        with self.server.connect() as connection:
            connection.execute(f"CREATE DATABASE {database}")
        peer = make(name, urlsplit(self.server.dsn)._replace(path=f"/{database}").geturl())
        peer.open()
        self.peers[name] = peer

    def measure(self, what: str, measure: Callable[[Peer], Measurement], turn: int) -> None:
        """Once for every queue, slice by slice in turns; another one begins each time."""
        names = list(self.peers)
        first = turn % len(names) if names else 0
        waiting = {name: measure(self.peers[name]) for name in names[first:] + names[:first]}
        while waiting:
            for name in list(waiting):
                if not self.guarded(name, lambda name=name: self.step(name, what, waiting)):
                    waiting.pop(name, None)

    def step(self, name: str, what: str, waiting: dict[str, Measurement]) -> None:
        try:
            next(waiting[name])
        except StopIteration as done:
            del waiting[name]
            self.rates.setdefault((name, what), []).append(done.value)

    def guarded(self, name: str, step: Callable[[], None]) -> bool:
        """Whether it went well. One queue that fails is left out from then on, the others are measured."""
        try:
            step()
            return True
        except Exception as error:  # noqa: BLE001 - whatever another queue raises is the reason for its missing row
            line = str(error).strip().splitlines()
            self.failed[name] = f"{type(error).__name__}: {line[0] if line else ''}"
            if peer := self.peers.pop(name, None):
                with contextlib.suppress(Exception):
                    peer.close()
            print(f"{name}: {self.failed[name]}", flush=True)
            return False

    def latest(self, what: str) -> str:
        return ", ".join(f"{name} {self.rates[name, what][-1]:,.0f}" for name in self.peers)

    def median(self, name: str, what: str) -> float | None:
        """Jobs a second; None for a queue that failed."""
        return statistics.median(self.rates[name, what]) if name in self.peers else None

    def table(self) -> str:
        """Jobs a second, and as a multiple of ours."""
        lines = [f"{'jobs/s (x ours)':22}" + "".join(f"{what:>20}" for what in MEASUREMENTS) + "  configuration"]
        for name in PEERS:
            if name in self.failed:
                lines.append(f"{name:22}  not measured: {self.failed[name]}")
                continue
            peer, line = self.peers[name], f"{name:22}"
            for what in MEASUREMENTS:
                rate, ours = self.median(name, what), self.median(OURS, what)
                ratio = f" ({rate / ours:.2f})" if rate and ours else ""
                line += f"{f'{rate:,.0f}{ratio}':>20}"
            lines.append(f"{line}  {peer.package} {peer.version}: {peer.configuration}")
        return "\n".join(lines)

    def figures(self) -> list[dict[str, Any]]:
        """The bounds, then the rates, which have none."""
        bounds: dict[str, Callable[[float], bool]] = {name: lambda ratio: ratio > 1 for name in FASTER_THAN}
        words = dict.fromkeys(FASTER_THAN, "> 1")
        for name, least in AT_LEAST.items():
            bounds[name], words[name] = lambda ratio, least=least: ratio >= least, f">= {least}"
        rows = []
        for what in MEASUREMENTS:
            for name, bound in bounds.items():
                ours, theirs = self.median(OURS, what), self.median(name, what)
                ratio = ours / theirs if ours and theirs else 0.0
                rows.append(figure(f"{what}, ours / {name}", round(ratio, 3), "x", words[name], ok=bound(ratio)))
        for name in self.peers:
            for what in MEASUREMENTS:
                rate = round(self.median(name, what) or 0)
                rows.append(figure(f"{what}, {name}", rate, "jobs/s", "none", ok=True))
        return rows


def figure(name: str, value: float, unit: str, bound: str, *, ok: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "bound": bound, "ok": ok}


if __name__ == "__main__":
    sys.exit(main())
