"""Runs the conformance and container suites against PostgreSQL 16 and 18 in containers (`nox -s containers`).

Uses the Docker engine that answers, or starts one where it may; takes the official image, or makes one where no
registry answers, and says which. Exit code 0 only when every suite ran, passed and left nothing behind; 1
otherwise, also when no engine or image can be had. `--summary FILE` writes the figures as JSON.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, NotFound

from pgqueue_ref.harness.containers import RUN_LABEL, RUN_VARIABLE, address, engine
from pgqueue_ref.harness.images import MADE_HERE, complaint, obtain
from pgqueue_ref.harness.server import ProvisionError
from pgqueue_ref.harness.slo import summary_file
from pgqueue_ref.harness.watchdog import Watchdog

Figure = dict[str, Any]  # name, value, unit, bound, ok
TESTS = Path(__file__).parents[1]
SUITES = ("conformance", "containers")
VERSIONS = ("16", "18")
# Input: the pid of the suite, or an empty line. A killed suite's own watchdogs remove its containers.
CLEAN_UP = """
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
  kill -KILL "$pid" 2>/dev/null
  n=0; while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
fi
rm -rf -- "$1"
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="containers", description=__doc__.splitlines()[0])
    parser.add_argument("--summary", type=summary_file, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's & has it ignored; suites inherit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("containers: stopped by SIGTERM"))
    servers: dict[str, str] = {}
    figures: list[Figure] = []
    try:
        with engine() as environment, guarded() as watchdog:
            run(environment, watchdog, servers, figures)
    except (ProvisionError, DockerException) as error:
        reason = complaint(error)
        print(f"containers: {reason}", file=sys.stderr)
        figures.append(figure(reason, 1, "errors", "= 0", ok=False))
    print("\n".join(["", *(f"PostgreSQL {major}: {what}" for major, what in servers.items())]))
    for row in figures:
        print(f"{'ok  ' if row['ok'] else 'FAIL'} {row['name']}: {row['value']} {row['unit']} ({row['bound']})")
    if options.summary:
        options.summary.write_text(json.dumps({"server": servers, "figures": figures}, indent=2) + "\n")
    passed = bool(figures) and all(row["ok"] for row in figures)
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


@contextlib.contextmanager
def guarded() -> Iterator[Watchdog]:
    """A watchdog that is told the running suite, and one directory for this process's temporary files.

    When this is killed, the suite and the directory go with it.
    """
    directory = tempfile.mkdtemp(prefix="pgq-run-")
    watchdog = Watchdog(["/bin/sh", "-c", CLEAN_UP, "watchdog", directory])
    tempfile.tempdir = directory
    try:
        yield watchdog
    finally:
        tempfile.tempdir = None
        watchdog.close()


def run(environment: dict[str, str], watchdog: Watchdog, servers: dict[str, str], figures: list[Figure]) -> None:
    """Run every suite on every version; fills `servers` and `figures` as it goes."""
    label, left = secrets.token_hex(8), 0
    where = environment.get("DOCKER_HOST", address())
    with contextlib.closing(docker.DockerClient(where)) as client:
        print(f"Docker {client.version()['Version']} at {where}{' (started here)' if environment else ''}")
        for major in VERSIONS:
            image, what = obtain(client, major)
            servers[major] = what
            print(f"PostgreSQL {major}: {what}", flush=True)
            try:
                for suite in SUITES:
                    rows, server = run_suite(suite, image, environment | {RUN_VARIABLE: label}, watchdog)
                    figures += rows
                    servers[major] = f"{server}: {what}" if server else servers[major]
            finally:
                left += sweep(client, label)
                if image.startswith(MADE_HERE):
                    client.images.remove(image, force=True)
        figures.append(figure("containers that a suite left behind", left, "containers", "= 0", ok=not left))


def sweep(client: docker.DockerClient, label: str) -> int:
    """Remove what a suite has left; how many containers."""
    containers = client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={label}"}, ignore_removed=True)
    for container in containers:
        with contextlib.suppress(NotFound):  # its own watchdog was quicker
            container.remove(force=True, v=True)
    return len(containers)


def run_suite(suite: str, image: str, environment: dict[str, str], watchdog: Watchdog) -> tuple[list[Figure], str]:
    """Run one suite in a process of its own; its figures, and what the server called itself if it said so."""
    with tempfile.TemporaryDirectory(prefix="pgq-") as scratch:
        results = Path(scratch, "results.xml")
        code = wait([sys.executable, "-m", "pytest", "-q", str(TESTS / suite),
                     "--postgres", f"docker:{image}", f"--junitxml={results}"], environment, watchdog)  # fmt: skip
        root = xml.etree.ElementTree.parse(results).getroot() if results.exists() else None
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for element in root.iter("testsuite") if root is not None else ():
        counts = {key: counts[key] + int(element.get(key, 0)) for key in counts}
    ran = counts["tests"] - counts["skipped"]
    bad = counts["failures"] + counts["errors"]
    name = f"{suite} on {image}"
    said = root.find(".//property[@name='server']") if root is not None else None
    rows = [
        figure(f"{name}: run", ran, "tests", "> 0", ok=ran > 0),
        figure(f"{name}: not passed (pytest exit code {code})", bad, "tests", "= 0", ok=bad == 0 and code == 0),
    ]
    return rows, said.get("value", "") if said is not None else ""


def wait(command: list[str], environment: dict[str, str], watchdog: Watchdog) -> int:
    """Run to the end and return the exit code; stop when whoever started us is gone (killed)."""
    parent = os.getppid()
    process = subprocess.Popen(command, env=os.environ | environment, cwd=TESTS.parent)
    watchdog.tell(str(process.pid))
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(1)
            if os.getppid() != parent:
                sys.exit("containers: the process that started this is gone; stopping")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # pytest tears its fixtures down
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
        watchdog.tell("")


def figure(name: str, value: float, unit: str, bound: str, *, ok: bool) -> Figure:
    return {"name": name, "value": value, "unit": unit, "bound": bound, "ok": ok}


if __name__ == "__main__":
    sys.exit(main())
