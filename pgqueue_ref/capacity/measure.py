"""Measure what a server and one worker can do, in a schema of its own that is dropped at the end.

Costs of push, claim and completion by batch size, medians of interleaved rounds; how fast an idle worker picks a job
up; how many connections a worker holds; how throughput grows from one worker to several. Workers are processes started
through the command line, as users start them. Called by the command line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from pgqueue_ref.capacity import CapacityError
from pgqueue_ref.capacity.measurement import Measurement
from pgqueue_ref.capacity.service import Service
from pgqueue_ref.core import SCHEMA_SQL, NewJob, Queue, Want, connect
from pgqueue_ref.harness import manifest
from pgqueue_ref.harness.connections import Slots
from pgqueue_ref.harness.processes import WorkerProcess, start_worker
from pgqueue_ref.harness.server import Server

Connection = psycopg.Connection[Any]
Say = Callable[[str], None]

BATCHES = (1, 10, 100, 500)
ROUNDS = 7  # of each batch size, taken in turns
PICKUPS = 100
APP = "pgqueue_ref.capacity.handlers:kinds"
KIND = "nothing"
PATIENCE = 120.0  # seconds that workers may take for anything

# From the push to the start of the attempt by the server's clock: both are now() of their transactions.
PICKED_UP = """
SELECT extract(epoch FROM started_at - created_at)::float8 FROM pgqueue_jobs WHERE id = ANY(%s) ORDER BY 1
"""
# How fast jobs ended between the first tenth of them and the last: without start-up and the last, slow few.
DRAINED = """
SELECT count(*) / greatest(extract(epoch FROM max(finished_at) - min(finished_at)), 1e-3)::float8 FROM (
    SELECT finished_at, ntile(10) OVER (ORDER BY finished_at) AS tenth FROM pgqueue_jobs WHERE status = 'succeeded'
) AS ended WHERE tenth BETWEEN 2 AND 9
"""
ACTIVE = "SELECT count(*) FROM pgqueue_jobs WHERE status IN ('pending', 'running')"
HELD = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'pgqueue_ref:%%' AND client_port = ANY(%s)
"""


def measure(server: Server, service: Service, *, workers: int = 4, slots: int = 100, jobs: int = 20_000,
            say: Say = lambda line: None) -> Measurement:  # fmt: skip
    """Measure; takes about a minute. `workers` is up to how many, `jobs` how many each number of them drains.

    Raises `CapacityError`, `QueueError` or `psycopg.Error`.
    """
    if min(workers, slots) < 1 or jobs < 1_000:
        raise CapacityError("at least 1 worker, 1 slot and 1,000 jobs are needed to measure anything")
    with _schema(server) as (schema, connection), tempfile.TemporaryDirectory() as logs:
        facts = manifest.server_facts(connection, server.describe())
        available = Slots.read(connection)
        say(f"measuring {server.describe()}, in schema {schema}")
        costs = _costs(connection)
        say(f"push {costs['push'][1] * 1e3:.2f} ms, claim {costs['claim'][1] * 1e3:.2f} ms, one at a time")
        crew = _Crew(server, schema, Path(logs), slots)
        try:
            crew.start()
            pickup, held = _pickup(connection, crew), crew.connections(connection)
            say(f"pickup p50 {statistics.median(pickup) * 1e3:.1f} ms; {held} connections for each worker")
            scaling = {}
            for number in range(1, workers + 1):
                while len(crew.workers) < number:
                    crew.start()
                scaling[number] = _drain(connection, crew, jobs)
                say(f"{number} workers: {scaling[number]:,.0f} jobs/s")
        finally:
            crew.stop()
    return Measurement(
        server=facts,
        machine=manifest.machine(),
        versions=manifest.versions(),
        command=manifest.command(),
        slots=slots,
        connections_per_worker=held,
        max_connections=available.max_connections,
        reserved=available.reserved,
        others=max(0, available.used - 1),
        push_by_batch=costs["push"],
        claim_by_batch=costs["claim"],
        complete_by_batch=costs["complete"],
        claim=costs["claims"],
        pickup=pickup,
        scaling=scaling,
        service=service,
    )


