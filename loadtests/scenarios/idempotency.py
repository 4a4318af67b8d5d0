from __future__ import annotations

import time
from collections import defaultdict

from pgqueue_ref.core import DatabaseUnavailable, Pushed, Queue
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario

ROWS = "SELECT external_key, count(*) FROM pgqueue_jobs WHERE external_key LIKE 'key-%' GROUP BY 1"
# One of the pushers' connections, while its statement or commit may be under way.
CUT = "SELECT pg_terminate_backend(%s)"
PAUSE = 0.01  # seconds before a pusher that was cut connects again


class Idempotency(Scenario):
    """Many producers push the same keys at the same moment, while connections are cut and workers die.

    Whoever pushes, and however often it does not learn how its commit ended: one row per key, one id for everybody, and
    the job is done once unless the death of a worker explains more. Keys come at equal distances, so that the faults
    find pushers at work however fast the machine is.
    """

    name = "idempotency"
    quick = {"seconds": 25.0, "keys": 1_000}
    positive = (*Scenario.positive, "seconds", "keys", "pushers")
    seconds = 300.0
    keys = 12_000
    pushers = 16  # connections, each pushing every key when it comes
    cut_every = 0.2  # seconds between two connections cut
    service = 0.01  # seconds
    producers = 1  # of Locust's own, idle here
    faults = "kill-worker@8s,kill-worker@16s"

    def play(self, run: LoadRun) -> None:
        self._ids: dict[str, set[int]] = defaultdict(set)
        self._answers = self._created = self._cuts = 0
        self._backends: dict[int, int] = {}
        began = time.monotonic()
        with run.phase("pushing"), run.watching(self._cut, every=self.cut_every):
            pushers = [run.spawn(self._push_all, run, number, began) for number in range(self.pushers)]
            for pusher in pushers:
                pusher.join()

    def _push_all(self, run: LoadRun, pusher: int, began: float) -> None:
        connection = None
        for number in range(self.keys):
            key, intended = f"key-{number}", began + number * self.seconds / self.keys
            time.sleep(max(0.0, intended - time.monotonic()))
            while True:
                run.check()
                try:
                    if connection is None or connection.closed:
                        connection = run.connect("loadtest pusher")
                        self._backends[pusher] = connection.info.backend_pid
                    pushed = self._push(connection, key)
                except DatabaseUnavailable:
                    time.sleep(PAUSE)
                    continue  # cut: it does not know how its commit ended, and pushes again
                run.tell("job", time.monotonic() - intended, None)
                self._ids[key].add(pushed.id)
                self._answers += 1
                break
        if connection is not None:
            connection.close()

    def _push(self, connection: ledger.Connection, key: str) -> Pushed:
        with ledger.translated(), connection.transaction():
            pushed = Queue(connection).push("job", {"service_seconds": self.service}, key=key)
            if pushed.created:
                ledger.record_pushes(connection, [key], [pushed.id], "job")
        self._created += pushed.created
        return pushed

    def _cut(self, connection: ledger.Connection) -> None:
        if backends := list(self._backends.values()):
            (cut,) = connection.execute(CUT, (self.random.choice(backends),)).fetchone() or (False,)
            self._cuts += cut

    def judge(self, run: LoadRun) -> None:
        with run.connect("loadtest idempotency") as connection:
            rows = dict(connection.execute(ROWS).fetchall())
        several_ids = sum(len(ids) > 1 for ids in self._ids.values())
        run.found("answers", self._answers, "pushes", f"that were answered, {self.pushers} for each key")
        run.found("cuts", self._cuts, "connections", "cut while they pushed")
        run.found("keys_missing", self.keys - len(rows), "keys", "that were pushed and have no row")
        run.found("keys_with_several_rows", sum(count > 1 for count in rows.values()), "keys", "")
        run.found("keys_with_several_ids", several_ids, "keys", "whose pushers were told different jobs")
        # A commit that was cut may have been durable: then nobody was told `created`. More than one is the fault.
        run.found(
            "created_too_often", max(0, self._created - self.keys), "answers", "of `created` beyond one for each key"
        )
