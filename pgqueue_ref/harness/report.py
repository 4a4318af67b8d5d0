"""report.html: what a person opens first after a load run.

One self-contained file without scripts: the verdict and why, the figures, the objectives, the plots, the
ledger, and what was run on what. Rendered from the same documents that are saved as result.json and
manifest.json.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pgqueue_ref.harness.plots import Series, line_plot

Document = Mapping[str, Any]
STYLE = Path(__file__).with_name("report.css")


def render(result: Document, facts: Document) -> str:
    """The report as one HTML document."""
    verdict = result["verdict"]
    title = f"{'PASS' if verdict['passed'] else 'FAIL'}: {result['scenario']} load run {result['run']}"
    parts = [
        _head(result, facts, title),
        _verdict(result),
        _tiles(result),
        f'<section><h2>The run over time</h2><div class="plots">{"".join(plots(result))}</div></section>',
        _objectives(result),
        _ledger(result),
        _generator(result),
        _waits(result),
        _facts(facts),
        _thanks(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def plots(result: Document) -> list[str]:
    """The plots, from the series of a result."""
    series, samples = result["series"], result["series"]["samples"]
    t = series["t"]
    sampled = [row["t"] for row in samples]
    windows = _without_holes(series["start_latency"], series["window_seconds"])
    window_times = [row["t"] for row in windows]
    finished, pushed = series["finished"], series["pushed"]
    cumulative = {name: _running_total(series[name]) for name in ("offered", "finished")}
    return [
        line_plot(
            "Arrivals",
            [Series("offered by the clock", t, series["offered"], filled=True), Series("pushed", t, pushed)],
            unit="jobs per second",
        ),
        line_plot(
            "Start latency",
            [Series(name, window_times, [row.get(key) for row in windows]) for name, key in
             (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms"), ("max", "max_ms"))],
            unit="milliseconds, logarithmic",
            note="From the instant the clock intended to the start of the attempt, by intended instant.",
            log=True,
        ),
        line_plot(
            "Depth by status",
            [Series("pending", sampled, [row["pending"] for row in samples], filled=True),
             Series("running", sampled, [row["running"] for row in samples]),
             Series("failed", sampled, [row["failed"] for row in samples])],
            unit="jobs",
            note="Sampled once a second.",
        ),
        line_plot(
            "Throughput", [Series("jobs finished", t, finished, filled=True)], unit="jobs per second"
        ),
        line_plot(
            "Offered and finished, added up",
            [Series("offered", t, cumulative["offered"]), Series("finished", t, cumulative["finished"])],
            unit="jobs",
            note="The distance between the lines is the backlog.",
        ),
        line_plot(
            "Write-ahead log",
            [Series("WAL written", sampled, [row["wal_bytes"] / 2**20 for row in samples], filled=True)],
            unit="MiB since the start",
        ),
        line_plot(
            "Dead tuples of the job table",
            [Series("dead tuples", sampled, [row["dead_tuples"] for row in samples], filled=True)],
            unit="tuples",
            note="As the server's statistics report them; they fall when autovacuum has run.",
        ),
        line_plot(
            "Processors of this machine",
            [Series("busy", sampled, [row["machine_cpu_percent"] for row in samples], filled=True)],
            unit="percent of all cores",
            note="Server, workers and generator share it when all run here.",
        ),
    ]  # fmt: skip


def _head(result: Document, facts: Document, title: str) -> str:
    began = datetime.datetime.fromtimestamp(facts["began_epoch"], datetime.UTC)
    settings = facts["server"]["settings"]
    durability = ", ".join(f"{name} = {settings.get(name, '?')}" for name in ("fsync", "synchronous_commit"))
    return (
        f"<header><h1>{escape(title)}</h1><p>{began:%d %B %Y, %H:%M} UTC. {escape(facts['server']['description'])}, "
        f"{escape(durability)}. {escape(facts['trace']['source'])}.</p></header>"
    )


def _verdict(result: Document) -> str:
    verdict = result["verdict"]
    if verdict["passed"]:
        return '<p class="verdict pass"><b>PASS</b> Every objective was measured and held.</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    outcome = verdict["outcome"].replace("_", " ")
    return (
        f'<div class="verdict fail"><b>FAIL</b> {escape(outcome)}, exit code {verdict["exit_code"]}'
        f"<ul>{reasons}</ul></div>"
    )


def _tiles(result: Document) -> str:
    start, arrivals, ledger = result["latency"]["start"], result["arrivals"], result["ledger"] or {}
    tiles = [
        ("jobs finished", _figure(result["throughput"]["finished"]), ""),
        ("pushed of offered", _figure(_times(arrivals["achieved_ratio"], 100)), "%"),
        ("start latency p50", _figure(start["p50_ms"]), "ms"),
        ("start latency p99", _figure(start["p99_ms"]), "ms"),
        ("lost", _figure(ledger.get("lost")), "jobs"),
        ("unexpected", _figure(ledger.get("unexpected")), "effects"),
    ]
    return '<div class="tiles">' + "".join(
        f"<div><span>{escape(name)}</span><b>{value}</b> <i>{unit}</i></div>" for name, value, unit in tiles
    ) + "</div>"  # fmt: skip


def _objectives(result: Document) -> str:
    rows = [
        (check["metric"], f"{_figure(check['value'])} {check['unit']}", f"{check['bound']} {check['unit']}",
         "held" if check["ok"] else check["reason"])
        for check in result["slo"]
    ]  # fmt: skip
    return _table("Objectives", ("metric", "measured", "bound", "outcome"), rows)


def _ledger(result: Document) -> str:
    ledger = result["ledger"]
    if ledger is None:
        return "<section><h2>Ledger</h2><p>The ledger was not reconciled.</p></section>"
    meaning = {
        "pushed": "jobs that producers committed, warm-up included",
        "effects": "runs that handlers recorded",
        "completed": "committed jobs that have their effect",
        "lost": "committed, no effect, no longer in the queue",
        "unexpected": "effects that no producer committed",
        "duplicated": "runs beyond the first of a job",
        "recovered": "jobs whose effect came from a later attempt",
        "failed": "jobs that ended failed or cancelled",
        "undrained": "jobs still in the queue at the end",
    }
    rows = [(name, _figure(ledger[name]), text) for name, text in meaning.items()]
    rows += [
        (f"{name}: the first", str(len(examples)), "; ".join(examples))
        for name in ("lost", "unexpected", "duplicated")
        if (examples := ledger[f"{name}_examples"])
    ]
    return _table("Ledger", ("", "count", "meaning"), rows)


def _generator(result: Document) -> str:
    arrivals, generator, latency = result["arrivals"], result["generator"], result["latency"]
    rows = [
        ("arrivals offered", _figure(arrivals["offered"])),
        ("begun more than 100 ms late", _figure(arrivals["late"])),
        ("of these with every producer busy", _figure(arrivals["late_queued"])),
        ("of these while the generator was saturated", _figure(generator["late"])),
        ("skipped", _figure(arrivals["skipped"])),
        ("largest lag behind the clock", f"{_figure(arrivals['max_lag_ms'])} ms"),
        ("generator, most of one core in a second", f"{_figure(_times(generator['max_cpu_share'], 100))} %"),
        ("push latency p50, p99", f"{_figure(latency['push']['p50_ms'])}, {_figure(latency['push']['p99_ms'])} ms"),
        ("end-to-end latency p50, p99",
         f"{_figure(latency['end_to_end']['p50_ms'])}, {_figure(latency['end_to_end']['p99_ms'])} ms"),
        ("failed requests", _figure(result["requests"]["failures"])),
        ("time to drain after the last arrival", f"{_figure(result['backlog']['drain_seconds'])} s"),
        ("WAL per job", f"{_figure(result['database']['wal_bytes_per_job'])} bytes"),
    ]  # fmt: skip
    return _table("Load generator and requests", ("", ""), rows)


def _waits(result: Document) -> str:
    rows = [(event, f"{count:.2f}") for event, count in result["database"]["waits"].items()]
    return _table("What busy backends of the server waited for", ("wait event", "backends, on average"), rows)


def _facts(facts: Document) -> str:
    machine, git, settings = facts["machine"], facts["git"], facts["settings"]
    revision = "not a git checkout"
    if git:
        revision = f"{git['commit'][:12]}{' with local changes' if git['modified'] else ''}"
    hardware = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    trace = facts["trace"]
    load = f"{trace['jobs']:,} jobs in {trace['seconds']:.0f} s, {trace['service_seconds']:.0f} s of service"
    rows = [
        ("server", f"{facts['server']['description']}: {facts['server']['version']}"),
        ("server settings", ", ".join(f"{k} = {v}" for k, v in facts["server"]["settings"].items())),
        ("machine", f"{hardware}, {machine['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("revision", revision),
        ("command", facts["command"]),
        ("load", f"{trace['source']}; {load}"),
        ("kinds", ", ".join(f"{kind} {count:,}" for kind, count in trace["kinds"].items())),
        ("workers", f"{settings['workers']} processes with {settings['slots_per_worker']} slots each"),
        ("producers", f"{settings['producers']} connections in one process"),
        ("seed", "none: a replayed trace leaves nothing to chance" if facts["seed"] is None else str(facts["seed"])),
    ]
    return _table("What was run on what", ("", ""), rows)


def _thanks(facts: Document) -> str:
    lines = facts["trace"]["acknowledgement"]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section><h2>Thanks for the job log</h2><ul>{items}</ul></section>"


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    head = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    cells = [[escape(row[0]).replace(".", ".<wbr>"), *map(escape, row[1:])] for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<section><h2>{escape(title)}</h2><table>{head}<tbody>{body}</tbody></table></section>"


def _figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _without_holes(windows: Sequence[Document], width: float) -> list[Document]:
    """The windows in order, with an empty one wherever nothing arrived, so that no line crosses the hole."""
    by_number = {round(window["t"] / width): window for window in windows}
    return [by_number.get(n, {"t": n * width}) for n in range(max(by_number, default=-1) + 1)]


def _running_total(values: Sequence[int]) -> list[int]:
    total, totals = 0, []
    for value in values:
        total += value
        totals.append(total)
    return totals
