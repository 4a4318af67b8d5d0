"""The Universal Scalability Law, fitted to throughputs of 1, 2, ... N workers.

X(n) = n X1 / (1 + s (n - 1) + k n (n - 1)): s is the share that the workers take in turns (contention), k what each
pair costs (coherency). N. J. Gunther, Guerrilla Capacity Planning (2007), chapter 4. Called by `measure` and `plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgqueue_ref.capacity import CapacityError


class Scaling(NamedTuple):
    """The law's parameters; `one` is the throughput of one worker in jobs a second."""

    one: float
    contention: float
    coherency: float

    def throughput(self, workers: float) -> float:
        """Jobs a second."""
        n = workers
        return n * self.one / (1 + self.contention * (n - 1) + self.coherency * n * (n - 1))

    @property
    def most_workers(self) -> float:
        """With how many the throughput is highest, sqrt((1 - s) / k); infinite where more never hurt."""
        return math.sqrt((1 - self.contention) / self.coherency) if self.coherency > 0 else math.inf

    @property
    def peak(self) -> float:
        """The highest throughput, jobs a second; the limit X1 / s where more workers never hurt."""
        if math.isfinite(self.most_workers):
            return self.throughput(max(1.0, self.most_workers))
        return self.one / self.contention if self.contention > 0 else math.inf


def fit(measured: Mapping[int, float]) -> Scaling:
    """Fit to throughputs by number of workers, least squares of the relative errors. Raises `CapacityError`.

    With fewer than three points only contention is fitted, with one nothing.
    """
    if not measured or min(measured) < 1 or min(measured.values()) <= 0:
        raise CapacityError("throughputs of 1 worker and more, all above 0, are needed to fit how it scales")
    one = measured[min(measured)] / min(measured)
    if len(measured) == 1:
        return Scaling(one, 0.0, 0.0)
    from scipy.optimize import least_squares  # here, because it takes a second to import

    free = min(3, len(measured))

    def scaling(parameters: Sequence[float]) -> Scaling:
        first, contention, coherency = *parameters, *[0.0] * (3 - free)
        return Scaling(first * one, contention, coherency)  # of a size like the others', or the search goes astray

    def errors(parameters: Sequence[float]) -> list[float]:
        return [scaling(parameters).throughput(workers) / seen - 1 for workers, seen in measured.items()]

    bounds = ([1e-9, 0.0, 0.0][:free], [math.inf, 1.0, 1.0][:free])
    found = least_squares(errors, [1.0, 0.05, 0.001][:free], bounds=bounds)
    return scaling([float(parameter) for parameter in found.x])
