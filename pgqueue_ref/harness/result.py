"""result.json, manifest.json and the summary of a load run.

`build_result` turns what was measured into the document that objectives are evaluated on; `SCHEMA_VERSION`
grows when a field of it changes its meaning or goes. Called by the load run; read by reports, comparisons
and people.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgqueue_ref.harness import manifest, report
from pgqueue_ref.harness.backlog import growth
from pgqueue_ref.harness.faults import Injected
from pgqueue_ref.harness.generator import LATENCIES, Tally
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.ledger import DatabaseClock, Ledger
from pgqueue_ref.harness.sampler import Sampler
from pgqueue_ref.harness.slo import Check, Verdict, exit_figure
from pgqueue_ref.harness.traces import Arrival

if TYPE_CHECKING:  # run.py imports this module
    from pgqueue_ref.harness.run import Settings

SCHEMA_VERSION = 2
GAP = 10.0  # seconds without a sample that a growth can be told over, or a tenth of the load if that is longer


@dataclass(slots=True)
class Phase:
    """A named part of a run; times in seconds from its start."""

    name: str
    at: float
    until: float = math.inf


@dataclass(slots=True)
class Measured:
    """Everything a run measured, as it is filled in. Times in seconds from the origin unless said otherwise."""

    run_id: str
    settings: Settings
    server: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0  # database time, epoch seconds
    arrivals_ended: float = 0.0
    drained_at: float = 0.0
    database_clock: DatabaseClock | None = None
    clock_drift: float | None = None
    ledger: Ledger | None = None
    unexplained: int | None = None
    sampler: Sampler | None = None
    tally: Tally = field(default_factory=Tally)
    offered: list[tuple[float, Arrival]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    faults: list[Injected] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    plots: list[dict[str, Any]] = field(default_factory=list)
    latencies: list[tuple[float, float, float]] = field(default_factory=list)  # at, to the start, to the end
    pushed_per_second: dict[int, int] = field(default_factory=dict)
    request_latencies: dict[str, Latencies] = field(init=False)  # what the generators measured
    start_latency: Latencies = field(init=False)
    end_latency: Latencies = field(init=False)

    def __post_init__(self) -> None:
        width = self.settings.scenario.window
        self.request_latencies = {name: Latencies(name, width) for name in LATENCIES}
        self.start_latency = Latencies("start", width)
        self.end_latency = Latencies("end-to-end", width)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The sampler's rows."""
        return self.sampler.samples if self.sampler else []

    @property
    def loaded(self) -> tuple[float, float]:
        """From the first to the last instant for which an arrival was intended."""
        return (min(at for at, _ in self.offered), max(at for at, _ in self.offered)) if self.offered else (0.0, 0.0)


def build_result(measured: Measured) -> dict[str, Any]:
    """The result document, without the verdict. What was not measured is null, never 0."""
    samples = measured.samples
    finished = len(measured.latencies)
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": measured.settings.scenario.name,
        "scenario_text": measured.settings.scenario.text,
        "run": measured.run_id,
        "arrivals": _arrivals(measured),
        "requests": {
            "failures": measured.tally.failures,
            "errors": dict(measured.tally.errors),
            "refused": dict(measured.tally.refused),
        },
        "found": measured.found,
        "latency": {
            "start": measured.start_latency.summary(),
            **{name: series.summary() for name, series in measured.request_latencies.items()},
            "end_to_end": measured.end_latency.summary(),
        },
        "throughput": {
            "finished": finished,
            "per_second": _rate(finished, measured.drained_at),
        },
        "backlog": {
            "samples": len(samples),
            "growth_ratio": growth_ratio(measured),
            "max_pending": max((row["pending"] for row in samples), default=None),
            "drain_seconds": round(measured.drained_at - measured.arrivals_ended, 3),
        },
        "ledger": asdict(measured.ledger) | {"unexplained": measured.unexplained} if measured.ledger else None,
        "generator": _generator(measured),
        "database": {
            "wal_bytes": samples[-1]["wal_bytes"] if samples else None,
            "wal_bytes_per_job": _per_job(samples, finished),
            "max_connections_seen": max((row["connections"] for row in samples), default=None),
            "connection_limit": min((row["connection_limit"] for row in samples), default=None),
            "max_dead_tuples": max((row["dead_tuples"] for row in samples), default=None),
            "waits": _waits(samples),
            "failed_samples": measured.sampler.failures if measured.sampler else None,
        },
        "phases": [{"name": phase.name, "from": phase.at, "to": phase.until} for phase in measured.phases],
        "faults": [asdict(fault) for fault in measured.faults],
        "plots": measured.plots,
        "series": _series(measured, samples),
    }


