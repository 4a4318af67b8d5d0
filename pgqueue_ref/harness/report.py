"""report.html: what a person opens first after a load run.

One self-contained file without scripts: the verdict and why, what the scenario found, the figures, the plots
with the phases and faults of the run marked in them, the objectives, the ledger, and what was run on what.
Rendered from the same documents that are saved as result.json and manifest.json. What a run does not have
(no arrivals, no phases, a version that did not measure it yet) is left out or named as such, never guessed.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from html import escape

from pgqueue_ref.harness.page import Document, at, figure, page, section, table
from pgqueue_ref.harness.plots import SECONDS, STYLES, Mark, Series, line_plot

CONNECTIONS_NOTE = (
    "Without the sampler's. The limit is max_connections less the slots that ordinary roles are never given."
)


def render(result: Document, facts: Document) -> str:
    """The report as one HTML document."""
    verdict = result["verdict"]
    title = f"{'PASS' if verdict['passed'] else 'FAIL'}: {result['scenario']} load run {result['run']}"
    parts = [
        _head(result, facts, title),
        _verdict(result),
        _tiles(result),
        _found(result),
        _plots_section(result),
        _objectives(result),
        _ledger(result),
        _generator(result),
        _waits(result),
        _facts(facts),
        _thanks(facts),
    ]
    return page(title, parts)


def plots(result: Document) -> list[str]:
    """The plots of a result: of its arrivals where it has any, of the server, and those of the scenario."""
    marks = marks_of(result)
    drawn = _arrival_plots(result, marks) if has_arrivals(result) else []
    if samples := at(result, "series.samples"):
        drawn += server_plots(samples, marks)
    return drawn + [_extra_plot(plot, marks) for plot in result.get("plots") or ()]


def has_arrivals(result: Document) -> bool:
    """Whether anything was offered; a scenario may only probe."""
    return bool(at(result, "arrivals.offered"))


def marks_of(result: Document) -> list[Mark]:
    """The phases and faults of a run, for its plots over time."""
    phases = [Mark(phase["name"], phase["from"], phase.get("to")) for phase in result.get("phases") or ()]
    faults = [Mark(f["name"], f["at"], f.get("until"), fault=True) for f in result.get("faults") or ()]
    return phases + faults


def latency_series(result: Document, series: str, percentiles: Sequence[str]) -> list[Series]:
    """Percentiles such as p99 of one latency series (start, push) over its windows."""
    windows = _without_holes(at(result, f"series.{series}_latency") or (), result["series"]["window_seconds"])
    times = [row["t"] for row in windows]
    return [Series(name, times, [row.get(f"{name}_ms") for row in windows]) for name in percentiles]


def sampled(
    samples: Sequence[Document], column: str, name: str, *, factor: float = 1.0, filled: bool = False
) -> Series:
    """What the sampler saw in one of its columns."""
    values = [_times(row.get(column), factor) for row in samples]
    return Series(name, [row["t"] for row in samples], values, filled=filled)


def _arrival_plots(result: Document, marks: Sequence[Mark]) -> list[str]:
    series = result["series"]
    t, finished = series["t"], series["finished"]
    cumulative = {name: _running_total(series[name]) for name in ("offered", "finished")}
    return [
        line_plot(
            "Arrivals",
            [Series("offered by the clock", t, series["offered"], filled=True), Series("pushed", t, series["pushed"])],
            unit="jobs per second",
            marks=marks,
        ),
        line_plot(
            "Start latency",
            latency_series(result, "start", ("p50", "p90", "p99", "max")),
            unit="milliseconds, logarithmic",
            note="From the instant the clock intended to the start of the attempt, by intended instant.",
            log=True,
            marks=marks,
        ),
        line_plot(
            "Push latency",
            latency_series(result, "push", ("p50", "p99", "max")),
            unit="milliseconds, logarithmic",
            note="From the instant the clock intended to the commit of the push.",
            log=True,
            marks=marks,
        ),
        line_plot(
            "Throughput", [Series("jobs finished", t, finished, filled=True)], unit="jobs per second", marks=marks
        ),
        line_plot(
            "Offered and finished, added up",
            [Series("offered", t, cumulative["offered"]), Series("finished", t, cumulative["finished"])],
            unit="jobs",
            note="The distance between the lines is the backlog.",
            marks=marks,
        ),
    ]


def server_plots(samples: Sequence[Document], marks: Sequence[Mark], *, zeros: bool = False) -> list[str]:
    """The plots of what the sampler saw; those of nothing but zeros only on demand, as while it still samples."""
    plain: list[tuple[str, str, str, list[Series]]] = [
        ("Depth by status", "jobs", "Sampled once a second.", _depth(samples)),
        ("Connections against the limit", "connections", CONNECTIONS_NOTE, _connections(samples)),
        ("Dead tuples of the job table", "tuples",
         "As the server's statistics report them; they fall when autovacuum has run.",
         [sampled(samples, "dead_tuples", "dead tuples", filled=True)]),
        ("Size of the job table", "MiB", "",
         [sampled(samples, "table_bytes", "table", factor=2**-20, filled=True),
          sampled(samples, "index_bytes", "its indexes", factor=2**-20)]),
        ("Age of the oldest snapshot", "transactions", "Nothing that died since can be vacuumed.",
         [sampled(samples, "xmin_age", "age", filled=True)]),
        ("Write-ahead log", "MiB since the start", "",
         [sampled(samples, "wal_bytes", "WAL written", factor=2**-20, filled=True)]),
        ("Processors of this machine", "percent of all cores",
         "Server, workers and generator share it when all run here.",
         [sampled(samples, "machine_cpu_percent", "busy", filled=True)]),
        ("Memory of the workers", "MiB", "Resident, of all worker processes together.",
         [sampled(samples, "worker_rss_bytes", "workers", factor=2**-20, filled=True)]),
    ]  # fmt: skip
    return [
        line_plot(title, series, unit=unit, note=note, marks=marks)
        for title, unit, note, series in plain
        if zeros or any(value for line in series for value in line.values)
    ]


def _depth(samples: Sequence[Document]) -> list[Series]:
    depth = [sampled(samples, "pending", "pending", filled=True), sampled(samples, "running", "running"),
             sampled(samples, "failed", "failed")]  # fmt: skip
    # Only dependencies block.
    return depth + ([sampled(samples, "blocked", "blocked")] if any(row.get("blocked") for row in samples) else [])


def _connections(samples: Sequence[Document]) -> list[Series]:
    """All, the limit, and those of the applications that have the most; `pgqueue_ref:claim` is of `pgqueue_ref`."""
    by_application = []
    for row in samples:
        counts: Counter[str] = Counter()
        for name, count in (row.get("by_application") or {}).items():
            counts[name.partition(":")[0]] += count
        by_application.append(counts)
    peaks: Counter[str] = Counter()
    for counts in by_application:
        peaks |= counts
    times = [row["t"] for row in samples]
    of_most = [
        Series(name, times, [counts[name] for counts in by_application]) for name, _ in peaks.most_common(STYLES - 2)
    ]
    limit = sampled(samples, "connection_limit", "limit")
    return [sampled(samples, "connections", "all", filled=True), limit, *of_most]


def _extra_plot(plot: Document, marks: Sequence[Mark]) -> str:
    x_axis, log = plot.get("x") or SECONDS, bool(plot.get("log"))
    return line_plot(
        plot["title"],
        [Series(line["name"], line["t"], line["v"]) for line in plot["series"]],
        unit=plot["unit"] + (", logarithmic" if log and "logarithmic" not in plot["unit"] else ""),
        note=plot.get("note") or "",
        log=log,
        x_axis=x_axis,
        marks=marks if x_axis == SECONDS else (),
    )


def _plots_section(result: Document) -> str:
    drawn = plots(result)
    if not drawn:
        return section("The run over time", "<p>Nothing was recorded over time.</p>")
    return section("The run over time", f'<div class="plots">{"".join(drawn)}</div>')


def _found(result: Document) -> str:
    rows = [
        (item["name"], _measured(item.get("value"), item.get("unit") or ""), item.get("meaning") or "")
        for item in result.get("found") or ()
    ]
    return section("What this scenario found", table(("", "value", "meaning"), rows)) if rows else ""


def _head(result: Document, facts: Document, title: str) -> str:
    began = datetime.datetime.fromtimestamp(facts["began_epoch"], datetime.UTC)
    settings = facts["server"]["settings"]
    durability = ", ".join(f"{name} = {settings.get(name, '?')}" for name in ("fsync", "synchronous_commit"))
    scenario = f"<p class=about>{escape(result['scenario_text'])}</p>" if result.get("scenario_text") else ""
    source = at(facts, "trace.source")
    return (
        f"<header><h1>{escape(title)}</h1>{scenario}"
        f"<p>{began:%d %B %Y, %H:%M} UTC. {escape(facts['server']['description'])}, {escape(durability)}."
        f"{f' {escape(source)}.' if source else ''}</p></header>"
    )


def _verdict(result: Document) -> str:
    verdict = result["verdict"]
    if verdict["passed"]:
        return f'<p class="verdict pass"><b>PASS</b> {_held(result)}</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    outcome = verdict["outcome"].replace("_", " ")
    return (
        f'<div class="verdict fail"><b>FAIL</b> {escape(outcome)}, exit code {verdict["exit_code"]}'
        f"<ul>{reasons}</ul></div>"
    )


def _held(result: Document) -> str:
    skipped = sum(bool(check.get("skipped")) for check in result["slo"])
    if not skipped:
        return "Every objective was measured and held."
    judged = len(result["slo"]) - skipped
    rest = "1 was not judged" if skipped == 1 else f"{skipped} were not judged"
    return f"{judged} of {len(result['slo'])} objectives were judged, and held; {rest}."


def _tiles(result: Document) -> str:
    tiles = _arrival_tiles(result) if has_arrivals(result) else _probe_tiles(result)
    return '<div class="tiles">' + "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b> <i>{unit}</i></div>" for name, value, unit in tiles
    ) + "</div>"  # fmt: skip


def _arrival_tiles(result: Document) -> list[tuple[str, str, str]]:
    figures = [
        ("jobs finished", at(result, "throughput.finished"), ""),
        ("pushed of offered", _times(at(result, "arrivals.achieved_ratio"), 100), "%"),
        ("start latency p50", at(result, "latency.start.p50_ms"), "ms"),
        ("start latency p99", at(result, "latency.start.p99_ms"), "ms"),
        ("lost", at(result, "ledger.lost"), "jobs"),
        ("unexpected", at(result, "ledger.unexpected"), "effects"),
    ]
    # "not measured ms" says nothing.
    return [(name, figure(value), "" if value is None else unit) for name, value, unit in figures]


def _probe_tiles(result: Document) -> list[tuple[str, str, str]]:
    """For a scenario that offers no jobs and only probes."""
    judged = [check for check in result["slo"] if not check.get("skipped")]
    tiles = [
        ("jobs offered", "no arrivals", ""),
        ("objectives held", f"{sum(check['ok'] for check in judged)} of {len(judged)}", ""),
    ]
    more = (
        ("failed requests", at(result, "requests.failures"), ""),
        ("most connections seen", at(result, "database.max_connections_seen"), _limit(result)),
        ("lost", at(result, "ledger.lost"), "jobs"),
        ("unexpected", at(result, "ledger.unexpected"), "effects"),
    )
    return tiles + [(name, figure(value), unit) for name, value, unit in more if value is not None]


def _limit(result: Document) -> str:
    limit = at(result, "database.connection_limit")
    return f"of {figure(limit)}" if limit is not None else ""


def _objectives(result: Document) -> str:
    rows = [
        (
            check["metric"],
            _measured(check["value"], check["unit"]),
            f"{check['bound']} {check['unit']}",
            _outcome(check),
        )
        for check in result["slo"]
    ]
    return section("Objectives", table(("metric", "measured", "bound", "outcome"), rows))


def _measured(value: float | str | None, unit: str) -> str:
    return f"{figure(value)} {unit}".strip() if value is not None else figure(None)


def _outcome(check: Document) -> str:
    if check.get("skipped"):
        return f"not judged: {check['reason']}" if check.get("reason") else "not judged"
    return "held" if check["ok"] else str(check["reason"])


def _ledger(result: Document) -> str:
    ledger = result.get("ledger")
    if ledger is None:
        why = "The ledger was not reconciled." if has_arrivals(result) else "No arrivals, so nothing to reconcile."
        return section("Ledger", f"<p>{why}</p>")
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
    rows = [(name, figure(ledger.get(name)), text) for name, text in meaning.items()]
    rows += [
        (f"{name}: the first", str(len(examples)), "; ".join(examples))
        for name in ("lost", "unexpected", "duplicated")
        if (examples := ledger.get(f"{name}_examples"))
    ]
    return section("Ledger", table(("", "count", "meaning"), rows))


def _generator(result: Document) -> str:
    def value(path: str, unit: str = "", factor: float = 1.0) -> str:
        found = at(result, path)
        return _measured(found if factor == 1.0 else _times(found, factor), unit)

    rows = [("arrivals offered", value("arrivals.offered") if has_arrivals(result) else "no arrivals")]
    if has_arrivals(result):
        rows += [
            ("begun more than 100 ms late", value("arrivals.late")),
            ("of these with every producer busy", value("arrivals.late_queued")),
            ("of these while the generator was saturated", value("generator.late")),
            ("skipped", value("arrivals.skipped")),
            ("largest lag behind the clock", value("arrivals.max_lag_ms", "ms")),
            ("generator, most of one core in a second", value("generator.max_cpu_share", "%", 100)),
            ("push latency p50, p99", f"{value('latency.push.p50_ms')}, {value('latency.push.p99_ms', 'ms')}"),
            ("end-to-end latency p50, p99",
             f"{value('latency.end_to_end.p50_ms')}, {value('latency.end_to_end.p99_ms', 'ms')}"),
            ("time to drain after the last arrival", value("backlog.drain_seconds", "s")),
            ("WAL per job", value("database.wal_bytes_per_job", "bytes")),
        ]  # fmt: skip
    rows += [("failed requests", value("requests.failures"))]
    return section("Load generator and requests", table(("", ""), rows))


def _waits(result: Document) -> str:
    rows = [(event, f"{count:.2f}") for event, count in (at(result, "database.waits") or {}).items()]
    if not rows:
        return ""
    names = ("wait event", "backends, on average")
    return section("What busy backends of the server waited for", table(names, rows))


def _facts(facts: Document) -> str:
    machine, git = facts["machine"], facts.get("git")
    revision = "not a git checkout"
    if git:
        revision = f"{git['commit'][:12]}{' with local changes' if git['modified'] else ''}"
    hardware = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    rows = [
        ("server", f"{facts['server']['description']}: {facts['server']['version']}"),
        ("server settings", ", ".join(f"{k} = {v}" for k, v in facts["server"]["settings"].items())),
        ("machine", f"{hardware}, {machine['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        ("revision", revision),
        ("command", facts["command"]),
        *_load_facts(facts),
    ]
    return section("What was run on what", table(("", ""), rows))


def _load_facts(facts: Document) -> list[tuple[str, str]]:
    trace, settings, seed = facts.get("trace") or {}, facts.get("settings") or {}, facts.get("seed")
    rows = []
    if trace:
        load = f"{trace['jobs']:,} jobs in {trace['seconds']:.0f} s, {trace['service_seconds']:.0f} s of service"
        rows.append(("load", f"{trace['source']}; {load}"))
        rows.append(("kinds", ", ".join(f"{kind} {count:,}" for kind, count in trace["kinds"].items())))
    if "workers" in settings:
        rows.append(("workers", f"{settings['workers']} processes with {settings['slots_per_worker']} slots each"))
    if "producers" in settings:
        rows.append(("producers", f"{settings['producers']} connections in one process"))
    rows.append(("seed", "none: nothing was left to chance" if seed is None else str(seed)))
    return rows


def _thanks(facts: Document) -> str:
    lines = at(facts, "trace.acknowledgement")
    if not lines:
        return ""
    return section("Thanks for the job log", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


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
