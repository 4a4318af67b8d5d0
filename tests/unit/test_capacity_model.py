"""Waiting times: formulas against published values, simulations against formulas and against each other."""

from __future__ import annotations

import math
import random

import pytest

from pgqueue_ref.capacity import CapacityError, model, service, simulate, usl
from pgqueue_ref.harness.traces import Arrival

JOBS = 200_000


@pytest.mark.parametrize(("slots", "p99"), [(15, 1.15), (5, 4.0), (2, 10.7), (60, 0.15)])
def test_erlang_c_gives_the_published_p99_at_four_fifths_load(slots: int, p99: float) -> None:
    assert model.wait_percentile(slots, 0.8 * slots, 1.0, 99) == pytest.approx(p99, rel=0.03)


def test_erlang_c_and_b_give_the_published_probabilities() -> None:
    assert model.erlang_c(15, 12.0) == pytest.approx(0.32, abs=0.005)
    assert model.erlang_c(2, 1.0) == pytest.approx(1 / 3)  # Gross and Harris: 2 rho^2 / (1 + rho) at rho = 1/2
    assert model.erlang_b(5, 3.0) == pytest.approx(0.1101, abs=0.0001)  # any table of Erlang B


def test_as_much_load_as_slots_waits_for_ever() -> None:
    assert model.erlang_c(4, 4.0) == 1
    assert model.wait_percentile(4, 4.0, 1.0, 99) == math.inf
    assert model.mean_wait(4, 5.0, 1.0) == math.inf
    assert model.wait_beyond(4, 4.0, 1.0, 100.0) == 1


def test_the_slots_needed_keep_the_wait_and_one_less_does_not() -> None:
    slots = model.slots_needed(30.0, 0.5, 0.5, 99)
    assert model.wait_percentile(slots, 30.0, 0.5, 99) <= 0.5
    assert model.wait_percentile(slots - 1, 30.0, 0.5, 99) > 0.5


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(CapacityError, match="rate must be above 0"):
        model.offered(rate, 1.0)


def test_a_load_that_no_queue_has_is_refused_and_not_reckoned_with_for_ever() -> None:
    with pytest.raises(CapacityError, match=r"keep 1e\+300 slots busy: above 100,000"):
        model.offered(1e300, 1.0)


def waited(spec: str, slots: int, load: float, seed: int = 7) -> float:
    """Simulated mean wait, mean service 1 s."""
    times = service.of_spec(spec)
    arrivals = simulate.load(load, JOBS / load, times, random.Random(seed))
    waits = simulate.waits(arrivals, slots)
    return sum(waits) / len(waits)


def test_the_simulation_of_exponential_times_agrees_with_erlang_c() -> None:
    assert waited("exp:1", 10, 8.0) == pytest.approx(model.mean_wait(10, 8.0, 1.0), rel=0.05)


def test_the_simulation_of_fixed_times_agrees_with_pollaczek_and_khinchine_for_one_slot() -> None:
    assert waited("fixed:1", 1, 0.8) == pytest.approx(0.8 / (2 * 0.2), rel=0.03)


def test_the_simulation_of_fixed_times_agrees_with_cosmetatos_for_several() -> None:
    # G. P. Cosmetatos, "Approximate explicit formulae for the average queueing time in the processes (M/D/r) and
    # (D/M/r)" (1975).
    c, rho = 10, 0.8
    correction = 1 + (1 - rho) * (c - 1) * (math.sqrt(4 + 5 * c) - 2) / (16 * rho * c)
    assert waited("fixed:1", c, c * rho) == pytest.approx(
        correction / 2 * model.mean_wait(c, c * rho, 1.0), rel=0.05
    )  # fmt: skip


@pytest.mark.parametrize(("squared_cv", "tolerance"), [(0.5, 0.05), (2.0, 0.15)])
def test_the_simulation_of_varied_times_agrees_with_lee_and_longton(squared_cv: float, tolerance: float) -> None:
    expected = model.mean_wait(5, 4.0, 1.0, squared_cv=squared_cv)
    assert waited(f"lognormal:1:{squared_cv}", 5, 4.0, seed=1) == pytest.approx(expected, rel=tolerance)


def played(system: simulate.System, arrivals: list[Arrival], seed: int = 1) -> simulate.Played:
    return simulate.play(arrivals, system, random.Random(seed))


