"""What is measured of a queue, through its adapter alone: one generator for each scenario, the same for every queue.

A scenario yields where the other queues have their turns and returns its values by row of `table.ROWS`. Whatever it
measures, it compares the numbers of the jobs it pushed with the effects the handlers left; a job lost, made up or run
twice where nothing was killed raises WrongError, and so does a worker process that had no part. The database is asked
too, whether it holds what was pushed or is done with it. Used by `comparison`.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence

import psycopg
from adapters import Counts, Peer
from adapters.base import Payload
from fleet import DRAIN_SECONDS, START_SECONDS, Fleet, WrongError, fleet
from table import ARRIVING, DEEP, ON_TIME, STEADY_RATE, STEADY_SECONDS, names

Values = dict[str, float]
Measurement = Generator[None, None, Values]


def row_values(scenario: str, *values: float | None) -> Values:
    """A scenario's values in the order of its rows; None is none."""
    return {name: value for name, value in zip(names(scenario), values, strict=True) if value is not None}


# Never used twice in a run: a job left over from a measurement before shows as one that nobody pushed.
_numbers = itertools.count()


def jobs(count: int, ms: int | None = None) -> list[Payload]:
    """The same small payload for every queue; `ms` is how long a job takes, None is no time at all."""
    numbers = itertools.islice(_numbers, count)
    return [{"n": number} if ms is None else {"n": number, "ms": ms} for number in numbers]


def numbered(pushed: Iterable[Payload]) -> list[int]:
    return [job["n"] for job in pushed]


class Arrivals:
    """An open loop on one connection: each job has its instant, fixed in advance, and is pushed no earlier.

    `turn` pushes what is due. A slow push makes those after it late, never fewer, and latency counts from the instant.
    """

    def __init__(self, peer: Peer, rate: float, seconds: float, ms: int | None = None) -> None:
        gaps = random.Random(rate)  # the same instants for every queue
        self._push = peer.push
        self._times = list(itertools.accumulate(gaps.expovariate(rate) for _ in range(round(rate * seconds))))
        self._jobs = jobs(len(self._times), ms)
        self._origin = 0.0
        self.pushed: dict[int, float] = {}  # number: its instant

    def start(self) -> None:
        self._origin = time.monotonic()

    def done(self) -> bool:
        return len(self.pushed) == len(self._times)

    def turn(self) -> None:
        """Push whatever is due now."""
        while not self.done() and (instant := self._origin + self._times[len(self.pushed)]) <= time.monotonic():
            job = self._jobs[len(self.pushed)]
            self._push([job])
            self.pushed[job["n"]] = instant


def every_job_once(peer: Peer, workers: Fleet, pushed: Sequence[int]) -> None:
    """The verdict on a measurement without a fault; raises WrongError."""
    by_worker = workers.gates.effects()
    runs = Counter(effect.number for effects in by_worker for effect in effects)
    expected = set(pushed)
    lost, unexpected = len(expected - runs.keys()), len(runs.keys() - expected)
    again = sum(count - 1 for count in runs.values())
    if lost or unexpected or again:
        raise WrongError(f"{len(expected)} jobs: {lost} lost, {unexpected} unexpected, {again} run again")
    judge(peer.counts(), len(expected))
    if not all(by_worker):
        raise WrongError(f"a worker process did nothing: {[len(effects) for effects in by_worker]}")


def judge(counts: Counts, count: int) -> None:
    if counts.unfinished or counts.succeeded not in (None, count):
        raise WrongError(f"{count} jobs ran, {counts.unfinished} unfinished, {counts.succeeded} recorded as succeeded")


# -- pushing -----------------------------------------------------------------------------------------------------


