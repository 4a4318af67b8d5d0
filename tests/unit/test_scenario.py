"""What scenarios share: parameters that are read and refused, load from distributions, objectives for each."""

from __future__ import annotations

import itertools
import random
import re
import statistics
from pathlib import Path
from typing import ClassVar

import pytest
from loads import ROOT, script

from pgqueue_ref.harness import slo
from pgqueue_ref.harness.scenario import SCENARIOS, Scenario, ScenarioError, even, poisson, service
from pgqueue_ref.harness.traces import Arrival

FILES = sorted((ROOT / "loadtests" / "scenarios").glob("[!_]*.py"))


class Example(Scenario):
    """What it does,
    in two lines.

    And more."""

    quick: ClassVar = {"seconds": 6.0}
    positive = (*Scenario.positive, "seconds")
    seconds = 60.0
    jobs = 5
    service = "exp:1"


def test_the_quick_profile_replaces_the_full_one_and_what_is_given_replaces_both() -> None:
    assert Example(quick=False).seconds == 60.0
    assert Example(quick=True).seconds == 6.0
    assert Example(quick=True, overrides={"seconds": "7", "jobs": "9", "service": "0.2"}).parameters() == {
        **Example(quick=True).parameters(), "seconds": 7.0, "jobs": 9, "service": "0.2"
    }  # fmt: skip


def test_the_parameters_are_the_public_figures_and_texts() -> None:
    known = Example(quick=True).parameters()
    assert {"seconds", "jobs", "service", "workers", "slots", "producers", "faults", "lease"} <= set(known)
    assert not {"name", "unusable", "text", "source", "quick", "positive", "kinds"} & set(known)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"job": "1"}, "has no parameter job; it has"),
        ({"name": "x"}, "has no parameter name"),
        ({"jobs": "1.5"}, "--set jobs=1.5: it must be like 5"),
        ({"jobs": "-1"}, "--set jobs=-1: it must not be negative"),
        ({"seconds": "inf"}, "--set seconds=inf: it must be a finite number"),
        ({"seconds": "0"}, "--set seconds=0: it must be above 0"),
        ({"slots": "0"}, "--set slots=0: it must be above 0"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_in_one_line(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Example(quick=True, overrides=overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_text_is_the_first_paragraph_of_its_docstring() -> None:
    assert Example(quick=True).text == "What it does, in two lines."


def test_a_scenario_without_a_script_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Example(quick=True).play(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_scenario_has_objectives_and_both_its_profiles_can_be_made(file: Path) -> None:
    script(file.stem)
    scenario = SCENARIOS[file.stem.replace("_", "-")]
    for quick in (True, False):
        assert scenario(quick=quick).text
    metrics = {objective.metric for objective in slo.load(ROOT / "loadtests" / "slo.toml", scenario.name)}
    assert {"ledger.undrained", "ledger.unexplained"} <= metrics


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_that_an_objective_names_is_noted_by_its_scenario(file: Path) -> None:
    noted = re.findall(r'\bfound\(\s*f?"([^"]+)"', file.read_text())
    patterns = [re.sub(r"\\{.*?\\}", ".+", re.escape(name)) for name in noted]
    objectives = slo.load(ROOT / "loadtests" / "slo.toml", file.stem.replace("_", "-"))
    named = {path for objective in objectives for path in (objective.metric, objective.samples) if path}
    wanted = {path.removeprefix("found.") for path in named if path.startswith("found.")}
    assert {name for name in wanted if not any(re.fullmatch(pattern, name) for pattern in patterns)} == set()


# -- load from distributions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mean", "squared_cv"),
    [("0.05", 0.05, 0.0), ("fixed:0.05", 0.05, 0.0), ("exp:0.05", 0.05, 1.0), ("lognormal:0.05:2", 0.05, 2.0),
     ("0", 0.0, 0.0), ("exp:0", 0.0, 0.0)],
)  # fmt: skip
def test_service_times_have_the_mean_and_spread_they_were_asked_for(text: str, mean: float, squared_cv: float) -> None:
    draw = service(text, random.Random(1))
    drawn = [draw() for _ in range(40_000)]
    assert min(drawn) >= 0
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    if mean:
        assert statistics.pvariance(drawn) / mean**2 == pytest.approx(squared_cv, rel=0.15, abs=1e-9)


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "nan", "inf", "exp", "exp:", "exp:1:2", "fixed:1:2", "lognormal:1", "lognormal:1:0",
             "lognormal:1:x", "gamma:1"],
)  # fmt: skip
def test_a_distribution_that_is_not_understood_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"write 0\.05, exp"):
        service(text, random.Random(1))


def test_poisson_arrivals_come_at_their_rate_and_independent_of_each_other() -> None:
    arrivals = poisson(100.0, 200.0, lambda: 0.5, random.Random(1), kind="mail")
    assert len(arrivals) == pytest.approx(20_000, rel=0.03)
    gaps = [after.at - before.at for before, after in itertools.pairwise(arrivals)]
    assert min(gaps) >= 0
    assert statistics.pstdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)  # exponential
    assert arrivals[-1].at < 200.0
    assert {(arrival.duration, arrival.kind) for arrival in arrivals} == {(0.5, "mail")}


def test_the_same_seed_gives_the_same_load() -> None:
    def load(seed: int) -> list[Arrival]:
        rng = random.Random(seed)
        return poisson(50.0, 10.0, service("exp:1", rng), rng)

    assert load(7) == load(7)
    assert load(7) != load(8)


def test_no_rate_is_no_arrival() -> None:
    assert poisson(0.0, 10.0, lambda: 1.0, random.Random(1)) == []


def test_even_arrivals_are_at_equal_distances_and_end_in_time() -> None:
    arrivals = even(4.0, 1.0, lambda: 0.1)
    assert [arrival.at for arrival in arrivals] == [0.0, 0.25, 0.5, 0.75]
    assert even(4.0, 0.2, lambda: 0.1) == []
