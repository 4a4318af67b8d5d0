"""Measures this queue against its peers, all in the same run on the same server (`nox -s peers`).

Every queue goes through the same scenarios, through the same four operations of its adapter, in turns within each
scenario of each round, so that a disturbance meets all of them; what is compared are medians over the rounds. Starting
processes and importing is in no measurement. Each job leaves an effect outside the database, and after each measurement
those are held against what was pushed: every job exactly once, or, where a worker is killed, what was lost and what ran
twice. `scenarios` and `fault` say how each measurement is taken, `table` what its bounds are.

Prints one table; `--summary FILE` writes the figures as JSON, `--write FILE` the table as Markdown. Exit code 0 if
every bound is met, 1 if not, with what was missed; a queue that could not be measured has missed its bounds, and its
cells say why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from comparison import Comparison
from table import figures, missed, render

from pgqueue_ref.harness.server import ProvisionError, Server, provision
from pgqueue_ref.harness.slo import summary_file
from pgqueue_ref.harness.watchdog import Watchdog

SHOWN_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="peers", description=str(__doc__).splitlines()[0])
    parser.add_argument("--postgres", default="embedded:18", metavar="SPEC", help="where PostgreSQL comes from")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seven minutes rather than twenty")
    parser.add_argument("--summary", type=summary_file, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there as Markdown")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: stopped by SIGTERM"))
    began = time.monotonic()
    try:
        with provision(options.postgres) as server, scratch_directory():
            shown = describe(server)
            print("\n".join(f"{name}: {value}" for name, value in shown.items()), flush=True)
            comparison = Comparison(server)
            comparison.run(quick=options.quick)
    except ProvisionError as error:
        sys.exit(f"peers: {error}")
    loads = comparison.loads
    shown["load average"] = f"{min(loads):.1f} to {max(loads):.1f}, this run's own included"
    shown["seconds"] = f"{time.monotonic() - began:.0f}"
    report = f"{render(comparison.results)}\n\n{comparison.configurations()}\n"
    print(f"\n{report}\nload average: {shown['load average']}; {shown['seconds']} s")
    if options.write:
        options.write.write_text(f"{', '.join(f'{name} {value}' for name, value in shown.items())}\n\n{report}")
    rows = figures(comparison.results)
    if options.summary:
        why = {f"{scenario}, {queue}": reason for (queue, scenario), reason in comparison.results.missing.items()}
        options.summary.write_text(json.dumps({"server": shown, "figures": rows, "missing": why}, indent=2) + "\n")
    lines = missed(rows)
    print("\n".join([*lines, "FAIL" if lines else "PASS"]))
    return 1 if lines else 0


@contextlib.contextmanager
def scratch_directory() -> Iterator[None]:
    """One directory for this process's temporary files; it goes however the process ends."""
    directory = tempfile.mkdtemp(prefix="pgq-peers-")
    watchdog = Watchdog(["/bin/sh", "-c", 'cat > /dev/null; rm -rf -- "$1"', "watchdog", directory])
    tempfile.tempdir = directory
    try:
        yield
    finally:
        tempfile.tempdir = None
        watchdog.close()


def describe(server: Server) -> dict[str, str]:
    """What the run stands on."""
    with server.connect() as connection:
        values = [connection.execute(f"SHOW {name}").fetchone() for name in SHOWN_SETTINGS]
    settings = {name: str(value[0]) for name, value in zip(SHOWN_SETTINGS, values, strict=True) if value}
    return {"server": server.describe(), **settings, "cpus": str(os.cpu_count()), "python": sys.version.split()[0]}


if __name__ == "__main__":
    sys.exit(main())
