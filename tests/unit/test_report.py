"""The report is one self-contained page that says what was measured, on what, and thanks whom it should."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from pgqueue_ref.harness import manifest, plots
from pgqueue_ref.harness.plots import Series, line_plot, linear_ticks, log_ticks
from pgqueue_ref.harness.report import plots as plots_of
from pgqueue_ref.harness.report import render

SUMMARY = {"count": 9, "p50_ms": 5.0, "p90_ms": 8.0, "p95_ms": 9.0, "p99_ms": 12.5, "p99_9_ms": 13.0, "max_ms": 14.0}
SAMPLE = {
    "t": 0.5, "pending": 3, "running": 1, "failed": 0, "dead_tuples": 7, "wal_bytes": 2**20, "connections": 4,
    "connection_limit": 97, "table_bytes": 2**20, "index_bytes": 2**19, "xmin_age": 5, "worker_rss_bytes": 2**27,
    "machine_cpu_percent": 31.0, "by_application": {"w:claim": 2, "w:write": 2, "psql <x>": 3},
}  # fmt: skip


def result(**changes: Any) -> dict[str, Any]:
    counts = ("pushed", "effects", "completed", "lost", "unexpected", "duplicated", "recovered", "failed", "undrained")
    return {
        "scenario": "steady",
        "run": "r1",
        "verdict": {"passed": True, "exit_code": 0, "outcome": "pass", "reasons": []},
        "arrivals": {"offered": 9, "achieved": 9, "achieved_ratio": 1.0, "late": 0, "late_queued": 0, "skipped": 0,
                     "max_lag_ms": 1.0},
        "requests": {"failures": 0},
        "latency": {"start": SUMMARY, "push": SUMMARY, "end_to_end": SUMMARY},
        "throughput": {"finished": 9},
        "backlog": {"drain_seconds": 0.1},
        "ledger": dict.fromkeys(counts, 0)
        | {f"{name}_examples": [] for name in ("lost", "unexpected", "duplicated")},
        "generator": {"late": 0, "max_cpu_share": 0.2},
        "database": {"wal_bytes_per_job": 2000.0, "waits": {"IO:WalSync": 0.5}},
        "slo": [{"metric": "latency.start.p99_ms", "value": 12.5, "unit": "ms", "bound": "<= 2000", "ok": True,
                 "reason": ""}],
        "series": {
            "t": [0, 1], "offered": [4, 5], "pushed": [4, 5], "finished": [4, 5], "window_seconds": 1.0,
            "start_latency": [{"t": 0.0, **SUMMARY}, {"t": 3.0, **SUMMARY}],
            "push_latency": [{"t": 0.0, **SUMMARY}], "samples": [SAMPLE],
        },
        **changes,
    }  # fmt: skip


FACTS: dict[str, Any] = {
    "began_epoch": 1_800_000_000.0,
    "command": "locust -f loadtests <script>",
    "git": {"commit": "0123456789abcdef", "modified": True},
    "versions": {"python": "3.11.7"},
    "machine": {"system": "Linux", "processor": "CPU & co", "cores": 2, "memory_bytes": 2**34},
    "server": {
        "description": "embedded PostgreSQL 18.4",
        "version": "PostgreSQL 18.4 on x86_64",
        "settings": {"fsync": "on", "synchronous_commit": "off"},
    },
    "seed": None,
    "trace": {"source": "log.csv whole", "jobs": 9, "seconds": 60.0, "service_seconds": 1.0, "kinds": {"mail": 9},
              "acknowledgement": ["Acknowledge: Bill Nitzberg"]},
    "settings": {"workers": 2, "slots_per_worker": 32, "producers": 16},
}  # fmt: skip


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order."""

    VOID = ("meta", "wbr", "line", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere() -> None:
    page = render(result(), FACTS)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)


def test_server_version_durability_machine_command_and_thanks_are_stated() -> None:
    page = render(result(), FACTS)
    for text in ("embedded PostgreSQL 18.4", "PostgreSQL 18.4 on x86_64", "fsync = on", "synchronous_commit = off",
                 "2 cores", "locust -f loadtests", "0123456789ab with local changes", "Bill Nitzberg"):  # fmt: skip
        assert text in page
    assert "color-scheme: light dark" in page


def test_text_from_outside_is_escaped() -> None:
    page = render(result(), FACTS)
    assert "<script>" not in page
    assert "CPU &amp; co" in page


def test_every_plot_has_a_title_a_unit_and_a_legend() -> None:
    page = render(result(), FACTS)
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    titles = [re.sub("<[^>]+>", "", figure.split("</figcaption>")[0]) for figure in figures]
    assert {title.split(" in ")[0] for title in titles} >= {
        "Arrivals", "Start latency", "Push latency", "Throughput", "Depth by status", "Connections against the limit",
        "Dead tuples of the job table", "Size of the job table", "Age of the oldest snapshot", "Write-ahead log",
    }  # fmt: skip
    for figure, title in zip(figures, titles, strict=True):
        assert " in " in title
        assert 'class="legend"' in figure
        assert "seconds from the start" in figure


