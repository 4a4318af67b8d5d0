"""The open-loop arrival clock: it alone decides when work should start.

A pool of producers draws arrivals from one clock. `draw` returns at the arrival's instant, or at once if
that has passed; whoever measures a latency starts from `Due.intended`, not from when a producer got round to
it, so a stall of the server shows in every arrival that it held up. Late and skipped arrivals are counted
here, and `Watch` tells whether the generator itself was the reason. Called by the generator's producers; needs
nothing but the standard library and works the same with threads and greenlets.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LATE_AFTER = 0.1  # seconds; below this a wake-up on a busy machine is noise
BUSY_SHARE = 0.9  # of one core: a single-threaded generator has nothing left beyond it


class Due(NamedTuple):
    """An arrival that is due. `intended` is on the clock's own time scale (`now`), in seconds."""

    number: int
    intended: float


@dataclass(slots=True)
class ArrivalCounts:
    """What became of the arrivals.

    late: begun more than `LATE_AFTER` after the intended instant. queued: those of the late that were due
    before any producer was free to take them. max_lag: the most that one began after its instant, in seconds.
    """

    offered: int = 0
    begun: int = 0
    late: int = 0
    queued: int = 0
    skipped: int = 0
    max_lag: float = 0.0
    late_at: list[float] = field(default_factory=list)


class ArrivalClock:
    """Hands out arrivals in order, each to one caller, each not before its instant.

    `times` are seconds from the start, ascending; an arrival is known by its number in `numbers`, or by its place. An
    arrival that nobody took within `skip_after` seconds of its instant is skipped and counted: the run must end, and a
    report that says "skipped" is honest about it.
    """

    def __init__(
        self,
        times: Sequence[float],
        numbers: Sequence[int] | None = None,
        *,
        skip_after: float = 30.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if any(later < earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError("arrival times must be ascending")
        self.counts = ArrivalCounts()
        self._skip_after = skip_after
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int]] = []  # the next one last
        self._started = threading.Event()
        self._origin = 0.0
        self.add(times, range(len(times)) if numbers is None else numbers)

    def add(self, times: Sequence[float], numbers: Sequence[int]) -> None:
        """Take over more arrivals, also while others are handed out: those of a generator that died."""
        with self._lock:
            self.counts.offered += len(times)
            self._waiting = sorted([*self._waiting, *zip(times, numbers, strict=True)], reverse=True)

    @property
    def exhausted(self) -> bool:
        """Whether every arrival was handed out or skipped."""
        return not self._waiting

    def start(self, origin: float) -> None:
        """Fix the instant, on the time scale of `now`, from which the arrival times count."""
        self._origin = origin
        self._started.set()

    @property
    def origin(self) -> float:
        """The instant given to `start`."""
        return self._origin

    def elapsed(self) -> float:
        """Seconds since the origin; 0 before it."""
        return max(0.0, self._now() - self._origin) if self._started.is_set() else 0.0

    def draw(self) -> Due | None:
        """Wait for the next arrival and return it; None when there is none left."""
        self._started.wait()
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                at, number = self._waiting.pop()
            intended = self._origin + at
            delay = intended - self._now()
            if delay > 0:
                self._sleep_before(delay, at, number)
            lag = self._now() - intended
            if lag <= self._skip_after:
                self._begin(lag, queued=delay < -LATE_AFTER)
                return Due(number, intended)
            self.counts.skipped += 1

    def _sleep_before(self, delay: float, at: float, number: int) -> None:
        try:
            self._sleep(delay)
        except BaseException:  # the producer is ended; the arrival is somebody else's then
            with self._lock:
                self._waiting = sorted([*self._waiting, (at, number)], reverse=True)
            raise

    def _begin(self, lag: float, *, queued: bool) -> None:
        counts = self.counts
        counts.begun += 1
        counts.max_lag = max(counts.max_lag, lag)
        if lag > LATE_AFTER:
            counts.late += 1
            counts.queued += queued
            counts.late_at.append(self.elapsed())


class Watch:
    """Tells a slow server from a generator that cannot keep up.

    `beat` is called in a loop that sleeps `pause` seconds between calls. A second counts as saturated if the
    process used `BUSY_SHARE` of a core in it or a beat came more than `LATE_AFTER` late: then arrivals were
    late because of the generator, whatever the server did.
    """

    def __init__(
        self,
        *,
        pause: float = 0.05,
        now: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.pause = pause
        self._now = now
        self._cpu = cpu
        self._last_beat: float | None = None
        self._second_began = 0.0
        self._cpu_then = 0.0
        self._worst_lag = 0.0
        self._saturated: list[tuple[float, float]] = []
        self.max_lag = 0.0
        self.max_cpu_share = 0.0

    def beat(self) -> None:
        """Note one turn of the loop. The first one only sets the mark that the next is measured from."""
        now = self._now()
        if self._last_beat is None:
            self._last_beat = self._second_began = now
            self._cpu_then = self._cpu()
            return
        lag = max(0.0, now - self._last_beat - self.pause)
        self._last_beat = now
        self._worst_lag = max(self._worst_lag, lag)
        self.max_lag = max(self.max_lag, lag)
        if now - self._second_began < 1.0:
            return
        share = (self._cpu() - self._cpu_then) / (now - self._second_began)
        self.max_cpu_share = max(self.max_cpu_share, share)
        if share >= BUSY_SHARE or self._worst_lag > LATE_AFTER:
            self._saturated.append((self._second_began, now))
        self._second_began, self._cpu_then, self._worst_lag = now, self._cpu(), 0.0

    def saturated_seconds(self) -> float:
        """Total time, in seconds, during which the generator was saturated."""
        return sum(end - begin for begin, end in self._saturated)

    def late_when_saturated(self, counts: ArrivalCounts, origin: float) -> int:
        """How many of the late arrivals began while the generator was saturated."""
        return sum(any(begin <= origin + at <= end for begin, end in self._saturated) for at in counts.late_at)
