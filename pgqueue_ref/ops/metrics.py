"""What the database knows of the queue, for Prometheus; the REST API serves it at /metrics (docs/metrics.md).

It promises: one `overview` at a time and at most one in `seconds`, however many scrape; a registry of its own, nothing
global; a bounded number of series, whatever names are pushed. When the database does not answer there is `pgqueue_up` 0
and nothing that could be taken for its state. What attempts did is in the workers' own metrics (`worker.metrics`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from pgqueue_ref.core import ACTIVE, TERMINAL, Operation, QueueError, Status

from .overview import Flow, Overview, OverviewRow, overview

__all__ = ["CONTENT_TYPE", "Exposition"]

log = logging.getLogger("pgqueue_ref.ops")

PLACES: Final = 300  # pairs of queue and kind with series of their own: each has up to eleven
OTHER: Final = "(other)"  # the queue and the kind of all pairs beyond these

Run = Callable[[Operation[Overview]], Awaitable[Overview]]


class Exposition:
    """The metrics as text, made anew when the last are older than `seconds`; `besides` are the caller's own."""

    def __init__(
        self, seconds: float = 5.0, *, besides: Sequence[Collector] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._besides, self._clock = seconds, besides, clock
        self._turn = asyncio.Lock()
        self._text = b""
        self._made = float("-inf")

    async def render(self, run: Run) -> bytes:
        """The text for `CONTENT_TYPE`; `run` executes an operation, for example `run_async` on a connection of a pool.

        Never raises a `QueueError`: what the database refused is logged, and `pgqueue_up` is 0 for `seconds`.
        """
        async with self._turn:
            if self._clock() - self._made >= self._seconds:
                self._text = await self._make(run)
                self._made = self._clock()
            return self._text

    async def _make(self, run: Run) -> bytes:
        seen: Overview | None = None
        began = self._clock()
        try:
            seen = await run(overview())
        except QueueError as error:
            log.warning("metrics without the database: %s", error)
        registry = CollectorRegistry()
        for collector in (_Families(seen, self._clock() - began), *self._besides):
            registry.register(collector)
        return generate_latest(registry)


class _Families(Collector):
    """One overview, as metrics."""

    def __init__(self, seen: Overview | None, took: float) -> None:
        self._seen, self._took = seen, took

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client writes out."""
        up = self._seen is not None
        yield GaugeMetricFamily("pgqueue_up", "Whether the database told of the queue", value=up)
        yield GaugeMetricFamily("pgqueue_overview_seconds", "How long that took", value=self._took)
        if self._seen is not None:
            yield from _families(_bounded(self._seen))


def _families(seen: Overview) -> Iterator[Metric]:
    estimated = "Whether succeeded and cancelled jobs and the last hour are estimated from a sample"
    yield GaugeMetricFamily("pgqueue_estimated", estimated, value=seen.estimated)
    jobs = GaugeMetricFamily("pgqueue_jobs", "Jobs by queue, kind and status", labels=["queue", "kind", "status"])
    counts = {row[:3]: row.jobs for row in seen.rows}
    for flow in seen.flows:
        for status in ACTIVE + TERMINAL:
            jobs.add_metric([flow.queue, flow.kind, status], counts.get((flow.queue, flow.kind, status), 0))
    yield jobs
    for name, words, value in _BY_FLOW:
        family = GaugeMetricFamily(name, words, labels=["queue", "kind"])
        for flow in seen.flows:
            if (number := value(flow)) is not None:
                family.add_metric([flow.queue, flow.kind], number)
        yield family
    oldest: dict[str, float] = {}
    for flow in seen.flows:
        oldest[flow.queue] = max(oldest.get(flow.queue, 0.0), flow.oldest_due_seconds or 0.0)
    age = GaugeMetricFamily(
        "pgqueue_oldest_due_seconds", "Since when the oldest due job waits; 0: none", labels=["queue"]
    )
    for queue, seconds in oldest.items():
        age.add_metric([queue], seconds)
    yield age
    paused = GaugeMetricFamily("pgqueue_paused", "Whether the queue is paused", labels=["queue"])
    for queue in sorted(oldest.keys() | set(seen.paused[:PLACES])):
        paused.add_metric([queue], queue in seen.paused)
    yield paused


# Zeros where nothing waits, so that graphs and alerts see the way down; nothing where nothing is known.
_BY_FLOW: Final[tuple[tuple[str, str, Callable[[Flow], float | None]], ...]] = (
    ("pgqueue_due_jobs", "Pending jobs that could run now", lambda flow: flow.due),
    (
        "pgqueue_oldest_running_seconds",
        "Since when the oldest running attempt runs; 0: none",
        lambda flow: flow.oldest_running_seconds or 0.0,
    ),
    (
        "pgqueue_finished_last_hour",
        "Jobs that ended within the last hour and are still in the table",
        lambda flow: flow.finished_last_hour,
    ),
    (
        "pgqueue_last_hour_average_seconds",
        "Mean run time of the jobs that succeeded within the last hour",
        lambda flow: flow.average_seconds,
    ),
    (
        "pgqueue_last_hour_p95_seconds",
        "95th percentile of the run time of the jobs that succeeded within the last hour",
        lambda flow: flow.p95_seconds,
    ),
)


def _bounded(seen: Overview) -> Overview:
    """The same with at most `PLACES` pairs of queue and kind, those with most jobs; the others are added up.

    Names come from whoever pushes. A kind for each customer must not become a series for each customer.
    """
    totals: dict[tuple[str, str], int] = {(flow.queue, flow.kind): 0 for flow in seen.flows}
    for row in seen.rows:
        totals[row.queue, row.kind] += row.jobs
    if len(totals) <= PLACES:
        return seen
    kept = set(sorted(totals, key=lambda place: (-totals[place], place))[:PLACES]) - {(OTHER, OTHER)}
    rows = [row for row in seen.rows if row[:2] in kept]
    added: dict[Status, int] = {}
    for row in seen.rows:
        if row[:2] not in kept:
            added[row.status] = added.get(row.status, 0) + row.jobs
    rows += [OverviewRow(OTHER, OTHER, status, number, None, seen.estimated) for status, number in added.items()]
    rest = [flow for flow in seen.flows if flow[:2] not in kept]
    other = Flow(
        OTHER,
        OTHER,
        sum(flow.due for flow in rest),
        max((flow.oldest_due_seconds or 0.0 for flow in rest), default=None),
        max((flow.oldest_running_seconds or 0.0 for flow in rest), default=None),
        sum(flow.finished_last_hour for flow in rest),
        None,
        None,
    )
    return seen._replace(rows=rows, flows=[flow for flow in seen.flows if flow[:2] in kept] + [other])
