"""A trace as a demand: jobs and load by hour of the day, and the hour that a plan has to carry.

Called by the command line for `--trace`. Times in seconds; hours count from the start of the trace, of which only the
sequence is known, not the time of day at which it began.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from pgqueue_ref.capacity import CapacityError, simulate
from pgqueue_ref.harness.traces import Arrival, Trace

HOUR, DAY = 3600.0, 86_400.0
TELLING = 600.0  # seconds of an hour that a trace has to cover for a rate of these alone: in fewer a job is much


class Hour(NamedTuple):
    """One hour of the day, as often as the trace covers it: mean jobs a second, and busy slots on average (erlangs)."""

    hour: int
    rate: float
    load: float


class Busiest(NamedTuple):
    """The hour with the most load: when it began (seconds from the start of the trace), jobs a second, erlangs."""

    start: float
    rate: float
    load: float
    mean: float  # of its jobs' durations
    arrivals: tuple[Arrival, ...]


def by_hour(trace: Trace) -> list[Hour]:
    """The day's profile. Raises `CapacityError` for a trace of a single job."""
    if len(trace.arrivals) < 2:
        raise CapacityError(f"{trace.name}: {len(trace.arrivals)} job; a plan needs the times between several")
    jobs, work = [0] * 24, [0.0] * 24
    for at, duration, _ in trace.arrivals:
        hour = int(at % DAY // HOUR)
        jobs[hour] += 1
        work[hour] += duration
    days, rest = divmod(trace.span, DAY)
    covered = [days * HOUR + min(HOUR, max(0.0, rest - hour * HOUR)) for hour in range(24)]
    lengths = [seconds if seconds >= TELLING else HOUR for seconds in covered]
    return [Hour(hour, jobs[hour] / lengths[hour], work[hour] / lengths[hour]) for hour in range(24)]


def busiest(trace: Trace, *, growth: float = 1.0) -> Busiest:
    """The clock hour of the trace with the most load, times a growth of its rate. Raises `CapacityError`.

    The last hour, which the end of the trace cuts, is as long as the trace covers it, from ten minutes on.
    """
    if len(trace.arrivals) < 2:
        raise CapacityError(f"{trace.name}: {len(trace.arrivals)} job; a plan needs the times between several")
    if not growth > 0:
        raise CapacityError(f"--growth {growth:g}: must be above 0")
    hours: dict[int, list[Arrival]] = {}
    for arrival in trace.arrivals:
        hours.setdefault(int(arrival.at // HOUR), []).append(arrival)

    def length(hour: int) -> float:
        covered = trace.span - hour * HOUR
        if covered >= TELLING:
            return min(HOUR, covered)
        return min(HOUR, trace.span) or 1.0  # a trace shorter than that is all there is

    loads = {hour: sum(arrival.duration for arrival in arrivals) / length(hour) for hour, arrivals in hours.items()}
    hour = max(loads, key=loads.__getitem__)
    arrivals, seconds = hours[hour], length(hour)
    # Growth is more of the same in less time: the arrivals move together.
    moved = tuple(arrival._replace(at=(arrival.at - hour * HOUR) / growth) for arrival in arrivals)
    mean = statistics.fmean(arrival.duration for arrival in arrivals)
    return Busiest(hour * HOUR, growth * len(arrivals) / seconds, growth * loads[hour], mean, moved)


def wait_as_logged(busiest: Busiest, slots: int, percentile: float) -> float:
    """The wait (seconds) in the busiest hour itself, whose arrivals may come in bursts that no formula knows."""
    return simulate.percentile(sorted(simulate.waits(busiest.arrivals, slots)), percentile)
