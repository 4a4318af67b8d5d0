"""Runs one or all scenarios, one after the other: `python -m pgqueue_ref.harness.suite [NAME | all] [OPTIONS]`.

Called by `nox -s load`, in the project's directory. OPTIONS are those of `locust -f loadtests`. With `all`, one
directory gets the runs and an index page over their reports, and the exit code is that of the worst news; a scenario
that left no verdict counts as crashed, never as passed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgqueue_ref.harness import index
from pgqueue_ref.harness.slo import SEVERITY, Exit, exit_figure, summary_file

SCENARIOS = Path("loadtests/scenarios")
LOCUST = (sys.executable, "-m", "locust", "-f", "loadtests", "--headless", "--only-summary", "--loglevel", "WARNING")


def main(argv: Sequence[str]) -> int:
    """Exit code: that of the scenario, or the worst of all."""
    parser = argparse.ArgumentParser(prog="load", add_help=False, allow_abbrev=False)
    parser.add_argument("scenario", nargs="?", default="steady")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--summary", type=summary_file)
    # The scenario comes first or not at all: what follows an option might be its value.
    named = bool(argv) and not argv[0].startswith("-")
    own, options = parser.parse_known_args(argv if named else ["steady", *argv])
    if own.scenario != "all":
        options += ["--summary", str(own.summary)] if own.summary else []
        return _run(own.scenario, own.runs, options)
    return _run_all(own.runs, own.summary, options)


def _run(scenario: str, runs: Path, options: Sequence[str]) -> int:
    command = [*LOCUST, "--scenario", scenario, "--runs", str(runs), *options]
    process = subprocess.Popen(command)  # noqa: S603  # our own command
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal sent it to both: the run drains and judges
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _run_all(runs: Path, summary: Path | None, options: Sequence[str]) -> int:
    names = sorted(file.stem.replace("_", "-") for file in SCENARIOS.glob("[!_]*.py"))
    if not names:
        sys.stderr.write(f"{SCENARIOS}: no scenario is there; run in the project's directory\n")
        return Exit.CRASH_OR_USAGE
    if summary is not None and not summary.absolute().parent.is_dir():
        sys.stderr.write(f"--summary {summary}: there is no such directory; make it first\n")
        return Exit.CRASH_OR_USAGE
    directory = runs / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-all"
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        sys.stderr.write(f"--runs {runs}: {directory.name} cannot be made there ({error.strerror})\n")
        return Exit.CRASH_OR_USAGE
    ended: dict[str, index.Ended] = {}
    _say(f"index: {index.write_index(directory, [], names, ended)}")
    for number, name in enumerate(names, start=1):
        _say(f"\n-- {number} of {len(names)}: {name} --")
        began = time.monotonic()
        code = _run(name, directory, [*options, "--summary", str(_figures(directory, name))])
        ended[name] = index.Ended(code, time.monotonic() - began)
        page = index.write_index(directory, _directories(directory), names, ended)
    _say("")
    for name, end in ended.items():
        _say(f"{'PASS' if end.code == 0 else 'FAIL':4}  {name:<20} exit {end.code}")
    _say(f"index: {page}")
    if summary is not None:
        _merge(summary, directory, {name: end.code for name, end in ended.items()})
    return worst(end.code for end in ended.values())


def worst(codes: Any) -> Exit:
    """The exit code of the worst news; one that no run gives (a signal, say) is a crash."""
    known = {code.value for code in Exit}
    found = {Exit(code) if code in known else Exit.CRASH_OR_USAGE for code in codes}
    return next(code for code in SEVERITY if code in found)


def _figures(directory: Path, name: str) -> Path:
    return directory / f"{name}.json"


def _directories(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir())


def _merge(summary: Path, directory: Path, codes: Mapping[str, int]) -> None:
    """One summary of all; a scenario without one has its exit code for its only figure."""
    server, figures = None, []
    for name, code in codes.items():
        figures.append(exit_figure(name, code))  # its process's own: it may have ended otherwise than its run
        if (part := _figures(directory, name)).exists():
            read = json.loads(part.read_text(encoding="utf-8"))
            server = server or read["server"]
            figures += [figure for figure in read["figures"] if figure["name"] != f"{name}.exit_code"]
    merged = {"server": server, "figures": figures}
    summary.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
