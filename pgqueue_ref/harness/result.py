"""result.json, manifest.json and the summary of a load run.

`build_result` turns what was measured into the document that objectives are evaluated on; `SCHEMA_VERSION`
grows when a field of it changes its meaning or goes. Called by the load run; read by reports, comparisons
and people.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgqueue_ref.harness import manifest, report
from pgqueue_ref.harness.clock import ArrivalClock, Watch
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.ledger import DatabaseClock, Ledger
from pgqueue_ref.harness.sampler import Sampler
from pgqueue_ref.harness.slo import Check, Verdict

if TYPE_CHECKING:  # run.py imports this module
    from pgqueue_ref.harness.run import Progress, Settings

SCHEMA_VERSION = 1


@dataclass(slots=True)
class Measured:
    """Everything a run measured, as it is filled in. Times in seconds from the origin unless said otherwise."""

    run_id: str
    settings: Settings
    progress: Progress
    clock: ArrivalClock
    watch: Watch
    push_latency: Latencies
    start_latency: Latencies
    end_latency: Latencies
    server: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0  # database time, epoch seconds
    arrivals_ended: float = 0.0
    drained_at: float = 0.0
    database_clock: DatabaseClock | None = None
    clock_drift: float | None = None
    ledger: Ledger | None = None
    sampler: Sampler | None = None
    finished: list[float] = field(default_factory=list)
    pushed_per_second: dict[int, int] = field(default_factory=dict)


def build_result(measured: Measured) -> dict[str, Any]:
    """The result document, without the verdict. What was not measured is null, never 0."""
    samples = measured.sampler.samples if measured.sampler else []
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": measured.settings.scenario,
        "run": measured.run_id,
        "arrivals": _arrivals(measured),
        "requests": {"failures": measured.progress.failures, "errors": measured.progress.errors},
        "latency": {
            "start": measured.start_latency.summary(),
            "push": measured.push_latency.summary(),
            "end_to_end": measured.end_latency.summary(),
        },
        "throughput": {
            "finished": len(measured.finished),
            "per_second": _rate(len(measured.finished), measured.drained_at),
        },
        "backlog": {
            "samples": len(samples),
            "max_pending": max((row["pending"] for row in samples), default=None),
            "drain_seconds": round(measured.drained_at - measured.arrivals_ended, 3),
        },
        "ledger": asdict(measured.ledger) if measured.ledger else None,
        "generator": _generator(measured),
        "database": {
            "wal_bytes": samples[-1]["wal_bytes"] if samples else None,
            "wal_bytes_per_job": _per_job(samples, len(measured.finished)),
            "max_connections_seen": max((row["connections"] for row in samples), default=None),
            "max_dead_tuples": max((row["dead_tuples"] for row in samples), default=None),
            "waits": _waits(samples),
            "failed_samples": measured.sampler.failures if measured.sampler else None,
        },
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
    for series in (measured.start_latency, measured.push_latency, measured.end_latency):
        series.save(histograms, measured.began)
    _write_json(directory / "manifest.json", facts)
    _replace(directory / "report.html", report.render(result, facts))
    if measured.settings.summary is not None:
        _write_json(measured.settings.summary, summary(result, facts))
    _write_json(directory / "result.json", result)  # last: where it is, the rest is complete


def build_manifest(measured: Measured) -> dict[str, Any]:
    """What the run was. `seed` is null because a replayed trace leaves nothing to chance."""
    settings = measured.settings
    clock = measured.database_clock
    return {
        "run": measured.run_id,
        "scenario": settings.scenario,
        "command": manifest.command(),
        "git": manifest.revision(settings.root),
        "versions": manifest.versions(),
        "machine": manifest.machine(),
        "server": measured.server,
        "seed": None,
        "began_epoch": measured.began,
        "trace": {
            "source": settings.trace_source,
            "jobs": len(settings.trace.arrivals),
            "seconds": settings.trace.span,
            "service_seconds": sum(arrival.duration for arrival in settings.trace.arrivals),
            "kinds": settings.trace.kinds,
            "unusable": settings.trace.unusable,
            "acknowledgement": list(settings.trace.credits),
        },
        "settings": {
            "workers": settings.workers,
            "slots_per_worker": settings.slots,
            "producers": settings.producers,
            "drain_timeout_seconds": settings.drain_timeout,
        },
        "database_clock": {
            "offset_error_seconds": clock.error if clock else None,
            "drift_seconds": measured.clock_drift,
        },
    }


def summary(result: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The short form that tools collect: the server, and each objective as a figure."""
    settings = facts["server"]["settings"]
    return {
        "server": {
            "description": facts["server"]["description"],
            "version": facts["server"]["version"],
            "fsync": settings.get("fsync"),
            "synchronous_commit": settings.get("synchronous_commit"),
        },
        "figures": [
            {
                "name": f"{result['scenario']}.{check['metric']}",
                "value": check["value"],
                "unit": check["unit"],
                "bound": check["bound"],
                "ok": check["ok"],
            }
            for check in result["slo"]
        ],
    }


def _arrivals(measured: Measured) -> dict[str, Any]:
    counts, achieved = measured.clock.counts, measured.progress.achieved
    seconds = max(measured.arrivals_ended, measured.settings.trace.span)
    return {
        "offered": counts.offered,
        "achieved": achieved,
        "achieved_ratio": achieved / counts.offered if counts.offered else None,
        "late": counts.late,
        "late_ratio": counts.late / counts.offered if counts.offered else None,
        "late_queued": counts.queued,
        "skipped": counts.skipped,
        "max_lag_ms": counts.max_lag * 1000,
        "offered_per_second": _rate(counts.offered, measured.settings.trace.span),
        "achieved_per_second": _rate(achieved, seconds),
    }


def _generator(measured: Measured) -> dict[str, Any]:
    counts, watch = measured.clock.counts, measured.watch
    late = watch.late_when_saturated(counts, measured.clock.origin)
    return {
        "late": late,
        "late_ratio": late / counts.offered if counts.offered else None,
        "saturated_seconds": watch.saturated_seconds(),
        "max_cpu_share": watch.max_cpu_share,
        "max_loop_lag_ms": watch.max_lag * 1000,
        "clock_drift_ms": None if measured.clock_drift is None else measured.clock_drift * 1000,
    }


def _series(measured: Measured, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the plots show, per second of the run (`t` is the start of the second) or per latency window."""
    end = math.ceil(max([measured.drained_at, measured.settings.trace.span, *measured.finished]))
    offered = Counter(int(arrival.at) for arrival in measured.settings.trace.arrivals)
    finished = Counter(max(0, int(at)) for at in measured.finished)
    seconds = range(end + 1)
    return {
        "t": list(seconds),
        "offered": [offered[t] for t in seconds],
        "pushed": [measured.pushed_per_second.get(t, 0) for t in seconds],
        "finished": [finished[t] for t in seconds],
        "window_seconds": measured.start_latency.width,
        "start_latency": measured.start_latency.windows(),
        "push_latency": measured.push_latency.windows(),
        "samples": [
            {key: row[key] for key in ("t", "pending", "running", "failed", "dead_tuples", "wal_bytes",
                                       "connections", "machine_cpu_percent")}
            for row in samples
        ],
    }  # fmt: skip


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _waits(samples: list[dict[str, Any]]) -> dict[str, float]:
    """How many of the server's busy backends waited for what, on average over the samples; most first."""
    total: Counter[str] = Counter()
    for row in samples:
        for item in filter(None, (row["wait_events"] or "").split(";")):
            event, _, count = item.rpartition("=")
            total[event] += int(count)
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
        "reason": check.reason,
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    _replace(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
