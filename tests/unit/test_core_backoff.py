"""Delays before a retry: they grow, they stay under their cap, and jitter stays within its range."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue_ref.core import Jitter, constant, exponential, linear, seconds

ATTEMPTS = st.integers(1, 10_000)
BASES = st.floats(0.001, 1_000)


def test_constant_never_changes():
    assert [constant(5)(attempt) for attempt in (1, 2, 1_000_000)] == [5, 5, 5]


def test_linear_grows_by_its_base():
    assert [linear(5, cap=12)(attempt) for attempt in (1, 2, 3)] == [5, 10, 12]


def test_exponential_doubles_or_grows_by_its_factor():
    assert [exponential(3)(attempt) for attempt in (1, 2, 3, 4)] == [3, 6, 12, 24]
    assert [exponential(3, factor=10, cap=200)(attempt) for attempt in (1, 2, 3)] == [3, 30, 200]


@given(BASES, ATTEMPTS)
def test_no_delay_is_over_its_cap_or_overflows(base, attempt):
    jitters = (Jitter.full, Jitter.equal, Jitter.decorrelated)
    for strategy in (linear(base, cap=60), exponential(base, cap=60), *(jitter(base, cap=60) for jitter in jitters)):
        delay = strategy(attempt)
        assert 0 <= delay <= 60
        assert seconds(delay, "delay") == delay  # `fail` takes it


@pytest.mark.parametrize("attempt", [1, 3, 8])
def test_full_jitter_is_between_nothing_and_the_exponential_delay(attempt):
    whole = exponential(6, cap=600)(attempt)
    assert Jitter.full(6, cap=600, uniform=lambda low, high: low)(attempt) == 0
    assert Jitter.full(6, cap=600, uniform=lambda low, high: high)(attempt) == whole


@pytest.mark.parametrize("attempt", [1, 3, 8])
def test_equal_jitter_is_between_half_of_it_and_all_of_it(attempt):
    whole = exponential(6, cap=600)(attempt)
    assert Jitter.equal(6, cap=600, uniform=lambda low, high: low)(attempt) == whole / 2
    assert Jitter.equal(6, cap=600, uniform=lambda low, high: high)(attempt) == whole


def test_decorrelated_jitter_is_between_its_base_and_three_times_the_one_before():
    assert [Jitter.decorrelated(2, cap=100, uniform=lambda low, high: high)(n) for n in (1, 2, 3, 4)] == [
        6,
        18,
        54,
        100,
    ]
    assert [Jitter.decorrelated(2, cap=100, uniform=lambda low, high: low)(n) for n in (1, 2, 9)] == [2, 2, 2]


def test_a_random_source_that_is_injected_repeats_a_run():
    def run() -> list[float]:
        jitter = Jitter.full(6, uniform=random.Random(7).uniform)
        return [jitter(attempt) for attempt in range(1, 20)]

    assert run() == run()
    assert len(set(run())) > 10


def test_durations_are_seconds_or_timedeltas():
    assert seconds(5, "delay") == 5.0
    assert seconds(timedelta(minutes=2), "delay") == 120.0
