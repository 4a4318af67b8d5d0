"""Pushes the jobs of a chaos run at a steady rate and records each batch in the ledger, in one transaction with it.

The server goes away under it. It then asks the ledger whether the batch was committed, and pushes it again if not.
"""

from __future__ import annotations

import random
import threading
import time

import psycopg

from pgqueue_ref.core import NewJob, Queue, QueueError
from pgqueue_ref.harness import ledger

KIND = "chaos"
BATCH = 100
LONGEST = 0.02  # seconds that a job takes
FAILING = 0.02  # the share of jobs whose first attempt fails


class Pusher(threading.Thread):
    """Pushes `jobs` jobs, `rate` a second where the server takes so many. `pushed` counts the committed ones."""

    def __init__(self, dsn: str, jobs: int, rate: float, seed: int) -> None:
        super().__init__(name="pusher", daemon=True)
        self.pushed, self.repeated = 0, 0
        self._dsn, self._jobs, self._rate = dsn, jobs, rate
        self._random = random.Random(seed)
        self._over = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while self.pushed < self._jobs and not self._over.wait(began + self.pushed / self._rate - time.monotonic()):
            numbers = range(self.pushed, min(self.pushed + BATCH, self._jobs))
            self._push([self._job(number) for number in numbers])
            self.pushed = numbers.stop

    def stop(self) -> None:
        """Push no more."""
        self._over.set()
        self.join()

    def _job(self, number: int) -> NewJob:
        payload = {"seconds": self._random.uniform(0, LONGEST), "fails": self._random.random() < FAILING}
        return NewJob(KIND, payload, key=f"{number:08}")

    def _push(self, jobs: list[NewJob]) -> None:
        keys = [str(job.key) for job in jobs]
        while True:
            try:
                with psycopg.connect(self._dsn, connect_timeout=10, application_name="chaos pusher") as connection:
                    if not ledger.committed(connection, keys):
                        ids = [pushed.id for pushed in Queue(connection).push_many(jobs)]
                        ledger.record_pushes(connection, keys, ids, KIND)
            except (QueueError, psycopg.Error):
                self.repeated += 1
                if self._over.wait(0.1):
                    return
            else:
                return
