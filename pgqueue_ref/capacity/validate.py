"""Run a plan for real, and say for each predicted figure whether the measured one lies in the simulated interval.

A run is the load harness's `steady` scenario with the plan's workers, slots, rate and service times, on a server of
choice, at 1.0 and 1.1 times the planned rate. The prediction is a simulation of a window of the same length, with
claims that take what they were measured to take, repeated; its interval holds 90 % of the repetitions. Called by the
command line, in the project's directory: the scenarios are there.
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgqueue_ref.capacity import CapacityError, simulate
from pgqueue_ref.capacity.measurement import Measurement
from pgqueue_ref.capacity.service import Service
from pgqueue_ref.harness.slo import Exit
from pgqueue_ref.harness.suite import LOCUST
from pgqueue_ref.harness.traces import Arrival

FACTORS = (1.0, 1.1)
REPLICATIONS = 200
SHARE = 0.9
TRIES = 3  # of a run on a machine that does other work
SOUND = """
[[steady.slo]]
metric = "ledger.undrained"
max = 0
[[steady.slo]]
metric = "generator.late_ratio"
max = 0.01
breach = "invalid"
"""
WAITS = {"wait_p95": "p95_ms", "wait_p99": "p99_ms"}  # in the prediction, in result.json


class Compared(NamedTuple):
    """A predicted figure and what one run measured: waits in seconds, utilisation as a share, connections."""

    figure: str
    low: float
    predicted: float
    high: float
    measured: float

    @property
    def within(self) -> bool:
        """Whether the measured value lies in the predicted interval."""
        return self.low <= self.measured <= self.high


class Shape(NamedTuple):
    """What is run: rate in jobs a second, for so many seconds."""

    rate: float
    seconds: float
    workers: int
    slots: int
    service: Service


def predict(shape: Shape, measured: Measurement, *, seed: int = 1) -> dict[str, simulate.Interval]:
    """The simulated intervals for a window."""
    bell = simulate.percentile(sorted(measured.pickup), 50)
    system = simulate.System(shape.workers, shape.slots, claim=measured.draw_claim(), bell=bell)

    def window(rng: random.Random) -> simulate.Played:
        return simulate.play(simulate.load(shape.rate, shape.seconds, shape.service, rng), system, rng)

    return simulate.replicate(window, REPLICATIONS, seed=seed, share=SHARE)


def run(shape: Shape, postgres: str, *, seed: int, runs: Path) -> tuple[Path, dict[str, Any]]:
    """Run a shape for real; the run's directory and result. Raises `CapacityError` where it was not sound."""
    if not Path("loadtests/locustfile.py").is_file():
        raise CapacityError(
            "validate runs the load scenarios: start it in the project's directory, where loadtests/ is"
        )
    with tempfile.TemporaryDirectory() as directory:
        trace, slo, summary = (Path(directory, name) for name in ("jobs.csv", "slo.toml", "summary.json"))
        _write_trace(trace, simulate.load(shape.rate, shape.seconds, shape.service, random.Random(seed)))  # noqa: S311
        # What is measured is judged here; there it is asked only whether the run was sound.
        slo.write_text(SOUND, encoding="utf-8")
        settings = [f"workers={shape.workers}", f"slots={shape.slots}", "drain_timeout=300"]
        options = [word for setting in settings for word in ("--set", setting)]
        options += ["--trace", str(trace), "--speedup", "1", "--slo", str(slo), "--summary", str(summary)]
        options += ["--runs", str(runs), "--postgres", postgres]
        for _ in range(TRIES):
            before = set(runs.glob("*-steady"))
            done = subprocess.run([*LOCUST, *options], capture_output=True, text=True)  # noqa: S603  # our own command
            if done.returncode != Exit.INVALID:  # the generator did not keep up: that says nothing about the plan
                break
    if done.returncode != Exit.PASS:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it wrote nothing"]
        why = next((line for line in reversed(lines) if line.startswith("FAIL")), lines[-1])
        raise CapacityError(f"the load run ended with exit code {done.returncode}: {why}")
    (directory_of_run,) = set(runs.glob("*-steady")) - before
    result: dict[str, Any] = json.loads((directory_of_run / "result.json").read_text(encoding="utf-8"))
    return directory_of_run, result


def compare(
    predicted: dict[str, simulate.Interval], result: dict[str, Any], samples: Sequence[dict[str, str]],
    shape: Shape, measured: Measurement,
) -> list[Compared]:  # fmt: skip
    """Each figure of a run beside its interval; `samples` are the rows of samples.csv."""
    start = result["latency"]["start"]
    found = [Compared(name, *predicted[name], start[path] / 1000) for name, path in WAITS.items()]
    # Attempts that the queue calls running, second by second while load came.
    began = result["phases"][0]["from"]
    loaded = [int(row["running"]) for row in samples if began <= float(row["t"]) <= began + shape.seconds]
    busy = statistics.fmean(loaded) / (shape.workers * shape.slots)
    found.append(Compared("utilisation", *predicted["utilisation"], busy))
    wanted = shape.workers * measured.connections_per_worker
    held = max(_held(row["by_application"]) for row in samples)
    return [*found, Compared("connections", wanted, wanted, wanted, held)]


def _held(by_application: str) -> int:
    """The workers' connections in a sample, of which each calls itself pgqueue_ref:SOMETHING."""
    named: dict[str, int] = json.loads(by_application or "{}")
    return sum(count for name, count in named.items() if name.startswith("pgqueue_ref:"))


def validate(
    shape: Shape, measured: Measurement, postgres: str, *, repeats: int, runs: Path, seed: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run at each factor, so often; a document for each run, to be appended to the plan."""
    documents = []
    for place, factor in enumerate(FACTORS):
        faster = shape._replace(rate=shape.rate * factor)
        predicted = predict(faster, measured, seed=seed)
        for number in range(repeats):
            directory, result = run(faster, postgres, seed=seed + number + place * repeats, runs=runs)
            with (directory / "samples.csv").open(newline="", encoding="utf-8") as file:
                compared = compare(predicted, result, list(csv.DictReader(file)), faster, measured)
            documents.append(
                {"run": result["run"], "factor": factor, "rate": faster.rate, "seconds": faster.seconds,
                 "figures": [item._asdict() | {"within": item.within} for item in compared]}
            )  # fmt: skip
            say(f"{factor:g}x, run {number + 1} of {repeats}: " + ", ".join(_words(item) for item in compared))
    return documents


def _words(item: Compared) -> str:
    times, unit = (1000, " ms") if item.figure.startswith("wait") else (1, "")
    low, high, measured = (f"{value * times:.3g}" for value in (item.low, item.high, item.measured))
    return f"{item.figure} {measured}{unit} {'in' if item.within else 'OUTSIDE'} {low} to {high}"


def _write_trace(path: Path, arrivals: Sequence[Arrival]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("at", "duration", "kind"))
        writer.writerows((f"{at:.6f}", f"{duration:.6f}", kind) for at, duration, kind in arrivals)
