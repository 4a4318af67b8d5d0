"""Runs jobs through four workers while faults hit them, their connections and the server (`nox -s chaos`).

The oracle is the ledger: nothing lost, nothing unexpected, nothing run twice unless a fault hit the worker that ran it
first, every attempt accounted for. `catalogue` has the faults, `judge` the verdict. The faults come in rounds of all of
them, in an order that the seed decides, a few seconds apart, until all jobs are pushed. Exit code: 0 when every bound
is kept, 1 when not, 2 for wrong usage or no server.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # proxy, pooler

import psycopg
from catalogue import CATALOGUE, order, possible
from fleet import Fleet, fleet
from judge import Figure, Injected, exactly, injected, judge
from pusher import Pusher

from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.server import SPECS, ProvisionError, Server, provision
from pgqueue_ref.harness.slo import summary_file

JOBS, QUICK = 1_000_000, 50_000
RATE, QUICK_RATE = 3_000, 600  # jobs pushed in a second, at most
PAUSE = 0.5, 3.0  # seconds between two faults, from and to
STALL = 120.0  # seconds without any job done, after which a drain is given up
TOLD = 15.0  # seconds between two lines of progress
DONE = "SELECT count(*) FROM loadtest_effects"


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=str(__doc__).splitlines()[0])
    parser.add_argument("--postgres", default="auto", metavar="SPEC", help=SPECS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} jobs rather than {JOBS:,}")
    parser.add_argument("--jobs", type=some, metavar="N", help="another number of jobs")
    parser.add_argument("--seed", type=int, help="of the order of faults and of the jobs; told by every run")
    parser.add_argument("--summary", type=summary_file, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: stopped by SIGTERM"))
    jobs = options.jobs or (QUICK if options.quick else JOBS)
    seed = secrets.randbelow(10_000) if options.seed is None else options.seed
    try:
        with provision(options.postgres) as server, tempfile.TemporaryDirectory(prefix="pgq-chaos-") as logs:
            about = durability(server)
            words = ", ".join(f"{name} {value}" for name, value in about.items())
            print(f"chaos: {jobs:,} jobs, seed {seed}; {words}", flush=True)
            with fleet(server, Path(logs)) as workers:
                figures = Run(workers, jobs, QUICK_RATE if options.quick else RATE, seed).figures()
                if not all(figure.ok for figure in figures):
                    print(workers.words())
    except ProvisionError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    tell(figures)
    if options.summary:
        rows = [figure._asdict() for figure in figures]
        options.summary.write_text(json.dumps({"server": about, "seed": seed, "figures": rows}, indent=2) + "\n")
    passed = all(figure.ok for figure in figures)
    print("PASS" if passed else f"FAIL; the same faults again: --seed {seed}")
    return 0 if passed else 1


def some(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return int(text)


class Run:
    """One run, from the first push to the verdict."""

    def __init__(self, workers: Fleet, jobs: int, rate: float, seed: int) -> None:
        self._fleet, self._jobs, self._random = workers, jobs, random.Random(seed)
        self._pusher = Pusher(workers.dsn, jobs, rate, seed)
        self._faults: list[Injected] = []
        self._troubles: list[str] = []
        self._began, self._told = time.monotonic(), 0.0

    def figures(self) -> list[Figure]:
        names, missing = possible(self._fleet)
        print(f"faults: {', '.join(names)}", flush=True)
        for name, why in missing.items():
            print(f"not exercised: {name}: {why}", flush=True)
        with psycopg.connect(self._fleet.dsn) as connection:
            self._clock = ledger.DatabaseClock.measure(connection)
        self._pusher.start()
        self._break(names)
        self._pusher.stop()
        drained = self._drain()
        # Workers that were hit a moment ago may have to end before they can be asked: not before all is drained.
        self._troubles += self._fleet.stop() if drained else []
        with psycopg.connect(self._fleet.dsn) as connection:
            verdict = judge(connection, self._jobs, self._faults, drained=drained)
        for trouble in self._troubles:
            print(f"trouble: {trouble}", flush=True)
        troubles = exactly("workers that ended unasked, or not when asked", len(self._troubles), 0, "workers")
        return [*verdict, troubles, *injected(self._faults, names)]

    def _break(self, names: Sequence[str]) -> None:
        """Faults until all jobs are pushed, a round of them at least."""
        for count, name in enumerate(order(list(names), self._random)):
            if count >= len(names) and not self._pusher.is_alive():
                return
            time.sleep(self._random.uniform(*PAUSE))
            began = self._clock.now()
            victims = CATALOGUE[name](self._fleet, self._random)
            self._faults.append(Injected(name, began, self._clock.now(), victims))
            words = f"{name}, {self._clock.now() - began:.1f} s"
            self._troubles += self._fleet.dead()
            if self._troubles:
                return
            self._tell(words)

    def _drain(self) -> bool:
        """Wait until nothing is left to do, as long as anything is done."""
        moved, last = time.monotonic(), -1
        with psycopg.connect(self._fleet.dsn, autocommit=True) as connection:
            while ledger.active(connection) and not self._troubles:
                done = self._tell("draining")
                if done != last:
                    moved, last = time.monotonic(), done
                if time.monotonic() - moved > STALL:
                    return False
                time.sleep(1.0)
                self._troubles += self._fleet.dead()
        return not self._troubles

    def _tell(self, words: str) -> int:
        """Progress, every now and then, and every fault; returns how many effects there are."""
        with psycopg.connect(self._fleet.dsn, autocommit=True) as connection:
            (done,) = connection.execute(DONE).fetchone() or (0,)
        now = time.monotonic()
        if words != "draining" or now - self._told > TOLD:
            self._told = now
            print(f"{now - self._began:6.0f} s  pushed {self._pusher.pushed:>9,}  ran {done:>9,}  {words}", flush=True)
        return int(done)


def durability(server: Server) -> dict[str, str]:
    """What a crash of this server may lose."""
    names = ("fsync", "synchronous_commit", "full_page_writes")
    with server.connect() as connection:
        values = [connection.execute(f"SHOW {name}").fetchone() for name in names]
    return {"server": server.describe(), **{name: str(row[0]) for name, row in zip(names, values, strict=True) if row}}


def tell(figures: Sequence[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        mark = ("ok  " if figure.ok else "FAIL") if figure.bound else "    "
        print(f"{mark} {figure.name:{width}}  {figure.value:>11,.0f} {figure.unit:8}  {figure.bound}")


if __name__ == "__main__":
    sys.exit(main())
