"""Worker processes of a queue under comparison, and waiting for what they do. Used by the scenarios."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters import Peer
from gate import PATH, RUN, SLOT, Gates

HERE = Path(__file__).parent
START_SECONDS, DRAIN_SECONDS, STOP_SECONDS = 30.0, 60.0, 5.0
POLL = 0.002


class WrongError(Exception):
    """A measurement that did not do what it claims to have measured."""


class Fleet:
    """The workers of one measurement, waiting at their gates when it is handed out."""

    def __init__(self, gates: Gates, log: Path) -> None:
        self.gates = gates
        self._log = log
        self._processes: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()

    def start(self, peer: Peer, processes: int, lease: int | None) -> None:
        shared = {"PGQUEUE_DATABASE_URL": peer.dsn, PATH: str(self.gates.path), RUN: str(os.getpid())}
        with self._log.open("ab") as output:
            for slot in range(processes):
                worker = subprocess.Popen(
                    peer.worker_command(lease), cwd=HERE, env={**os.environ, **shared, SLOT: str(slot)},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self._processes.append(worker)

    def check(self) -> None:
        """Raises WrongError when a worker has ended that nobody killed."""
        for slot, worker in enumerate(self._processes):
            if slot not in self._killed and worker.poll() is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise WrongError(f"a worker process ended: {lines[-1] if lines else 'it wrote nothing'}")

    def kill(self, slot: int) -> None:
        """SIGKILL, and wait until it is gone."""
        self._killed.add(slot)
        self._processes[slot].kill()
        self._processes[slot].wait()

    def stop(self) -> None:
        for worker in self._processes:
            worker.terminate()
        for worker in self._processes:
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # what was to be measured is over
                worker.kill()
                worker.wait()

    def until(
        self,
        condition: Callable[[], bool],
        patience: float,
        complaint: str,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Wait for a condition, doing something else at each turn; raises WrongError."""
        deadline = time.monotonic() + patience
        while not condition():
            if meanwhile:
                meanwhile()
            self.check()
            if time.monotonic() > deadline:
                raise WrongError(f"{complaint} within {patience:g} s")
            time.sleep(POLL)


@contextlib.contextmanager
def fleet(peer: Peer, processes: int, jobs: int, lease: int | None = None) -> Iterator[Fleet]:
    """Workers that have imported everything; they are ended at exit. `jobs` is how many they will see at most."""
    with tempfile.TemporaryDirectory(prefix="pgq-peers-") as scratch:
        # Twice, and some: a queue that runs a job twice is to be caught, not to break its own handlers.
        gates = Gates(Path(scratch, "gate"), processes, 2 * jobs + 1_000)
        workers = Fleet(gates, Path(scratch, "log"))
        try:
            workers.start(peer, processes, lease)
            yield workers
        finally:
            workers.stop()
