"""No queue at all: the fastest that psycopg and PostgreSQL do on a narrow table, as the line to hold the others to.

It has no kinds, attempts, leases or retries: a batch is locked, handled and deleted in one transaction.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence

import psycopg
from gate import Gate

from adapters.base import Payload, Peer, Sizes

CHUNK = 5_000
CREATE = (
    "CREATE TABLE IF NOT EXISTS bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb NOT NULL)"
    " WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)"
)
PUSH = "INSERT INTO bare (payload) VALUES (%s) RETURNING id"
PUSH_MANY = "INSERT INTO bare (payload) SELECT payload::jsonb FROM unnest(%s::text[]) AS new (payload) RETURNING id"
CLAIM = "SELECT id, payload FROM bare ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
DONE = "DELETE FROM bare WHERE id = ANY (%s)"


class Bare(Peer):
    package = "psycopg"
    without = dict.fromkeys(
        ("drain under arrivals", "steady", "depth", "pinned xmin", "fault"), "no queue, only a floor to the rates"
    )
    sizes = Sizes(push=2_000, push_many=100_000, drain=100_000)
    tables = "bare"
    counting = "SELECT count(*), NULL FROM bare"

    def __init__(self, name: str, dsn: str, batch: int) -> None:
        super().__init__(name, dsn)
        self.batch = batch
        self.configuration = (
            f"no queue: SELECT {batch:,} FOR UPDATE SKIP LOCKED and DELETE in one transaction, table (id, payload); "
            f"unnest INSERT of {CHUNK:,}"
        )

    def open(self) -> None:
        super().open()
        self.admin.execute(CREATE)
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def close(self) -> None:
        self.connection.close()
        super().close()

    def push(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.connection.execute(PUSH, [json.dumps(payload)]).fetchone()

    def push_many(self, payloads: Sequence[Payload]) -> None:
        for start in range(0, len(payloads), CHUNK):
            chunk = [json.dumps(payload) for payload in payloads[start : start + CHUNK]]
            self.connection.execute(PUSH_MANY, [chunk]).fetchall()

    def run_worker(self, gate: Gate, lease: int | None = None) -> None:  # noqa: ARG002, RUF100 - none to set
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        gate.cross()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not stopped:
                with connection.transaction():
                    jobs = connection.execute(CLAIM, [self.batch]).fetchall()
                    for _, payload in jobs:
                        gate.handle_blocking(payload)
                    if jobs:
                        connection.execute(DONE, [[id_ for id_, _ in jobs]])
                if not jobs:
                    time.sleep(0.01)
