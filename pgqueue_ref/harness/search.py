"""Which rate to try next, to find the highest that a queue sustains: geometric steps until one breaks, then bisection.

Called by the scenario `find-max`, which plays each rate and says what became of it; needs no database and no clock. A
rate at which the load generator itself was too slow says nothing about the queue: it is a ceiling of the search, never
what the queue broke at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Outcome(Enum):
    """What became of a rate."""

    HELD = "held"
    BROKE = "broke"  # the queue did not keep an objective
    LIMITED = "limited"  # the generator did not make the load


@dataclass(slots=True)
class Search:
    """Asks for rates (`next`), is told of each (`note`), and narrows what it knows.

    Begins at `first`, goes up by `factor`, or down by it if the first rate does not hold, and then halves the interval
    between the highest rate that held and the lowest that did not, until they differ by no more than `precision` (0.1:
    a tenth). A rate that did not hold is tried once more before that counts, because a machine that does other work
    disturbs a step now and then. Ends after `most` steps in any case, and below `least`.
    """

    first: float
    factor: float = 2.0
    precision: float = 0.1
    most: int = 20
    least: float = 1.0
    held: float | None = None  # highest rate that held below every one that did not
    broke: float | None = None  # lowest rate at which the queue broke
    limited: float | None = None  # lowest rate at which the generator was the limit
    steps: int = 0
    _again: tuple[float, Outcome] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.factor > 1 and self.precision > 0):
            raise ValueError("first must be above 0, factor above 1, precision above 0")

    @property
    def ceiling(self) -> float:
        """The lowest rate that did not hold, for whatever reason; infinite if all did."""
        return min(rate for rate in (self.broke, self.limited, math.inf) if rate is not None)

    def next(self) -> float | None:
        """The rate to try now; None when the search is over."""
        if self.steps >= self.most:
            return None
        if self._again is not None:
            return self._again[0]
        if self.held is None:
            rate = self.first if math.isinf(self.ceiling) else self.ceiling / self.factor
            return rate if rate >= self.least else None
        if math.isinf(self.ceiling):
            return self.held * self.factor
        if self.ceiling / self.held <= 1 + self.precision:
            return None
        return math.sqrt(self.held * self.ceiling)  # the middle on the scale on which the steps are equal

    def note(self, rate: float, outcome: Outcome) -> None:
        """What became of the rate that `next` gave."""
        self.steps += 1
        before, self._again = self._again, None
        if outcome is Outcome.HELD:
            self.held = rate
        elif before is None:
            self._again = (rate, outcome)
        elif outcome is before[1] is Outcome.BROKE:
            self.broke = rate
        else:  # with the generator in doubt, so is the queue's part
            self.limited = rate
