"""The queue, played: service times as they are, claims in batches by several workers, polling, priorities, retries.

Two simulations of one system. `waits` is the plain queue with several servers in the order of arrival, fast enough to
search with (the recursion of J. Kiefer and J. Wolfowitz, "On the theory of queues with many servers", 1955). `play` is
the whole worker, event by event (SimPy): with claims that take no time, one priority and no failures both agree, and a
test holds them to it. `replicate` repeats either with other random numbers and gives percentiles with intervals.
Times in seconds. Called by `plan`, `validate` and the command line.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import simpy

from pgqueue_ref.capacity import CapacityError
from pgqueue_ref.capacity.service import Service
from pgqueue_ref.harness.scenario import poisson
from pgqueue_ref.harness.traces import Arrival

PERCENTILES = (50.0, 95.0, 99.0)
FEWEST = 19  # replications for an interval of 90 %


@dataclass(frozen=True, slots=True)
class System:
    """What is played. `claim` is how long a claim takes, drawn anew for each; `bell` how long a sleeping worker takes
    to hear of a job, infinite without LISTEN; `poll` how often it looks by itself; `failing` the share of attempts that
    fail and are tried again after `backoff`; `urgent` the share of jobs with a higher priority.
    """

    workers: int
    slots: int  # of each worker
    claim: Callable[[random.Random], float] = lambda rng: 0.0
    bell: float = 0.0
    poll: float = 1.0
    failing: float = 0.0
    max_attempts: int = 10
    backoff: float = 5.0
    urgent: float = 0.0


class Played(NamedTuple):
    """What became of a window: the wait of each job (arrival to first start), busy slots over all slots, attempts."""

    waits: list[float]
    utilisation: float
    attempts: int


class Interval(NamedTuple):
    """The middle of the replications, and the range that one more lies in with the probability asked for."""

    low: float
    middle: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a measured value lies within."""
        return self.low <= value <= self.high


def waits(arrivals: Sequence[Arrival], slots: int) -> list[float]:
    """The wait of each arrival with so many slots in the order of arrival, nothing else taking time."""
    free = [0.0] * slots
    found = []
    for at, duration, _ in arrivals:
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + duration)
        found.append(start - at)
    return found


def play(arrivals: Sequence[Arrival], system: System, rng: random.Random) -> Played:
    """Play a window of arrivals to its end."""
    return _Play(system, rng).run(arrivals)


