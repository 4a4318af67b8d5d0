"""What one worker process did, for Prometheus: `pgqueue-ref worker --metrics-port N` serves it at http://127.0.0.1:N/.

It promises: a registry of its own, nothing global; labels are queue and kind names that this worker was made with, so
that pushes cannot make series; the HTTP server is a thread that reads counters and asks neither database nor handlers.
Only here does the worker need prometheus-client, and only when asked. What the database knows is in `ops.metrics`;
docs/metrics.md lists both.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

from pgqueue_ref.core import InvalidJob, QueueError

from .slots import Attempt
from .worker import Worker
from .writer import OUTCOMES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

log = logging.getLogger("pgqueue_ref.worker")

# Seconds. Handlers take milliseconds to hours; a start that is later than a quarter of an hour is just late.
HANDLER_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class Address(NamedTuple):
    """Where one process serves its metrics."""

    host: str
    port: int


def _client() -> ModuleType:
    try:
        import prometheus_client
    except ModuleNotFoundError as error:
        raise QueueError("metrics need prometheus-client: pip install 'pgqueue-ref[ops]'") from error
    return prometheus_client


def check(address: Address, processes: int) -> None:
    """Raise `QueueError` where metrics cannot be served, before children find out again and again."""
    if not 1 <= address.port <= 65_536 - processes:
        raise InvalidJob(f"--metrics-port must leave a port from 1 to 65535 for each of {processes} processes")
    for number in range(processes):
        with _listening(_client().CollectorRegistry(), address._replace(port=address.port + number)):
            pass


@contextlib.contextmanager
def exposed(worker: Worker, address: Address) -> Iterator[None]:
    """Serve the worker's metrics meanwhile."""
    with _listening(registry(worker), address):
        host = f"[{address.host}]" if ":" in address.host else address.host
        log.info("metrics at http://%s:%d/metrics", host, address.port, extra={"worker": worker.name})
        yield


@contextlib.contextmanager
def _listening(registry: CollectorRegistry, address: Address) -> Iterator[None]:
    try:
        server, thread = _client().start_http_server(address.port, address.host, registry)
    except OSError as error:
        reason = error.strerror or error
        raise QueueError(f"metrics cannot be served at {address.host}:{address.port}: {reason}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def registry(worker: Worker) -> CollectorRegistry:
    """The worker's metrics; from now on it counts for them."""
    client = _client()
    made: CollectorRegistry = client.CollectorRegistry()
    attempts = client.Counter(
        "pgqueue_attempts",
        "Attempts by outcome; an expected failure (Ignore) is `ignored` whether the job is retried or failed",
        ["queue", "kind", "outcome"],
        registry=made,
    )
    took = client.Histogram(
        "pgqueue_handler_seconds", "How long handlers ran", ["kind"], registry=made, buckets=HANDLER_BUCKETS
    )
    latency = client.Histogram(
        "pgqueue_start_latency_seconds",
        "From the moment a job was due to the call of its handler, by this machine's clock",
        ["kind"],
        registry=made,
        buckets=LATENCY_BUCKETS,
    )

    # At 0 from the start: Prometheus sees no increase in a series whose first value is not 0.
    for kind in worker.kinds:
        for queue, outcome in itertools.product(worker.queues, (*OUTCOMES.values(), "ignored")):
            attempts.labels(queue, kind.name, outcome)
        took.labels(kind.name), latency.labels(kind.name)

    def observe(attempt: Attempt, outcome: str) -> None:
        job = attempt.job
        attempts.labels(job.queue, job.kind, outcome).inc()
        if attempt.began:
            took.labels(job.kind).observe(attempt.ended - attempt.began)
            since = time.time() - (time.monotonic() - attempt.began) - job.run_at.timestamp()
            latency.labels(job.kind).observe(max(0.0, since))

    worker.observe(observe)
    made.register(_Counted(worker))
    client.ProcessCollector(registry=made)
    return made


class _Counted:
    """What the worker counts anyway, read when Prometheus asks."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        worker, counts = self._worker, self._worker.counts
        for name, words, value in (
            ("pgqueue_claimed", "Attempts begun by this worker", counts.claimed),
            ("pgqueue_stale_attempts", "Attempts that lost their lease: outcome refused, or stopped", counts.stale),
            ("pgqueue_rescued", "Jobs taken back from workers whose leases ran out", counts.rescued),
            ("pgqueue_expired", "Jobs cancelled because they were not started by their deadline", counts.expired),
            ("pgqueue_cleaned", "Terminal jobs deleted after their TTL", counts.cleaned),
        ):
            yield CounterMetricFamily(name, words, value=value)
        connected = worker.connected()
        yield GaugeMetricFamily("pgqueue_worker_connections", "Database connections held now", value=connected)
        slots = worker.max_concurrent_jobs
        yield GaugeMetricFamily("pgqueue_worker_slots", "Attempts that this process runs at most", value=slots)
        running = GaugeMetricFamily("pgqueue_worker_running", "Attempts running now", labels=["kind"])
        for kind in worker.kinds:
            running.add_metric([kind.name], kind.running)
        yield running
