"""Samples the server once a second while a load run goes on, into samples.csv.

Each row: depth by status, dead tuples, sizes, the age of the oldest snapshot, wait events, WAL written,
connections with their limit and by application, processor use of this machine; what has names is JSON. Called
by the load run, in a thread of its own over a connection of its own; a sample that fails is counted and the
next one reconnects, so a server that goes away leaves a gap and not the end of the record.
"""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import psycopg

# The active states and `failed` are counted through their partial indexes, so a sample stays cheap over a
# million finished jobs; those are what the statistics say, less the active ones. The sampler's own connection is not
# counted; the limit is of ordinary roles (see connections.py).
SAMPLE = """
WITH jobs AS (
    SELECT (SELECT count(*) FROM pgqueue_jobs WHERE status = 'pending') AS pending,
           (SELECT count(*) FROM pgqueue_jobs WHERE status = 'blocked') AS blocked,
           (SELECT count(*) FROM pgqueue_jobs WHERE status = 'running') AS running,
           (SELECT count(*) FROM pgqueue_jobs WHERE status = 'failed') AS failed
), activity AS (
    SELECT * FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
)
SELECT pending, blocked, running, failed,
       greatest(0, s.n_live_tup - pending - blocked - running - failed) AS finished_estimate,
       s.n_dead_tup AS dead_tuples,
       pg_table_size(s.relid) AS table_bytes,
       pg_indexes_size(s.relid) AS index_bytes,
       (SELECT max(age(backend_xmin)) FROM pg_stat_activity) AS xmin_age,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal_bytes,
       (SELECT count(*) FROM activity) AS connections,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true), '0')::int AS connection_limit,
       (SELECT jsonb_object_agg(name, n)
          FROM (SELECT coalesce(nullif(application_name, ''), 'unnamed') AS name, count(*) AS n
                FROM activity GROUP BY 1) a)::text AS by_application,
       (SELECT jsonb_object_agg(event, n)
          FROM (SELECT coalesce(wait_event_type || ':' || wait_event, 'running') AS event, count(*) AS n
                FROM activity WHERE state = 'active' GROUP BY 1) w)::text AS wait_events
FROM jobs, pg_stat_user_tables s
WHERE s.relid = 'pgqueue_jobs'::regclass
"""

COLUMNS = (
    "t", "pending", "blocked", "running", "failed", "finished_estimate", "dead_tuples", "table_bytes",
    "index_bytes", "xmin_age", "wal_bytes", "connections", "connection_limit", "by_application", "wait_events",
    "machine_cpu_percent", "worker_rss_bytes", "sample_ms",
)  # fmt: skip


class Sampler:
    """Takes samples between `start` and `stop`. `samples` are rows as in the file, `t` in seconds from
    `origin`.

    `connect` opens the connection, in the schema that has the queue; `processes` gives the ids of the processes whose
    memory is recorded. WAL counts from the first sample.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        path: Path,
        *,
        interval: float = 1.0,
        origin: float | None = None,
        processes: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.samples: list[dict[str, Any]] = []
        self.failures = 0
        self.origin = time.monotonic() if origin is None else origin
        self._connect = connect
        self._path = path
        self._interval = interval
        self._processes = processes
        self._connection: psycopg.Connection[Any] | None = None
        self._first_wal: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until the file is complete."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            psutil.cpu_percent()  # the first call only sets the mark that the next one measures from
            due = time.monotonic()
            while not self._stop.is_set():
                if (row := self._sample()) is not None:
                    self.samples.append(row)
                    writer.writerow(row)
                    file.flush()
                due = max(due + self._interval, time.monotonic())  # after a stall go on, do not catch up
                self._stop.wait(due - time.monotonic())
        if self._connection is not None:
            self._connection.close()

    def _sample(self) -> dict[str, Any] | None:
        began = time.monotonic()
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            cursor = self._connection.execute(SAMPLE)
            values = cursor.fetchone()
        except Exception:  # noqa: BLE001  # whatever fails, driver or queue error, is a gap in the record
            self.failures += 1
            return None
        if values is None:
            self.failures += 1
            return None
        names = [column.name for column in cursor.description or ()]
        row = dict(zip(names, values, strict=True))
        self._first_wal = row["wal_bytes"] if self._first_wal is None else self._first_wal
        row["wal_bytes"] -= self._first_wal
        row["t"] = round(began - self.origin, 3)
        row["machine_cpu_percent"] = psutil.cpu_percent()
        row["worker_rss_bytes"] = sum(map(_resident, self._processes()))
        row["sample_ms"] = round((time.monotonic() - began) * 1000, 2)
        return row


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it ended meanwhile
        return 0
