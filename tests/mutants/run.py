"""Takes one safeguard at a time away from a copy of the core, and has the suite judge the copy (`nox -s mutants`).

Each copy is a package `mutant_N.core` in a temporary directory, tested with `--core-package` on one server. The copy
with nothing taken away must pass; each of the others must fail a test, not by breaking it at import. Exit code: 0 when
all were caught, 1 when one was not, 2 for wrong usage.
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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safeguards import SAFEGUARDS, Safeguard

import pgqueue_ref.core
from pgqueue_ref.harness.server import SPECS, ProvisionError, provision
from pgqueue_ref.harness.slo import summary_file

CORE = Path(pgqueue_ref.core.__file__).parent
TESTS = Path(__file__).resolve().parents[1]
FAILED = 1  # pytest's exit code for tests that failed; 2 to 5 say that none were judged
PATIENCE = 300.0  # seconds; a test that never ends judges nothing


class Outcome(NamedTuple):
    """What the suite said of a mutant: the first test that failed, or why it says nothing."""

    name: str
    caught: bool
    by: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--postgres", default="auto", metavar="SPEC", help=SPECS)
    parser.add_argument("--only", default="", metavar="WORDS", help="mutants whose name has these words")
    parser.add_argument("--summary", type=summary_file, metavar="FILE")
    options = parser.parse_args()
    chosen = [safeguard for safeguard in SAFEGUARDS if options.only in safeguard.name]
    if not chosen:
        parser.error(f"--only {options.only}: no mutant has that in its name")
    try:
        with provision(options.postgres) as server, tempfile.TemporaryDirectory(prefix="pgq-mutants-") as directory:
            print(f"mutants: {server.describe()}", flush=True)
            outcomes = judge(Path(directory), server.dsn, chosen)
    except ProvisionError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    survived = [outcome for outcome in outcomes if not outcome.caught]
    if options.summary:
        write_summary(options.summary, server.describe(), outcomes)
    print(f"{len(outcomes) - len(survived)} of {len(outcomes)} caught")
    return 1 if survived else 0


def judge(directory: Path, dsn: str, chosen: Sequence[Safeguard]) -> list[Outcome]:
    every = sorted({path for safeguard in chosen for path in safeguard.tests})
    code, output = test(copy(directory, "mutant_0", None), dsn, every)
    if code:
        print(output)
        return [Outcome("nothing taken away", caught=False, by="the unchanged copy fails", seconds=0.0)]
    outcomes = []
    for number, safeguard in enumerate(chosen, start=1):
        began = time.monotonic()
        code, output = test(copy(directory, f"mutant_{number}", safeguard), dsn, safeguard.tests)
        failures = [line.removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]
        caught = code == FAILED and bool(failures)
        by = failures[0].partition(" - ")[0].partition("::")[2] if failures else f"pytest ended with {code}"
        outcomes.append(Outcome(safeguard.name, caught, by, time.monotonic() - began))
        print(f"{'caught  ' if caught else 'SURVIVED'}  {safeguard.name}: {by}", flush=True)
        if not caught:
            print(output[-3000:])
    return outcomes


def copy(directory: Path, package: str, safeguard: Safeguard | None) -> str:
    """A copy of the core, without the safeguard; the name of its package."""
    target = directory / package / "core"
    shutil.copytree(CORE, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target.parent / "__init__.py").touch()
    if safeguard is not None:
        file = target / safeguard.file
        file.write_text(without(file.read_text(), safeguard))
    os.environ["PYTHONPATH"] = f"{directory}{os.pathsep}{TESTS}"
    return f"{package}.core"


def without(text: str, safeguard: Safeguard) -> str:
    """The file's text with the safeguard taken away. Raises `ValueError` when it is not there."""
    if safeguard.before not in text:
        raise ValueError(f"{safeguard.name}: its text is not in {safeguard.file} any more; write the mutant anew")
    return text.replace(safeguard.before, safeguard.after)


def test(package: str, dsn: str, paths: Sequence[str]) -> tuple[int, str]:
    """Run tests against a copy until the first fails; exit code and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent)]
    command += [str(TESTS / path) for path in paths]
    command += ["--core-package", package, "--postgres", dsn]
    try:
        done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        return -1, f"the suite did not end within {PATIENCE:g} s\n{late.stdout}"
    return done.returncode, done.stdout + done.stderr


def write_summary(path: Path, server: str, outcomes: Sequence[Outcome]) -> None:
    figures = [
        {"name": outcome.name, "value": int(outcome.caught), "unit": "caught", "bound": "= 1", "ok": outcome.caught}
        for outcome in outcomes
    ]
    path.write_text(json.dumps({"server": {"description": server}, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
