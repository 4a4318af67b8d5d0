"""Line plots as inline SVG: no script, no network, readable in either theme and at the width of a phone.

Called by the report and the comparison. Colours come from the page's style sheet through the classes `c0` to
`c5`, so a plot follows the reader's theme; series also differ in their dashes, so they can be told apart
without colours. Marks (phases and faults of a run) are numbers and letters in the plot and names in the
legend below it: names inside would overlap or be cut on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 30, 16, 60  # room for half a label on the right
STYLES = 6
MARK_ROW = 24  # a row of mark labels above the plot
RATIO_ROW = 46  # a name and its interval
SECONDS = "seconds from the start"


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; None in `values` is a gap."""

    name: str
    times: Sequence[float]
    values: Sequence[float | None]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened at `start`, or from `start` to `end`, in seconds; a fault that was injected, or a phase."""

    name: str
    start: float
    end: float | None = None
    fault: bool = False


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    unit: str,
    note: str = "",
    log: bool = False,
    x_axis: str = SECONDS,
    marks: Sequence[Mark] = (),
) -> str:
    """A figure: caption with unit, legend, plot, legend of the marks, note. `log` for a logarithmic value axis."""
    values = [v for s in series for v in s.values if v is not None and (not log or v > 0)]
    caption = f"<figcaption><b>{escape(title)}</b> <span>in {escape(unit)}</span></figcaption>"
    if not values:
        return f'<figure>{caption}<p class="empty">Nothing was measured.</p></figure>'
    keyed = keys(marks)
    along = [t for s in series for t in s.times]
    along += [t for mark in marks for t in (mark.start, mark.end) if t is not None]
    first, last = min(0.0, *along), max(0.0, *along)
    x = _scale(first, last if last > first else first + 1.0, LEFT, WIDTH - RIGHT)
    rows, mark_rows = _mark_rows(keyed, x)
    top = TOP + mark_rows * MARK_ROW
    height = HEIGHT + mark_rows * MARK_ROW
    ticks = log_ticks(min(values), max(values)) if log else linear_ticks(max(values), smallest=min(values))
    y = _log_scale(ticks, height - BOTTOM, top) if log else _scale(ticks[0], ticks[-1], height - BOTTOM, top)
    body = _bands(rows, x, top, height - BOTTOM) + _grid(ticks, y) + _x_axis(first, last, x, height, x_axis)
    for number, line in reversed(list(enumerate(series))):
        body += _line(line, f"c{number % STYLES}", x, y, floor=ticks[0] if log else None)
    return (
        f"<figure>{caption}{_legend(series)}"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)} in {escape(unit)}">'
        f"{body}</svg>{_mark_legend(keyed)}{f'<p class=note>{escape(note)}</p>' if note else ''}</figure>"
    )


@dataclass(frozen=True, slots=True)
class Interval:
    """A named ratio with its interval; all positive."""

    name: str
    value: float
    low: float
    high: float


def ratio_plot(title: str, intervals: Sequence[Interval], *, note: str = "") -> str:
    """A figure of ratios with their intervals, each under its name, around the line of 1, on a logarithmic axis."""
    caption = f"<figcaption><b>{escape(title)}</b> <span>as ratios, logarithmic</span></figcaption>"
    if not intervals:
        return f'<figure>{caption}<p class="empty">Nothing was measured.</p></figure>'
    furthest = max(abs(math.log2(end)) for i in intervals for end in (i.low, i.high))
    reach = max(1, math.ceil(furthest))
    step = math.ceil(reach / 3)  # seven ticks at most
    ends = step * math.ceil(reach / step)
    ticks = [2.0**n for n in range(-ends, ends + 1, step)]
    inner = _scale(math.log2(ticks[0]), math.log2(ticks[-1]), LEFT / 2, WIDTH - LEFT / 2)
    height = TOP + RATIO_ROW * len(intervals) + 40
    body = ""
    for tick in ticks:
        x, style = inner(math.log2(tick)), "mark phase" if tick == 1 else "grid"
        body += f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 36}"/>'
        label = number(tick) if tick >= 1 else f"1/{number(1 / tick)}"
        body += f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{label}</text>'
    for row, interval in enumerate(intervals):
        low, value, high = (inner(math.log2(v)) for v in (interval.low, interval.value, interval.high))
        top = TOP + RATIO_ROW * row
        body += f'<text x="8" y="{top + 16}">{escape(interval.name)}</text>'
        body += f'<path class="line c0" d="M{low:.1f} {top + 30}L{high:.1f} {top + 30}"/>'
        body += _dot(value, top + 30, "c0")
    return (
        f'<figure>{caption}<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg>{f'<p class=note>{escape(note)}</p>' if note else ''}</figure>"
    )


def keys(marks: Sequence[Mark]) -> list[tuple[str, Mark]]:
    """The marks in order of time, each with its sign: phases 1, 2, 3, faults A, B, ..., Z, AA."""
    keyed, phases, faults = [], 0, 0
    for mark in sorted(marks, key=lambda mark: mark.start):
        if mark.fault:
            keyed.append((("" if faults < 26 else chr(64 + faults // 26)) + chr(65 + faults % 26), mark))
            faults += 1
        else:
            phases += 1
            keyed.append((str(phases), mark))
    return keyed


def linear_ticks(largest: float, about: int = 5, *, smallest: float = 0.0) -> list[float]:
    """Round numbers from 0, or from at most `smallest` if that is negative, to at least `largest`."""
    largest, smallest = max(largest, 0.0), min(smallest, 0.0)
    if largest == smallest:
        return [0.0, 1.0]
    rough = (largest - smallest) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    below, above = math.ceil(-smallest / step - 1e-9), math.ceil(largest / step - 1e-9)
    return [step * n for n in range(-below, above + 1)]


def log_ticks(smallest: float, largest: float) -> list[float]:
    """Powers of ten from below `smallest` to at least `largest`, two of them at least."""
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest) - 1e-9)
    return [10.0**n for n in range(low, max(high, low + 1) + 1)]


def number(value: float) -> str:
    """A tick label: 1,500 or 0.25 or 2.5M, without needless digits and never wider than the margin."""
    size = abs(value)
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(factor, 1e5):
            return f"{value / factor:g}{suffix}"
    return f"{value:,.0f}" if size >= 10 or value == int(value) else f"{value:g}"


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _log_scale(ticks: Sequence[float], start: float, end: float) -> Scale:
    inner = _scale(math.log10(ticks[0]), math.log10(ticks[-1]), start, end)
    return lambda value: inner(math.log10(max(value, ticks[0])))


def _legend(series: Sequence[Series]) -> str:
    return '<ul class="legend">' + "".join(
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true">{_sample(s, f"c{n % STYLES}")}</svg>{escape(s.name)}</li>'
        for n, s in enumerate(series)
    ) + "</ul>"  # fmt: skip


def _sample(series: Series, style: str) -> str:
    """What a series looks like: a dot if no two of its points are joined."""
    if all(None in pair for pair in itertools.pairwise(series.values)):
        return _dot(14, 5, style)
    return f'<line class="line {style}" x1="1" y1="5" x2="27" y2="5"/>'


def _mark_legend(keyed: Sequence[tuple[str, Mark]]) -> str:
    if not keyed:
        return ""
    items = "".join(
        f'<li><b class="{"fault" if mark.fault else "phase"}">{key}</b> {escape(mark.name)}, {_when(mark)}</li>'
        for key, mark in keyed
    )
    return f'<ul class="marks">{items}</ul>'


def _when(mark: Mark) -> str:
    if mark.end is None or mark.end == mark.start:
        return f"at {mark.start:,.1f} s"
    return f"{mark.start:,.1f} to {mark.end:,.1f} s"


def _mark_rows(keyed: Sequence[tuple[str, Mark]], x: Scale) -> tuple[list[tuple[int, str, Mark]], int]:
    """Each mark with a row in which its label does not overlap another, and how many rows that takes."""
    ends: list[float] = []  # where the last label of each row ends
    placed = []
    for key, mark in keyed:
        half = 6 + 7 * len(key)  # wide enough for the larger type of a narrow page
        start = x(mark.start) - half
        row = next((n for n, end in enumerate(ends) if end <= start), len(ends))
        ends[row:] = [x(mark.start) + half, *ends[row + 1 :]]
        placed.append((row, key, mark))
    return placed, len(ends)


def _bands(rows: Sequence[tuple[int, str, Mark]], x: Scale, top: float, bottom: float) -> str:
    drawn = ""
    for row, key, mark in rows:
        style = "fault" if mark.fault else "phase"
        start, label = x(mark.start), TOP + row * MARK_ROW
        if mark.end is not None and mark.end > mark.start:
            # Every second phase is shaded, so that neighbours differ.
            shade = style if mark.fault or int(key) % 2 == 0 else "clear"
            size = f'width="{x(mark.end) - start:.1f}" height="{bottom - top:.1f}"'
            drawn += f'<rect class="band {shade}" x="{start:.1f}" y="{top:.1f}" {size}/>'
        # From below all labels, since a line from its own could cross a neighbour's.
        line = f'x1="{start:.1f}" x2="{start:.1f}" y1="{top - 4}" y2="{bottom}"'
        drawn += f'<line class="mark {style}" {line}/>'
        drawn += f'<text class="mark {style}" x="{start:.1f}" y="{label + 5}" text-anchor="middle">{key}</text>'
    return drawn


def _grid(ticks: Sequence[float], y: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 5:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    )


def _x_axis(first: float, last: float, x: Scale, height: float, name: str) -> str:
    ticks = [tick for tick in linear_ticks(last, about=6, smallest=first) if first <= tick <= last]
    labels = "".join(
        f'<text x="{x(tick):.1f}" y="{height - BOTTOM + 24}" text-anchor="middle">{number(tick)}</text>'
        for tick in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{labels}<text x="{middle}" y="{height - 8}" text-anchor="middle">{escape(name)}</text>'


def _line(series: Series, style: str, x: Scale, y: Scale, *, floor: float | None) -> str:
    runs: list[list[tuple[float, float]]] = [[]]  # a gap ends a run
    # The shorter of both: a scenario that miscounts its points shall not cost the report of the run.
    for time, value in zip(series.times, series.values, strict=False):
        if value is None or (floor is not None and value <= 0):
            runs.append([])
        else:
            runs[-1].append((x(time), y(value)))
    drawn = ""
    for points in map(_thinned, filter(None, runs)):
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        if series.filled:
            base = y(0.0 if floor is None else floor)
            outline = f"M{points[0][0]:.1f} {base:.1f}L{path}L{points[-1][0]:.1f} {base:.1f}Z"
            drawn += f'<path class="area {style}" d="{outline}"/>'
        drawn += _dot(*points[0], style) if len(points) == 1 else f'<path class="line {style}" d="M{path}"/>'
    return drawn


def _dot(x: float, y: float, style: str) -> str:
    """A point between two gaps, which as a line would be invisible."""
    return f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points in one unit of the width the first, the lowest, the highest and the last: the same picture, and an
    hour's samples do not make the page slow."""
    if len(points) <= WIDTH:
        return points
    kept: list[tuple[float, float]] = []
    for _, group in itertools.groupby(points, key=lambda point: int(point[0])):
        column = list(group)
        extremes = {column[0], min(column, key=_height), max(column, key=_height), column[-1]}
        kept += [point for point in dict.fromkeys(column) if point in extremes]
    return kept


def _height(point: tuple[float, float]) -> float:
    return point[1]
