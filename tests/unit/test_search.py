"""Which rate is tried next: the search finds where a queue breaks, and does not take the generator's limit for it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pgqueue_ref.harness.search import Outcome, Search

HELD, BROKE, LIMITED = Outcome.HELD, Outcome.BROKE, Outcome.LIMITED


def play(search: Search, becomes: Callable[[float], Outcome]) -> list[float]:
    """Search where each rate becomes what the function says; returns the rates that were tried."""
    tried = []
    while (rate := search.next()) is not None:
        tried.append(rate)
        search.note(rate, becomes(rate))
    return tried


@pytest.mark.parametrize("limit", [2.5, 60.0, 100.0, 101.0, 399.0, 317.0, 12_345.0])
def test_the_rate_at_which_a_queue_breaks_is_found_as_precisely_as_asked(limit: float) -> None:
    search = Search(100.0, precision=0.05, most=60)
    play(search, lambda rate: HELD if rate <= limit else BROKE)
    assert search.held is not None
    assert search.broke is not None
    assert search.held <= limit < search.broke <= search.held * 1.05
    assert search.limited is None


def test_rates_go_up_by_the_factor_until_one_breaks_and_then_halve_the_interval() -> None:
    tried = play(Search(100.0, precision=0.2), lambda rate: HELD if rate < 300 else BROKE)
    assert [round(rate) for rate in tried] == [100, 200, 400, 400, 283, 336, 336]


def test_a_first_rate_that_breaks_is_gone_down_from() -> None:
    tried = play(Search(100.0, precision=0.5), lambda rate: HELD if rate <= 30 else BROKE)
    assert [round(rate) for rate in tried] == [100, 100, 50, 50, 25, 35, 35]


def test_a_rate_that_did_not_hold_only_once_is_no_limit() -> None:
    stalls = iter([HELD, BROKE, HELD, LIMITED, HELD])
    search = Search(100.0, most=5)
    tried = play(search, lambda rate: next(stalls))
    assert tried == [100, 200, 200, 400, 400]
    assert (search.held, search.broke, search.limited) == (400, None, None)


def test_where_the_generator_is_the_limit_nothing_broke() -> None:
    search = Search(100.0, precision=0.1)
    play(search, lambda rate: HELD if rate < 700 else LIMITED)
    assert search.broke is None
    assert search.limited is not None
    assert search.held is not None
    assert search.held < 700 <= search.limited <= search.held * 1.1


def test_a_queue_that_breaks_below_the_generators_limit_is_found_out() -> None:
    search = Search(100.0, precision=0.05)
    play(search, lambda rate: HELD if rate < 500 else BROKE if rate < 700 else LIMITED)
    assert search.broke is not None
    assert search.held is not None
    assert search.held < 500 <= search.broke <= search.held * 1.05
    assert search.limited == 800


@pytest.mark.parametrize("outcomes", [(BROKE, LIMITED), (LIMITED, BROKE)])
def test_a_rate_at_which_the_generator_was_in_doubt_is_not_called_the_queues_limit(
    outcomes: tuple[Outcome, Outcome],
) -> None:
    search = Search(100.0, most=2)
    given = iter(outcomes)
    play(search, lambda rate: next(given))
    assert (search.broke, search.limited) == (None, 100.0)


def test_a_queue_that_never_holds_ends_the_search_with_no_rate() -> None:
    search = Search(100.0, least=10.0)
    tried = play(search, lambda rate: BROKE)
    assert search.held is None
    assert min(tried) >= 10.0


@pytest.mark.parametrize("seed", range(20))
def test_the_search_ends_whatever_the_outcomes(seed: int) -> None:
    rng = random.Random(seed)
    search = Search(100.0, most=30)
    assert len(play(search, lambda rate: rng.choice(list(Outcome)))) <= 30
    assert search.held is None or search.held < search.ceiling


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"factor": 1.0}, {"precision": 0.0}])
def test_a_search_that_could_not_end_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Search(**{"first": 1.0, **wrong})