def write_run(directory: Path, measured: Measured, result: dict[str, Any], verdict: Verdict) -> None:
    """Write the run directory's files but Locust's own: result, manifest, histograms, report, and the summary."""
    result["verdict"] = {
        "passed": verdict.passed,
        "exit_code": verdict.exit.value,
        "outcome": verdict.exit.name.lower(),
        "reasons": verdict.reasons,
    }
    result["slo"] = [_check(check) for check in verdict.checks]
    facts = build_manifest(measured)
    histograms = directory / "histograms"
    histograms.mkdir(exist_ok=True)
    for series in (measured.start_latency, measured.end_latency, *measured.request_latencies.values()):
        series.save(histograms, measured.began)
    _write_json(directory / "manifest.json", facts)
    _replace(directory / "report.html", report.render(result, facts))
    if measured.settings.summary is not None:
        _write_json(measured.settings.summary, summary(result, facts))
    _write_json(directory / "result.json", result)  # last: where it is, the rest is complete


def build_manifest(measured: Measured) -> dict[str, Any]:
    """What the run was. `parameters` holds every figure the scenario was given, `seed` what its chances came from."""
    settings, scenario = measured.settings, measured.settings.scenario
    clock = measured.database_clock
    arrivals = [arrival for _, arrival in measured.offered]
    first, last = measured.loaded
    return {
        "run": measured.run_id,
        "scenario": scenario.name,
        "command": manifest.command(),
        "git": manifest.revision(settings.root),
        "versions": manifest.versions(),
        "machine": manifest.machine(),
        "server": measured.server,
        "seed": scenario.seed,
        "began_epoch": measured.began,
        "parameters": scenario.parameters(),
        "faults": [f"{fault.kind} at {fault.at:g} s" for fault in settings.faults],
        "trace": {
            "source": scenario.source,
            "jobs": len(arrivals),
            "seconds": last - first,
            "service_seconds": sum(arrival.duration for arrival in arrivals),
            "kinds": dict(Counter(arrival.kind for arrival in arrivals).most_common()),
            "unusable": scenario.unusable,
            "acknowledgement": list(scenario.credits),
        },
        "settings": {
            "workers": scenario.workers,
            "slots_per_worker": scenario.slots,
            "producers": scenario.producers,
            "drain_timeout_seconds": scenario.drain_timeout,
        },
        "database_clock": {
            "offset_error_seconds": clock.error if clock else None,
            "drift_seconds": measured.clock_drift,
        },
    }


