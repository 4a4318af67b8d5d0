"""Latencies in HDR histograms: over the whole run and in windows of it.

Percentiles always come from merged histograms, never from averages of percentiles. A series is saved as an
HDR histogram log, which the usual HdrHistogram tools open. Called by the load run, which adds what the
ledger and its producers measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader, HistogramLogWriter

LONGEST = 3600.0  # seconds; what is longer is recorded as this, and shows as the maximum
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Latencies:
    """One series of latencies in seconds, resolved to a microsecond; `width` is that of a window in seconds."""

    def __init__(self, name: str, width: float) -> None:
        self.name = name
        self.width = width
        self.total = _histogram(digits=3)
        self._windows: dict[int, HdrHistogram] = {}

    def record(self, at: float, latency: float) -> None:
        """Add one latency; `at` is when it began, in seconds from the start of the run."""
        micros = min(max(round(latency * 1e6), 1), round(LONGEST * 1e6))
        self.total.record_value(micros)
        self._window(max(0, int(at / self.width))).record_value(micros)

    def _window(self, number: int) -> Any:
        if number not in self._windows:
            # 1 % is enough for a plot, and a tenth of the memory of three digits.
            self._windows[number] = _histogram(digits=2)
        return self._windows[number]

    def summary(self) -> dict[str, float | int | None]:
        """Count, percentiles and maximum in milliseconds; None where nothing was recorded."""
        return _summary(self.total)

    def between(self, start: float, end: float) -> dict[str, float | int | None]:
        """`summary` of the windows that lie wholly between two times, in seconds from the start of the run."""
        merged = _histogram(digits=2)
        for number, histogram in self._windows.items():
            if start <= number * self.width and (number + 1) * self.width <= end:
                merged.add(histogram)
        return _summary(merged)

    def windows(self) -> list[dict[str, float | int | None]]:
        """`summary` for each window that has any latency, with its start `t` in seconds."""
        return [{"t": number * self.width, **_summary(h)} for number, h in sorted(self._windows.items())]

    def encode(self) -> dict[str, Any]:
        """A form that travels between processes; `add` takes it back."""
        windows = {number: histogram.encode() for number, histogram in self._windows.items()}
        return {"total": self.total.encode(), "windows": windows}

    def add(self, encoded: Mapping[str, Any]) -> None:
        """Add what another process recorded, bucket by bucket."""
        self.total.add(HdrHistogram.decode(encoded["total"]))
        for number, histogram in encoded["windows"].items():
            self._window(int(number)).add(HdrHistogram.decode(histogram))

    def save(self, directory: Path, began: float) -> None:
        """Write `NAME.hlog` (one histogram per window); `began` is the start of the run in epoch seconds."""
        with (directory / f"{self.name}.hlog").open("w", encoding="ascii") as file:
            writer = HistogramLogWriter(file)
            writer.output_comment(f"{self.name}, microseconds, windows of {self.width:g} s")
            writer.output_log_format_version()
            # Not output_start_time(): hdrhistogram 0.10.8 calls a method there that datetime does not have.
            # To the digit that the intervals have: readers skip what lies before it.
            writer.output_comment(f"[StartTime: {began:.6f} (seconds since epoch)]")
            writer.output_legend()
            for number, histogram in sorted(self._windows.items()):
                start = began + number * self.width
                writer.output_interval_histogram(histogram, start, start + self.width, 1000.0)


def saved(file: Path, began: float, width: float) -> dict[int, dict[int, int]]:
    """What `save` wrote: for each window, by its number, how often each value (microseconds, to 1 %) was recorded.

    `began` and `width` are those of the run. A damaged line ends it without a word; compare the counts. Raises
    `OSError`.
    """
    reader = HistogramLogReader(str(file), _histogram(digits=2))
    windows = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        number = round((histogram.get_start_time_stamp() / 1000 - began) / width)
        windows[number] = {
            e.value_iterated_to: e.count_added_in_this_iter_step for e in histogram.get_recorded_iterator()
        }
    reader.close()
    return windows


def _histogram(digits: int) -> Any:
    return HdrHistogram(1, round(LONGEST * 1e6), digits)


def _summary(histogram: Any) -> dict[str, float | int | None]:
    count = histogram.get_total_count()
    names = [f"p{percentile:g}_ms".replace(".", "_") for percentile in PERCENTILES]
    if not count:
        return {"count": 0, **dict.fromkeys(names), "max_ms": None}
    values = histogram.get_percentile_to_value_dict(list(PERCENTILES))
    in_ms = {name: values[p] / 1000 for name, p in zip(names, PERCENTILES, strict=True)}
    return {"count": count, **in_ms, "max_ms": histogram.get_max_value() / 1000}
