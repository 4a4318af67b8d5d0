"""Tells the database how attempts ended, in batches, and that the others go on. Everything it writes is fenced: writing
again after a break does no harm, and a lost lease shows as a stale answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from pgqueue_ref.core import (
    DatabaseUnavailable,
    Failure,
    LockTimeout,
    Operation,
    QueueError,
    SchemaMissing,
    StatementTimeout,
)
from pgqueue_ref.core import operations as op
from pgqueue_ref.extensions import events, results

from .extras import Extras
from .link import Link
from .slots import Attempt, Ending, about, keys

log = logging.getLogger("pgqueue_ref.worker")

# Errors that pass: the same batch is written again later. Any other is about a row in it.
PASSING = (DatabaseUnavailable, SchemaMissing)
# SQLSTATE classes: a server that only reads (after a failover), deadlocks, no disk or memory left, operators at work.
PASSING_STATES = ("25", "40", "53", "55", "57")
WAITED = (LockTimeout, StatementTimeout)  # somebody's transaction holds a row, or the table
# What the counts call an ending, and a job's status after a failure.
OUTCOMES: Final = {
    Ending.COMPLETE: "succeeded", Ending.SNOOZE: "snoozed", Ending.RELEASE: "released",
    "pending": "retried", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip
SEARCHES = 12  # halvings in search of a locked row among 500, before the whole table is taken for locked


@dataclass(slots=True)
class Counts:
    """What a worker did since it was made, or in one turn; attempts, but jobs in the last three."""

    claimed: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    cancelled: int = 0
    ignored: int = 0  # failures that were expected, also among retried or failed
    snoozed: int = 0
    released: int = 0
    stale: int = 0  # refused by the fence
    rescued: int = 0
    expired: int = 0
    cleaned: int = 0

    def copy(self) -> Counts:
        """As they stand."""
        return replace(self)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Counts)))


class Writer:
    """The buffer of endings and the leases of everything in this process (`held`)."""

    def __init__(self, link: Link, worker: str, counts: Counts, extras: Extras) -> None:
        self._link, self._worker, self._counts, self._extras = link, worker, counts, extras
        self.held: dict[tuple[int, int], Attempt] = {}
        self.buffer: list[Attempt] = []
        self.observe: Callable[[Attempt, str], None] | None = None  # told of each attempt's accepted outcome

    def add(self, attempt: Attempt) -> None:
        """An attempt ended; written at the next flush."""
        if attempt.ending in (Ending.DONE, Ending.GONE):
            self.held.pop(attempt.key, None)
            if attempt.ending is Ending.DONE:
                self._counts.succeeded += 1
                if self.observe:
                    self.observe(attempt, "succeeded")
        else:
            self.buffer.append(attempt)

    async def flush(self) -> None:
        """Write the buffer. What could not be written is in it again, in front, and the reason is raised."""
        batch, self.buffer = self.buffer, []
        groups: dict[tuple[Ending | None, Any], list[Attempt]] = {}
        for attempt in batch:
            groups.setdefault((attempt.ending, _apart(attempt)), []).append(attempt)
        todo = list(groups.values())
        waited: list[QueueError] = []
        while todo:
            attempts = todo.pop()
            try:
                (answer,) = await self._link.run(self._operation(attempts))
            except asyncio.CancelledError:  # at the end of a stop's patience, which counts what is left
                self.buffer[:0] = attempts + [attempt for more in todo for attempt in more]
                raise
            except WAITED as error:
                waited.append(error)
                if len(attempts) == 1 or len(waited) > SEARCHES:
                    self.buffer[:0] = attempts  # later; its lease is kept meanwhile
                else:  # a row that somebody holds must not hold up the others
                    todo += [attempts[: len(attempts) // 2], attempts[len(attempts) // 2 :]]
                if len(waited) > SEARCHES:
                    self.buffer[:0] = [attempt for more in todo for attempt in more]
                    raise
            except QueueError as error:
                if _passes(error):
                    self.buffer[:0] = attempts + [attempt for more in todo for attempt in more]
                    raise
                if len(attempts) > 1:  # a row that the server refuses must not hold up the others
                    todo += [attempts[: len(attempts) // 2], attempts[len(attempts) // 2 :]]
                    continue
                job = attempts[0].job
                words = "job %d (%s) attempt %d: its outcome was refused, its lease will run out: %s"
                log.error(words, job.id, job.kind, job.attempt, error, extra=about(job, self._worker))
                self.held.pop(attempts[0].key, None)
            else:
                self._written(attempts, answer)
        if waited:
            raise waited[-1]

    def _operation(self, attempts: list[Attempt]) -> Operation[Any]:
        """What writes attempts that ended alike (`_apart`), with what the extensions keep of them."""
        first, jobs = attempts[0], [attempt.job for attempt in attempts]
        if first.ending is Ending.COMPLETE:
            outcomes = [attempt.returned for attempt in attempts if attempt.returned]
            if outcomes and self._extras.has(results.RESULTS):
                keep = first.kind.result_ttl
                return results.complete_many(outcomes, ttl=first.ttl, result_ttl=keep, worker=self._worker)
            return op.complete_many(jobs, ttl=first.ttl)
        if first.ending is Ending.SNOOZE:
            return op.snooze_many(jobs, first.delay)
        if first.ending is Ending.RELEASE:
            return op.release_many(jobs)
        cancel = first.ending is Ending.CANCEL
        failures = [Failure(attempt.job, attempt.error, attempt.delay, cancel=cancel) for attempt in attempts]
        tracebacks = {attempt.key: attempt.traceback for attempt in attempts if attempt.traceback}
        if tracebacks and self._extras.has(events.EVENTS):
            return events.fail_many(failures, tracebacks, max_errors=first.kind.max_errors)
        return op.fail_many(failures, max_errors=first.kind.max_errors)

    def _written(self, attempts: list[Attempt], answer: Any) -> None:
        counts, ending = self._counts, attempts[0].ending
        if isinstance(answer, dict):  # of fail_many: what became of each
            stale = keys(attempts) - answer.keys()
            ends = list(answer.values())
            counts.retried += ends.count("pending")
            counts.failed += ends.count("failed")
            counts.cancelled += ends.count("cancelled")
            counts.ignored += sum(attempt.ignored and attempt.key not in stale for attempt in attempts)
        else:  # the stale ones
            stale = {(job.id, job.lease_token) for job in answer}
            done = len(attempts) - len(stale)
            if ending is Ending.COMPLETE:
                counts.succeeded += done
            elif ending is Ending.SNOOZE:
                counts.snoozed += done
            else:
                counts.released += done
        counts.stale += len(stale)
        debug = log.isEnabledFor(logging.DEBUG)
        for attempt in attempts:
            self.held.pop(attempt.key, None)
            if attempt.key in stale:
                self._lost(attempt, "its outcome was refused")
                continue
            if self.observe:
                became = answer[attempt.key] if isinstance(answer, dict) else ending
                self.observe(attempt, "ignored" if attempt.ignored else OUTCOMES[became])
            if debug:
                job = attempt.job
                words = "job %d (%s) attempt %d: %s"
                log.debug(words, job.id, job.kind, job.attempt, ending and ending.value, extra=about(job, self._worker))

    def _lost(self, attempt: Attempt, what: str) -> None:
        job = attempt.job
        words = "job %d (%s) attempt %d: %s; the lease was lost (rescued, cancelled or ended elsewhere)"
        log.warning(words, job.id, job.kind, job.attempt, what, extra=about(job, self._worker))

    async def beat(self, now: float, lease: float) -> list[Attempt]:
        """Extend leases that are a third gone, in one statement. Returns the running attempts no longer ours."""
        due = [attempt for attempt in self.held.values() if now - attempt.fresh >= lease / 3]
        if not due:
            return []
        (stale,) = await self._link.run(op.heartbeat_many([attempt.job for attempt in due], lease=lease))
        for attempt in due:
            attempt.fresh = now
        gone = {(job.id, job.lease_token) for job in stale}
        lost = [attempt for attempt in due if attempt.key in gone and attempt.ending is None]
        self._counts.stale += len(lost)
        for attempt in lost:
            self._lost(attempt, "it is stopped")
        return lost


def _passes(error: QueueError) -> bool:
    return isinstance(error, PASSING) or (getattr(error.__cause__, "sqlstate", None) or "").startswith(PASSING_STATES)


def _apart(attempt: Attempt) -> Hashable:
    """What attempts written by one statement have in common."""
    if attempt.ending is Ending.COMPLETE:
        return attempt.ttl, attempt.kind.result_ttl
    if attempt.ending is Ending.SNOOZE:
        return attempt.delay
    return attempt.kind.max_errors
