"""A tab in Locust's web page that shows the queue while a run goes on: depth, connections, dead tuples, latency.

Locust fills an added tab with a table of text (`extended_tabs`, `extended_tables`, and `extended_stats` in its answer
to /stats/requests, as in its own example extend_web_ui.py). The figures come that way. It cannot draw plots there, so
webui.js, added to Locust's page, shows ours below the table: /queue, drawn by the server as the report is, and good to
be opened by itself. Called by the Locust plugin; in a headless run there is no web page and nothing of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request, send_file

from pgqueue_ref.harness.page import figure, html_table, page
from pgqueue_ref.harness.plots import Mark, Series, line_plot
from pgqueue_ref.harness.report import server_plots
from pgqueue_ref.harness.result import sample
from pgqueue_ref.harness.run import PROGRESS_EVERY, LoadRun

TAB = {"title": "Queue", "key": "queue"}
COLUMNS = ("figure", "now", "most so far")
SCRIPT = Path(__file__).with_name("webui.js")

CurrentRun = Callable[[], LoadRun | None]


def extend(web_ui: Any, prefix: str, run: CurrentRun) -> None:
    """Add the tab to Locust's page, which is at `prefix`. `run` gives the newest run, None before any."""
    structure = [{"key": name.replace(" ", "_"), "title": name} for name in COLUMNS]
    web_ui.template_args["extended_tabs"] = [TAB]
    web_ui.template_args["extended_tables"] = [{"key": TAB["key"], "structure": structure}]
    web_ui.app.register_blueprint(_routes(web_ui.auth_required_if_enabled, prefix, run))
    web_ui.app.after_request(lambda response: _extended(response, run()))


def _routes(guarded: Callable[[Any], Any], prefix: str, run: CurrentRun) -> Blueprint:
    def queue() -> str:
        return render(run())

    def report() -> Response:
        newest = run()
        if newest is None or "verdict" not in newest.result:
            return Response("There is no report yet: it is written when a run has ended.", 404, mimetype="text/plain")
        return send_file((newest.directory / "report.html").absolute())

    routes = Blueprint("queue", __name__, url_prefix=prefix)
    routes.add_url_rule("/queue", view_func=guarded(queue))
    routes.add_url_rule("/queue/report", view_func=guarded(report))
    routes.add_url_rule("/queue.js", "script", lambda: send_file(SCRIPT, mimetype="text/javascript"))
    return routes


def _extended(response: Response, run: LoadRun | None) -> Response:
    if request.endpoint == "locust.request_stats" and response.is_json:
        keys = [name.replace(" ", "_") for name in COLUMNS]
        rows = [dict(zip(keys, row, strict=True)) for row in figures(run)]
        stats = {**(response.json or {}), "extended_stats": [{"key": TAB["key"], "data": rows}]}
        response.set_data(json.dumps(stats))
    elif request.endpoint == "locust.index" and response.mimetype == "text/html":
        html = response.get_data(as_text=True)
        response.set_data(html.replace("</body>", '<script type="module" src="./queue.js"></script></body>'))
    return response


def figures(run: LoadRun | None) -> list[tuple[str, str, str]]:
    """What the tab's table shows: name, newest value, largest value so far."""
    if run is None:
        return []
    samples, live = run.measured.samples, run.live
    statuses = [
        name for name in ("pending", "running", "blocked", "failed") if name != "blocked" or _most(samples, name)
    ]
    of_limit = f" of {figure(samples[-1]['connection_limit'])}" if samples else ""
    points = [
        {"pushed": point.pushed, "finished": point.finished, "errors": point.errors,
         "p99": None if point.start_p99 is None else point.start_p99 * 1000}
        for point in list(live)
    ]  # fmt: skip
    return [
        *(_row(f"{status} jobs", samples, status) for status in statuses),
        _row("connections", samples, "connections", of_limit),
        _row("dead tuples of the job table", samples, "dead_tuples"),
        _row("start latency p99", points, "p99", " ms"),
        _row("pushed", points, "pushed", " jobs/s"),
        _row("finished", points, "finished", " jobs/s"),
        _row("failed pushes", points, "errors"),
    ]


def _row(name: str, points: Sequence[Mapping[str, Any]], column: str, unit: str = "") -> tuple[str, str, str]:
    values = (points[-1][column] if points else None, _most(points, column))
    now, most = ("-" if value is None else f"{figure(value)}{unit}" for value in values)
    return name, now, most


def _most(points: Sequence[Mapping[str, Any]], column: str) -> Any:
    return max((point[column] for point in points if point[column] is not None), default=None)


def render(run: LoadRun | None) -> str:
    """The page of the newest run: how it stands, its figures, its plots."""
    script = '<script type="module" src="./queue.js"></script>'
    parts = [script, f"<header><h1>The queue, while it is loaded</h1><p>{_standing(run)}</p></header>"]
    if run is not None:
        parts.append(f'<div class="figures">{html_table(COLUMNS, figures(run))}</div>')
        parts.append(f'<div class="plots">{"".join(_plots(run))}</div>')
    return page("Queue", parts)


def _standing(run: LoadRun | None) -> str:
    if run is None:
        return "No run yet: start one on Locust's page."
    if verdict := run.result.get("verdict"):
        word = "PASS" if verdict["passed"] else f"FAIL, exit code {verdict['exit_code']}"
        return f'{run.scenario.name}: <b>{word}</b>. <a href="./queue/report" target="_top">The report</a> says more.'
    if run.abandoned:
        return f"{run.scenario.name}: given up, nothing is judged. Locust's terminal says why."
    if run.ended:
        return f"{run.scenario.name}: no more load comes; the queue drains, then the run is judged."
    phases = run.measured.phases
    return f"{run.scenario.name}: {f'phase {escape(phases[-1].name)}' if phases else 'getting ready'}."


def _plots(run: LoadRun) -> list[str]:
    marks, live = _marks(run), list(run.live)
    times = [point.t for point in live]
    note = f"Every {PROGRESS_EVERY:g} s, of the jobs that started since or wait still. The report has every percentile."
    latency = [None if point.start_p99 is None else point.start_p99 * 1000 for point in live]
    rates = [
        Series("pushed", times, [point.pushed for point in live]),
        Series("finished", times, [point.finished for point in live]),
    ]
    unit = "milliseconds, logarithmic"
    start = line_plot("Start latency", [Series("p99", times, latency)], unit=unit, note=note, log=True, marks=marks)
    throughput = line_plot("Throughput", rates, unit="jobs per second", marks=marks)
    server = server_plots([sample(row) for row in run.measured.samples], marks, zeros=True)
    return [*server[:3], start, throughput, *server[3:]]


def _marks(run: LoadRun) -> list[Mark]:
    now = run.elapsed()
    phases = [Mark(phase.name, phase.at, min(phase.until, now)) for phase in run.measured.phases if phase.at < now]
    return phases + [Mark(fault.name, fault.at, fault.until, fault=True) for fault in run.measured.faults]
