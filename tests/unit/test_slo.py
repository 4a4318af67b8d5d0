"""A verdict is PASS only when everything was measured, on enough samples, and held."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pgqueue_ref.harness.slo import Exit, Objective, SloError, evaluate, load

GOOD: dict[str, Any] = {
    "requests": {"failures": 0},
    "ledger": {"lost": 0, "unexpected": 0},
    "arrivals": {"achieved_ratio": 1.0, "offered": 5000},
    "latency": {"start": {"p99_ms": 20.0, "count": 5000}},
    "generator": {"late_ratio": 0.0},
}
OBJECTIVES = [
    Objective("arrivals.achieved_ratio", min=0.99, samples="arrivals.offered", min_samples=1000),
    Objective("latency.start.p99_ms", max=1000, samples="latency.start.count", min_samples=1000),
    Objective("generator.late_ratio", max=0.01, breach=Exit.INVALID),
]
DIED = (Exit.CRASH_OR_USAGE, "worker 1 died")


def result(**changes: Any) -> dict[str, Any]:
    """GOOD with values at dotted paths (`__` for the dot) replaced, or taken out with `...`."""
    changed = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, name = path.split("__")
        node = changed
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[name]
        else:
            node[name] = value
    return changed


def test_a_run_that_holds_every_objective_passes() -> None:
    verdict = evaluate(GOOD, OBJECTIVES)
    assert verdict.passed
    assert verdict.reasons == []
    assert all(check.ok for check in verdict.checks)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"latency__start__p99_ms": 1000.1}, Exit.SLO_BREACH),
        ({"arrivals__achieved_ratio": 0.98}, Exit.SLO_BREACH),
        ({"generator__late_ratio": 0.02}, Exit.INVALID),
        ({"requests__failures": 1}, Exit.REQUEST_FAILURES),
        ({"ledger__lost": 1}, Exit.INCORRECT),
        ({"ledger__unexpected": 1}, Exit.INCORRECT),
    ],
)
def test_each_breach_has_its_exit_code(changes: dict[str, Any], code: Exit) -> None:
    verdict = evaluate(result(**changes), OBJECTIVES)
    assert verdict.exit is code
    assert len(verdict.reasons) == 1


@pytest.mark.parametrize("value", [..., None, float("nan"), float("inf"), "12", True])
@pytest.mark.parametrize(
    "metric", ["latency__start__p99_ms", "arrivals__achieved_ratio", "ledger__lost", "requests__failures"]
)
def test_a_metric_that_was_not_measured_makes_the_run_invalid(metric: str, value: object) -> None:
    verdict = evaluate(result(**{metric: value}), OBJECTIVES)
    assert verdict.exit is Exit.INVALID
    assert "not measured" in verdict.reasons[0]


@pytest.mark.parametrize("samples", [..., 0, 999, None])
def test_too_few_samples_make_the_run_invalid_however_good_the_value(samples: object) -> None:
    verdict = evaluate(result(latency__start__count=samples), OBJECTIVES)
    assert verdict.exit is Exit.INVALID
    assert "samples" in verdict.reasons[0]


def test_a_run_without_objectives_is_invalid() -> None:
    assert evaluate(GOOD, []).exit is Exit.INVALID


def test_an_empty_result_is_invalid() -> None:
    assert evaluate({}, OBJECTIVES).exit is Exit.INVALID


def test_a_lost_job_outranks_everything_else() -> None:
    bad = result(ledger__lost=1, latency__start__p99_ms=5000.0, requests__failures=3, generator__late_ratio=1.0)
    verdict = evaluate(bad, OBJECTIVES, incidents=[DIED])
    assert verdict.exit is Exit.INCORRECT
    assert len(verdict.reasons) == 5


def test_a_crash_is_never_a_pass() -> None:
    assert evaluate(GOOD, OBJECTIVES, incidents=[DIED]).exit is Exit.CRASH_OR_USAGE


def test_an_invalid_run_is_not_judged_on_its_latencies() -> None:
    late = result(latency__start__p99_ms=5000.0, generator__late_ratio=1.0)
    assert evaluate(late, OBJECTIVES).exit is Exit.INVALID


def write(path: Path, text: str) -> Path:
    file = path / "slo.toml"
    file.write_text(text)
    return file


def test_a_file_gives_its_objectives(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [[steady.slo]]
        metric = "a.b"
        min = 0
        max = 0
        unit = "jobs"
        breach = "correctness"
        """,
    )
    (objective,) = load(file, "steady")
    assert objective == Objective("a.b", min=0, max=0, unit="jobs", breach=Exit.INCORRECT)
    assert objective.bound == "= 0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no [[steady.slo]]"),
        ("[steady]\nslo = []", "no [[steady.slo]]"),
        ("[[steady.slo]]\nmax = 1", "no metric"),
        ("[[steady.slo]]\nmetric = 'a'", "neither min nor max"),
        ("[[steady.slo]]\nmetric = 'a'\nmax = 'x'", "must be a number"),
        ("[[steady.slo]]\nmetric = 'a'\nmax = nan", "must be a number"),
        ("[[steady.slo]]\nmetric = 'a'\nmaximum = 1", "unknown field maximum"),
        ("[[steady.slo]]\nmetric = 'a'\nmax = 1\nbreach = 'nothing'", "must be one of"),
        ("[[steady.slo", "not TOML"),
    ],
)
def test_a_bad_file_costs_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SloError) as caught:
        load(write(tmp_path, text), "steady")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_costs_one_line(tmp_path: Path) -> None:
    with pytest.raises(SloError, match="cannot be read"):
        load(tmp_path / "slo.toml", "steady")