class _Play:
    """One run. Jobs wait in a heap, urgent ones first, then by when they are due; workers claim from it in turns."""

    def __init__(self, system: System, rng: random.Random) -> None:
        self.system, self.rng = system, rng
        self.env = simpy.Environment()
        self.due: list[tuple[int, float, int]] = []  # not urgent, due since, number
        self.free = [system.slots] * system.workers
        self.asleep: list[simpy.Event | None] = [None] * system.workers
        self.left, self.end = 0, 0.0
        self.busy = 0.0
        self.attempts = 0
        self.waits: dict[int, float] = {}

    def run(self, arrivals: Sequence[Arrival]) -> Played:
        self.arrivals, self.left = arrivals, len(arrivals)
        self.end = max((at for at, _, _ in arrivals), default=0.0)
        self.tries = [0] * len(arrivals)
        self.urgent = [self.rng.random() < self.system.urgent for _ in arrivals]
        self.env.process(self._arrive())
        for worker in range(self.system.workers):
            self.env.process(self._claim(worker))
        self.env.run()
        available = self.system.workers * self.system.slots * self.end
        waits = [self.waits[number] for number in sorted(self.waits)]
        return Played(waits, self.busy / available if available else 0.0, self.attempts)

    def _arrive(self) -> simpy.events.ProcessGenerator:
        for number, arrival in enumerate(self.arrivals):
            yield self.env.timeout(arrival.at - self.env.now)
            self._put(number)

    def _put(self, number: int) -> None:
        heapq.heappush(self.due, (not self.urgent[number], self.env.now, number))
        if math.isfinite(self.system.bell):
            self.env.process(self._ring())

    def _ring(self) -> simpy.events.ProcessGenerator:
        yield self.env.timeout(self.system.bell)
        for worker in range(self.system.workers):
            self._wake(worker)

    def _wake(self, worker: int) -> None:
        event, self.asleep[worker] = self.asleep[worker], None
        if event is not None:
            event.succeed()

    def _claim(self, worker: int) -> simpy.events.ProcessGenerator:
        """A worker's loop: claim for the free slots while there are jobs, else sleep until the bell or the poll."""
        while self.left:
            if self.due and self.free[worker]:
                yield self.env.timeout(self.system.claim(self.rng))
                taken = [heapq.heappop(self.due) for _ in range(min(self.free[worker], len(self.due)))]
                for _, _, number in taken:
                    self.free[worker] -= 1
                    self.env.process(self._attempt(worker, number))
                continue
            self.asleep[worker] = event = self.env.event()
            yield event | self.env.timeout(self.system.poll)
            self.asleep[worker] = None

    def _attempt(self, worker: int, number: int) -> simpy.events.ProcessGenerator:
        arrival, system = self.arrivals[number], self.system
        self.waits.setdefault(number, self.env.now - arrival.at)
        self.attempts += 1
        self.tries[number] += 1
        # What goes on beyond the last arrival is no part of the window: a long job would make it look full.
        self.busy += max(0.0, min(arrival.duration, self.end - self.env.now))
        yield self.env.timeout(arrival.duration)
        self.free[worker] += 1
        self._wake(worker)  # its own slot: no bell needed
        if self.rng.random() < system.failing and self.tries[number] < system.max_attempts:
            yield self.env.timeout(system.backoff)
            self._put(number)
        else:
            self.left -= 1


def load(rate: float, seconds: float, service: Service, rng: random.Random) -> list[Arrival]:
    """Independent arrivals at `rate` for so many seconds."""
    return poisson(rate, seconds, service.draw(rng), rng)


def replicate(
    window: Callable[[random.Random], Played], replications: int, *, seed: int, share: float = 0.9
) -> dict[str, Interval]:
    """Percentiles of the wait, its mean and the utilisation, each over so many replications of a window.

    The intervals are those of `interval`: what one more run of the same length gives with the probability `share`.
    """
    found: dict[str, list[float]] = {}
    for number in range(replications):
        played = window(random.Random(seed * 1_000_003 + number))  # noqa: S311  # load, not secrets
        for name, value in figures(played).items():
            found.setdefault(name, []).append(value)
    return {name: interval(values, share) for name, values in found.items()}


def figures(played: Played) -> dict[str, float]:
    """The figures of one window, waits in seconds. Raises `CapacityError` where no job came."""
    if not played.waits:
        raise CapacityError("a window without a single job says nothing: a longer --seconds or a higher --rate")
    ordered = sorted(played.waits)
    named = {f"wait_p{p:g}": percentile(ordered, p) for p in PERCENTILES}
    return {**named, "wait_mean": statistics.fmean(ordered), "utilisation": played.utilisation}


def percentile(ordered: Sequence[float], wanted: float) -> float:
    """The value that so many percent do not exceed (nearest rank), of ascending values."""
    return ordered[max(0, math.ceil(wanted / 100 * len(ordered)) - 1)] if ordered else 0.0


def interval(values: Sequence[float], share: float = 0.9) -> Interval:
    """The range that one more value lies in with the probability `share`, and the median.

    One more value falls into each of the n + 1 gaps between n values with the same probability: between the r-th lowest
    and the r-th highest it is 1 - 2 r / (n + 1). S. S. Wilks, "Determination of sample sizes for setting tolerance
    limits" (1941). `FEWEST` values are needed for 90 %; of fewer the whole range is given, which holds less.
    """
    ordered = sorted(values)
    cut = max(1, math.floor((len(ordered) + 1) * (1 - share) / 2 + 1e-9))
    return Interval(ordered[cut - 1], statistics.median(ordered), ordered[-cut])
