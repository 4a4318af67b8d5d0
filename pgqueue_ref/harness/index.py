"""index.html over the runs of a suite: the verdicts, what was run on what, for each scenario its figures and report.

Called by `harness.suite` after every scenario, so that the page is there to look at while the rest still runs. Server,
durability and machine stand once at the top, or once for each group of scenarios that share them. A scenario without a
result says so; it never looks like a pass.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pgqueue_ref.harness.page import Document, at, figure, page

DURABILITY = ("fsync", "synchronous_commit", "full_page_writes")
FEW = 5  # objectives in a card
# Objectives on the run itself; that they hold goes without saying, and when they do not it is among the reasons.
_HOUSEKEEPING = ("ledger.", "generator.", "backlog.samples", "requests.")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a scenario's process ended: its exit code, and after how many seconds."""

    code: int
    seconds: float


def write_index(directory: Path, runs: Sequence[Path], scenarios: Sequence[str], ended: Mapping[str, Ended]) -> Path:
    """Write the page over `runs`, directories in `directory`, with a card for each of `scenarios`; returns its path.

    Those in `ended` have been played; the others are still to come.
    """
    results = {found["scenario"]: (run, found) for run in runs if (found := _read(run / "result.json")) is not None}
    passed = [
        name for name in scenarios if name in ended and name in results and _passed(results[name][1], ended[name])
    ]
    cards = "".join(_card(name, results.get(name), ended.get(name)) for name in scenarios)
    parts = [_head(scenarios, passed, ended, results), f'<div class="cards">{cards}</div>']
    file = directory / "index.html"
    file.write_text(page(_title(scenarios, passed, ended), parts), encoding="utf-8")
    return file


def _read(file: Path) -> dict[str, Any] | None:
    """A document of a run; result.json is written last: where it is, the rest is complete."""
    document: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return document


def _passed(result: Document, end: Ended) -> bool:
    return bool(result["verdict"]["passed"]) and end.code == 0


def _title(scenarios: Sequence[str], passed: Sequence[str], ended: Mapping[str, Ended]) -> str:
    title = f"{len(passed)} of {len(scenarios)} scenarios passed"
    to_come = len(scenarios) - len(ended)
    return f"{title}, {len(ended) - len(passed)} failed, {to_come} to come" if to_come else title


def _head(
    scenarios: Sequence[str],
    passed: Sequence[str],
    ended: Mapping[str, Ended],
    results: Mapping[str, tuple[Path, Document]],
) -> str:
    facts = {name: found for name, (run, _) in results.items() if (found := _read(run / "manifest.json")) is not None}
    failed = [name for name in ended if name not in passed]
    style = "fail" if failed else "pass" if len(ended) == len(scenarios) else "said"
    words = f"<b>{'FAIL' if failed else 'PASS' if style == 'pass' else 'so far'}</b> {escape(', '.join(failed))}"
    if not failed:
        words += "every scenario passed" if style == "pass" else "every scenario that has ended passed"
    took = _duration(sum(end.seconds for end in ended.values()))
    lines = [f"{_began(facts)}{took} in all."] if ended else ["Nothing has ended yet."]
    lines += _shared(facts, _server) + _shared(facts, _machine)
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    title = escape(_title(scenarios, passed, ended))
    return (
        f'<header><h1>{title}</h1><p class="verdict {style}">{words}</p><div class="facts">{paragraphs}</div></header>'
    )


def _began(facts: Mapping[str, Document]) -> str:
    if not facts:
        return ""
    first = min(float(found["began_epoch"]) for found in facts.values())
    return f"Begun {datetime.datetime.fromtimestamp(first, datetime.UTC):%d %B %Y, %H:%M} UTC; "


def _shared(facts: Mapping[str, Document], of: Any) -> list[str]:
    """A line of each run; the same one once, with the names of its scenarios where there are several."""
    groups: dict[str, list[str]] = {}
    for name, found in facts.items():
        groups.setdefault(of(found), []).append(name)
    if len(groups) == 1:
        return list(groups)
    return [f"{', '.join(names)}: {line}" for line, names in groups.items()]


def _server(facts: Document) -> str:
    settings = at(facts, "server.settings") or {}
    durability = ", ".join(f"{name} = {settings.get(name, '?')}" for name in DURABILITY)
    return f"{at(facts, 'server.description')}, {durability}."


def _machine(facts: Document) -> str:
    machine, git = facts["machine"], facts.get("git")
    hardware = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    revision = f"; revision {git['commit'][:12]}{' with local changes' if git['modified'] else ''}" if git else ""
    return f"{hardware}{revision}."


def _card(name: str, found: tuple[Path, Document] | None, end: Ended | None) -> str:
    if end is None:
        return f'<section class="card"><h2>{escape(name)} <b>to come</b></h2></section>'
    if found is None:
        why = f"It ended with exit code {end.code} after {_duration(end.seconds)}, before it could be judged."
        return f'<section class="card fail"><h2>{escape(name)} <b>no verdict</b></h2><p>{why}</p></section>'
    run, result = found
    verdict = result["verdict"]
    style, word = ("pass", "PASS") if _passed(result, end) else ("fail", f"FAIL, exit {end.code}")
    link = f'<a href="{escape(run.name)}/report.html">{escape(name)}</a>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict["reasons"])
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{value}</dd>" for term, value in _figures(result, end))
    return (
        f'<section class="card {style}"><h2>{link} <b>{word}</b></h2>'
        f"<p>{escape(result.get('scenario_text') or '')}</p>{f'<ul>{reasons}</ul>' if reasons else ''}"
        f"<dl>{rows}</dl></section>"
    )


def _figures(result: Document, end: Ended) -> list[tuple[str, str]]:
    """Names, and values as HTML."""
    judged = [check for check in result["slo"] if not check.get("skipped")]
    telling = [check for check in judged if not check["metric"].startswith(_HOUSEKEEPING)]
    rows = [(_name(check["metric"]), _value(check)) for check in telling[:FEW]]
    start = at(result, "latency.start.p99_ms")
    if start is not None and not any(check["metric"] == "latency.start.p99_ms" for check in telling[:FEW]):
        rows.append(("start latency p99", f"{figure(start)} ms"))
    if (jobs := at(result, "ledger.completed")) is not None:
        lost, unexpected = (figure(at(result, f"ledger.{name}")) for name in ("lost", "unexpected"))
        rows.append(("jobs", f"{figure(jobs)} <i>{lost} lost, {unexpected} unexpected</i>"))
    held = sum(bool(check["ok"]) for check in judged)
    return [*rows, ("objectives", f"{held} of {len(judged)} held"), ("took", _duration(end.seconds))]


def _name(metric: str) -> str:
    """`found.recovery_seconds` as people say it: recovery."""
    words = metric.removeprefix("found.").replace("latency.start", "start latency")
    for unit in ("_ms", "_seconds"):
        words = words.removesuffix(unit)
    return words.replace("_", " ").replace(".", " ")


def _value(check: Document) -> str:
    unit = f" {check['unit']}" if check["unit"] else ""
    return escape(f"{figure(check['value'])}{unit}") + f" <i>bound {escape(check['bound'])}</i>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
