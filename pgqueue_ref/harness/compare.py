"""Two or more load runs side by side: their figures with confidence intervals, and what may be said of the difference.

Called by `pgqueue-ref report compare`, which prints what `compare` returns; `render` makes the page. The first run is
the one that the others are compared with. They are compared only where they were the same experiment: the same load on
the same server, durability and machine (`hindrances`). Where they were not, the figures still stand beside each other,
but no ratio is formed and no run is called better.

What is resampled, and why. A run is a time series: a latency is like its neighbours, since they waited in the same
queue, so single latencies must not be resampled. What is drawn are blocks of consecutive windows of the run (one
histogram each), from a circle, so that no window is drawn less often than another: the circular block bootstrap of
Politis and Romano (1992, in Exploring the Limits of Bootstrap). A block has n^(1/3) of the n windows, the order that
Hall, Horowitz and Jing give (1995, Biometrika 82:561). Blocks are drawn within a phase of the scenario, so that calm
and spike keep their shares. Runs that are compared had the same arrivals at the same instants; so the same windows are
drawn in both (common random numbers), and what the load itself does to a ratio cancels out. Percentiles come from the
merged histograms of the drawn windows. The interval lies between percentiles of the replicates (Efron and Tibshirani
1993, An Introduction to the Bootstrap, chapter 13), at 99 %, because several figures are looked at at once.

What the intervals cannot know is how far two runs of the very same lie apart, another minute on the same machine. On
one that others used too, it was 3 % in the start latency p99 of two spikes and a factor of 2.6 in their push latency
p99, both outside the intervals. So the comparison looks for runs between which nothing recorded differs: as far as
those lie apart is noise, and only what lies wholly beyond is called better or worse. Without such a pair it says so
(`ONCE`).
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pgqueue_ref.harness.latency import saved
from pgqueue_ref.harness.page import at, figure, page, section, table
from pgqueue_ref.harness.plots import STYLES, Interval, Series, line_plot, ratio_plot
from pgqueue_ref.harness.report import latency_series, marks_of, sampled
from pgqueue_ref.harness.result import SCHEMA_VERSION
from pgqueue_ref.harness.slo import Exit

Document = Mapping[str, Any]

REPLICATES = 2_000
CONFIDENCE = 0.99
SEED = 1
MOST = STYLES  # runs; each has a line style of its own
DURABILITY = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
NOT_A_MEASUREMENT = {Exit.CRASH_OR_USAGE, Exit.INVALID, Exit.INCORRECT}
ONCE = (
    "The intervals tell how much the figures vary inside the runs. How much another run of the same would differ, these"
    " runs cannot tell: name a repetition of one of them, too."
)
REPEATED = "Better and worse is only what lies beyond the distance between runs of the same: {}."


class CompareError(ValueError):
    """Runs that cannot be set beside each other. Its text is one line for people."""


class Estimate(NamedTuple):
    """A figure with its interval; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Figure(Protocol):
    """A figure of a run, from how often each of its windows counts; None where there is nothing to tell it from."""

    def __call__(self, weights: Sequence[int]) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What a figure is called and measured in, and whether more of it is better."""

    name: str
    unit: str
    more_is_better: bool = False


START_P50, START_P99 = Kind("start latency p50", "ms"), Kind("start latency p99", "ms")
PUSH_P99, END_P99 = Kind("push latency p99", "ms"), Kind("end-to-end latency p99", "ms")
FINISHED = Kind("jobs finished", "per second", more_is_better=True)
WAL, BUSY = Kind("WAL per job", "bytes"), Kind("processors busy", "%")
KINDS = (START_P50, START_P99, PUSH_P99, END_P99, FINISHED, WAL, BUSY)


class Run:
    """A run directory. Raises `CompareError`."""

    def __init__(self, label: str, directory: Path) -> None:
        self.label, self.directory = label, directory
        self.result = _read(directory / "result.json", "it is written when a run has been judged")
        if (version := self.result.get("schema_version")) != SCHEMA_VERSION:
            raise CompareError(
                f"{directory}: result.json has schema version {version}, not {SCHEMA_VERSION}; run it again, or compare"
                " with the version that wrote it"
            )
        self.facts = _read(directory / "manifest.json", "the directory is not complete")
        self.width = float(self.result["series"]["window_seconds"])

    @property
    def outcome(self) -> str:
        """PASS or FAIL with the exit code."""
        verdict = self.result["verdict"]
        return "PASS" if verdict["passed"] else f"FAIL, exit {verdict['exit_code']}"

    def phases(self) -> list[range]:
        """The windows of each phase, up to the last in which load came."""
        series = self.result["series"]["start_latency"]
        last = round(max(row["t"] for row in series) / self.width) + 1 if series else 0
        starts = sorted(int(phase["from"] / self.width) for phase in self.result["phases"]) or [0]
        borders = [*(min(start, last) for start in starts), last]
        return [range(start, end) for start, end in itertools.pairwise(borders)]

    def figures(self, windows: Sequence[int]) -> dict[Kind, Figure]:
        """Its figures over these windows."""
        start, push, end = (_Merged(self._histograms(name), windows) for name in ("start", "push", "end_to_end"))
        return {
            START_P50: lambda weights: start.percentile(50, weights),
            START_P99: lambda weights: start.percentile(99, weights),
            PUSH_P99: lambda weights: push.percentile(99, weights),
            END_P99: lambda weights: end.percentile(99, weights),
            FINISHED: _Ratio(self._finished(), windows),
            WAL: _Ratio(self._wal(), windows),
            BUSY: _Ratio(self._busy(), windows),
        }

    def _histograms(self, series: str) -> dict[int, dict[int, int]]:
        file = self.directory / "histograms" / f"{series.replace('_', '-')}.hlog"
        try:
            windows = saved(file, self.facts["began_epoch"], self.width)
        except OSError as error:
            raise CompareError(f"{file}: cannot be read ({error.strerror}); the directory is not complete") from error
        found, recorded = sum(map(sum, map(dict.values, windows.values()))), self.result["latency"][series]["count"]
        if found != recorded:
            raise CompareError(f"{file}: holds {found:,} of {recorded:,} latencies; the file is damaged")
        return windows

    def _finished(self) -> dict[int, tuple[float, float]]:
        """Per window: jobs finished, seconds."""
        series = self.result["series"]
        return self._sums((t, count, 1) for t, count in zip(series["t"], series["finished"], strict=True))

    def _wal(self) -> dict[int, tuple[float, float]]:
        """Per window: bytes of WAL, jobs finished."""
        samples = self.result["series"]["samples"]
        written = ((b["t"], b["wal_bytes"] - a["wal_bytes"], 0) for a, b in itertools.pairwise(samples))
        series = self.result["series"]
        finished = ((t, 0, count) for t, count in zip(series["t"], series["finished"], strict=True))
        return self._sums(itertools.chain(written, finished))

    def _busy(self) -> dict[int, tuple[float, float]]:
        """Per window: percent of all cores added up, samples."""
        return self._sums((row["t"], row["machine_cpu_percent"], 1) for row in self.result["series"]["samples"])

    def _sums(self, rows: Any) -> dict[int, tuple[float, float]]:
        sums: dict[int, tuple[float, float]] = {}
        for t, above, below in rows:
            window = int(t / self.width)
            before = sums.get(window, (0, 0))
            sums[window] = (before[0] + above, before[1] + below)
        return sums


class _Merged:
    """The histograms of some windows, to be merged by weights.

    It holds, for each value that occurs anywhere, how many latencies of each window are at most that: so merging is one
    multiplication, and a percentile is found by bisection.
    """

    def __init__(self, histograms: Mapping[int, Mapping[int, int]], windows: Sequence[int]) -> None:
        mine = [histograms.get(window, {}) for window in windows]
        self._values = sorted(set().union(*mine))
        by_window = [list(itertools.accumulate(counts.get(value, 0) for value in self._values)) for counts in mine]
        self._at_most = list(zip(*by_window, strict=True))

    def percentile(self, percent: float, weights: Sequence[int]) -> float | None:
        """In milliseconds; None where nothing was recorded."""
        if not self._values or not (total := self._count(-1, weights)):
            return None
        wanted = math.ceil(total * percent / 100)
        low, high = 0, len(self._values) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._count(middle, weights) >= wanted else (middle + 1, high)
        return self._values[low] / 1000

    def _count(self, place: int, weights: Sequence[int]) -> int:
        return sum(map(operator.mul, weights, self._at_most[place]))


class _Ratio:
    """One sum over the windows by another."""

    def __init__(self, sums: Mapping[int, tuple[float, float]], windows: Sequence[int]) -> None:
        self._above = [sums.get(window, (0.0, 0.0))[0] for window in windows]
        self._below = [sums.get(window, (0.0, 0.0))[1] for window in windows]

    def __call__(self, weights: Sequence[int]) -> float | None:
        below = sum(map(operator.mul, weights, self._below))
        return sum(map(operator.mul, weights, self._above)) / below if below else None


# -- comparing -------------------------------------------------------------------------------------------


def load(directories: Sequence[Path]) -> list[Run]:
    """The runs, labelled A, B, C in this order. Raises `CompareError`."""
    if len(directories) < 2:
        raise CompareError("one run is nothing to compare; name two run directories or more")
    if len(directories) > MOST:
        raise CompareError(f"{len(directories)} runs are too many to tell apart; name {MOST} at most")
    seen: dict[Path, Path] = {}
    for directory in directories:
        if (same := seen.get(directory.resolve())) is not None:
            raise CompareError(f"{directory} is given twice{f', also as {same}' if same != directory else ''}")
        seen[directory.resolve()] = directory
    return [Run(chr(ord("A") + number), directory) for number, directory in enumerate(directories)]


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """What is to be said, as one document. `against` tells of each run but the first whether it is comparable with
    that, why not, and what follows; `figures` has each figure's estimate by run, and the ratios of comparable runs.
    """
    first, *others = runs
    repeated = [pair for pair in itertools.combinations(runs, 2) if not hindrances(*pair) and not differences(*pair)]
    repeats = [[a.label, b.label] for a, b in repeated]
    against = {run.label: _against(first, run) for run in others}
    estimated = _figures(runs, [label for label, found in against.items() if found["comparable"]], repeats)
    for label, found in against.items():
        found["conclusion"] = _conclusion(label, first.label, found, estimated, repeated=bool(repeats))
    return {
        "runs": [_run(run) for run in runs],
        "against": against,
        "confidence": CONFIDENCE,
        "figures": estimated,
        "single": _single(runs),
        "repeats": repeats,
        "note": REPEATED.format(", ".join(" and ".join(pair) for pair in repeats)) if repeats else ONCE,
    }


def hindrances(a: Run, b: Run) -> list[str]:
    """Why the runs are not comparable, in lines for people; empty when they are."""
    lines = [
        f"{run.label} is no measurement: it ended with exit code {code}, {run.result['verdict']['outcome']}"
        for run in (a, b)
        if (code := run.result["verdict"]["exit_code"]) in NOT_A_MEASUREMENT
    ]
    for title, names in (
        ("other scenario", ("scenario",)),
        ("other faults", ("faults",)),
        ("other seed", ("seed",)),
        ("other server", ("server.description", "server.version")),
        ("other machine", ("machine.processor", "machine.cores", "machine.memory_bytes", "machine.system")),
    ):
        lines += _changes(title, {name: (_fact(a, name), _fact(b, name)) for name in names})
    if _fact(a, "scenario") == _fact(b, "scenario"):
        lines += _changes("other parameters", _pairs(a.facts.get("parameters"), b.facts.get("parameters")))
    settings = _pairs(at(a.facts, "server.settings"), at(b.facts, "server.settings"))
    lines += _changes("other durability settings", {name: settings.get(name, (None, None)) for name in DURABILITY})
    if not lines:  # what follows from the above needs no line of its own
        loads = {"source": "trace.source", "jobs": "trace.jobs"}
        pairs = {name: (_fact(a, path), _fact(b, path)) for name, path in loads.items()}
        pairs["phases"] = ([p["name"] for p in a.result["phases"]], [p["name"] for p in b.result["phases"]])
        lines += _changes("other load", pairs)
    return lines


def differences(a: Run, b: Run) -> list[str]:
    """What else differed: probably what the comparison is about."""
    settings = _pairs(at(a.facts, "server.settings"), at(b.facts, "server.settings"))
    others = {name: pair for name, pair in settings.items() if name not in DURABILITY}
    lines = _changes("server settings", others) + _changes("versions", _pairs(a.facts["versions"], b.facts["versions"]))
    if _revision(a) == _revision(b) and "local changes" in _revision(a):
        return ["revision: local changes in both, which were not recorded", *lines]
    return _changes("revision", {"": (_revision(a), _revision(b))}) + lines


def _against(first: Run, run: Run) -> dict[str, Any]:
    found = hindrances(first, run)
    return {"comparable": not found, "hindrances": found, "differences": differences(first, run)}


def _fact(run: Run, path: str) -> Any:
    value = at(run.facts, path)
    if path == "machine.memory_bytes" and value is not None:
        return f"{value / 2**30:.0f} GiB"  # a kernel update changes the last digits
    return value


def _revision(run: Run) -> str:
    git = run.facts.get("git")
    return f"{git['commit'][:12]}{' with local changes' if git['modified'] else ''}" if git else "not a git checkout"


def _pairs(a: Document | None, b: Document | None) -> dict[str, tuple[Any, Any]]:
    a, b = a or {}, b or {}
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b})}


def _changes(title: str, pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    changed = [(name, a, b) for name, (a, b) in pairs.items() if a != b]
    words = [f"{name.rpartition('.')[2]} {_word(a)} against {_word(b)}".strip() for name, a, b in changed]
    return [f"{title}: {', '.join(words)}"] if words else []


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _figures(runs: Sequence[Run], comparable: Sequence[str], repeats: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    first, *others = runs
    # The same windows of each phase in both: a phase may have begun a moment later in one of them.
    paired = [run for run in others if run.label in comparable]
    lengths = [min(map(len, phases)) for phases in zip(*(run.phases() for run in (first, *paired)), strict=True)]
    estimated: dict[str, dict[Kind, Estimate]] = {}
    ratios: dict[str, dict[Kind, Estimate]] = {}
    mine = _Resampled(first, lengths)
    for run in others:
        if run.label in comparable:
            its = _Resampled(run, lengths)
            ratios[run.label] = {kind: _interval(mine.over(its, kind)) for kind in KINDS}
        else:
            its = _Resampled(run, [len(phase) for phase in run.phases()])
        estimated[run.label] = {kind: _interval(its.replicates[kind]) for kind in KINDS}
    estimated[first.label] = {kind: _interval(mine.replicates[kind]) for kind in KINDS}
    noise = {
        kind: max([_apart(estimated[a][kind].value, estimated[b][kind].value) for a, b in repeats], default=1.0)
        for kind in KINDS
    }
    return [
        {
            "name": kind.name,
            "unit": kind.unit,
            "more_is_better": kind.more_is_better,
            "values": {run.label: estimated[run.label][kind]._asdict() for run in runs},
            "noise": noise[kind] if repeats else None,
            "ratios": {label: _ratio(found[kind], kind, noise[kind]) for label, found in ratios.items()},
        }
        for kind in KINDS
    ]


def _apart(a: float | None, b: float | None) -> float:
    """The factor between two figures, 1 or more."""
    return max(a / b, b / a) if a and b else 1.0


class _Resampled:
    """A run's figures over `lengths` windows of its phases: `replicates` holds as measured, then of each resample.

    Of two runs with equal lengths the same number of the replicate means the same windows.
    """

    def __init__(self, run: Run, lengths: Sequence[int]) -> None:
        phases = run.phases()
        figures = run.figures([window for phase, n in zip(phases, lengths, strict=True) for window in phase[:n]])
        rng = random.Random(SEED)  # noqa: S311  # resampling, not secrets
        self.replicates: dict[Kind, list[float | None]] = {kind: [] for kind in figures}
        for number in range(1 + REPLICATES):
            drawn = weights(lengths, rng) if number else [1] * sum(lengths)
            for kind, of in figures.items():
                self.replicates[kind].append(of(drawn))

    def over(self, other: _Resampled, kind: Kind) -> list[float | None]:
        """The other's figure over this one's, in each replicate."""
        pairs = zip(self.replicates[kind], other.replicates[kind], strict=True)
        return [its / mine if mine and its is not None else None for mine, its in pairs]


def weights(lengths: Sequence[int], rng: random.Random) -> list[int]:
    """How often each window counts in a resample: for each phase of so many windows, blocks drawn from a circle."""
    counts: list[int] = []
    for n in lengths:
        drawn = [0] * n
        block = math.ceil(n ** (1 / 3))
        left = n
        while left > 0:
            start = rng.randrange(n)
            for offset in range(min(block, left)):
                drawn[(start + offset) % n] += 1
            left -= block
        counts += drawn
    return counts


def _interval(replicates: Sequence[float | None]) -> Estimate:
    """As measured, with the percentiles of what was resampled; no interval where a resample could not tell."""
    measured, *resampled = replicates
    known = sorted(value for value in resampled if value is not None)
    if measured is None or len(known) < len(resampled):
        return Estimate(measured)
    tail = (1 - CONFIDENCE) / 2
    last = len(known) - 1
    return Estimate(measured, known[math.floor(tail * last)], known[math.ceil((1 - tail) * last)])


def _ratio(found: Estimate, kind: Kind, noise: float) -> dict[str, Any]:
    says = "not measured"
    if found.low is not None and found.high is not None:
        says = "no difference shown"
        if found.low > noise or found.high < 1 / noise:
            says = "better" if (found.low > noise) == kind.more_is_better else "worse"
    return {**found._asdict(), "says": says}


def _conclusion(label: str, first: str, found: Document, figures: Sequence[Document], *, repeated: bool) -> str:
    if not found["comparable"]:
        return f"{label} and {first} are not comparable, so neither is called better."
    if not found["differences"]:
        return f"{label} repeats {first}: nothing recorded differs, so what differs is noise."
    said = {word: [f["name"] for f in figures if f["ratios"][label]["says"] == word] for word in ("better", "worse")}
    parts = [f"{word} than {first} in {', '.join(names)}" for word, names in said.items() if names]
    if not parts:
        return f"No difference shown between {label} and {first}."
    return f"{label} is {' and '.join(parts)}{'' if repeated else ', in one run of each'}."


def _run(run: Run) -> dict[str, Any]:
    settings = at(run.facts, "server.settings") or {}
    return {
        "label": run.label,
        "directory": str(run.directory),
        "run": run.result["run"],
        "scenario": run.result["scenario"],
        "outcome": run.outcome,
        "server": run.facts["server"]["description"],
        "durability": {name: settings.get(name) for name in DURABILITY},
        "revision": _revision(run),
    }


def _single(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Figures that a run has one of, so that nothing can be resampled."""
    named = [
        ("jobs finished", "throughput.finished", ""),
        ("pushed of offered", "arrivals.achieved_ratio", ""),
        ("lost", "ledger.lost", "jobs"),
        ("duplicated", "ledger.duplicated", "runs"),
        ("failed requests", "requests.failures", ""),
        ("time to drain", "backlog.drain_seconds", "s"),
        ("most pending", "backlog.max_pending", "jobs"),
        ("most dead tuples", "database.max_dead_tuples", ""),
        ("most connections", "database.max_connections_seen", ""),
    ]
    rows = [(name, unit, {run.label: at(run.result, path) for run in runs}) for name, path, unit in named]
    found = [{item["name"]: item for item in run.result.get("found") or ()} for run in runs]
    for name in dict.fromkeys(itertools.chain(*found)):
        unit = next(items[name].get("unit") or "" for items in found if name in items)
        values = {run.label: items.get(name, {}).get("value") for run, items in zip(runs, found, strict=True)}
        rows.append((name, unit, values))
    return [{"name": name, "unit": unit, "values": values} for name, unit, values in rows]


