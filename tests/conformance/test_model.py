"""The queue against a model of a few lines: whatever is done in whatever order, both say the same.

Hypothesis chooses the steps: push, claim by two workers, every ending, heartbeats, what operators do, maintenance, and
time that passes. Time is moved by moving every moment in the table back, which to the server is the same. After each
step all rows are compared. The profile `nightly` (HYPOTHESIS_PROFILE=nightly) tries ten times as much.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test  # noqa: E402

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
QUEUES, KINDS, KEYS, WORKERS = ("default", "other"), ("mail", "photo"), ("a", "b"), ("w1", "w2")
LEASE, TTL, DELAY, DEADLINE = 60, 300, 100, 150  # seconds
MAX_ATTEMPTS = 3
ACTIVE = ("pending", "running")
LOOK = """
SELECT id, queue, kind, external_key, status, attempt, lease_token, cardinality(errors) AS errors,
       delete_after IS NOT NULL AS goes, lease_expires_at IS NOT NULL AS leased FROM pgqueue_jobs ORDER BY id
"""
TERMINAL = ("succeeded", "failed", "cancelled")
STEPS = (7, 70, 400)  # seconds, of which no sum is a lease, a delay, a deadline or a TTL: nothing is decided by a hair


@dataclass
class Modelled:
    """A job as the model has it; moments in seconds of the model's clock."""

    id: int
    queue: str
    kind: str
    key: str | None
    priority: int
    run_at: float
    expires_at: float | None
    status: str = "pending"
    attempt: int = 0
    token: int = 0
    lease: float | None = None
    delete_after: float | None = None
    errors: int = 0

    def shown(self) -> tuple[Any, ...]:
        """What is compared."""
        return self.id, self.queue, self.kind, self.key, self.status, self.attempt, self.token, self.errors


