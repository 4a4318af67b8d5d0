"""Run directories as load runs leave them, made of figures that a test chooses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.result import SCHEMA_VERSION

BEGAN = 1_800_000_000.25
RATE = 20  # jobs/s
SETTINGS = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "wal_sync_method": "fdatasync",
            "shared_buffers": "128MB"}  # fmt: skip
PASS = {"passed": True, "exit_code": 0, "outcome": "pass", "reasons": []}


def left_run(
    directory: Path,
    *,
    seconds: int = 20,
    factor: float = 1.0,
    seed: int = 1,
    result: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    settings: dict[str, str] | None = None,
) -> Path:
    """A run of calm load, then busy: start latencies of some 10 ms, times `factor`, ten times as much when busy."""
    (directory / "histograms").mkdir(parents=True)
    rng = random.Random(seed)
    series = {name: Latencies(name, 1.0) for name in ("start", "push", "end-to-end")}
    for number in range(seconds * RATE):
        at = number / RATE
        start = factor * rng.lognormvariate(0, 0.3) * (0.1 if at >= seconds / 2 else 0.01)
        for name, latency in (("start", start), ("push", start / 4), ("end-to-end", start + 0.05)):
            series[name].record(at, latency)
    for latencies in series.values():
        latencies.save(directory / "histograms", BEGAN)
    made = _result(directory.name, seconds, series) | (result or {})
    (directory / "result.json").write_text(json.dumps(made))
    (directory / "manifest.json").write_text(
        json.dumps(_facts(directory.name, seconds, settings or {}) | (facts or {}))
    )
    return directory


def _result(name: str, seconds: int, series: dict[str, Latencies]) -> dict[str, Any]:
    jobs = seconds * RATE
    samples = [
        {"t": float(t), "pending": 0, "running": 1, "failed": 0, "blocked": 0, "dead_tuples": t, "connections": 9,
         "connection_limit": 97, "wal_bytes": 2_000 * RATE * t, "table_bytes": 8192, "index_bytes": 8192, "xmin_age": 1,
         "worker_rss_bytes": 2**20, "machine_cpu_percent": 50.0, "by_application": {"w": 3}}
        for t in range(seconds + 1)
    ]  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": "spike",
        "scenario_text": "Calm load, then more.",
        "run": name,
        "verdict": PASS,
        "arrivals": {"offered": jobs, "achieved": jobs, "achieved_ratio": 1.0},
        "requests": {"failures": 0},
        "found": [{"name": "recovery_seconds", "value": 2.5, "unit": "s", "meaning": "until it was calm again"}],
        "latency": {name.replace("-", "_"): latencies.summary() for name, latencies in series.items()},
        "throughput": {"finished": jobs},
        "backlog": {"drain_seconds": 0.5, "max_pending": 3},
        "ledger": {"completed": jobs, "lost": 0, "unexpected": 0, "duplicated": 0},
        "database": {"max_connections_seen": 9, "max_dead_tuples": seconds},
        "slo": [{"metric": "ledger.lost", "value": 0, "unit": "jobs", "bound": "= 0", "ok": True, "skipped": False,
                 "reason": ""}],
        "phases": [{"name": "calm", "from": 0.0, "to": seconds / 2},
                   {"name": "busy", "from": seconds / 2, "to": seconds}],
        "faults": [],
        "plots": [],
        "series": {
            "t": list(range(seconds)), "offered": [RATE] * seconds, "pushed": [RATE] * seconds,
            "finished": [RATE] * seconds, "window_seconds": 1.0, "samples": samples,
            "start_latency": series["start"].windows(), "push_latency": series["push"].windows(),
        },
    }  # fmt: skip


def _facts(name: str, seconds: int, settings: dict[str, str]) -> dict[str, Any]:
    return {
        "run": name,
        "scenario": "spike",
        "command": "locust -f loadtests",
        "git": {"commit": "0123456789abcdef", "modified": False},
        "versions": {"python": "3.11.7", "psycopg": "3.3.0"},
        "machine": {"system": "Linux", "processor": "CPU & co", "cores": 2, "memory_bytes": 2**34},
        "server": {"description": "embedded PostgreSQL 18.4", "version": "PostgreSQL 18.4",
                   "settings": SETTINGS | settings},
        "seed": 1,
        "began_epoch": BEGAN,
        "parameters": {"rate": 20.0},
        "faults": [],
        "trace": {"source": "spike: rate 20.0", "jobs": seconds * RATE, "seconds": seconds, "service_seconds": 1.0,
                  "kinds": {"job": seconds * RATE}, "acknowledgement": []},
        "settings": {"workers": 2, "slots_per_worker": 20, "producers": 32},
    }  # fmt: skip