# -- showing ---------------------------------------------------------------------------------------------


def rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """The figures as a table of text: columns and rows."""
    labels = [run["label"] for run in document["runs"]]
    ratios = [label for label, found in document["against"].items() if found["comparable"]]
    columns = ["", *labels, *(f"{label} / {labels[0]}" for label in ratios), *(f"{label} is" for label in ratios)]
    return columns, [
        [
            f"{item['name']}, {item['unit']}",
            *(estimate(item["values"][label]) for label in labels),
            *(estimate(item["ratios"][label], digits=2) for label in ratios),
            *(item["ratios"][label]["says"] for label in ratios),
        ]
        for item in document["figures"]
    ]


def single_rows(document: Document) -> tuple[list[str], list[list[str]]]:
    """The figures that a run has one of, likewise."""
    labels = [run["label"] for run in document["runs"]]
    return ["", *labels], [
        [f"{item['name']}, {item['unit']}".removesuffix(", "), *(figure(item["values"][label]) for label in labels)]
        for item in document["single"]
        if any(item["values"][label] is not None for label in labels)
    ]


def estimate(found: Document, *, digits: int = 0) -> str:
    """A value with its interval; `digits` behind the point, else three in all."""
    if found["value"] is None or found["low"] is None:
        return figure(found["value"])
    value, low, high = (
        f"{found[name]:.{digits}f}" if digits else figure(found[name]) for name in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def render(runs: Sequence[Run], document: Document) -> str:
    """The page: what may be said, the figures, and plots with all runs in each."""
    labels = [run.label for run in runs]
    scenarios = " and ".join(dict.fromkeys(run.result["scenario"] for run in runs))
    title = f"{', '.join(labels[:-1])} and {labels[-1]}: load runs of {scenarios} compared"
    facts = [
        (run["label"], run["run"], run["outcome"], run["server"],
         ", ".join(f"{name} = {value}" for name, value in run["durability"].items()), run["revision"])
        for run in document["runs"]
    ]  # fmt: skip
    percent = f"{document['confidence']:.0%}"
    ratios = [
        _ratio_plot(label, labels[0], document["figures"], percent)
        for label, found in document["against"].items()
        if found["comparable"]
    ]
    return page(
        title,
        [
            f"<header><h1>{escape(title)}</h1></header>",
            *(_said(found) for found in document["against"].values()),
            table(("", "run", "verdict", "server", "durability", "revision"), facts),
            section(
                f"Figures, with {percent} intervals",
                table(*rows(document)) + f"<p class=note>{escape(document['note'])}</p>",
            ),
            section("Figures of which a run has one", table(*single_rows(document))),
            section("Ratios", f'<div class="plots">{"".join(ratios)}</div>') if ratios else "",
            section("The runs over time", f'<div class="plots">{"".join(_plots(runs))}</div>'),
        ],
    )


def _said(found: Document) -> str:
    lines = [*found["hindrances"], *(f"differs: {line}" for line in found["differences"])]
    style = "said" if found["comparable"] else "fail"
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="verdict {style}"><b>{escape(found["conclusion"])}</b><ul>{items}</ul></div>'


def _ratio_plot(label: str, first: str, figures: Sequence[Document], percent: str) -> str:
    ratios = [(item["name"], item["ratios"][label]) for item in figures]
    intervals = [Interval(name, r["value"], r["low"], r["high"]) for name, r in ratios if r["low"]]
    return ratio_plot(f"{label} over {first}", intervals, note=f"As measured, with {percent} intervals.")


def _plots(runs: Sequence[Run]) -> list[str]:
    marks = marks_of(runs[0].result)
    note = f"Phases of {runs[0].label}." if marks else ""

    def plot(title: str, unit: str, lines: Sequence[Series], *, log: bool = False) -> str:
        named = [Series(run.label, line.times, line.values) for run, line in zip(runs, lines, strict=True)]
        return line_plot(title, named, unit=unit, note=note, log=log, marks=marks)

    def samples(column: str, factor: float = 1.0) -> list[Series]:
        return [sampled(run.result["series"]["samples"], column, "", factor=factor) for run in runs]

    def latencies(series: str, percentile: str) -> list[Series]:
        return [latency_series(run.result, series, (percentile,))[0] for run in runs]

    finished = [Series("", run.result["series"]["t"], run.result["series"]["finished"]) for run in runs]
    milliseconds = "milliseconds, logarithmic"
    return [
        plot("Start latency p99", milliseconds, latencies("start", "p99"), log=True),
        plot("Start latency p50", milliseconds, latencies("start", "p50"), log=True),
        plot("Push latency p99", milliseconds, latencies("push", "p99"), log=True),
        plot("Throughput", "jobs finished per second", finished),
        plot("Jobs pending", "jobs", samples("pending")),
        plot("Connections", "connections", samples("connections")),
        plot("Dead tuples of the job table", "tuples", samples("dead_tuples")),
        plot("Write-ahead log", "MiB since the start", samples("wal_bytes", 2**-20)),
        plot("Processors of this machine", "percent of all cores", samples("machine_cpu_percent")),
    ]


def _read(file: Path, why: str) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(f"{file.parent}: no {file.name} there ({error.strerror}); {why}") from error
    except ValueError as error:
        raise CompareError(f"{file}: not JSON ({error}); the file is damaged") from error
    if not isinstance(document, dict):
        raise CompareError(f"{file}: not an object; the file is damaged")
    return document