def busy(rate: float = 25.0, seconds: float = 40.0) -> list[Arrival]:
    return simulate.load(rate, seconds, service.of_spec("exp:0.5"), random.Random(3))


def test_both_simulations_agree_where_claims_take_no_time() -> None:
    arrivals = busy()
    detailed = played(simulate.System(workers=2, slots=8), arrivals)
    assert detailed.waits == pytest.approx(simulate.waits(arrivals, 16), abs=1e-9)
    assert detailed.attempts == len(arrivals)


def test_without_the_bell_a_job_waits_for_the_poll() -> None:
    arrivals = [Arrival(10.25 * n + 0.1, 0.1, "job") for n in range(20)]
    polled = played(simulate.System(1, 4, bell=math.inf, poll=1.0), arrivals)
    heard = played(simulate.System(1, 4, bell=0.01, poll=1.0), arrivals)
    assert max(heard.waits) == pytest.approx(0.01)
    assert 0.5 < max(polled.waits) <= 1.0


def test_claims_that_take_time_are_waited_for() -> None:
    slow = played(simulate.System(1, 4, claim=lambda rng: 0.2), [Arrival(1.0, 0.1, "job")])
    assert slow.waits == [pytest.approx(0.2)]


def test_urgent_jobs_overtake_and_failing_ones_are_tried_again() -> None:
    plain = played(simulate.System(2, 7), busy())
    mixed = played(simulate.System(2, 7, urgent=0.2), busy())
    assert min(mixed.waits) == 0
    assert max(mixed.waits) > max(plain.waits), "the others wait for those that overtake"
    failing = played(simulate.System(2, 20, failing=0.5, max_attempts=2, backoff=1.0), busy())
    assert len(failing.waits) < failing.attempts <= 2 * len(failing.waits)


def test_an_interval_holds_its_share() -> None:
    found = simulate.interval([float(n) for n in range(1, 101)], share=0.9)
    assert (found.low, found.high) == (5.0, 96.0)
    assert found.holds(50.0)
    assert not found.holds(99.0)


@pytest.mark.parametrize("values", [simulate.FEWEST, 20, 39, 50, 100, 200])
def test_one_more_value_lies_in_the_interval_as_often_as_it_says(values: int) -> None:
    rng, tries = random.Random(values), 20_000
    held = sum(simulate.interval([rng.random() for _ in range(values)]).holds(rng.random()) for _ in range(tries))
    assert 0.893 < held / tries < 0.93  # 0.9 within three standard deviations, or what the next rank gives


def test_replications_differ_and_can_be_repeated() -> None:
    system = simulate.System(2, 8)

    def window(rng: random.Random) -> simulate.Played:
        return simulate.play(simulate.load(25, 10, service.of_spec("exp:0.5"), rng), system, rng)

    first, again = (simulate.replicate(window, 5, seed=9) for _ in range(2))
    assert first == again
    assert first["wait_p99"].low < first["wait_p99"].high


def test_a_window_without_a_job_is_refused_and_not_called_one_without_waits() -> None:
    with pytest.raises(CapacityError, match="a window without a single job says nothing"):
        simulate.replicate(lambda rng: simulate.Played([], 0.0, 0), 5, seed=1)


def test_the_scalability_law_is_found_again() -> None:
    law = usl.Scaling(1_000.0, 0.05, 0.002)
    found = usl.fit({n: law.throughput(n) for n in (1, 2, 4, 8, 16)})
    assert found.contention == pytest.approx(0.05, rel=0.01)
    assert found.coherency == pytest.approx(0.002, rel=0.01)
    assert found.most_workers == pytest.approx(math.sqrt(0.95 / 0.002), rel=0.01)
    assert usl.fit({1: 500.0}) == usl.Scaling(500.0, 0.0, 0.0)
    assert usl.fit({1: 100.0, 2: 150.0}).throughput(2) == pytest.approx(150.0, rel=0.01)


@pytest.mark.parametrize("measured", [{}, {0: 1.0}, {1: 0.0}])
def test_throughputs_that_are_none_are_refused(measured: dict[int, float]) -> None:
    with pytest.raises(CapacityError, match="all above 0"):
        usl.fit(measured)
