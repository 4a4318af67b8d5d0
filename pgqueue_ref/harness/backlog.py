"""How many jobs waited at each moment, told from when each came and when it started, and what a fluid model expects.

The fluid model takes jobs for a liquid: a queue whose slots serve `capacity` jobs a second and that is offered `rate`
loses `capacity - rate` of its backlog each second, so that N jobs are gone after N / (capacity - rate). This is the
deterministic fluid approximation of an overloaded queue (G. F. Newell, Applications of Queueing Theory, chapter 2). In
practice it is a lower bound: claiming and completing a job takes time of its slot that the model leaves out, and a loss
of capacity weighs 1 / (1 - rate / capacity) times as much in the time to drain. Called by scenarios; the times come
from the ledger, not from the queue.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence

Step = tuple[float, int]  # a moment in seconds, and how many jobs wait from then on


def waiting(jobs: Iterable[tuple[float, float]]) -> list[Step]:
    """The number of waiting jobs over time, from (came, started) of each, in seconds; ascending."""
    changes = [change for came, started in jobs for change in ((came, 1), (started, -1))]
    steps: list[Step] = []
    level = 0
    for at, change in sorted(changes):
        level += change
        if steps and steps[-1][0] == at:
            steps[-1] = (at, level)
        else:
            steps.append((at, level))
    return steps


def emptied(steps: Sequence[Step], after: float) -> float | None:
    """The first moment from `after` on at which nothing waits, or None."""
    if level_at(steps, after) <= 0:
        return after
    return next((at for at, level in steps[bisect.bisect_left(steps, (after, -1)) :] if level <= 0), None)


def level_at(steps: Sequence[Step], at: float) -> int:
    """How many jobs wait at a moment."""
    place = bisect.bisect_right(steps, (at, math.inf))
    return steps[place - 1][1] if place else 0


def time_to_drain(backlog: float, capacity: float, rate: float) -> float:
    """Seconds until the fluid model has no backlog; infinite where more comes than can be served."""
    return backlog / (capacity - rate) if capacity > rate else math.inf


def growth(levels: Sequence[tuple[float, float]]) -> float | None:
    """How fast a level grows, per second: the slope of a least-squares line through (seconds, level).

    None where it is not known: of fewer than ten points, or of one moment.
    """
    if len(levels) < 10:
        return None
    middle = sum(t for t, _ in levels) / len(levels)
    spread = sum((t - middle) ** 2 for t, _ in levels)
    return sum((t - middle) * level for t, level in levels) / spread if spread else None
