"""A watchdog cleans up when this process is gone, however it went (SIGKILL included).

Used by `server` and `containers` for what must not outlive them. The watchdog is a process of its own that
reads lines from a pipe; end of file means that the owner is gone. Works on Linux and macOS. PR_SET_PDEATHSIG
was rejected: Linux only, reset by a change of user, and it fires when the starting *thread* ends.
"""

# ruff: noqa: S603 - runs the programs its two callers name, without a shell

import contextlib
import os
import subprocess
from collections.abc import Sequence


class Watchdog:
    """Runs `command` at once with a pipe as its standard input; it is to do its work at end of file."""

    def __init__(self, command: Sequence[str]) -> None:
        reading, self._pipe = os.pipe()  # not inherited by programs that are started later
        try:
            # Its own session: a Ctrl-C in the terminal must not end it before us.
            self._process = subprocess.Popen(command, stdin=reading, start_new_session=True)
        finally:
            os.close(reading)
        self._owner = os.getpid()
        self._closed = False

    @property
    def ours(self) -> bool:
        """Whether this process is the owner: a forked child has a copy and must leave things alone."""
        return not self._closed and os.getpid() == self._owner

    def tell(self, line: str) -> None:
        """Send one line, e.g. what there is to clean up from now on."""
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: the owner's own cleanup remains
            os.write(self._pipe, f"{line}\n".encode())

    def close(self) -> None:
        """Let it do its work and wait for it."""
        if self.ours:
            self._closed = True
            os.close(self._pipe)
            self._process.wait()