def make_machine(queue: Any, core: Any, db: Any) -> type[RuleBasedStateMachine]:
    """The state machine over one queue; each example begins with empty tables."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            db.execute("DELETE FROM pgqueue_jobs; DELETE FROM pgqueue_queues")
            self.now = 0.0
            self.jobs: dict[int, Modelled] = {}
            self.paused: set[str] = set()
            self.held: list[Any] = []  # claimed jobs as their workers know them, also those they have lost

        # -- the model's own words

        def mine(self, job: Any) -> Modelled | None:
            """The row that a worker's job still names, if it is its."""
            found = self.jobs.get(job.id)
            return found if found and found.status == "running" and found.token == job.lease_token else None

        def end(self, found: Modelled, status: str, ttl: float | None = None) -> None:
            found.status, found.lease = status, None
            found.delete_after = None if ttl is None else self.now + ttl

        def some(self, data: Any) -> Any:
            return data.draw(st.sampled_from(self.held))

        # -- steps

        @rule(
            queue_name=st.sampled_from(QUEUES), kind=st.sampled_from(KINDS), key=st.none() | st.sampled_from(KEYS),
            priority=st.integers(0, 2), delay=st.sampled_from((0, DELAY)), deadline=st.booleans(),
        )  # fmt: skip
        def push(self, queue_name: str, kind: str, key: str | None, priority: int, delay: int, deadline: bool) -> None:
            expires = db.execute("SELECT now() + make_interval(secs => %s) AS at", [DEADLINE]).fetchone()["at"]
            known = next((job for job in self.jobs.values() if key and (job.kind, job.key) == (kind, key)), None)
            pushed = queue.push(
                kind, queue=queue_name, key=key, priority=priority, delay=delay, max_attempts=MAX_ATTEMPTS,
                expires_at=expires if deadline else None,
            )  # fmt: skip
            assert pushed.created == (known is None)
            if known is not None:
                assert pushed.id == known.id
                return
            until = self.now + DEADLINE if deadline else None
            self.jobs[pushed.id] = Modelled(pushed.id, queue_name, kind, key, priority, self.now + delay, until)

        @rule(kind=st.sampled_from(KINDS), queue_name=st.sampled_from(QUEUES), slots=st.integers(1, 3),
              worker=st.sampled_from(WORKERS))  # fmt: skip
        def claim(self, kind: str, queue_name: str, slots: int, worker: str) -> None:
            claimed = queue.claim([core.Want(kind, slots, queue=queue_name)], worker=worker, lease=LEASE)
            due = [
                job for job in self.jobs.values()
                if (job.kind, job.queue, job.status) == (kind, queue_name, "pending") and job.run_at <= self.now
                and (job.expires_at is None or job.expires_at > self.now) and queue_name not in self.paused
            ]  # fmt: skip
            due.sort(key=lambda job: (-job.priority, job.run_at, job.id))
            assert [job.id for job in claimed] == [job.id for job in due[:slots]]
            for job in due[:slots]:
                job.status, job.attempt, job.token, job.lease = (
                    "running",
                    job.attempt + 1,
                    job.token + 1,
                    self.now + LEASE,
                )
            self.held += claimed

        @precondition(lambda self: self.held)
        @rule(data=st.data(), ttl=st.sampled_from((0, TTL, None)))
        def complete(self, data: Any, ttl: float | None) -> None:
            job = self.some(data)
            found = self.mine(job)
            assert queue.complete_many([job], ttl=ttl) == ([] if found else [job])
            if found and ttl == 0:
                del self.jobs[job.id]
            elif found:
                self.end(found, "succeeded", ttl)

        @precondition(lambda self: self.held)
        @rule(data=st.data(), delay=st.sampled_from((0, DELAY)), final=st.booleans())
        def fail(self, data: Any, delay: float, final: bool) -> None:
            job = self.some(data)
            found = self.mine(job)
            ends = queue.fail_many([core.Failure(job, "no", delay, final)])
            assert len(ends) == (found is not None)
            if found is None:
                return
            found.errors += 1
            if final or found.attempt >= MAX_ATTEMPTS:
                self.end(found, "failed")
            else:
                self.end(found, "pending")
                found.run_at = self.now + delay
            assert list(ends.values()) == [found.status]

        @precondition(lambda self: self.held)
        @rule(data=st.data(), delay=st.sampled_from((None, DELAY)))
        def put_back(self, data: Any, delay: float | None) -> None:
            job = self.some(data)
            found = self.mine(job)
            stale = queue.release_many([job]) if delay is None else queue.snooze_many([job], delay)
            assert stale == ([] if found else [job])
            if found:
                found.status, found.lease, found.attempt = "pending", None, found.attempt - 1
                found.run_at = found.run_at if delay is None else self.now + delay

        @precondition(lambda self: self.held)
        @rule()
        def heartbeat(self) -> None:
            lost = queue.heartbeat_many(self.held, lease=LEASE)
            assert {(j.id, j.lease_token) for j in lost} == {
                (j.id, j.lease_token) for j in self.held if not self.mine(j)
            }
            for job in self.held:
                if found := self.mine(job):
                    found.lease = self.now + LEASE

        @precondition(lambda self: self.jobs)
        @rule(data=st.data())
        def cancel(self, data: Any) -> None:
            job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
            assert queue.cancel(job.id, ttl=TTL) == (job.status in ACTIVE)
            if job.status in ACTIVE:
                self.end(job, "cancelled", TTL)

        @precondition(lambda self: self.jobs)
        @rule(data=st.data())
        def retry(self, data: Any) -> None:
            job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
            again = job.status in ("failed", "cancelled")
            assert queue.retry(job.id) == again
            if again:
                job.status, job.attempt, job.run_at, job.delete_after = "pending", 0, self.now, None
                if job.expires_at is not None and job.expires_at <= self.now:
                    job.expires_at = None

        @rule(queue_name=st.sampled_from(QUEUES))
        def pause(self, queue_name: str) -> None:
            assert queue.pause(queue_name) == (queue_name not in self.paused)
            self.paused.add(queue_name)

        @rule(queue_name=st.sampled_from(QUEUES))
        def resume(self, queue_name: str) -> None:
            assert queue.resume(queue_name) == (queue_name in self.paused)
            self.paused.discard(queue_name)

        @rule()
        def rescue(self) -> None:
            lost = [job for job in self.jobs.values() if job.status == "running" and (job.lease or 0) < self.now]
            rescued = queue.rescue()
            assert sorted(rescued.retried + rescued.failed) == sorted(job.id for job in lost)
            for job in lost:
                self.end(job, "failed" if job.attempt >= MAX_ATTEMPTS else "pending")
                job.errors += 1

        @rule()
        def expire(self) -> None:
            late = [
                job for job in self.jobs.values()
                if job.status == "pending" and job.expires_at is not None and job.expires_at <= self.now
            ]  # fmt: skip
            assert queue.expire() == len(late)
            for job in late:
                self.end(job, "cancelled", 86_400)
                job.errors += 1

        @rule()
        def cleanup(self) -> None:
            gone = [
                job for job in self.jobs.values()
                if job.status in TERMINAL and job.delete_after is not None and job.delete_after <= self.now
            ]  # fmt: skip
            assert queue.cleanup() == len(gone)
            for job in gone:
                del self.jobs[job.id]

        @rule(seconds=st.sampled_from(STEPS))
        def time_passes(self, seconds: float) -> None:
            moved = ", ".join(
                f"{name} = {name} - make_interval(secs => {seconds})"
                for name in ("run_at", "lease_expires_at", "expires_at", "delete_after", "finished_at", "started_at")
            )
            db.execute(f"UPDATE pgqueue_jobs SET {moved}")
            self.now += seconds

        @invariant()
        def rows_are_the_model_s(self) -> None:
            rows = db.execute(LOOK).fetchall()
            assert [tuple(row.values())[:8] for row in rows] == [self.jobs[id_].shown() for id_ in sorted(self.jobs)]
            for row in rows:
                assert row["goes"] == (self.jobs[row["id"]].delete_after is not None)
                assert row["leased"] == (row["status"] == "running")

    return Machine


def test_the_queue_does_what_the_model_says_whatever_the_order(queue: Any, core: Any, db: Any) -> None:
    examples = 250 if NIGHTLY else 25
    chosen = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=not NIGHTLY,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(make_machine(queue, core, db), settings=chosen)
