"""How many jobs wait, told from when each came and started; and the fluid model, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from pgqueue_ref.harness.backlog import emptied, growth, level_at, time_to_drain, waiting
from pgqueue_ref.harness.result import Measured, growth_ratio
from pgqueue_ref.harness.traces import Arrival


def test_jobs_wait_from_when_they_came_until_they_started() -> None:
    assert waiting([(0.0, 2.0), (1.0, 5.0), (3.0, 4.0)]) == [(0.0, 1), (1.0, 2), (2.0, 1), (3.0, 2), (4.0, 1), (5.0, 0)]


def test_changes_at_one_moment_are_one_step() -> None:
    assert waiting([(0.0, 1.0), (0.0, 1.0), (1.0, 2.0)]) == [(0.0, 2), (1.0, 1), (2.0, 0)]


def test_a_job_that_started_as_it_came_waits_for_nothing() -> None:
    assert waiting([(1.0, 1.0)]) == [(1.0, 0)]


def test_nothing_came_nothing_waits() -> None:
    assert waiting([]) == []
    assert level_at([], 5.0) == 0
    assert emptied([], 5.0) == 5.0


@pytest.mark.parametrize(("at", "level"), [(-1.0, 0), (0.0, 1), (0.9, 1), (1.0, 2), (2.0, 1), (9.0, 0)])
def test_the_level_is_that_of_the_last_step(at: float, level: int) -> None:
    assert level_at(waiting([(0.0, 2.0), (1.0, 3.0)]), at) == level


@pytest.mark.parametrize(
    ("after", "moment"),
    [
        (0.0, 3.0),
        (2.5, 3.0),
        (3.0, 3.0),
        (4.0, 4.0),  # nothing waits then
        (5.0, 6.0),
        (7.0, 7.0),
    ],
)
def test_emptied_is_the_first_moment_from_then_on_at_which_nothing_waits(after: float, moment: float) -> None:
    assert emptied(waiting([(0.0, 3.0), (1.0, 2.0), (5.0, 6.0)]), after) == moment


def test_a_backlog_that_never_empties_has_no_such_moment() -> None:
    assert emptied([(0.0, 2), (1.0, 1)], 0.5) is None


@pytest.mark.parametrize(
    ("backlog", "capacity", "rate", "seconds"),
    [(1500, 128, 32, 15.625), (100, 10, 0, 10.0), (0, 10, 5, 0.0), (100, 10, 10, math.inf), (100, 10, 11, math.inf)],
)
def test_the_fluid_model_drains_by_what_capacity_is_left(
    backlog: float, capacity: float, rate: float, seconds: float
) -> None:
    assert time_to_drain(backlog, capacity, rate) == seconds


def test_growth_is_the_slope_of_the_line_through_the_levels() -> None:
    assert growth([(t, 5.0 + 3.0 * t) for t in range(20)]) == pytest.approx(3.0)
    assert growth([(t, 7.0) for t in range(20)]) == 0.0
    assert growth([(t, -float(t)) for t in range(20)]) == pytest.approx(-1.0)


def test_growth_of_fewer_than_ten_points_or_of_one_moment_is_not_known() -> None:
    assert growth([(t, float(t)) for t in range(9)]) is None
    assert growth([(1.0, float(n)) for n in range(20)]) is None


@pytest.mark.parametrize(
    ("seen", "ratio"),
    [
        (range(600), 0.5),
        ([t for t in range(600) if not 100 <= t < 150], 0.5),
        ([t for t in range(600) if not 100 <= t < 170], None),
        (range(35), None),  # then the sampler died
        (range(70, 600), None),
        ((), None),
    ],
)
def test_the_growth_of_a_run_is_not_known_where_a_tenth_of_its_samples_is_missing(seen: Any, ratio: Any) -> None:
    settings: Any = SimpleNamespace(scenario=SimpleNamespace(window=1.0))
    sampler: Any = SimpleNamespace(samples=[{"t": float(t), "pending": 5 * t} for t in seen])
    measured = Measured("r", settings, sampler=sampler)
    measured.offered = [(n / 10, Arrival(n / 10, 0.1, "job")) for n in range(6000)]
    found = growth_ratio(measured)
    assert found == (ratio and pytest.approx(ratio, rel=0.01))
