"""One of two workers is killed under load: which jobs ran, which ran twice, how soon those it had in hand ran again.

Jobs of some milliseconds arrive in an open loop throughout. A burst of longer ones gives the workers something to have
in hand; the worker with more of it gets SIGKILL and is not started again. From then on nobody acts: what its jobs run
again by is the queue's own recovery, set up for `LEASE` seconds as each queue's documentation says. After `BOUND`
seconds the effects are judged, as in every scenario (`scenarios`). Used by `comparison`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from adapters import Peer
from fleet import START_SECONDS, Fleet, WrongError, fleet
from gate import Effect
from scenarios import Arrivals, Measurement, filled, jobs, numbered, row_values
from table import BOUND, LEASE

RATE, MS = 25, 10  # arrivals a second, and how long each takes: one worker that runs one at a time can carry them
BURST, BURST_MS = 40, 100
IN_HAND = 10  # enough to kill for; a worker that runs one at a time never gets there and is killed after PATIENCE
BEFORE, PATIENCE, SETTLE = 1.0, 0.5, 5.0


class Verdict(NamedTuple):
    """In the order of the table's rows. Counts of jobs, but `duplicated` counts runs.

    `last`: seconds from the kill to the end of the last of them, None if none ran again.
    """

    cut_off: int
    again: int
    last: float | None
    waiting: int
    lost: int
    unexpected: int
    duplicated: int


def kill_a_worker(peer: Peer) -> Measurement:
    yield
    arrivals = Arrivals(peer, RATE, BEFORE + PATIENCE + BOUND, MS)
    with fleet(peer, 2, 2 * RATE * round(BOUND) + BURST, LEASE) as workers:
        peer.clear()
        filled(peer, workers, 2, 0)
        workers.gates.open()
        arrivals.start()
        before = time.monotonic() + BEFORE
        ready = lambda: bool(sum(workers.gates.begun())) and time.monotonic() > before  # noqa: E731
        workers.until(ready, START_SECONDS, "no worker ran a job", arrivals.turn)
        burst = jobs(BURST, BURST_MS)
        peer.push_many(burst)
        victim = pick(workers, arrivals)
        killed = time.monotonic()
        workers.kill(victim)
        due = {*arrivals.pushed, *numbered(burst)}
        wait(workers, due, killed + BOUND, arrivals)
        pushed = {*arrivals.pushed, *numbered(burst)}
        wait(workers, pushed, killed + BOUND)
        unfinished = settled(peer)
        effects = workers.gates.effects()
    found = verdict(effects, victim, killed, pushed, unfinished)
    if not found.cut_off:
        raise WrongError("the killed worker had no job in hand")
    return row_values("fault", *found)


def pick(workers: Fleet, arrivals: Arrivals) -> int:
    """The worker with the most jobs in hand, once it has enough of them; raises WrongError."""
    began = time.monotonic()
    while True:
        in_hand = [sum(not effect.ended for effect in effects) for effects in workers.gates.effects()]
        most = max(in_hand)
        waited = time.monotonic() - began
        if most >= IN_HAND or (most and waited > PATIENCE):
            return in_hand.index(most)
        if waited > 4 * PATIENCE:
            raise WrongError("no worker had a job in hand to be killed at")
        arrivals.turn()
        workers.check()
        time.sleep(0.001)


def wait(workers: Fleet, jobs: set[int], deadline: float, arrivals: Arrivals | None = None) -> None:
    """Until all of them have run to their end, or the deadline; the load goes on."""
    while time.monotonic() < deadline:
        if arrivals:
            arrivals.turn()
        workers.check()
        if jobs <= {effect.number for effects in workers.gates.effects() for effect in effects if effect.ended}:
            return
        time.sleep(0.01)


def settled(peer: Peer) -> int:
    """Jobs that the queue still has, once it has had time to write down which are done."""
    deadline = time.monotonic() + SETTLE
    while (left := peer.counts().unfinished) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def verdict(
    effects: Sequence[Sequence[Effect]], victim: int, killed: float, pushed: set[int], unfinished: int
) -> Verdict:
    """What the handlers did. `unfinished` only says whether a job that did not run still waits or is lost."""
    finished = [effect for some in effects for effect in some if effect.ended]
    runs = Counter(effect.number for effect in finished)
    started = {effect.number for some in effects for effect in some}
    cut_off = {effect.number for effect in effects[victim] if not effect.ended}
    after = [effect.ended - killed for effect in finished if effect.number in cut_off]
    missing = len(pushed - runs.keys())
    waiting = min(missing, unfinished)
    return Verdict(
        cut_off=len(cut_off),
        again=len(cut_off & runs.keys()),
        last=max(after) if after else None,
        waiting=waiting,
        lost=missing - waiting,
        unexpected=len(started - pushed),
        duplicated=sum(count - 1 for count in runs.values()),
    )
