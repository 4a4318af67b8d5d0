"""The scenario find-max: which limits a step breaks, what is the generator's fault, and what a search reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from loads import Load, judged, script, stage

from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import ScenarioError
from pgqueue_ref.harness.search import Outcome
from pgqueue_ref.harness.slo import Exit

Job = tuple[float, float, float]  # intended, pushed, started; seconds from the start of the step
RATE, SECONDS = 100.0, 4.0


def find_max(**overrides: str) -> Any:
    scenario = script("find_max").FindMax(quick=True, overrides=overrides)
    scenario.prepare(None)
    return scenario


def jobs(*, push: float = 0.001, start: Callable[[float], float] = lambda at: at + 0.01) -> list[Job]:
    """A step of 100 jobs/s at equal distances: how long a push takes, and when a job starts that came at an instant."""
    return [(n / RATE, n / RATE + push, start(n / RATE)) for n in range(int(RATE * SECONDS))]


# -- one step --------------------------------------------------------------------------------------------


def test_a_step_that_keeps_every_limit_holds_and_has_its_figures() -> None:
    step = find_max().judge_step(RATE, 400, jobs())
    assert (step.outcome, step.reasons) == (Outcome.HELD, ())
    assert step.p99_ms == pytest.approx(10, rel=0.01)
    assert step.achieved == 1.0
    assert step.growth == pytest.approx(0.0, abs=0.01)
    assert step.served == pytest.approx(RATE, rel=0.01)


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        (jobs(start=lambda at: at + 0.6), ["start p99 600 ms, not <= 500 ms"]),
        # One in ten does not get a slot: after four seconds 0.4 s behind, which p99 allows and the growth shows.
        (jobs(start=lambda at: at / 0.9), ["waiting jobs grew by 10.0% of the arrivals, not <= 5.0%"]),
        (jobs(push=4.0), ["12.8% pushed in time, not >= 99.0%"]),
        (jobs()[:390], ["97.5% pushed in time, not >= 99.0%"]),
        (jobs(push=9.0, start=lambda at: 9.0 + at), ["start p99", "0.0% pushed", "waiting jobs grew by 100.0%"]),
        ([], ["start p99 not measured", "0.0% pushed"]),
    ],
)
def test_a_step_breaks_with_each_limit_that_was_not_kept(measured: Sequence[Job], why: Sequence[str]) -> None:
    step = find_max().judge_step(RATE, 400, measured)
    assert step.outcome is Outcome.BROKE
    assert len(step.reasons) == len(why)
    assert all(reason.startswith(words) for reason, words in zip(step.reasons, why, strict=True)), step.reasons


def test_what_the_generator_was_late_with_is_not_held_against_the_queue() -> None:
    slow = jobs(start=lambda at: at + 0.6)
    step = find_max().judge_step(RATE, 400, slow, saturated=5, queued=200)
    assert step.outcome is Outcome.LIMITED
    assert step.reasons == ("the generator was saturated when 5 of 400 arrivals were late",)
    assert find_max().judge_step(RATE, 400, slow, saturated=4).outcome is Outcome.BROKE, "a hundredth is allowed"
    assert find_max().judge_step(RATE, 400, jobs(), saturated=100).outcome is Outcome.HELD, "nothing broke by it"


def test_producers_that_all_wait_for_the_server_are_named() -> None:
    step = find_max().judge_step(RATE, 400, jobs(push=4.0), queued=300)
    assert step.outcome is Outcome.BROKE
    assert step.reasons[-1] == "300 arrivals late because all 32 producers waited for the server"


# -- a search --------------------------------------------------------------------------------------------


def searched(directory: Path, becomes: Callable[[float], Outcome], **overrides: str) -> LoadRun:
    """The scenario played and judged on a queue of which only this is known: what becomes of a rate."""
    module = script("find_max")

    class Modelled(module.FindMax):  # type: ignore[misc,name-defined]
        def _step(self, run: LoadRun, rate: float) -> Any:
            outcome = becomes(rate)
            reasons = () if outcome is Outcome.HELD else (f"{outcome.value} at {rate:.0f}",)
            return module.Step(rate, round(rate * self.seconds), 12.0, 1.0, 0.0, rate, outcome, reasons)

    scenario = Modelled(quick=True, overrides=overrides)
    scenario.prepare(None)
    run = stage(scenario, directory)
    scenario.play(run)
    scenario.judge(run)
    return run


def figures(run: LoadRun) -> dict[str, Any]:
    return {figure["name"]: figure["value"] for figure in run.measured.found}


def test_it_reports_the_rate_that_held_the_rate_that_broke_and_why(tmp_path: Path) -> None:
    run = searched(tmp_path, lambda rate: Outcome.HELD if rate < 310 else Outcome.BROKE)
    found = figures(run)
    assert round(found["sustainable_rate"]) == 308
    assert round(found["broke_at"]) == 336
    assert found["of_capacity"] == pytest.approx(308.4 / 320, rel=0.01)
    (meaning,) = (item["meaning"] for item in run.measured.found if item["name"] == "broke_at")
    assert meaning == "broke at 336"
    assert judged(run).exit is Exit.PASS
    lines = {line["name"]: line for line in run.measured.plots[0]["series"]}
    assert set(lines) == {"held", "broke", "bound"}
    assert sorted(set(lines["held"]["t"])) == lines["held"]["t"][::2], "by rate, each with a gap behind it"


def test_a_queue_that_sustains_too_little_is_a_breach(tmp_path: Path) -> None:
    run = searched(tmp_path, lambda rate: Outcome.HELD if rate < 70 else Outcome.BROKE)
    verdict = judged(run)
    assert figures(run)["sustainable_rate"] < 70
    assert verdict.exit in (Exit.SLO_BREACH, Exit.INVALID)
    assert any(reason.startswith("found.sustainable_rate") for reason in verdict.reasons)


def test_a_queue_that_sustains_nothing_is_no_pass_and_says_so(tmp_path: Path) -> None:
    run = searched(tmp_path, lambda rate: Outcome.BROKE)
    assert figures(run)["sustainable_rate"] == 0
    assert not judged(run).passed


def test_where_only_the_generator_gave_in_the_run_is_invalid_and_says_whose_limit_it_was(tmp_path: Path) -> None:
    run = searched(tmp_path, lambda rate: Outcome.HELD if rate < 310 else Outcome.LIMITED)
    verdict = judged(run)
    assert verdict.exit is Exit.INVALID
    (reason,) = verdict.reasons
    assert reason.startswith("the generator's limit, not the queue's: at 336 jobs/s it was itself too slow")
    assert "the queue held at 308 jobs/s" in reason
    assert figures(run)["broke_at"] is None
    assert round(figures(run)["generator_limit"]) == 336


def test_a_queue_that_breaks_below_the_generators_limit_is_judged(tmp_path: Path) -> None:
    run = searched(
        tmp_path, lambda rate: Outcome.HELD if rate < 310 else Outcome.BROKE if rate < 390 else Outcome.LIMITED
    )
    assert judged(run).exit is Exit.PASS
    assert round(figures(run)["generator_limit"]) == 400


def test_a_search_that_finds_no_limit_is_invalid(tmp_path: Path) -> None:
    verdict = judged(searched(tmp_path, lambda rate: Outcome.HELD, most="3"))
    assert verdict.exit is Exit.INVALID
    assert any("nothing broke in 3 steps; the queue held at 400 jobs/s" in reason for reason in verdict.reasons)


def test_parameters_that_make_no_search_are_refused() -> None:
    with pytest.raises(ScenarioError, match="factor above 1"):
        find_max(factor="1")


# -- played ----------------------------------------------------------------------------------------------

SLO = """
[[find-max.slo]]
metric = "found.sustainable_rate"
min = 40
[[find-max.slo]]
metric = "ledger.undrained"
max = 0
"""


def test_played_against_the_queue_it_judges_each_step_by_its_own_jobs(database: str, tmp_path: Path) -> None:
    load = Load(database, tmp_path)
    load.slo.write_text(SLO)
    # Limits that any machine keeps: the second of two steps holds as well, and nothing breaks.
    limits = "p99_ms=60000", "achieved=0", "growth=1000", "seconds=1", "first=40", "most=2", "service=0"
    code, output = load.run("--scenario", "find-max", *(word for limit in limits for word in ("--set", limit)))
    assert code == Exit.INVALID, output
    assert "nothing broke in 2 steps; the queue held at 80 jobs/s" in output
    result = load.result()
    found = {figure["name"]: figure["value"] for figure in result["found"]}
    assert [phase["name"] for phase in result["phases"]] == ["40 jobs/s", "80 jobs/s"]
    assert found["sustainable_rate"] == 80
    assert found["step_01_p99_ms"] > 0
    assert found["step_02_p99_ms"] > 0
    assert found["jobs_per_step"] < result["arrivals"]["offered"]
