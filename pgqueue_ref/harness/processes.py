"""Workers and the API under test as operating-system processes, started through the command line.

Nothing here imports them: what is measured is what a user starts. Called by the load run. Each is in a session of
its own, so that Ctrl-C at the terminal reaches the load run alone, which then stops them in order.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

P = TypeVar("P", bound="Process")

GRACE = 5.0  # seconds that attempts may go on after SIGTERM; after a full drain there are none


@dataclass(slots=True)
class Process:
    """A command that runs: its process, and the file that has what it wrote."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    excused: bool = False  # its end is part of the run

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def died(self) -> str | None:
        """One line when it ended unasked, None while it runs."""
        code = self.process.poll()
        if code is None or self.excused:
            return None
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}: {self._last_words()} (see {self.log})"

    def ask_to_stop(self) -> None:
        """SIGTERM, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, patience: float, *, drained: bool) -> str | None:
        """Wait `patience` seconds for its end, then SIGKILL. One line if it did not end cleanly, else None.

        A worker ends with 1 when it had to put attempts back, which is clean unless there was none left to
        run.
        """
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not stop within {patience:g} s of SIGTERM and was killed (see {self.log})"
        return None if code == 0 or (code == 1 and not drained) else self.died()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it wrote nothing"


class WorkerProcess(Process):
    """One worker."""

    __slots__ = ()

    @property
    def started(self) -> bool:
        """Whether it has connected and said so; from then on it waits for a database that goes away."""
        return b": queues " in self.log.read_bytes()


class ApiProcess(Process):
    """One server of the REST API."""

    __slots__ = ()

    @property
    def address(self) -> str | None:
        """Where it serves, once it says so."""
        said = re.search(rb"serving at (http://[^,\s]+)", self.log.read_bytes())
        return said[1].decode() if said else None


def start_worker(
    number: int, *, app: str, root: Path, logs: Path, environment: Mapping[str, str], options: Sequence[str] = ()
) -> WorkerProcess:
    """Start a worker on the handlers of `app` (`module:kinds`, importable from `root`) with these further options.

    `environment` is added to this process's own; it carries the database URL, so that no password is on a
    command line. It is killed at the latest when this process exits.
    """
    arguments = ["worker", "--app", app, "--grace", str(GRACE), *options]
    return _start(WorkerProcess, f"worker {number}", arguments, root, logs, environment)


def start_api(
    number: int, *, root: Path, logs: Path, environment: Mapping[str, str], options: Sequence[str] = ()
) -> ApiProcess:
    """Start the REST API with these options; `environment` as of `start_worker`, with the tokens as well."""
    return _start(ApiProcess, f"api {number}", ["api", *options], root, logs, environment)


def _start(
    kind: type[P], name: str, arguments: Sequence[str], root: Path, logs: Path, environment: Mapping[str, str]
) -> P:
    log = logs / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command line, no shell
            [sys.executable, "-m", "pgqueue_ref", *arguments],
            cwd=root,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = kind(name, process, log)
    atexit.register(started.kill)
    return started
