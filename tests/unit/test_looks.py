"""The harness's pages in a real Chromium, on a phone and on a desk, in both themes: nothing is cut, all can be read.

The documents hold the longest things that runs have brought: names, reasons, commands, many phases and faults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import chromium, looks
from left_runs import PASS, left_run
from playwright.sync_api import Browser

from pgqueue_ref.harness import compare, index, webui
from pgqueue_ref.harness.report import render
from pgqueue_ref.harness.result import Phase
from pgqueue_ref.harness.run import Live

LONG = "worker 1 ended with exit code 1: " + "a-path-without-any-space/" * 12 + " and <markup> & more"
FAILED = PASS | {"passed": False, "exit_code": 5, "outcome": "incorrect", "reasons": [LONG, "ledger.lost is 1 jobs"]}
PHASES = [
    {"name": name, "from": float(at), "to": at + 2.0} for name, at in (("calm", 0), ("busy", 4), ("calm again", 8))
]
FAULTS = [{"name": f"kill-worker at {at} s", "at": at, "until": at + 1} for at in (6.0, 6.2, 6.4, 15.0, 19.9)]
MANY = {
    "server": {
        "description": "dsn PostgreSQL 18.4 at a.very.long.name.of.a.host.example:5432",
        "version": "x" * 120,
        "settings": {f"a_setting_of_the_server_{n}": "on" for n in range(16)},
    }
}

Look = Callable[[str, str], None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """`look(name, html)`: fails when anything is wrong with the page's looks."""
    page = browser.new_page()

    def look(name: str, html: str) -> None:
        page.set_content(html)
        assert looks(page, name) == []

    yield look
    page.close()


def documents(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    result, facts = (json.loads((directory / f"{name}.json").read_text()) for name in ("result", "manifest"))
    return result, facts


def test_the_report(look: Look, tmp_path: Path) -> None:
    found = [{"name": "a_figure_with_a_rather_long_name", "value": 1234.5, "unit": "per second", "meaning": LONG}]
    plot = {"title": "Waiting", "unit": "jobs", "x": "jobs in the table", "log": True,
            "series": [{"name": f"series {n}", "t": [0, 1e6], "v": [0.004, 4e7]} for n in range(6)]}  # fmt: skip
    slo = [{"metric": "a.metric.with.a_rather_long_path.p99_ms", "value": 1e9, "unit": "transactions", "bound": "<= 2",
            "ok": False, "skipped": False, "reason": LONG}]  # fmt: skip
    changes = {"found": found, "plots": [plot], "slo": slo, "verdict": FAILED, "phases": PHASES, "faults": FAULTS}
    look("report", render(*documents(left_run(tmp_path / "run", result=changes, facts=MANY | {"command": LONG}))))


def test_the_report_of_a_run_that_only_probes(look: Look, tmp_path: Path) -> None:
    changes = {"arrivals": {"offered": 0}, "ledger": None}
    look("probes", render(*documents(left_run(tmp_path / "run", seconds=0, result=changes))))


def test_the_comparison(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REPLICATES", 50)
    git = {"git": {"commit": "fedcba9876543210", "modified": True}}
    directories = [
        left_run(tmp_path / "20261125T120508-spike", result={"phases": PHASES, "faults": FAULTS}),
        left_run(tmp_path / "20261125T120802-spike", factor=30.0, facts=git, result={"phases": PHASES}),
        left_run(tmp_path / "20261125T121002-spike", facts=MANY),
    ]
    runs = compare.load(directories)
    look("comparison", compare.render(runs, compare.compare(runs)))


def test_the_index(look: Look, tmp_path: Path) -> None:
    slo = [{"metric": f"found.a_figure_with_a_rather_long_name_{n}", "value": 1e9, "unit": "transactions", "ok": True,
            "bound": ">= 0.25 and <= 1e+12", "reason": ""} for n in range(7)]  # fmt: skip
    runs = [
        left_run(tmp_path / "calm", result={"scenario": "calm", "slo": slo}),
        left_run(tmp_path / "storm", result={"scenario": "storm", "verdict": FAILED}, facts=MANY),
    ]
    ended = {"calm": index.Ended(0, 61.0), "storm": index.Ended(5, 3.0), "cut-off": index.Ended(-9, 3600.0)}
    look("index", index.write_index(tmp_path, runs, [*ended, "later"], ended).read_text())
    look("index-begun", index.write_index(tmp_path, [], [*ended, "later"], {}).read_text())


def test_the_tab(look: Look, tmp_path: Path) -> None:
    result, _ = documents(left_run(tmp_path / "run"))
    samples = [row | {"by_application": json.dumps(row["by_application"])} for row in result["series"]["samples"]]
    live = [Live(5.0 * n, "calm", 30.0, 29.0, 0.02, 0, 0) for n in range(5)]
    measured = SimpleNamespace(samples=samples, phases=[Phase("calm", 0.0)], faults=[])
    run = SimpleNamespace(measured=measured, live=live, result={}, ended=False, abandoned=False,
                          scenario=SimpleNamespace(name="spike"), elapsed=lambda: 20.0)  # fmt: skip
    look("tab", webui.render(run))
