"""index.html over the runs of a suite: a verdict per scenario with its headline figures and the way to its report.

Called by `harness.suite` after every scenario, so that the page is there to look at while the rest still runs. A
scenario without a result says so; it never looks like a pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from pgqueue_ref.harness.page import at, figure, html_table, page

_COLUMNS = ("scenario", "verdict", "jobs", "start p99, ms", "lost", "unexpected", "why")


def write_index(directory: Path, runs: Sequence[Path], scenarios: Sequence[str]) -> Path:
    """Write the page over `runs`, directories of load runs in `directory`, one line for each of `scenarios`."""
    results = {result["scenario"]: (run, result) for run in runs if (result := _result(run)) is not None}
    rows = [_row(name, results.get(name)) for name in scenarios]
    passed = sum(result["verdict"]["passed"] for _, result in results.values())
    title = f"{passed} of {len(scenarios)} scenarios passed"
    file = directory / "index.html"
    file.write_text(page(title, [f"<header><h1>{title}</h1></header>", html_table(_COLUMNS, rows)]), encoding="utf-8")
    return file


def _result(run: Path) -> dict[str, Any] | None:
    file = run / "result.json"  # written last: where it is, the rest is complete
    result: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return result


def _row(name: str, found: tuple[Path, dict[str, Any]] | None) -> list[str]:
    if found is None:
        return [escape(name), "<b>no verdict</b>", "", "", "", "", "it has not run to its end"]
    run, result = found
    verdict = result["verdict"]
    word = "PASS" if verdict["passed"] else f"FAIL, exit {verdict['exit_code']}"
    figures = [at(result, path) for path in ("ledger.completed", "latency.start.p99_ms", "ledger.lost")]
    figures.append(at(result, "ledger.unexpected"))
    return [
        f'<a href="{escape(run.name)}/report.html">{escape(name)}</a>',
        f"<b>{word}</b>",
        *("" if value is None else figure(value) for value in figures),
        escape("; ".join(verdict["reasons"])),
    ]
