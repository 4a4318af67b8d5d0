"""The arrival clock is open-loop, and it tells a saturated generator from a slow server."""

from __future__ import annotations

import threading

import pytest

from pgqueue_ref.harness.clock import ArrivalClock, ArrivalCounts, Watch


class FakeTime:
    """A clock that moves only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.time = 100.0
        self.cpu = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def clock_of(fake: FakeTime, times: list[float], skip_after: float = 30.0) -> ArrivalClock:
    clock = ArrivalClock(times, skip_after=skip_after, now=fake.now, sleep=fake.sleep)
    clock.start(fake.time)
    return clock


def test_an_arrival_is_handed_out_at_its_instant_and_never_before() -> None:
    fake = FakeTime()
    clock = clock_of(fake, [0.5, 2.0])
    first = clock.draw()
    assert first is not None
    assert (first.number, first.intended, fake.time) == (0, 100.5, 100.5)
    second = clock.draw()
    assert second is not None
    assert (second.number, fake.time) == (1, 102.0)
    assert clock.draw() is None
    assert (clock.counts.begun, clock.counts.late, clock.counts.skipped) == (2, 0, 0)


def test_a_stalled_producer_finds_later_arrivals_with_their_intended_instants() -> None:
    fake = FakeTime()
    clock = clock_of(fake, [0.0, 0.1, 0.2, 5.0])
    clock.draw()
    fake.sleep(2.0)  # the server stalls in the first push
    held_up = [clock.draw(), clock.draw()]
    assert [due.intended for due in held_up if due] == [100.1, 100.2]
    assert (clock.counts.late, clock.counts.queued) == (2, 2)
    assert clock.counts.max_lag == pytest.approx(1.9)
    clock.draw()
    assert clock.counts.late == 2, "an arrival after the stall is on time again"


def test_an_arrival_beyond_the_skip_limit_is_counted_and_not_handed_out() -> None:
    fake = FakeTime()
    clock = clock_of(fake, [0.0, 1.0, 50.0], skip_after=10.0)
    clock.draw()
    fake.sleep(40.0)
    due = clock.draw()
    assert due is not None
    assert due.number == 2
    assert (clock.counts.offered, clock.counts.begun, clock.counts.skipped) == (3, 2, 1)


def test_each_arrival_goes_to_one_of_many_producers() -> None:
    clock = ArrivalClock([0.0] * 2000)
    drawn: list[int] = []

    def produce() -> None:
        while (due := clock.draw()) is not None:
            drawn.append(due.number)

    threads = [threading.Thread(target=produce) for _ in range(8)]
    for thread in threads:
        thread.start()
    clock.start(clock._now())
    for thread in threads:
        thread.join()
    assert sorted(drawn) == list(range(2000))


def test_an_arrival_of_a_producer_that_is_ended_in_its_sleep_goes_to_another() -> None:
    def be_ended(seconds: float) -> None:
        raise GeneratorExit

    clock = ArrivalClock([0.5, 2.0], now=lambda: 100.0, sleep=be_ended)
    clock.start(100.0)
    with pytest.raises(GeneratorExit):
        clock.draw()
    clock._sleep = lambda seconds: None
    assert [due.number for due in (clock.draw(), clock.draw()) if due] == [0, 1]
    assert (clock.counts.offered, clock.counts.begun) == (2, 2)


def test_descending_arrival_times_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        ArrivalClock([1.0, 0.5])


def test_a_late_wake_up_with_a_producer_waiting_is_late_but_not_queued() -> None:
    fake = FakeTime()
    clock = ArrivalClock([1.0], now=fake.now, sleep=lambda seconds: fake.sleep(seconds + 0.5))
    clock.start(fake.time)
    clock.draw()
    assert (clock.counts.late, clock.counts.queued) == (1, 0)


def watch_of(fake: FakeTime) -> Watch:
    watch = Watch(pause=0.05, now=fake.now, cpu=lambda: fake.cpu)
    fake.sleep(5.0)  # what passes before the first beat is nobody's lag
    watch.beat()
    return watch


def run_second(fake: FakeTime, watch: Watch, *, cpu_share: float, stall: float = 0.0) -> None:
    end = fake.time + 1.0
    fake.sleep(stall)
    while fake.time < end:
        fake.sleep(0.05)
        fake.cpu += 0.05 * cpu_share
        watch.beat()
    watch.beat()


def test_an_idle_generator_is_not_blamed_for_late_arrivals() -> None:
    fake = FakeTime()
    watch = watch_of(fake)
    run_second(fake, watch, cpu_share=0.3)
    run_second(fake, watch, cpu_share=0.3)
    assert watch.saturated_seconds() == 0
    assert watch.late_when_saturated(ArrivalCounts(2, late=2, late_at=[0.5, 1.5]), 105.0) == 0


def test_a_generator_at_a_full_core_is_blamed_for_arrivals_late_in_that_second_only() -> None:
    fake = FakeTime()
    watch = watch_of(fake)
    run_second(fake, watch, cpu_share=0.2)
    run_second(fake, watch, cpu_share=1.0)
    run_second(fake, watch, cpu_share=0.2)
    assert watch.saturated_seconds() == pytest.approx(1.0, abs=0.2)
    assert watch.late_when_saturated(ArrivalCounts(2, late=2, late_at=[0.4, 1.6]), 105.0) == 1


def test_a_generator_that_is_not_scheduled_in_time_counts_as_saturated() -> None:
    fake = FakeTime()
    watch = watch_of(fake)
    run_second(fake, watch, cpu_share=0.1, stall=0.6)
    run_second(fake, watch, cpu_share=0.1)
    assert watch.max_lag == pytest.approx(0.6)
    assert watch.saturated_seconds() >= 1.0
