"""Every interleaving of claim, heartbeat, rescue, fail and complete by two workers on one job, explored.

The model is small enough to read: a row, what each worker believes it holds, and moves that are one statement each.
Between any two of them anything may happen: a worker may stop and continue late, a lease may run out while its holder
still works. `explore` visits every reachable state and returns the shortest path to one that breaks an invariant.
With the fence there is none; without it, the explorer must find the double completion, or it would find nothing at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

WORKERS = (0, 1)
MAX_ATTEMPTS = 3


class Row(NamedTuple):
    """The job's row. `expired`: the lease has run out; the clock only ever moves forward."""

    status: str = "pending"
    attempt: int = 0
    token: int = 0
    expired: bool = False


class State(NamedTuple):
    """The row, the token each worker believes it holds, and what was ever accepted: who ended which attempt, how."""

    row: Row = Row()
    holds: tuple[int | None, int | None] = (None, None)
    accepted: tuple[tuple[int, str], ...] = ()  # (token that the row had, outcome)


def moves(state: State, *, fenced: bool) -> Iterator[tuple[str, State]]:
    """All that may happen next, each an atomic statement."""
    row = state.row
    if row.status == "running" and not row.expired:
        yield "the lease runs out", state._replace(row=row._replace(expired=True))
    if row.status == "running" and row.expired:
        ended = "failed" if row.attempt >= MAX_ATTEMPTS else "pending"
        yield "rescue", state._replace(row=row._replace(status=ended, expired=False))
    for worker in WORKERS:
        token = state.holds[worker]
        if row.status == "pending" and token is None:
            claimed = Row("running", row.attempt + 1, row.token + 1)
            yield f"{worker} claims", state._replace(row=claimed, holds=put(state.holds, worker, claimed.token))
        if token is None:
            continue
        # The fence: the row is running and its token is the one that the worker was given.
        if not fenced or (row.status == "running" and row.token == token):
            yield f"{worker} beats", state._replace(row=row._replace(expired=False))
            yield f"{worker} completes", ended_by(state, worker, "succeeded")
            after = "failed" if row.attempt >= MAX_ATTEMPTS else "pending"
            yield f"{worker} fails", ended_by(state, worker, after)
        else:
            yield f"{worker} is told that its lease is lost", state._replace(holds=put(state.holds, worker, None))


def ended_by(state: State, worker: int, status: str) -> State:
    """An ending was accepted; it names the attempt that the worker meant, by the token it was given."""
    meant = state.holds[worker]
    assert meant is not None
    return State(
        state.row._replace(status=status, expired=False),
        put(state.holds, worker, None),
        (*state.accepted, (meant, status)),
    )


def put(holds: tuple[int | None, int | None], worker: int, token: int | None) -> tuple[int | None, int | None]:
    return (token, holds[1]) if worker == 0 else (holds[0], token)


def broken(state: State) -> str | None:
    """The invariant that a state breaks, if any."""
    tokens = [token for token, _ in state.accepted]
    if sum(outcome == "succeeded" for _, outcome in state.accepted) > 1:
        return "completed twice"
    if any(later < earlier for earlier, later in pairwise(tokens)):
        return "a late worker ended a later attempt"
    if len(set(tokens)) < len(tokens):
        return "an attempt ended twice"
    if state.accepted and state.accepted[-1][0] != state.row.token and state.row.status == "succeeded":
        return "somebody else's attempt was completed"
    if state.row.attempt > MAX_ATTEMPTS:
        return "more attempts than allowed"
    return None


def explore(*, fenced: bool, wanted: str | None = None) -> tuple[int, list[str], str | None]:
    """How many states there are; the shortest path to one that breaks an invariant, or the wanted one; and its name."""
    start = State()
    paths: dict[State, list[str]] = {start: []}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if (what := broken(state)) is not None and wanted in (None, what):
            return len(paths), paths[state], what
        for name, following in moves(state, fenced=fenced):
            if following not in paths:
                paths[following] = [*paths[state], name]
                waiting.append(following)
    return len(paths), [], None


def test_with_the_fence_no_interleaving_breaks_anything() -> None:
    states, path, what = explore(fenced=True)
    assert (path, what) == ([], None)
    assert states > 100, "or nothing was explored"


def test_without_the_fence_the_explorer_finds_the_double_completion() -> None:
    _, path, what = explore(fenced=False, wanted="completed twice")
    assert what == "completed twice"
    assert path == ["0 claims", "the lease runs out", "rescue", "1 claims", "0 completes", "1 completes"]


def test_without_the_fence_the_explorer_finds_the_late_worker_that_ends_anothers_attempt() -> None:
    _, path, what = explore(fenced=False, wanted="a late worker ended a later attempt")
    assert what is not None
    assert path[-1].startswith(("0 ", "1 "))


def test_no_state_but_a_finished_job_is_a_dead_end() -> None:
    """What is running can be rescued, what is pending claimed."""
    seen: set[State] = set()
    waiting = [State()]
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        following = [after for _, after in moves(state, fenced=True)]
        assert following or state.row.status in ("succeeded", "failed")
        waiting += following
