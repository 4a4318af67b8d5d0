"""Service level objectives, and the verdict over them.

A scenario's objectives live in a TOML file as `[[SCENARIO.slo]]` tables. `evaluate` can only say PASS when
every objective was measured, on enough samples, and held; a metric that is missing makes the run invalid.
That the ledger shows nothing lost and nothing unexpected is checked whatever the file says. Called by the
load run at its end; `Exit` are the exit codes of everything that measures.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any


class Exit(IntEnum):
    """Exit codes of a load run."""

    PASS = 0
    REQUEST_FAILURES = 1
    CRASH_OR_USAGE = 2
    SLO_BREACH = 3
    INVALID = 4
    INCORRECT = 5


# What to report first when several things went wrong: the worst news, not the greatest number.
SEVERITY = (
    Exit.INCORRECT,
    Exit.CRASH_OR_USAGE,
    Exit.INVALID,
    Exit.SLO_BREACH,
    Exit.REQUEST_FAILURES,
    Exit.PASS,
)

_BREACHES = {"slo": Exit.SLO_BREACH, "invalid": Exit.INVALID, "correctness": Exit.INCORRECT}


class SloError(ValueError):
    """An SLO file that cannot be used. Its text is one line for people."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound on one metric of the result, named by its dotted path.

    With `samples` (another path) the objective counts only if that many were taken. `breach` is the exit
    code of a run that breaks it. One with `unless_faults` is not judged when faults were injected.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    unit: str = ""
    samples: str | None = None
    min_samples: int = 1
    breach: Exit = Exit.SLO_BREACH
    unless_faults: bool = False

    @property
    def bound(self) -> str:
        """The bound as people write it, such as `>= 0.99`."""
        if self.min is not None and self.min == self.max:
            return f"= {self.min:g}"
        parts = [f">= {self.min:g}"] if self.min is not None else []
        parts += [f"<= {self.max:g}"] if self.max is not None else []
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Check:
    """An objective with what was measured. `exit` is PASS only if it was measured and holds."""

    objective: Objective
    value: float | None
    exit: Exit
    reason: str = ""
    skipped: bool = False

    @property
    def ok(self) -> bool:
        """Whether the objective was measured and holds."""
        return self.exit is Exit.PASS


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run: its exit code, why, and every check."""

    exit: Exit
    reasons: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the run may be called a pass."""
        return self.exit is Exit.PASS


ALWAYS = (
    Objective("ledger.lost", min=0, max=0, unit="jobs", breach=Exit.INCORRECT),
    Objective("ledger.unexpected", min=0, max=0, unit="effects", breach=Exit.INCORRECT),
)


def exit_figure(scenario: str, code: int) -> dict[str, Any]:
    """How a run ended, as a figure of its summary: failed requests and incidents are in no other."""
    return {"name": f"{scenario}.exit_code", "value": code, "unit": "", "bound": "= 0", "ok": code == Exit.PASS}


def summary_file(name: str) -> Path:
    """The file that `--summary` names, for argparse. An earlier run's is removed: it must not outlive a crash."""
    path = Path(name)
    if path.is_file():
        path.unlink()
    return path


def load(path: str | os.PathLike[str], scenario: str) -> list[Objective]:
    """The objectives of one scenario. Raises `SloError`."""
    file = Path(path)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SloError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SloError(f"{file}: not TOML ({error}); correct the file") from error
    section = tables.get(scenario)
    rows = section.get("slo") if isinstance(section, dict) else None
    if not isinstance(rows, list) or not rows:
        raise SloError(f"{file}: no [[{scenario}.slo]] table; a run without objectives cannot pass: add one")
    return [_objective(f"{file}, [[{scenario}.slo]] number {n}", row) for n, row in enumerate(rows, start=1)]


def _objective(where: str, row: object) -> Objective:
    if not isinstance(row, dict):
        raise SloError(f"{where}: not a table; write [[...]] tables")
    known = {"metric", "min", "max", "unit", "samples", "min_samples", "breach", "unless_faults"}
    if unknown := sorted(set(row) - known):
        raise SloError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not isinstance(row.get("metric"), str) or not row["metric"]:
        raise SloError(f"{where}: no metric; name one by its path in result.json")
    if row.get("min") is None and row.get("max") is None:
        raise SloError(f"{where}: {row['metric']} has neither min nor max; give it a bound")
    for name in ("min", "max", "min_samples"):
        value = row.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SloError(f"{where}: {name} is {value!r}; it must be a number")
    if not isinstance(row.get("unless_faults", False), bool):
        raise SloError(f"{where}: unless_faults is {row['unless_faults']!r}; it must be true or false")
    breach = row.get("breach", "slo")
    if breach not in _BREACHES:
        raise SloError(f"{where}: breach is {breach!r}; it must be one of {', '.join(_BREACHES)}")
    return Objective(**{**row, "breach": _BREACHES[breach]})


def evaluate(
    result: Mapping[str, Any],
    objectives: Sequence[Objective],
    *,
    incidents: Sequence[tuple[Exit, str]] = (),
    faults: bool = False,
) -> Verdict:
    """Judge a result. `incidents` tell what went wrong in the run itself; with any, it is no pass."""
    checks = [_check(result, objective, faults=faults) for objective in (*ALWAYS, *objectives)]
    found = [(check.exit, check.reason) for check in checks if not check.ok]
    found += incidents
    failures = _number(result, "requests.failures")
    if failures is None:
        found.append((Exit.INVALID, "requests.failures was not measured"))
    elif failures > 0:
        found.append((Exit.REQUEST_FAILURES, f"{failures:g} requests failed"))
    if not objectives:
        found.append((Exit.INVALID, "there are no objectives to hold"))
    found.sort(key=lambda item: SEVERITY.index(item[0]))
    exit_code = found[0][0] if found else Exit.PASS
    return Verdict(exit_code, [reason for _, reason in found], checks)


def _check(result: Mapping[str, Any], objective: Objective, *, faults: bool) -> Check:
    value = _number(result, objective.metric)
    if faults and objective.unless_faults:
        return Check(objective, value, Exit.PASS, "not judged: faults were injected", skipped=True)
    if value is None:
        return Check(objective, None, Exit.INVALID, f"{objective.metric} was not measured")
    if objective.samples is not None:
        taken = _number(result, objective.samples)
        if taken is None or taken < objective.min_samples:
            count = "no" if taken is None else f"{taken:g}"
            reason = f"{objective.metric} rests on {count} samples, {objective.min_samples} are needed"
            return Check(objective, value, Exit.INVALID, reason)
    low = objective.min is None or value >= objective.min
    high = objective.max is None or value <= objective.max
    if low and high:
        return Check(objective, value, Exit.PASS)
    unit = f" {objective.unit}" if objective.unit else ""
    return Check(objective, value, objective.breach, f"{objective.metric} is {value:g}{unit}, not {objective.bound}")


def _number(result: Mapping[str, Any], path: str) -> float | None:
    """The finite number at a dotted path, or None: a metric that is absent, null or NaN was not measured.

    A list of named values, as `found` is, counts as a mapping.
    """
    node: Any = result
    for name in path.split("."):
        if isinstance(node, list):
            node = {entry.get("name"): entry.get("value") for entry in node if isinstance(entry, Mapping)}
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    if isinstance(node, bool) or not isinstance(node, int | float) or not math.isfinite(node):
        return None
    return node
