"""This project's queue: `Queue` to push, the command line's `worker` to run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gate import Gate

from adapters.base import Payload, Peer, Sizes
from pgqueue_ref.core import NewJob, Queue
from pgqueue_ref.core.connect import install

SLOTS = 1_000


class Ours(Peer):
    package = "pgqueue-ref"
    sizes = Sizes(push=2_000, push_many=60_000, drain=60_000, deep=20_000)
    configuration = (
        f"Queue on one autocommit connection; push_many in its chunks of 5,000; "
        f"`worker --max-concurrent-jobs {SLOTS}`, LISTEN on, terminal_ttl=0"
    )
    recovery = "built in: `worker --lease` (README.md)"
    tables = "pgqueue_jobs"
    counting = "SELECT count(*), NULL FROM pgqueue_jobs"

    def open(self) -> None:
        super().open()
        install(self.admin)
        self.queue = Queue.connect(self.dsn)

    def close(self) -> None:
        self.queue.connection.close()
        super().close()

    def push(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.queue.push("noop", payload)

    def push_many(self, payloads: Sequence[Payload]) -> None:
        self.queue.push_many(NewJob("noop", payload) for payload in payloads)

    def run_worker(self, gate: Gate, lease: int | None = None) -> None:
        raise NotImplementedError("our worker is started by the command line, with the kinds of handlers.py")

    def worker_command(self, lease: int | None = None) -> list[str]:
        command = [sys.executable, "-m", "pgqueue_ref", "worker", "--app", "handlers:kinds"]
        command += ["--max-concurrent-jobs", str(SLOTS)]
        return command if lease is None else [*command, "--lease", str(lease)]
