from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.ledger import Connection
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

FLOOR = 100.0  # ms; a start p99 below it differs by noise only
SLICES = 60  # points of the plots of this scenario


class Soak(Scenario):
    """Hours of ordinary load: what the queue takes per job, its tables and its workers stay as they are.

    The size of the job table with its indexes comes to a plateau, WAL per job, the workers' memory and start latency
    stay flat. Finished jobs are kept for `ttl` seconds, or the table would rightly grow for a day. The first thirds
    are what the last ones are compared with; sizes, which start from nothing, are compared with the middle third.
    """

    name = "soak"
    # Autovacuum looks once a minute, which is all that the quick profile takes: it vacuums itself, as it needs.
    quick = {"seconds": 60.0, "vacuum_every": 5.0, "ttl": 2.0}
    positive = (*Scenario.positive, "seconds", "rate")
    seconds = 3_600.0
    rate = 60.0  # jobs/s
    service = "lognormal:0.05:4"  # seconds; see harness.scenario.service
    ttl = 60.0  # seconds that finished jobs are kept
    vacuum_every = 0.0  # seconds; 0: vacuuming is autovacuum's business

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.environment = {"PGQUEUE_LOADTEST_TTL": str(self.ttl)}

    def play(self, run: LoadRun) -> None:
        vacuuming = run.watching(vacuum, every=self.vacuum_every) if self.vacuum_every else contextlib.nullcontext()
        with vacuuming:
            run.offer(poisson(self.rate, self.seconds, service(self.service, self.random), self.random), "soak")

    def judge(self, run: LoadRun) -> None:
        start, end = run.measured.loaded
        samples = [row for row in run.measured.samples if start <= row["t"] <= end]
        first, middle, last = thirds(samples, start, end)
        run.found(
            "samples_per_third", min(map(len, (first, middle, last))), "samples", "that medians rest on, at least"
        )
        sizes = [[row["table_bytes"] + row["index_bytes"] for row in part] for part in (middle, last)]
        run.found("size_ratio", ratio(*sizes), "", "table and indexes, median of the last third over the middle third")
        run.found("size_mib", sizes[1] and statistics.median(sizes[1]) / 2**20, "MiB", "table and indexes, last third")
        memory = [[row["worker_rss_bytes"] for row in part] for part in (first, last)]
        run.found("memory_ratio", ratio(*memory), "", "of the workers, median of the last third over the first")
        wal = [self._wal_per_job(run, part) for part in (first, last)]
        run.found("wal_per_job", wal[1], "bytes", "of the whole server, last third")
        run.found("wal_ratio", wal[0] and wal[1] and wal[1] / wal[0], "", "WAL per job, last third over first")
        self._judge_latency(run, start, end)
        self._draw(run, samples)

    def _judge_latency(self, run: LoadRun, start: float, end: float) -> None:
        parts = [Latencies("third", self.window) for _ in range(3)]
        for at, latency, _ in run.measured.latencies:
            parts[min(2, int(3 * (at - start) / (end - start)))].record(at, latency)
        first, last = parts[0].summary()["p99_ms"], parts[2].summary()["p99_ms"]
        grown = None if first is None or last is None else max(FLOOR, last) / max(FLOOR, first)
        run.found(
            "start_p99_ratio", grown, "", f"last third over first, where anything below {FLOOR:g} ms counts as that"
        )

    def _wal_per_job(self, run: LoadRun, part: Sequence[dict[str, Any]]) -> float | None:
        """WAL written between the first and the last sample, over the jobs that finished meanwhile."""
        if len(part) < 2:
            return None
        start, end = part[0]["t"], part[-1]["t"]
        finished = sum(start <= at + took < end for at, _, took in run.measured.latencies)
        return (part[-1]["wal_bytes"] - part[0]["wal_bytes"]) / finished if finished else None

    def _draw(self, run: LoadRun, samples: Sequence[dict[str, Any]]) -> None:
        mib = 2**20
        table = [(row["t"], row["table_bytes"] / mib) for row in samples]
        indexes = [(row["t"], row["index_bytes"] / mib) for row in samples]
        run.plot("Size of the job table", "MiB", {"table": table, "indexes": indexes})
        memory = [(row["t"], row["worker_rss_bytes"] / mib) for row in samples]
        run.plot("Memory of the workers", "MiB", {"resident, all together": memory})
        step = max(1, len(samples) // SLICES)
        slices = [samples[n : n + step + 1] for n in range(0, len(samples) - step, step)]
        wal = [(part[0]["t"], self._wal_per_job(run, part)) for part in slices]
        run.plot(
            "WAL per job", "bytes", {"WAL over finished jobs": wal}, note="Of the whole server, the ledger included."
        )


def vacuum(connection: Connection) -> None:
    connection.execute("VACUUM pgqueue_jobs")


def thirds(samples: Sequence[dict[str, Any]], start: float, end: float) -> list[list[dict[str, Any]]]:
    """The samples of each third of the time from `start` to `end`; `t` of each in seconds."""
    parts: list[list[dict[str, Any]]] = [[], [], []]
    for row in samples:
        parts[min(2, int(3 * (row["t"] - start) / (end - start)))].append(row)
    return parts


def ratio(before: Sequence[float], after: Sequence[float]) -> float | None:
    """The median after over the median before; None without samples or when it was 0."""
    if not before or not after or not statistics.median(before):
        return None
    return statistics.median(after) / statistics.median(before)
