"""Delays before a retry, for whoever calls `fail`. A strategy maps the attempts spent (1, 2, ...) to seconds.

Jitter after Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015). The random source is a
parameter, so that tests and simulations can repeat a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Backoff = Callable[[int], float]
Random = Callable[[float, float], float]  # uniform(a, b)
_uniform: Random = random.SystemRandom().uniform  # forked workers must not share a sequence


def constant(delay: float) -> Backoff:
    """Always `delay` seconds."""
    return lambda attempt: delay


def linear(base: float, *, cap: float = 3600.0) -> Backoff:
    """`base` seconds times the attempt, at most `cap`."""
    return lambda attempt: min(cap, base * attempt)


def exponential(base: float, *, factor: float = 2.0, cap: float = 3600.0) -> Backoff:
    """`base * factor ** (attempt - 1)` seconds, at most `cap`."""
    # The exponent is bounded, because 2.0 ** 1024 is an OverflowError and the cap was passed long before.
    return lambda attempt: min(cap, base * factor ** min(attempt - 1, 64))


class Jitter:
    """Exponential backoff spread at random, so that jobs that failed together do not return together."""

    @staticmethod
    def full(base: float, *, cap: float = 3600.0, uniform: Random = _uniform) -> Backoff:
        """Between 0 and the exponential delay: the widest spread."""
        grow = exponential(base, cap=cap)
        return lambda attempt: uniform(0.0, grow(attempt))

    @staticmethod
    def equal(base: float, *, cap: float = 3600.0, uniform: Random = _uniform) -> Backoff:
        """Half the exponential delay for certain, the other half at random: never at once."""
        grow = exponential(base, cap=cap)
        return lambda attempt: (half := grow(attempt) / 2) + uniform(0.0, half)

    @staticmethod
    def decorrelated(base: float, *, cap: float = 3600.0, uniform: Random = _uniform) -> Backoff:
        """Each delay between `base` and three times the one before, which is drawn anew since nobody stores it."""

        def delay(attempt: int) -> float:
            last = base
            for _ in range(min(attempt, 64)):
                last = min(cap, uniform(base, last * 3))
            return last

        return delay