def test_a_failed_run_says_so_first_with_every_reason() -> None:
    verdict = {"passed": False, "exit_code": 5, "outcome": "incorrect", "reasons": ["ledger.lost is 1", "and <more>"]}
    ledger = result()["ledger"] | {"lost": 1, "lost_examples": ["arrival-7"]}
    page = render(result(verdict=verdict, ledger=ledger), FACTS)
    assert "FAIL" in page
    assert "PASS" not in page
    for text in ("ledger.lost is 1", "and &lt;more&gt;", "exit code 5", "arrival-7"):
        assert text in page


def test_what_was_not_measured_is_named_as_such() -> None:
    nothing = dict.fromkeys(SUMMARY) | {"count": 0}
    series = result()["series"] | {"samples": [], "start_latency": [], "push_latency": []}
    latency = dict.fromkeys(("start", "push", "end_to_end"), nothing)
    page = render(result(ledger=None, latency=latency, series=series), FACTS)
    assert "not measured" in page
    assert "Nothing was measured" in page
    assert "The ledger was not reconciled" in page


def test_connections_are_drawn_against_their_limit_and_by_application() -> None:
    (drawn,) = [plot for plot in plots_of(result()) if "<b>Connections against the limit</b>" in plot]
    names = re.findall(r"</svg>([^<]*)</li>", drawn)
    assert names == ["all", "limit", "w", "psql &lt;x&gt;"]  # the most first: 2 + 2 of w


def test_an_older_result_without_the_limit_has_a_plot_too() -> None:
    old = {name: value for name, value in SAMPLE.items() if name not in ("connection_limit", "by_application")}
    assert any("Connections" in plot for plot in plots_of(result(series=result()["series"] | {"samples": [old]})))


def lines_of(plot: str) -> list[str]:
    return re.findall(r'<path class="line c0" d="([^"]+)"', plot)


def test_a_line_does_not_cross_a_gap_and_a_lone_point_is_drawn() -> None:
    plot = line_plot("a", [Series("s", [0, 1, 2, 3, 4], [1.0, 2.0, None, 3.0, None])], unit="u")
    assert len(lines_of(plot)) == 1
    assert plot.count('<circle class="dot c0"') == 1


def test_a_legend_shows_a_dot_for_a_series_whose_points_are_not_joined() -> None:
    joined, single = Series("joined", [0, 1], [1.0, 2.0]), Series("single", [0, 0, 1], [1.0, None, 2.0])
    plot = line_plot("a", [joined, single], unit="u")
    legend = plot[: plot.index("</ul>")]
    assert legend.count('<line class="line c0"') == legend.count('<circle class="dot c1"') == 1


def test_a_long_line_is_thinned_and_keeps_its_peaks() -> None:
    values = [float(n % 7) for n in range(20_000)]
    values[12_345], values[15_001] = 1000.0, -500.0
    series = [Series("s", range(20_000), values)]
    (line,) = lines_of(line_plot("a", series, unit="u"))
    points = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", line)]
    assert len(points) < 4 * plots.WIDTH
    assert points == sorted(points, key=lambda point: point[0])
    top, bottom = (f"{y:.1f}" for y in (plots.TOP, plots.HEIGHT - plots.BOTTOM))
    assert {f"{min(y for _, y in points):.1f}", f"{max(y for _, y in points):.1f}"} == {top, bottom}


def test_every_point_lies_within_the_plot() -> None:
    for log in (False, True):
        plot = line_plot("a", [Series("s", [0, 30, 61.7], [0.004, 77.0, 1234.5])], unit="u", log=log)
        for x, y in re.findall(r"([\d.]+) ([\d.]+)", lines_of(plot)[0]):
            assert plots.LEFT <= float(x) <= plots.WIDTH - plots.RIGHT
            assert plots.TOP <= float(y) <= plots.HEIGHT - plots.BOTTOM


@pytest.mark.parametrize("largest", [0, 0.003, 0.9, 1, 7, 99, 100, 101, 15_000, 3e9])
def test_ticks_are_few_and_reach_the_largest_value(largest: float) -> None:
    ticks = linear_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-1] >= largest
    assert 2 <= len(ticks) <= 7


def test_logarithmic_ticks_enclose_the_values() -> None:
    assert log_ticks(3, 870) == [1, 10, 100, 1000]
    assert log_ticks(5, 5) == [1, 10]
    assert log_ticks(10, 100) == [10, 100]


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hunter2@db:5432/x",
        "postgresql+psycopg://u:hunter2@db/x",
        "postgresql://u:p@hunter2@db/x",
        "postgresql://db/x?user=u&password=hunter2",
        "host=db password=hunter2 user=u",
        "host=db password='hunter2 \\' hunter2' user=u",
        "host=db password = hunter2 user=u",
        "host=db password=x\\ hunter2 user=u",
        "host=db password=x'hunter2 user=u",
        "host=db password=x&hunter2 user=u",
        "host=db password='x hunter2",
        "postgresql://u@db/x?password=x'hunter2",
        "postgresql://u@db/x?password='x'hunter2&user=u",
    ],
)
def test_a_command_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/locust", "--postgres", dsn, f"--postgres={dsn}"])
    assert "hunter2" not in manifest.command()
    assert manifest.command().startswith("locust --postgres ")