@contextlib.contextmanager
def _schema(server: Server) -> Iterator[tuple[str, Connection]]:
    """A schema with the queue's tables, and a connection in it."""
    schema = f"pgqueue_capacity_{secrets.token_hex(6)}"
    with connect(server.dsn, schema=schema, application_name="capacity", statement_timeout_ms=0) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        try:
            connection.execute(SCHEMA_SQL.encode())
            yield schema, connection
        finally:
            connection.execute("SET client_min_messages = warning")
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _costs(connection: Connection) -> dict[str, Any]:
    """Seconds for each job, by what is done and batch size; and each claim of one job."""
    queue = Queue(connection)
    seen: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(ROUNDS):
        for batch in BATCHES:
            for what, seconds in _round(queue, batch).items():
                seen[what][batch].append(seconds / batch)
    medians: dict[str, Any] = {
        what: {batch: statistics.median(times) for batch, times in by_batch.items()} for what, by_batch in seen.items()
    }
    return medians | {"claims": sorted(seen["claim"][1])}


def _round(queue: Queue, batch: int) -> dict[str, float]:
    """Push, claim and complete so many jobs, with one statement each; seconds."""
    jobs = [NewJob(KIND, {"n": n}, queue="costs") for n in range(batch)]
    marks = [time.perf_counter()]
    if batch == 1:
        queue.push(KIND, {"n": 0}, queue="costs")
    else:
        queue.push_many(jobs)
    marks.append(time.perf_counter())
    claimed = queue.claim([Want(KIND, batch, queue="costs")], worker="capacity")
    marks.append(time.perf_counter())
    queue.complete_many(claimed)
    marks.append(time.perf_counter())
    return {what: marks[n + 1] - marks[n] for n, what in enumerate(("push", "claim", "complete"))}


class _Crew:
    """Worker processes of a measurement."""

    def __init__(self, server: Server, schema: str, logs: Path, slots: int) -> None:
        self.workers: list[WorkerProcess] = []
        self._logs = logs
        self._environment = {"PGQUEUE_DATABASE_URL": server.dsn, "PGQUEUE_SCHEMA": schema}
        self._slots = slots

    def start(self) -> None:
        """Start one more."""
        number = len(self.workers) + 1
        options = ("--max-concurrent-jobs", str(self._slots), "--name", f"worker-{number}")
        root = Path(os.curdir).resolve()
        environment = self._environment
        self.workers.append(
            start_worker(number, app=APP, root=root, logs=self._logs, environment=environment, options=options)
        )

    def check(self) -> None:
        """Raise when one died."""
        for worker in self.workers:
            if (line := worker.died()) is not None:
                raise CapacityError(line)

    def connections(self, connection: Connection) -> int:
        """How many the first holds."""
        ports = [c.laddr.port for c in psutil.Process(self.workers[0].pid).net_connections("tcp")]
        (held,) = connection.execute(HELD, (ports,)).fetchone() or (0,)
        if not held:
            raise CapacityError("the worker's connections cannot be counted: it must connect over TCP")
        return int(held)

    def stop(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.ask_to_stop()
        for worker in self.workers:
            worker.wait(10.0, drained=False)


def _pickup(connection: Connection, crew: _Crew) -> Sequence[float]:
    """Seconds from push to start with everybody idle, ascending."""
    queue, ids = Queue(connection), []
    queue.push(KIND)  # the first waits for the worker to start
    _wait(connection, crew)
    for _ in range(PICKUPS):
        ids.append(queue.push(KIND).id)
        _wait(connection, crew)
        time.sleep(0.05)  # longer than a worker stays awake after its last job
    return [seconds for (seconds,) in connection.execute(PICKED_UP, (ids,))]


def _drain(connection: Connection, crew: _Crew, jobs: int) -> float:
    """Jobs a second that the workers end, with handlers that do nothing."""
    queue = Queue(connection)
    connection.execute("TRUNCATE pgqueue_jobs")
    queue.pause("default")
    queue.push_many([NewJob(KIND, {"n": n}) for n in range(jobs)])
    connection.execute("VACUUM ANALYZE pgqueue_jobs")
    queue.resume("default")
    _wait(connection, crew)
    (rate,) = connection.execute(DRAINED).fetchone() or (0.0,)
    return float(rate)


def _wait(connection: Connection, crew: _Crew) -> None:
    """Until no job is left."""
    deadline = time.monotonic() + PATIENCE
    while connection.execute(ACTIVE).fetchone() != (0,):
        crew.check()
        if time.monotonic() > deadline:
            raise CapacityError(f"the workers did not finish within {PATIENCE:g} s")
        time.sleep(0.005)
