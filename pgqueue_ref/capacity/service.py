"""Service times: how long handlers run. From a distribution, a trace, or what jobs of a queue took.

A distribution is written as the load run writes it (`harness.scenario.service`): `exp:0.5`, `fixed:0.5`,
`lognormal:0.5:4` (mean seconds, squared coefficient of variation). Called by `measure`, `plan` and `simulate`.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgqueue_ref.capacity import CapacityError
from pgqueue_ref.harness import scenario, traces

KEPT = 20_000  # times of a trace that a file keeps: enough for its 99.9th percentile
FEWEST = 20  # times that anything can be said from


@dataclass(frozen=True, slots=True)
class Service:
    """Service times in seconds. `spec` is a distribution, or empty and `times` were seen; `source` is for people."""

    source: str
    spec: str = ""
    times: Sequence[float] = field(default=(), repr=False)

    @property
    def mean(self) -> float:
        """Seconds."""
        return statistics.fmean(self.times) if self.times else _moments(self.spec)[0]

    @property
    def squared_cv(self) -> float:
        """Squared coefficient of variation: variance over squared mean; 0 fixed, 1 exponential."""
        if not self.times:
            return _moments(self.spec)[1]
        return statistics.pvariance(self.times) / self.mean**2

    @property
    def exponential(self) -> bool:
        """Whether Erlang C holds as it is."""
        return self.spec.startswith("exp:")

    def draw(self, rng: random.Random) -> Callable[[], float]:
        """What gives one time after the other."""
        if self.times:
            times = list(self.times)
            return lambda: rng.choice(times)
        return scenario.service(self.spec, rng)

    def document(self) -> dict[str, Any]:
        """The form in which files keep it; `of_document` takes it back."""
        return {
            "source": self.source, "spec": self.spec, "times": list(self.times),
            "mean_seconds": self.mean, "squared_cv": self.squared_cv,
        }  # fmt: skip


def of_document(document: dict[str, Any]) -> Service:
    """Service times as a file keeps them."""
    return Service(document["source"], document["spec"], tuple(document["times"]))


def of_spec(spec: str) -> Service:
    """A distribution. Raises `CapacityError`."""
    if not _moments(spec)[0] > 0:
        raise CapacityError(f"service {spec!r}: the mean must be above 0 s")
    return Service(f"distribution {spec}", spec if ":" in spec else f"fixed:{spec}")


def of_moments(mean: float, squared_cv: float) -> Service:
    """The distribution with this mean (seconds) and squared coefficient of variation. Raises `CapacityError`.

    0 is fixed, 1 exponential, everything else lognormal, which has a heavier tail than a gamma with the same moments:
    the careful choice where nothing else is known.
    """
    if not (squared_cv >= 0 and math.isfinite(squared_cv)):
        raise CapacityError(f"the squared coefficient of variation must be 0 or more, not {squared_cv:g}")
    shape = {0.0: f"fixed:{mean:g}", 1.0: f"exp:{mean:g}"}
    return of_spec(shape.get(squared_cv, f"lognormal:{mean:g}:{squared_cv:g}"))


def of_times(times: Sequence[float], source: str) -> Service:
    """Times that were seen, in seconds. Raises `CapacityError` where they are too few or mean nothing."""
    if len(times) < FEWEST:
        raise CapacityError(f"{source}: {len(times)} service times, {FEWEST} are needed to plan with")
    if min(times) < 0:
        raise CapacityError(f"{source}: a service time is negative")
    if not statistics.fmean(times) > 0:
        raise CapacityError(f"{source}: all service times are 0 s: there is nothing to plan for")
    step = -(-len(times) // KEPT)
    return Service(source, times=tuple(sorted(times)[step // 2 :: step]))


def of_trace(trace: traces.Trace) -> Service:
    """The durations of a trace. Raises `CapacityError`."""
    return of_times([arrival.duration for arrival in trace.arrivals], trace.name)


# How long attempts took that succeeded, of the newest jobs that are still there: the primary key backwards.
JOBS_SEEN = """
SELECT extract(epoch FROM finished_at - started_at)::float8 FROM (
    SELECT started_at, finished_at, status FROM pgqueue_jobs
    WHERE %(kind)s::text IS NULL OR kind = %(kind)s ORDER BY id DESC LIMIT 100000
) AS newest WHERE status = 'succeeded'
"""

# The same of the newest events, which outlive their jobs: by time backwards, then each job's own by pgqueue_events_job.
EVENTS_SEEN = """
SELECT extract(epoch FROM ended.at - claimed.at)::float8 FROM (
    SELECT job_id, attempt, type, at FROM pgqueue_events
    WHERE %(kind)s::text IS NULL OR kind = %(kind)s ORDER BY at DESC, id DESC LIMIT 300000
) AS ended CROSS JOIN LATERAL (
    SELECT at FROM pgqueue_events
    WHERE job_id = ended.job_id AND attempt = ended.attempt AND type = 'claimed' ORDER BY id DESC LIMIT 1
) AS claimed WHERE ended.type = 'succeeded'
"""


def of_jobs(connection: psycopg.Connection[Any], kind: str | None = None) -> Service:
    """What the newest attempts of a queue took that succeeded, in seconds: by its events where it has any, else by the
    jobs that are still in the table. Raises `CapacityError`.
    """
    times, source = [], "pgqueue_events"
    if connection.execute("SELECT to_regclass('pgqueue_events')").fetchone() != (None,):
        times = [seconds for (seconds,) in connection.execute(EVENTS_SEEN, {"kind": kind})]
    if not times:
        times, source = [seconds for (seconds,) in connection.execute(JOBS_SEEN, {"kind": kind})], "pgqueue_jobs"
    return of_times(times, f"the succeeded jobs{f' of kind {kind}' if kind else ''} in {source}")


def _moments(spec: str) -> tuple[float, float]:
    """Mean and squared coefficient of variation of a distribution. Raises `CapacityError`."""
    try:
        scenario.service(spec, random.Random(1))  # noqa: S311  # only to have it checked
    except scenario.ScenarioError as error:
        raise CapacityError(str(error)) from None
    shape, *numbers = spec.split(":") if ":" in spec else ("fixed", spec)
    mean, *rest = map(float, numbers)
    return mean, {"fixed": 0.0, "exp": 1.0}.get(shape, rest[0] if rest else 0.0)
