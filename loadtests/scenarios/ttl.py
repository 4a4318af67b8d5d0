from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pgqueue_ref.harness.ledger import Connection
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

CHORES = 5.0  # seconds between two questions for maintenance of one worker (worker.CHORE_INTERVAL)
CLEANING = 1.0  # seconds that a worker may take to delete what it found due, with endings written in between
FLOOR = 100.0  # ms; a start p99 below it differs by noise only
VERSIONS = 3  # of a row between its push and its end: pushed, running, succeeded

# Rows that are finished and due at one moment, as after a busy hour. No worker ran them, no producer pushed them.
BACKLOG = """
INSERT INTO pgqueue_jobs (kind, status, attempt, started_at, finished_at, delete_after, payload)
SELECT 'job', 'succeeded', 1, now(), now(), now() + make_interval(secs => %(due)s), '{"service_seconds": 0}'
FROM generate_series(1, %(rows)s)
"""

LOOK = """
SELECT count(*) FILTER (WHERE status = 'succeeded' AND external_key IS NOT NULL),
       count(*) FILTER (WHERE status = 'succeeded' AND external_key IS NULL),
       coalesce(extract(epoch FROM now() - min(delete_after)), 0)::float8, pg_total_relation_size('pgqueue_jobs')
FROM pgqueue_jobs
"""


class Ttl(Scenario):
    """Succeeded jobs stay for `ttl` seconds and are then deleted by the workers, under load that does not stop.

    Three phases: before any row is due; when `backlog` rows that finished long ago fall due at once, beside those of
    the load; and the steady state. The model: a row is deleted at most one chores interval (5 s) after its TTL, so that
    terminal rows never exceed rate x (ttl + 5 s + 1 s for the deletion itself) and four standard deviations of a
    Poisson count; and never fall below rate x ttl less as much, or rows go before their time.
    """

    name = "ttl"
    quick = {"ttl": 12.0, "rate": 100.0, "backlog": 20_000, "heavy": 12.0, "seconds": 24.0}
    positive = (*Scenario.positive, "ttl", "rate", "backlog", "heavy", "seconds")
    ttl = 60.0  # seconds that a succeeded job stays
    rate = 150.0  # jobs/s
    service = "exp:0.02"  # seconds
    backlog = 200_000  # rows that fall due at once
    heavy = 60.0  # seconds of the phase in which they are deleted
    seconds = 300.0  # of the steady state

    def prepare(self, options: Any) -> None:
        self.environment = {"PGQUEUE_LOADTEST_TTL": str(self.ttl)}

    def play(self, run: LoadRun) -> None:
        self._looks: list[tuple[float, int, int, float, int]] = []
        self._before = self.ttl - 2.0  # the first of the load's own rows is due after that
        draw = service(self.service, self.random)
        with run.undisturbed(), run.connect("loadtest backlog", statement_timeout_ms=0) as connection:
            connection.execute(BACKLOG, {"rows": self.backlog, "due": self._before + 1})
            _, rows, _, size = connection.execute(LOOK).fetchone() or (0, 0, 0.0, 0)
            self._bytes_per_row = size / max(1, rows)
            self._vacuum_every = float(
                (
                    connection.execute("SELECT setting FROM pg_settings WHERE name = 'autovacuum_naptime'").fetchone()
                    or "60"
                )[0]
            )

        def look(connection: Connection) -> None:
            """At the whole table: it is small, that is the point."""
            row = connection.execute(LOOK).fetchone()
            if row is not None:
                self._looks.append((run.elapsed(), *row))

        with run.watching(look, every=0.5):
            for name, length in (("nothing due", self._before), ("backlog due", self.heavy), ("steady", self.seconds)):
                run.offer(poisson(self.rate, length, draw, self.random), name)

    def judge(self, run: LoadRun) -> None:
        before, heavy, steady = run.measured.phases
        spread = 4 * math.sqrt(self.rate * (self.ttl + CHORES))
        most = self.rate * (self.ttl + CHORES + CLEANING) + spread
        least = self.rate * self.ttl - spread
        # The first rows of the steady phase finished in it: before, the table may still hold less.
        seen = [look for look in self._looks if steady.at <= look[0] < steady.until]
        rows = [look[1] for look in seen]
        run.found(
            "terminal_rows_max", max(rows, default=None), "rows", f"succeeded jobs in the table; model {most:.0f}"
        )
        run.found(
            "above_model", max(rows, default=0) / most if rows else None, "", "most rows, as a share of the model"
        )
        run.found("below_model", min(rows) / least if rows else None, "", f"fewest rows, as a share of {least:.0f}")
        run.found("looks", len(seen), "", "at the table, in the steady phase")
        late = max((look[3] for look in seen), default=None)
        run.found("overdue_max", late, "s", "longest that a row outlived its TTL in the steady phase")
        self._judge_backlog(run, [look for look in self._looks if look[0] >= heavy.at])
        clean, dirty = run.start_latency(before)["p99_ms"], run.start_latency(heavy)["p99_ms"]
        run.found("start_p99_nothing_due", clean, "ms", "start latency before any row is due")
        run.found("start_p99_backlog_due", dirty, "ms", "start latency while the backlog is deleted")
        ratio = dirty / max(clean, FLOOR) if clean and dirty else None
        run.found(
            "start_p99_ratio", ratio, "", f"cleanup as a multiple of none (taken as {FLOOR:g} ms where it is less)"
        )
        self._size(run, most)

    def _judge_backlog(self, run: LoadRun, looks: Sequence[tuple[float, int, int, float, int]]) -> None:
        """How long the rows that fell due at once were still there; `looks` from then on."""
        due = self._looks[0][0] + self._before + 1 if self._looks else None
        gone = next((look[0] for look in looks if look[2] == 0), None)
        ended = gone if gone is not None else looks[-1][0] if looks else None
        taken = None if ended is None or due is None else ended - due
        words = "until the last of them was deleted" if gone is not None else "in which they were not deleted"
        run.found("backlog_left", looks[-1][2] if looks else None, "rows", f"of {self.backlog} that fell due at once")
        run.found("backlog_gone", taken, "s", words)

    def _size(self, run: LoadRun, most: float) -> None:
        """Bytes: rows of the model, the backlog, and the dead versions between two visits of autovacuum."""
        until = max((look[0] for look in self._looks), default=0.0)
        dead = self.rate * min(until, self._vacuum_every + CHORES) * VERSIONS
        model = self._bytes_per_row * (self.backlog + most + dead)
        size = max((look[4] for look in self._looks), default=None)
        run.found("table_bytes_max", size, "bytes", f"table and indexes; model {model:.3g}")
        run.found("table_bytes_ratio", size / model if size else None, "", "largest, as a share of the model")
        run.plot(
            "Terminal rows", "rows",
            {"of the load": [look[:2] for look in self._looks],
             "backlog": [(look[0], look[2]) for look in self._looks]},
            x="seconds", note=f"The model allows {most:.0f} of the load.",
        )  # fmt: skip
