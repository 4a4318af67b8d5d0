"""The one table: its rows with their units and bounds, what goes into a cell, and the verdict. Standard library only.

Bounds are on this project's queue alone: as a multiple of another's rate (`FASTER_THAN`, `AT_LEAST`), or on a row's own
value. What could not be measured says why below the table; a bound that could not be judged for it is missed. Used by
`run`, `comparison` and the scenarios, which take their parameters from here, where the rows state them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OURS = "pgqueue_ref"
# Ours as a multiple of theirs, in the rows marked `compared`: more than, at least.
FASTER_THAN = ("procrastinate", "pgqueuer psycopg", "pgqueuer asyncpg", "chancy")
AT_LEAST = {"pgmq": 0.8}

# Below what one connection pushes where a commit takes some milliseconds, and for the slowest queue: beyond it, start
# latency would tell how long jobs waited to be pushed.
STEADY_RATE, STEADY_SECONDS = 100, 10
ON_TIME = 1.0  # seconds; a job that began later than this after its instant was not achieved
ARRIVING = 100  # jobs a second during a drain
DEEP = 100_000
LEASE, BOUND = 3, 20.0  # seconds: a dead worker's jobs shall run again after, and have to within


class Row(NamedTuple):
    """One measure of a scenario; `name` is its key, unique in the table."""

    scenario: str
    name: str
    unit: str
    decimals: int = 0
    combine: Callable[[Sequence[float]], float] = statistics.median  # of the rounds
    over: tuple[str, str] | None = None  # of the same scenario: one row's value as a multiple of another's
    compared: bool = False  # bounded against other queues
    least: float | None = None  # bounds on ours
    most: float | None = None


ROWS = (
    Row("push one by one", "push one by one", "jobs/s", compared=True),
    Row("bulk push", "bulk push", "jobs/s", compared=True),
    Row("drain, 1 process", "drain, 1 process", "jobs/s", compared=True),
    Row("drain, 2 processes", "drain, 2 processes", "jobs/s", compared=True),
    Row("drain under arrivals", f"drain, 2 processes, {ARRIVING} jobs/s arriving", "jobs/s"),
    Row("steady", f"steady {STEADY_RATE} jobs/s: start latency p50", "ms", decimals=1),
    Row("steady", f"steady {STEADY_RATE} jobs/s: start latency p99", "ms", decimals=1),
    Row("steady", f"steady {STEADY_RATE} jobs/s: achieved / offered", "x", decimals=3, least=0.99),
    Row("depth", "depth: first jobs, none behind them", "jobs/s"),
    Row("depth", f"depth: first jobs, {DEEP:,} behind them", "jobs/s"),
    Row("depth", "depth: deep / shallow", "x", decimals=2,
        over=(f"depth: first jobs, {DEEP:,} behind them", "depth: first jobs, none behind them")),
    Row("pinned xmin", "pinned xmin: drain, no snapshot held", "jobs/s"),
    Row("pinned xmin", "pinned xmin: drain, old snapshot held", "jobs/s"),
    Row("pinned xmin", "pinned xmin: held / not held", "x", decimals=2,
        over=("pinned xmin: drain, old snapshot held", "pinned xmin: drain, no snapshot held")),
    Row("fault", "SIGKILL: in hand at the killed worker", "jobs", combine=sum),
    Row("fault", f"SIGKILL: of these, run again within {BOUND:g} s", "jobs", combine=sum),
    Row("fault", "SIGKILL: the last of these ended after", "s", decimals=1, combine=max),
    Row("fault", f"SIGKILL: not recovered (still queued after {BOUND:g} s)", "jobs", combine=sum, most=0),
    Row("fault", "SIGKILL: lost", "jobs", combine=sum, most=0),
    Row("fault", "SIGKILL: unexpected", "jobs", combine=sum, most=0),
    Row("fault", "SIGKILL: run to the end twice", "runs", combine=sum),
)  # fmt: skip


def names(scenario: str) -> list[str]:
    """The rows that a scenario measures, in order."""
    return [row.name for row in ROWS if row.scenario == scenario and not row.over]


@dataclass
class Results:
    """What the rounds gave, by queue and row; `missing` says by queue and scenario why there is nothing."""

    queues: Sequence[str]
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, queue: str, measured: Mapping[str, float]) -> None:
        for row, value in measured.items():
            self.values.setdefault((queue, row), []).append(value)

    def value(self, queue: str, row: Row) -> float | None:
        """All rounds in one; None where the queue has no value, or failed in one of the rounds."""
        if row.over:
            above, below = (self.value(queue, next(r for r in ROWS if r.name == name)) for name in row.over)
            return above / below if above is not None and below else None
        values = self.values.get((queue, row.name))
        return row.combine(values) if values and (queue, row.scenario) not in self.missing else None

    def ours_over(self, queue: str, row: Row) -> float | None:
        """Our value as a multiple of another queue's."""
        ours, theirs = self.value(OURS, row), self.value(queue, row)
        return ours / theirs if ours is not None and theirs else None


