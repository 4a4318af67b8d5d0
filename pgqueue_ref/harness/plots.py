"""Line plots as inline SVG: no script, no network, readable in either theme and at the width of a phone.

Called by the report. Colours come from the page's style sheet through the classes `c0` to `c3`, so a plot
follows the reader's theme; series also differ in their dashes, so they can be told apart without colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 16, 54


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; None in `values` is a gap."""

    name: str
    times: Sequence[float]
    values: Sequence[float | None]
    filled: bool = False


def line_plot(title: str, series: Sequence[Series], *, unit: str, note: str = "", log: bool = False) -> str:
    """A figure over the seconds of a run: caption with unit, legend, and the plot. `log` for a logarithmic axis."""
    values = [v for s in series for v in s.values if v is not None and (not log or v > 0)]
    caption = f"<figcaption><b>{escape(title)}</b> <span>in {escape(unit)}</span></figcaption>"
    if not values:
        return f'<figure>{caption}<p class="empty">Nothing was measured.</p></figure>'
    last = max((t for s in series for t in s.times), default=1.0) or 1.0
    ticks = log_ticks(min(values), max(values)) if log else linear_ticks(max(values))
    x = _scale(0.0, last, LEFT, WIDTH - RIGHT)
    y = _log_scale(ticks) if log else _scale(0.0, ticks[-1], HEIGHT - BOTTOM, TOP)
    body = _grid(ticks, y) + _time_axis(last, x)
    for number, line in reversed(list(enumerate(series))):
        body += _line(line, f"c{number}", x, y, ticks[0] if log else None)
    legend = "".join(
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true"><line class="line c{n}" x1="1" y1="5" x2="27" y2="5"/>'
        f"</svg>{escape(s.name)}</li>"
        for n, s in enumerate(series)
    )
    return (
        f'<figure>{caption}<ul class="legend">{legend}</ul>'
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} in {escape(unit)}">'
        f"{body}</svg>{f'<p class=note>{escape(note)}</p>' if note else ''}</figure>"
    )


def linear_ticks(largest: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at least `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * n for n in range(math.ceil(largest / step - 1e-9) + 1)]


def log_ticks(smallest: float, largest: float) -> list[float]:
    """Powers of ten from below `smallest` to at least `largest`, two of them at least."""
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest) - 1e-9)
    return [10.0**n for n in range(low, max(high, low + 1) + 1)]


def number(value: float) -> str:
    """A tick label: 1,500 or 0.25, without needless digits."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _log_scale(ticks: Sequence[float]) -> Scale:
    inner = _scale(math.log10(ticks[0]), math.log10(ticks[-1]), HEIGHT - BOTTOM, TOP)
    return lambda value: inner(math.log10(max(value, ticks[0])))


def _grid(ticks: Sequence[float], y: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 5:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    )


def _time_axis(last: float, x: Scale) -> str:
    ticks = [tick for tick in linear_ticks(last, about=6) if tick <= last]
    labels = "".join(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{number(tick)}</text>'
        for tick in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{labels}<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">seconds from the start</text>'


def _line(series: Series, style: str, x: Scale, y: Scale, floor: float | None) -> str:
    runs: list[list[tuple[float, float]]] = [[]]  # a gap ends a run
    for time, value in zip(series.times, series.values, strict=True):
        if value is None or (floor is not None and value <= 0):
            runs.append([])
        else:
            runs[-1].append((x(time), y(value)))
    drawn = ""
    for points in filter(None, runs):
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        if series.filled:
            base = HEIGHT - BOTTOM
            outline = f"M{points[0][0]:.1f} {base}L{path}L{points[-1][0]:.1f} {base}Z"
            drawn += f'<path class="area {style}" d="{outline}"/>'
        # A point between two gaps would be invisible; a line of no length with round ends is a dot.
        drawn += f'<path class="line {style}" d="M{path}{"h0" if len(points) == 1 else ""}"/>'
    return drawn
