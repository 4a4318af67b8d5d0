"""The pushing side of a load run in one process: producers that draw arrivals, and what they counted.

A run has one generator, or one in each of Locust's worker processes (see `fleet`). Producers take arrivals from the
clock of the phase that is on and wait between phases. What they counted travels as a `Tally`, which adds up over
processes: counts are sums, latencies are merged histograms, never averages.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg

from pgqueue_ref.core import connect
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.api_producer import Api, ApiProducer
from pgqueue_ref.harness.clock import ArrivalClock, Watch
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.producer import Producer, Report
from pgqueue_ref.harness.traces import Arrival

# From the intended instant to the commit of the push, or to an error that the scenario expects.
LATENCIES = ("push", "refused")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a generator must know of the run. `tolerated` are the names of errors that the scenario expects; `api` is
    where it pushes if not into the database.
    """

    dsn: str
    schema: str
    window: float  # seconds, of the latencies' windows
    tolerated: list[str]
    api: Api | None = None


class Share(NamedTuple):
    """The arrivals of a phase that one generator pushes, as (number, arrival).

    Their times count from `origin`; the run's began at `began`. Both are database time, epoch seconds.
    """

    phase: int
    began: float
    origin: float
    arrivals: list[tuple[int, Arrival]]
    max_in_flight: int | None = None


@dataclass(slots=True)
class Tally:
    """What generators counted. late: begun over 0.1 s after the intended instant; saturated: late because the
    generator itself was busy; queued: late because every producer was. refused: errors that the scenario expects.
    """

    begun: int = 0
    late: int = 0
    queued: int = 0
    saturated: int = 0
    skipped: int = 0
    max_lag: float = 0.0
    failures: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    saturated_seconds: float = 0.0
    max_cpu_share: float = 0.0
    max_loop_lag: float = 0.0
    begun_each: list[int] = field(default_factory=list)  # of each generator

    def add(self, other: Tally) -> None:
        """Add another process's: sums, but the worst of the maxima and a list of what each began."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, theirs) if name.startswith("max_") else mine + theirs)


class Generator:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.latencies = {name: Latencies(name, setup.window) for name in LATENCIES}
        self._counted = Tally()
        self._watch = Watch()
        self._clocks: list[ArrivalClock] = []
        self._share: Share | None = None
        self._arrivals: dict[int, Arrival] = {}
        self._news = threading.Condition()
        self._closed = False
        self._in_flight = 0
        with self._connect() as connection:
            self._database_clock = ledger.DatabaseClock.measure(connection)
        threading.Thread(target=self._keep_watch, name="watch", daemon=True).start()

    def producer(self) -> Producer:
        """A producer with a connection of its own."""
        if self.setup.api is not None:
            return ApiProducer(
                Api(*self.setup.api), self._connect, self._database_clock
            )  # a message has no named tuples
        return Producer(self._connect, self._database_clock)

    def offer(self, share: Share) -> None:
        """Begin a phase, or take over more of the one that is on. A phase begins when the one before is done."""
        arrivals = sorted(share.arrivals, key=lambda numbered: numbered[1].at)
        times, numbers = [arrival.at for _, arrival in arrivals], [number for number, _ in arrivals]
        with self._news:
            self._arrivals |= dict(arrivals)
            if self._share is not None and self._share.phase == share.phase:
                self._clocks[-1].add(times, numbers)
            else:
                clock = ArrivalClock(times, numbers)
                clock.start(share.origin - self._database_clock.offset)
                self._clocks.append(clock)
                self._share = share
            self._news.notify_all()

    def produce(self, producer: Producer, tell: Report) -> bool:
        """Push the next arrival when it is due, waiting for a phase if none is on; False once the run has ended."""
        with self._news:
            while not self._closed and (self._share is None or self._clocks[-1].exhausted):
                self._news.wait()
            if self._closed:
                return False
            assert self._share is not None  # noqa: S101  # for the type checker: the loop waits for one
            clock, share = self._clocks[-1], self._share
            self._in_flight += 1
        try:
            if (due := clock.draw()) is not None:
                arrival = self._arrivals[due.number]
                note = self._note(self._database_clock.at(due.intended) - share.began, tell)
                producer.push(f"arrival-{due.number}", arrival, due.intended, note, max_in_flight=share.max_in_flight)
        finally:
            with self._news:
                self._in_flight -= 1
        return True

    @property
    def idle(self) -> bool:
        """Whether every arrival that was offered has been pushed, refused, skipped or given up."""
        return self._in_flight == 0 and all(clock.exhausted for clock in self._clocks)

    def close(self) -> None:
        """Send the producers home."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def tally(self) -> Tally:
        """What was counted so far."""
        tally = Tally()
        tally.add(self._counted)
        for clock in self._clocks:
            counts = clock.counts
            late = self._watch.late_when_saturated(counts, clock.origin)
            tally.add(Tally(counts.begun, counts.late, counts.queued, late, counts.skipped, counts.max_lag))
        tally.begun_each = [tally.begun]
        tally.saturated_seconds = self._watch.saturated_seconds()
        tally.max_cpu_share, tally.max_loop_lag = self._watch.max_cpu_share, self._watch.max_lag
        return tally

    def _note(self, at: float, tell: Report) -> Report:
        def note(kind: str, latency: float, error: Exception | None) -> None:
            names = {cls.__name__ for cls in type(error).__mro__}
            if error is None:
                self.latencies["push"].record(at, latency)
            elif names & set(self.setup.tolerated):
                self._counted.refused[type(error).__name__] += 1
                self.latencies["refused"].record(at, latency)
                error = None  # Locust would count it as a failed request
            else:
                self._counted.failures += 1
                self._counted.errors[type(error).__name__] += 1
            tell(kind, latency, error)

        return note

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self.setup.dsn, schema=self.setup.schema, application_name="loadtest producer")

    def _keep_watch(self) -> None:
        while not self._closed:
            self._watch.beat()
            time.sleep(self._watch.pause)


def encode(generator: Generator) -> dict[str, Any]:
    """What a generator measured, in a form that travels to another process."""
    tally = generator.tally()
    # Not asdict(): it makes a Counter anew, of pairs.
    counts = {name: getattr(tally, name) for name in tally.__slots__}
    latencies = {name: series.encode() for name, series in generator.latencies.items()}
    return {"schema": generator.setup.schema, "tally": counts, "latencies": latencies}


def decode(encoded: Mapping[str, Any], latencies: Mapping[str, Latencies]) -> Tally:
    """Take what `encode` gave: the tally is returned, the latencies are added to those of the same name."""
    for name, series in latencies.items():
        series.add(encoded["latencies"][name])
    fields = dict(encoded["tally"])
    return Tally(**fields | {name: Counter(fields[name]) for name in ("errors", "refused")})
