"""pgmq: its client and the extension's SQL as PyPI's package `pgmq` ships it, which needs no extension.

It has no worker: the loop that its documentation shows, read and delete, in batches.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

import psycopg
from gate import Gate
from pgmq import PGMQueue
from pgmq.install import get_embedded_sql_version, install_pgmq_from_sql

from adapters.base import Payload, Peer, Sizes

BATCH = 1_000
CHUNK = 1_000
LEASE = 60  # seconds, its visibility timeout
SHORT_BATCH = 10  # for a short one: its jobs run one after the other and must be done by then


class Pgmq(Peer):
    package = "pgmq"
    sizes = Sizes(push=1_500, push_many=60_000, drain=60_000, deep=20_000)
    configuration = (
        f"PGMQueue on one autocommit connection, SQL {get_embedded_sql_version()}; send_batch of {CHUNK:,}; "
        f"loop of read({BATCH:,}) and delete_batch, vt={LEASE}"
    )
    recovery = f"built in: the visibility timeout `vt` of read, here with read({SHORT_BATCH}) (pgmq's README)"
    tables = "pgmq.q_jobs"
    counting = "SELECT count(*), NULL FROM pgmq.q_jobs"

    def open(self) -> None:
        super().open()
        install_pgmq_from_sql(dsn=self.dsn)
        self.queue = self.client()
        self.queue.create_queue("jobs")
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def client(self) -> PGMQueue:
        return PGMQueue(conn_string=self.dsn, init_extension=False)

    def close(self) -> None:
        self.queue.close()
        self.connection.close()
        super().close()

    # With a connection given, a call is one statement; without, the client adds BEGIN, COMMIT and a pool.

    def push(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.queue.send("jobs", payload, conn=self.connection)

    def push_many(self, payloads: Sequence[Payload]) -> None:
        for start in range(0, len(payloads), CHUNK):
            self.queue.send_batch("jobs", list(payloads[start : start + CHUNK]), conn=self.connection)

    def run_worker(self, gate: Gate, lease: int | None = None) -> None:
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        queue = self.client()
        vt, qty = (LEASE, BATCH) if lease is None else (lease, SHORT_BATCH)
        gate.cross()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not stopped:
                jobs = queue.read("jobs", vt=vt, qty=qty, conn=connection)
                for job in jobs:
                    gate.handle_blocking(job.message)
                if jobs:
                    queue.delete_batch("jobs", [job.msg_id for job in jobs], conn=connection)
                else:
                    time.sleep(0.01)
        queue.close()