def pushing(peer: Peer, push: Callable[[list[Payload]], None], count: int, slices: int) -> Generator[None, None, float]:
    """In slices: the speed of a shared disk or processor changes from one moment to the next."""
    new = jobs(count)
    peer.clear()
    peer.settle()
    seconds, step = 0.0, -(-count // slices)
    for start in range(0, count, step):
        yield
        part = new[start : start + step]
        gc.collect()
        began = time.perf_counter()
        push(part)
        seconds += time.perf_counter() - began
    if (counts := peer.counts()).unfinished != count:
        raise WrongError(f"pushed {count} jobs, the database has {counts.unfinished}")
    return count / seconds


def push_one_by_one(peer: Peer) -> Measurement:
    """On one connection, each committed by itself."""
    return row_values("push one by one", (yield from pushing(peer, peer.push, peer.sizes.push, 40)))


def push_in_bulk(peer: Peer) -> Measurement:
    """In calls of some thousands."""
    return row_values("bulk push", (yield from pushing(peer, peer.push_many, peer.sizes.push_many, 6)))


# -- draining ----------------------------------------------------------------------------------------------------


def filled(peer: Peer, workers: Fleet, processes: int, count: int) -> list[int]:
    """A backlog, and workers at the gate; returns the jobs' numbers."""
    backlog = jobs(count)
    if backlog:
        peer.push_many(backlog)
    peer.settle()
    workers.until(lambda: workers.gates.arrived() == processes, START_SECONDS, "the workers did not start")
    return numbered(backlog)


def drain(peer: Peer, processes: int) -> float:
    """Jobs a second from the first handler to the moment when the database shows every job done."""
    count = peer.sizes.drain
    with fleet(peer, processes, count) as workers:
        peer.clear()
        backlog = filled(peer, workers, processes, count)
        workers.gates.open()
        workers.until(lambda: sum(workers.gates.begun()) >= count, DRAIN_SECONDS, "handlers did not run for all jobs")
        workers.until(lambda: peer.counts().unfinished == 0, DRAIN_SECONDS, "jobs were left unfinished")
        ended = time.monotonic()
        every_job_once(peer, workers, backlog)
        return count / (ended - min(effects[0].began for effects in workers.gates.effects()))


def drain_with_one(peer: Peer) -> Measurement:
    """In one go: nothing of another queue runs meanwhile."""
    yield
    return row_values("drain, 1 process", drain(peer, 1))


def drain_with_two(peer: Peer) -> Measurement:
    yield
    return row_values("drain, 2 processes", drain(peer, 2))


def drain_pinned(peer: Peer) -> Measurement:
    """A drain, then one with a snapshot held that is older than its jobs: no dead row or index entry can be removed."""
    yield
    clean = drain(peer, 1)
    yield
    with psycopg.connect(peer.dsn) as pinning:
        pinning.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        pinning.execute("SELECT 1")  # takes the snapshot; the block ends after the drain
        return row_values("pinned xmin", clean, drain(peer, 1))


def drain_under_arrivals(peer: Peer) -> Measurement:
    """Two processes; the rate is the backlog's, up to its last handler, while an open loop pushes behind it."""
    yield
    count = peer.sizes.drain
    arrivals = Arrivals(peer, ARRIVING, DRAIN_SECONDS)
    with fleet(peer, 2, count + ARRIVING * round(DRAIN_SECONDS)) as workers:
        peer.clear()
        backlog = filled(peer, workers, 2, count)
        began = workers.gates.begun
        workers.gates.open()
        arrivals.start()
        workers.until(
            lambda: sum(began()) >= count + len(arrivals.pushed), DRAIN_SECONDS, "handlers did not run for all jobs",
            arrivals.turn,
        )  # fmt: skip
        workers.until(lambda: peer.counts().unfinished == 0, DRAIN_SECONDS, "jobs were left unfinished")
        every_job_once(peer, workers, [*backlog, *arrivals.pushed])
        mine = set(backlog)
        starts = [e.began for effects in workers.gates.effects() for e in effects if e.number in mine]
    return row_values("drain under arrivals", count / (max(starts) - min(starts)))


def depth(peer: Peer) -> Measurement:
    """The first jobs of a backlog that is no deeper than they are, then of one with `DEEP` more due behind them."""
    rates = []
    for behind in (0, DEEP):
        yield
        count = peer.sizes.deep
        with fleet(peer, 1, count + behind) as workers:
            peer.clear()
            backlog = set(filled(peer, workers, 1, count + behind))
            workers.gates.open()
            workers.until(lambda: sum(workers.gates.begun()) >= count, DRAIN_SECONDS, f"{count} handlers did not run")  # noqa: B023
            (effects,) = workers.gates.effects()
            runs = [effect.number for effect in effects]
            if len(set(runs)) < len(runs) or not backlog.issuperset(runs):
                raise WrongError(
                    f"of {len(runs)} runs {len(runs) - len(set(runs) & backlog)} were not of a job of its own"
                )
            rates.append(count / (effects[count - 1].began - effects[0].began))
    peer.clear()
    return row_values("depth", *rates)


# -- waiting -----------------------------------------------------------------------------------------------------


def steady(peer: Peer) -> Measurement:
    """Start latency from the intended instant to the handler, exact, over an open loop; one worker process."""
    yield
    arrivals = Arrivals(peer, STEADY_RATE, STEADY_SECONDS)
    with fleet(peer, 1, STEADY_RATE * STEADY_SECONDS) as workers:
        peer.clear()
        filled(peer, workers, 1, 0)
        workers.gates.open()
        # One job ahead: a worker connects and subscribes behind the gate.
        warm = jobs(1)
        peer.push(warm)
        workers.until(lambda: sum(workers.gates.begun()) == 1, START_SECONDS, "the first job did not run")
        arrivals.start()
        workers.until(arrivals.done, 4 * STEADY_SECONDS, "arrivals could not be pushed", arrivals.turn)
        count = 1 + len(arrivals.pushed)
        workers.until(lambda: sum(workers.gates.begun()) >= count, DRAIN_SECONDS, "handlers did not run for all jobs")
        workers.until(lambda: peer.counts().unfinished == 0, DRAIN_SECONDS, "jobs were left unfinished")
        every_job_once(peer, workers, [*numbered(warm), *arrivals.pushed])
        began = {effect.number: effect.began for effect in workers.gates.effects()[0]}
    latencies = sorted(began[number] - instant for number, instant in arrivals.pushed.items())
    achieved = sum(latency <= ON_TIME for latency in latencies) / len(latencies)
    return row_values("steady", 1e3 * percentile(latencies, 0.5), 1e3 * percentile(latencies, 0.99), achieved)


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all is not above."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
