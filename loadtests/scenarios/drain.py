from __future__ import annotations

import time

from pgqueue_ref.core import Queue
from pgqueue_ref.harness.backlog import emptied, level_at, time_to_drain, waiting
from pgqueue_ref.harness.run import LEAD, LoadRun
from pgqueue_ref.harness.scenario import Scenario, ScenarioError, even

# The backlog by the ledger, not by the queue: when each of its jobs was first started, in epoch seconds.
STARTED = """
SELECT extract(epoch FROM min(started_at))::float8 FROM loadtest_effects WHERE key LIKE 'fill-%' GROUP BY job_id
"""


class Drain(Scenario):
    """A backlog drains while new jobs keep coming: the time it takes, against a fluid model of the queue.

    The queue is paused, filled with `backlog` jobs and resumed as the arrivals begin. Service is so long that the slots
    are the bottleneck: they serve C = workers * slots / service jobs a second, and with arrivals at `rate` the fluid
    model (see harness.backlog for its source) has nothing waiting after T = backlog / (C - rate). Claims are in order
    of age, so that no newcomer waits longer than the first one, for whom the whole backlog is served: backlog / C.
    """

    name = "drain"
    quick = {"backlog": 1_500}
    positive = (*Scenario.positive, "backlog", "service", "beyond")
    backlog = 20_000  # jobs
    service = 0.5  # seconds, fixed
    rate = 32.0  # jobs/s that come meanwhile, at equal distances
    beyond = 1.5  # how long they come, as a multiple of the model's time to drain

    def prepare(self, options: object) -> None:
        self._capacity = self.workers * self.slots / self.service
        if self.rate >= self._capacity:
            raise ScenarioError(
                f"--set rate={self.rate:g}: it must be below what the slots serve, {self._capacity:g}/s"
            )
        self._model = time_to_drain(self.backlog, self._capacity, self.rate)

    def play(self, run: LoadRun) -> None:
        with run.undisturbed(), run.connect("loadtest drain") as connection:
            queue = Queue(connection)
            queue.pause("default")
            with run.phase("fill"):
                run.fill(self.backlog, lambda: self.service)
            arrivals = even(self.rate, self.beyond * self._model, lambda: self.service)
            load = run.spawn(run.offer, arrivals, "drain")
            time.sleep(LEAD)
            self._resumed = run.elapsed()
            queue.resume("default")
        load.join()

    def judge(self, run: LoadRun) -> None:
        steps = waiting(self._jobs(run))
        empty = emptied(steps, self._resumed)
        took = None if empty is None else empty - self._resumed
        newcomers = run.measured.start_latency.summary()
        first = self.backlog / self._capacity
        run.found("capacity", self._capacity, "jobs/s", "that the slots serve: workers * slots / service")
        run.found("model_seconds", self._model, "s", "to drain, by the fluid model: backlog / (capacity - rate)")
        run.found("drain_seconds", took, "s", "from the resumption until no job waited, by the ledger")
        run.found("drain_ratio", took and took / self._model, "", "measured over model")
        run.found("newcomer_p99_ms", newcomers["p99_ms"], "ms", "start latency of the jobs that came meanwhile")
        ratio = newcomers["p99_ms"] and newcomers["p99_ms"] / 1000 / first
        run.found(
            "newcomer_ratio",
            ratio,
            "",
            f"that p99 over the longest wait by the model, backlog / capacity = {first:.1f} s",
        )
        self._draw(run, steps)

    def _jobs(self, run: LoadRun) -> list[tuple[float, float]]:
        """When each job came and started, in seconds of the run; the backlog came when it was let go."""
        began = run.measured.began
        with run.connect("loadtest drain") as connection:
            backlog = [(self._resumed, max(self._resumed, at - began)) for (at,) in connection.execute(STARTED)]
        return backlog + [(at, max(at, at + start)) for at, start, _ in run.measured.latencies]

    def _draw(self, run: LoadRun, steps: list[tuple[float, int]]) -> None:
        grid = [n * self._model * self.beyond / 200 for n in range(201)]
        measured = [(t, level_at(steps, self._resumed + t)) for t in grid]
        model = [(t, max(0.0, self.backlog - (self._capacity - self.rate) * t)) for t in grid]
        run.plot(
            "Jobs that wait, and the fluid model", "jobs", {"measured": measured, "model": model},
            x="seconds since the queue was resumed",
            note="The lines part where slots do not serve: while a job is claimed and completed.",
        )  # fmt: skip
