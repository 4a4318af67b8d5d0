"""Starts load runs as a person does, with `locust -f loadtests`, small enough for tests; or a scenario without load."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness import slo
from pgqueue_ref.harness.run import LoadRun, Settings
from pgqueue_ref.harness.scenario import Scenario
from pgqueue_ref.harness.slo import Verdict

ROOT = Path(__file__).resolve().parents[1]
SMALL_SLO = """
[[steady.slo]]
metric = "arrivals.achieved_ratio"
min = 0.99
samples = "arrivals.offered"
min_samples = 100
[[steady.slo]]
metric = "ledger.unexplained"
max = 0
breach = "correctness"
"""


class Load:
    """Starts Locust in a directory of its own, with a trace of `jobs` jobs in three seconds."""

    def __init__(self, database: str, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.files = "loadtests"
        self.trace = directory / "jobs.csv"
        self.slo = directory / "slo.toml"
        self.write_trace(150)
        self.slo.write_text(SMALL_SLO)

    def write_trace(self, jobs: int, duration: float = 0.005) -> None:
        rows = [f"{n * 3 / jobs:.4f},{duration},{('mail', 'thumbnail')[n % 2]}" for n in range(jobs)]
        self.trace.write_text("# Thanks to Ada\nat,duration,kind\n" + "\n".join(rows) + "\n")

    def start(self, *options: str, headless: bool = True) -> subprocess.Popen[str]:
        words = [*(("--headless", "--only-summary") if headless else ()), "--postgres", self.database]
        words += ["--trace", str(self.trace), "--speedup", "1", "--slo", str(self.slo), "--set", "producers=4"]
        return self._locust(*words, "--runs", str(self.directory / "runs"), *options)

    def start_load_worker(self, port: int) -> subprocess.Popen[str]:
        """For a run that was started with `--master --master-bind-port PORT`."""
        return self._locust("--worker", "--master-port", str(port))

    def _locust(self, *words: str) -> subprocess.Popen[str]:
        words = ("--loglevel", "ERROR", *words)
        return subprocess.Popen(
            [sys.executable, "-m", "locust", "-f", self.files, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def directories(self) -> list[Path]:
        runs = self.directory / "runs"
        return sorted(runs.iterdir()) if runs.exists() else []

    def result(self) -> dict[str, Any]:
        (directory,) = self.directories()
        document: dict[str, Any] = json.loads((directory / "result.json").read_text())
        return document

    def schemas(self) -> list[str]:
        with psycopg.connect(self.database) as connection:
            found = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgqueue_load_%'")
            return [name for (name,) in found]


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read the run's output until a line has `text`; returns the line."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"the run ended without {text!r}")


def script(name: str) -> ModuleType:
    """The module of a scenario, by the name of its file; each time anew."""
    file = ROOT / "loadtests" / "scenarios" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"scenario_{name}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


def stage(scenario: Scenario, directory: Path, database: str = "") -> LoadRun:
    """A run of a scenario with nothing begun, for tests that play or judge it without load."""
    objectives = slo.load(ROOT / "loadtests" / "slo.toml", scenario.name)
    settings = Settings(scenario, objectives, "", directory, directory)
    return LoadRun(settings, SimpleNamespace(dsn=database), None, print)  # type: ignore[arg-type]


def judged(run: LoadRun) -> Verdict:
    """What the objectives say about the figures that a scenario noted itself; the others are left out."""
    own = [objective for objective in run.settings.objectives if objective.metric.startswith("found.")]
    result = {"found": run.measured.found, "requests": {"failures": 0}, "ledger": {"lost": 0, "unexpected": 0}}
    return slo.evaluate(result, own, incidents=run._incidents)
