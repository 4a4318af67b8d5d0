"""Latency histograms keep their tail, in total and per window, and can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from pgqueue_ref.harness.latency import Latencies


def test_percentiles_come_within_a_tenth_of_a_percent() -> None:
    series = Latencies("start", 1.0)
    for n in range(1, 10_001):
        series.record(0.0, n / 10_000)
    summary = series.summary()
    assert summary["count"] == 10_000
    assert summary["p50_ms"] == pytest.approx(500, rel=0.002)
    assert summary["p99_ms"] == pytest.approx(990, rel=0.002)
    assert summary["max_ms"] == pytest.approx(1000, rel=0.002)


def test_a_window_shows_its_own_stall_which_the_median_of_the_run_hides() -> None:
    series = Latencies("start", 1.0)
    for n in range(1000):
        series.record(n / 100, 2.0 if 300 <= n < 400 else 0.001)
    assert series.summary()["p50_ms"] == pytest.approx(1, rel=0.01)
    by_time = {window["t"]: window["p50_ms"] for window in series.windows()}
    assert by_time[3.0] == pytest.approx(2000, rel=0.02)
    assert by_time[4.0] == pytest.approx(1, rel=0.02)


def test_nothing_recorded_gives_no_percentile() -> None:
    summary = Latencies("start", 1.0).summary()
    assert summary["count"] == 0
    assert summary["p99_ms"] is None


def test_negative_and_endless_latencies_are_kept_in_range() -> None:
    series = Latencies("start", 1.0)
    series.record(0.0, -0.5)  # clocks agree only within their measured error
    series.record(0.0, 1e9)
    assert series.summary()["count"] == 2
    assert series.summary()["max_ms"] == pytest.approx(3_600_000, rel=0.002)


def test_a_saved_log_reads_back_with_the_same_counts(tmp_path: Path) -> None:
    series = Latencies("start", 1.0)
    for n in range(500):
        series.record(n / 100, n / 1000)
    series.save(tmp_path, 1000.2528)
    merged = HdrHistogram(1, 3_600_000_000, 2)
    reader = HistogramLogReader(str(tmp_path / "start.hlog"), merged)
    windows = 0
    while (window := reader.get_next_interval_histogram()) is not None:
        merged.add(window)
        windows += 1
    reader.close()
    assert windows == 5
    assert merged.get_total_count() == 500
    assert merged.get_value_at_percentile(100) == pytest.approx(499_000, rel=0.02)