def summary(result: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The short form that tools collect: the server; how the run ended and each objective as figures."""
    settings = facts["server"]["settings"]
    return {
        "server": {
            "description": facts["server"]["description"],
            "version": facts["server"]["version"],
            "fsync": settings.get("fsync"),
            "synchronous_commit": settings.get("synchronous_commit"),
        },
        "figures": [
            exit_figure(result["scenario"], result["verdict"]["exit_code"]),
            *(
                {
                    "name": f"{result['scenario']}.{check['metric']}",
                    "value": check["value"],
                    "unit": check["unit"],
                    "bound": check["bound"],
                    "ok": check["ok"],
                }
                for check in result["slo"]
                if not check["skipped"]
            ),
        ],
    }


def _arrivals(measured: Measured) -> dict[str, Any]:
    tally, offered, achieved = measured.tally, len(measured.offered), sum(measured.pushed_per_second.values())
    first, last = measured.loaded
    return {
        "offered": offered,
        "achieved": achieved,
        "achieved_ratio": achieved / offered if offered else None,
        "refused": sum(tally.refused.values()),
        "late": tally.late,
        "late_ratio": tally.late / offered if offered else None,
        "late_queued": tally.queued,
        "skipped": tally.skipped,
        "max_lag_ms": tally.max_lag * 1000,
        "offered_per_second": _rate(offered, last - first),
        "achieved_per_second": _rate(achieved, max(measured.arrivals_ended, last) - first),
    }


def growth_ratio(measured: Measured) -> float | None:
    """How fast the pending jobs grew while load came, as a share of the rate at which it came.

    None where it is not known, as with a gap in the samples in which the jobs may have done anything.
    """
    first, last = measured.loaded
    points = [(row["t"], row["pending"]) for row in measured.samples if first <= row["t"] <= last]
    moments = [first, *(t for t, _ in points), last]
    if max(after - before for before, after in itertools.pairwise(moments)) > max(GAP, (last - first) / 10):
        return None
    rate = _rate(len(measured.offered), last - first)
    slope = growth(points)
    return slope / rate if slope is not None and rate else None


def _generator(measured: Measured) -> dict[str, Any]:
    tally, offered = measured.tally, len(measured.offered)
    return {
        "late": tally.saturated,
        "late_ratio": tally.saturated / offered if offered else None,
        "begun_each": tally.begun_each,  # how many arrivals each load process began
        "saturated_seconds": tally.saturated_seconds,
        "max_cpu_share": tally.max_cpu_share,
        "max_loop_lag_ms": tally.max_loop_lag * 1000,
        "clock_drift_ms": None if measured.clock_drift is None else measured.clock_drift * 1000,
    }


def _series(measured: Measured, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the plots show, per second of the run (`t` is the start of the second) or per latency window."""
    finishes = [at + end for at, _, end in measured.latencies]
    end = math.ceil(max([measured.drained_at, measured.loaded[1], *finishes]))
    offered = Counter(int(at) for at, _ in measured.offered)
    finished = Counter(max(0, int(at)) for at in finishes)
    seconds = range(end + 1)
    return {
        "t": list(seconds),
        "offered": [offered[t] for t in seconds],
        "pushed": [measured.pushed_per_second.get(t, 0) for t in seconds],
        "finished": [finished[t] for t in seconds],
        "window_seconds": measured.start_latency.width,
        "start_latency": measured.start_latency.windows(),
        "push_latency": measured.request_latencies["push"].windows(),
        "samples": [sample(row) for row in samples],
    }


def sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """What plots and comparisons need of a sampler's row; its connections by application as a mapping."""
    names = ("t", "pending", "blocked", "running", "failed", "dead_tuples", "wal_bytes", "table_bytes", "index_bytes",
             "xmin_age", "connections", "connection_limit", "worker_rss_bytes", "machine_cpu_percent")  # fmt: skip
    return {name: row[name] for name in names} | {"by_application": json.loads(row["by_application"] or "{}")}


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _waits(samples: list[dict[str, Any]]) -> dict[str, float]:
    """How many of the server's busy backends waited for what, on average over the samples; most first."""
    total: Counter[str] = Counter()
    for row in samples:
        total.update(json.loads(row["wait_events"] or "{}"))
    return {event: count / len(samples) for event, count in total.most_common(8)}


def _per_job(samples: list[dict[str, Any]], jobs: int) -> float | None:
    return samples[-1]["wal_bytes"] / jobs if samples and jobs else None


def _check(check: Check) -> dict[str, Any]:
    objective = check.objective
    return {
        "metric": objective.metric,
        "value": check.value,
        "unit": objective.unit,
        "bound": objective.bound,
        "ok": check.ok,
        "skipped": check.skipped,
        "reason": check.reason,
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    _replace(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
