"""A trace as a demand: jobs and load by hour of the day, and the hour that a plan has to carry.

Called by the command line for `--trace`. Times in seconds; hours count from the start of the trace, of which only the
sequence is known, not the time of day at which it began.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from pgqueue_ref.capacity import CapacityError
from pgqueue_ref.harness.traces import Trace

HOUR, DAY = 3600.0, 86_400.0


class Hour(NamedTuple):
    """One hour of the day over all days of the trace: mean jobs a second, and busy slots on average (erlangs)."""

    hour: int
    rate: float
    load: float


class Busiest(NamedTuple):
    """The hour with the most load: when it began (seconds from the start of the trace), jobs a second, erlangs."""

    start: float
    rate: float
    load: float
    mean: float  # of its jobs' durations


def by_hour(trace: Trace) -> list[Hour]:
    """The day's profile. Raises `CapacityError` for a trace that lasts no hour."""
    if len(trace.arrivals) < 2:
        raise CapacityError(f"{trace.name}: {len(trace.arrivals)} job; a plan needs the times between several")
    days = max(1.0, trace.span / DAY)
    jobs, work = [0] * 24, [0.0] * 24
    for at, duration, _ in trace.arrivals:
        hour = int(at % DAY // HOUR)
        jobs[hour] += 1
        work[hour] += duration
    return [Hour(hour, jobs[hour] / (days * HOUR), work[hour] / (days * HOUR)) for hour in range(24)]


def busiest(trace: Trace, *, growth: float = 1.0) -> Busiest:
    """The clock hour of the trace that brings the most work, times a growth of its rate. Raises `CapacityError`."""
    if len(trace.arrivals) < 2:
        raise CapacityError(f"{trace.name}: {len(trace.arrivals)} job; a plan needs the times between several")
    if not growth > 0:
        raise CapacityError(f"--growth {growth:g}: must be above 0")
    hours: dict[int, list[float]] = {}
    for at, duration, _ in trace.arrivals:
        hours.setdefault(int(at // HOUR), []).append(duration)
    hour, durations = max(hours.items(), key=lambda item: sum(item[1]))
    length = min(HOUR, trace.span) or 1.0  # a trace shorter than an hour is all there is
    rate = growth * len(durations) / length
    return Busiest(hour * HOUR, rate, growth * sum(durations) / length, statistics.fmean(durations))