def figures(results: Results) -> list[dict[str, Any]]:
    """Those with a bound first; then every queue's values, which have none."""
    rows = []
    for row in (row for row in ROWS if row.compared):
        for queue in FASTER_THAN:
            ratio = results.ours_over(queue, row)
            rows.append(_figure(f"{row.name}, ours / {queue}", ratio, 3, "x", "> 1", bool(ratio and ratio > 1)))
        for queue, least in AT_LEAST.items():
            ratio = results.ours_over(queue, row)
            ok = bool(ratio and ratio >= least)
            rows.append(_figure(f"{row.name}, ours / {queue}", ratio, 3, "x", f">= {least:g}", ok))
    for row in ROWS:
        for queue in results.queues:
            value, bound, ok = results.value(queue, row), "none", True
            if queue == OURS and bounded(row):
                bound, ok = bounded(row), value is not None and _within(value, row)
            if value is not None or not ok:
                rows.append(_figure(f"{row.name}, {queue}", value, row.decimals, row.unit, bound, ok))
    return rows


def _figure(name: str, value: float | None, decimals: int, unit: str, bound: str, ok: bool) -> dict[str, Any]:
    shown = value if value is None else round(value, decimals) if decimals else round(value)
    return {"name": name, "value": shown, "unit": unit, "bound": bound, "ok": ok}


def bounded(row: Row) -> str:
    """The bound on our own value in words, empty where there is none."""
    if row.least is not None:
        return f">= {row.least:g}"
    return "" if row.most is None else "= 0" if row.most == 0 else f"<= {row.most:g}"


def _within(value: float, row: Row) -> bool:
    return (row.least is None or value >= row.least) and (row.most is None or value <= row.most)


def missed(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each bound that was not met; the run passes if there is none."""
    lines = []
    for row in figures:
        if not row["ok"]:
            value = "not measured" if row["value"] is None else f"{row['value']} {row['unit']}"
            lines.append(f"MISSED {row['name']}: {value} ({row['bound']})")
    return lines


def render(results: Results) -> str:
    """The table in Markdown, padded to be read as it is, and below it why a cell is empty."""
    notes: list[str] = []
    lines = [["measured", "unit", "our bound", *results.queues]]
    for row in ROWS:
        bound = _compared() if row.compared else bounded(row)
        lines.append([row.name, row.unit, bound, *(_cell(results, queue, row, notes) for queue in results.queues)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width if at < 3 else "-" * (width - 1) + ":" for at, width in enumerate(widths)])
    text = ["| " + " | ".join(_pad(line, widths)) + " |" for line in lines]
    below = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*text, *(["", *below] if below else [])])


def _compared() -> str:
    return ", ".join(["> others", *(f">= {least:g}x {queue}" for queue, least in AT_LEAST.items())])


def _cell(results: Results, queue: str, row: Row, notes: list[str]) -> str:
    value = results.value(queue, row)
    if value is not None:
        ours = results.value(OURS, row)
        ratio = f" ({value / ours:.2f})" if row.unit == "jobs/s" and ours else ""
        return f"{value:,.{row.decimals}f}{ratio}"
    why = results.missing.get((queue, row.scenario))
    if why is None:
        return "-"
    if why not in notes:
        notes.append(why)
    return f"[{notes.index(why) + 1}]"


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    padded = zip(line, widths, strict=True)
    return [text.ljust(width) if at < 3 else text.rjust(width) for at, (text, width) in enumerate(padded)]
