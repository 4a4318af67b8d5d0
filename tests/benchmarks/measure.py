"""How the benchmarks measure: sides in turns, medians of the rounds, figures with bounds. Used by the fixture `bench`.

A side is a plain function that does one round and returns what it measured. Sides take turns within a round, so
that whatever else the machine does meets all of them. pytest-benchmark keeps the time of each round and, in
`extra_info`, the figures and their samples; it gives no percentiles, which are computed here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Side = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `full` is what the bounds are stated for; `tiny` only shows that a benchmark works."""

    rounds: int
    jobs: int  # of a drain
    deep: int  # jobs due, and jobs of the future, behind a claim
    pushes: int  # one by one, each side and round
    batches: int  # of push_many, each side and round
    pickups: int  # each side and round
    steady: float  # seconds at a steady rate, each side and round
    idle: float  # seconds
    many: int  # jobs of the memory benchmark; terminal rows of the back-pressure one


FULL = Scale(5, 100_000, 1_000_000, 1_000, 8, 120, 2.5, 22.0, 1_000_000)
QUICK = Scale(3, 30_000, 200_000, 400, 4, 60, 1.5, 8.0, 200_000)
TINY = Scale(1, 1_500, 2_000, 5, 1, 3, 0.1, 1.5, 2_000)


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure's limit: on its value or, with `ratio`, on value / counterpart. Printed as it is judged."""

    least: float | None = None
    most: float | None = None
    ratio: bool = True

    def met(self, value: float, ratio: float) -> bool:
        """Whether the figure keeps it."""
        judged = ratio if self.ratio else value
        return (self.least is None or judged >= self.least) and (self.most is None or judged <= self.most)

    def words(self, unit: str) -> str:
        """Such as `>= 0.6x` or `<= 3 ms`."""
        limit = self.least if self.least is not None else self.most
        return f"{'>=' if self.least is not None else '<='} {limit:g}{'x' if self.ratio else ' ' + unit}"


class Bench:
    """One benchmark: runs its rounds through pytest-benchmark, and records its figures there.

    `enabled` is False in the ordinary tests, where one tiny round runs and nothing is judged.
    """

    def __init__(self, benchmark: Any, scale: Scale, describe: Mapping[str, Any]) -> None:
        self.scale = scale
        self.enabled: bool = benchmark.enabled
        self._benchmark = benchmark
        benchmark.extra_info["settings"] = dict(describe)
        benchmark.extra_info["figures"] = []

    def settings(self, **settings: Any) -> None:
        """Note what this benchmark was run with."""
        self._benchmark.extra_info["settings"] |= settings

    def rounds(self, ours: Side, *others: Side, rounds: int | None = None) -> list[list[Any]]:
        """Run the sides in turns; returns for each what its rounds returned, ours first.

        The time that pytest-benchmark shows is that of whole rounds of ours, its preparations included.
        """
        results: list[list[Any]] = [[] for _ in range(1 + len(others))]

        def before() -> None:
            for side, result in zip(others, results[1:], strict=True):
                result.append(side())

        def measured() -> None:
            results[0].append(ours())

        self._benchmark.pedantic(measured, setup=before, rounds=rounds or self.scale.rounds, iterations=1)
        return results

    def figure(
        self, name: str, unit: str, ours: Sequence[float], counterpart: Sequence[float] | float, against: str,
        bound: Bound | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Record the medians of both sides' rounds, their ratio, and whether the bound is kept.

        `against` says in a few words what the counterpart is; a number as counterpart is a limit, not a measurement.
        """
        value = statistics.median(ours)
        other = float(counterpart) if isinstance(counterpart, int | float) else statistics.median(counterpart)
        measured = [] if isinstance(counterpart, int | float) else list(counterpart)
        ratio = value / other if other else float("inf")
        self._benchmark.extra_info["figures"].append(
            {
                "name": name, "unit": unit, "ours": value, "counterpart": other, "against": against, "ratio": ratio,
                "bound": bound.words(unit) if bound else "", "ok": bound.met(value, ratio) if bound else True,
                "rounds": list(ours), "counterpart_rounds": measured, **more,
            }
        )  # fmt: skip


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-int(len(ordered) * share * 1e6) // 1_000_000) - 1)]


def seconds(call: Callable[[], Any]) -> float:
    """How long the call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(count: int, *calls: Callable[[], Any]) -> list[float]:
    """Call each in turn, `count` times; returns the seconds that each took altogether.

    For calls so short that a disturbance would otherwise meet only one of them.
    """
    totals = [0.0] * len(calls)
    for _ in range(count):
        for index, call in enumerate(calls):
            totals[index] += seconds(call)
    return totals
