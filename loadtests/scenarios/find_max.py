from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from pgqueue_ref.harness import backlog
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.run import LoadRun, RunError
from pgqueue_ref.harness.scenario import Scenario, ScenarioError, poisson
from pgqueue_ref.harness.search import Outcome, Search
from pgqueue_ref.harness.slo import Exit

LATE = 0.5  # seconds after the end of a step by which all of it must have been pushed
SATURATED = 0.01  # of a step's arrivals may begin late because of the generator

# Of the arrivals of one step, by the ledger, once it is drained: when each was intended, pushed and first started, in
# seconds from the start of the step.
JOBS = """
SELECT extract(epoch FROM p.intended_at)::float8 - %(start)s, extract(epoch FROM p.recorded_at)::float8 - %(start)s,
       extract(epoch FROM min(e.started_at))::float8 - %(start)s
FROM loadtest_pushed p JOIN loadtest_effects e USING (job_id, key)
WHERE p.measured AND p.intended_at >= to_timestamp(%(start)s::float8) AND p.intended_at < to_timestamp(%(end)s::float8)
GROUP BY p.key
"""

Job = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One rate, what was measured at it, and why it did not hold."""

    rate: float
    offered: int  # arrivals
    p99_ms: float | None  # start latency
    achieved: float  # share of the arrivals pushed by the end of the step
    growth: float  # of the waiting jobs, as a share of the rate
    served: float  # jobs/s that were started within the step
    outcome: Outcome = Outcome.HELD
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        p99 = "-" if self.p99_ms is None else f"{self.p99_ms:.0f} ms"
        figures = f"start p99 {p99}, pushed {self.achieved:.1%}, growth {self.growth:+.1%}"
        return f"{self.outcome.value}: {'; '.join(self.reasons) or figures}"


class FindMax(Scenario):
    """Raises the offered rate until the queue breaks an objective, then bisects: the rate that it sustains.

    Each step offers Poisson arrivals at one rate for `seconds` and lets the queue drain. A rate holds if start latency
    p99 is at most `p99_ms`, at least `achieved` of the arrivals were pushed by the end of the step, and from its second
    quarter on the waiting jobs grew by at most `growth` of the arrivals. Where the load generator was itself too slow,
    the step says nothing about the queue. With `service` above 0 no rate beyond workers * slots / service can hold; set
    it to 0, and more slots, to find the limit of the server.
    """

    name = "find-max"
    positive = (*Scenario.positive, "first", "seconds", "precision", "most", "p99_ms")
    quick = {"first": 100.0, "seconds": 4.0, "precision": 0.15, "most": 14}
    first = 50.0  # jobs/s
    factor = 2.0  # from step to step, until one breaks
    precision = 0.05  # the search ends when the rate that broke is no more than this above the one that held
    most = 24  # steps
    seconds = 30.0  # of a step
    slots = 16  # in each worker
    service = 0.1  # seconds, fixed
    p99_ms = 500.0
    achieved = 0.99
    growth = 0.05

    def prepare(self, options: object) -> None:
        try:
            self._search = Search(self.first, self.factor, self.precision, self.most)
        except ValueError as error:
            raise ScenarioError(f"find-max: {error}; correct its --set") from error
        self._steps: list[Step] = []

    def play(self, run: LoadRun) -> None:
        while (rate := self._search.next()) is not None:
            step = self._step(run, rate)
            self._steps.append(step)
            self._search.note(rate, step.outcome)
            run.say(f"{run.elapsed():5.0f} s  {rate:.0f} jobs/s {step}")

    def _step(self, run: LoadRun, rate: float) -> Step:
        before = run.generators.tally()
        arrivals = poisson(rate, self.seconds, lambda: self.service, self.random)
        phase = run.offer(arrivals, f"{rate:.0f} jobs/s")
        if not run.wait_drained(self.drain_timeout):
            line = f"the backlog of {rate:.0f} jobs/s did not drain in {self.drain_timeout:g} s"
            raise RunError(f"{line}: set first or seconds lower, or drain_timeout higher")
        start = run.measured.began + phase.at
        with run.undisturbed(), run.connect("loadtest step", statement_timeout_ms=0) as connection:
            jobs = connection.execute(JOBS, {"start": start, "end": start + self.seconds}).fetchall()
        after = run.generators.tally()
        saturated, queued = after.saturated - before.saturated, after.queued - before.queued
        return self.judge_step(rate, len(arrivals), jobs, saturated=saturated, queued=queued)

    def judge_step(
        self, rate: float, offered: int, jobs: Sequence[Job], *, saturated: int = 0, queued: int = 0
    ) -> Step:
        """What became of a rate.

        `saturated` arrivals began late because the generator was too slow, `queued` because every producer waited for
        the server.
        """
        latency = Latencies("step", self.seconds)
        for intended, _, started in jobs:
            latency.record(intended, started - intended)
        pushed = sum(at <= self.seconds + LATE for _, at, _ in jobs)
        levels = backlog.waiting((intended, max(intended, started)) for intended, _, started in jobs)
        grid = [n * self.seconds / 100 for n in range(25, 101)]  # in the first quarter an empty queue only fills up
        grown = backlog.growth([(t, backlog.level_at(levels, t)) for t in grid]) or 0.0
        served = sum(started <= self.seconds for _, _, started in jobs) / self.seconds
        p99 = latency.summary()["p99_ms"]
        step = Step(rate, offered, p99, pushed / offered if offered else 0.0, grown / rate, served)
        reasons = self._reasons(step)
        outcome = Outcome.BROKE if reasons else Outcome.HELD
        if reasons and saturated > SATURATED * offered:
            outcome = Outcome.LIMITED
            reasons = [f"the generator was saturated when {saturated:,} of {offered:,} arrivals were late"]
        elif reasons and queued > SATURATED * offered:
            reasons.append(f"{queued:,} arrivals late because all {self.producers} producers waited for the server")
        return dataclasses.replace(step, outcome=outcome, reasons=tuple(reasons))

    def _reasons(self, step: Step) -> list[str]:
        """Each limit that was not kept, with its figure."""
        reasons = []
        if step.p99_ms is None or step.p99_ms > self.p99_ms:
            p99 = "not measured" if step.p99_ms is None else f"{step.p99_ms:,.0f} ms"
            reasons.append(f"start p99 {p99}, not <= {self.p99_ms:g} ms")
        if step.achieved < self.achieved:
            reasons.append(f"{step.achieved:.1%} pushed in time, not >= {self.achieved:.1%}")
        if step.growth > self.growth:
            reasons.append(f"waiting jobs grew by {step.growth:.1%} of the arrivals, not <= {self.growth:.1%}")
        return reasons

    def judge(self, run: LoadRun) -> None:
        search = self._search
        held, broke = search.held, search.broke
        words = "highest rate that held" if held else "no rate held"
        run.found("sustainable_rate", held or 0.0, "jobs/s", f"{words}, for steps of {self.seconds:g} s")
        run.found("broke_at", broke, "jobs/s", self._why(broke))
        ceiling = search.ceiling
        gap = ceiling / held - 1 if held and ceiling < math.inf else None
        run.found(
            "gap", gap, "", "from the highest rate that held to the lowest that did not, as a share of the former"
        )
        if search.limited is not None:
            run.found("generator_limit", search.limited, "jobs/s", self._why(search.limited))
        if self.service:
            capacity = self.workers * self.slots / self.service
            words = f"sustainable rate over what the slots can serve, {capacity:g} jobs/s"
            run.found("of_capacity", (held or 0.0) / capacity, "", words)
        fewest = min((step.offered for step in self._steps), default=0)
        run.found("jobs_per_step", fewest, "jobs", "that a step's p99 rests on, at least")
        for number, step in enumerate(self._steps, start=1):
            run.found(f"step_{number:02}_p99_ms", step.p99_ms, "ms", f"{step.rate:.0f} jobs/s {step}")
        if broke is None:
            run.incident(Exit.INVALID, self._unbroken())
        self._draw(run)

    def _why(self, rate: float | None) -> str:
        """Why a rate did not hold, the last time that it was tried."""
        tried = [step for step in self._steps if step.rate == rate]
        return "; ".join(tried[-1].reasons) if tried else "no rate"

    def _unbroken(self) -> str:
        """What to say when the search found no rate at which the queue breaks."""
        held = f"the queue held at {self._search.held:.0f} jobs/s" if self._search.held else "no rate held"
        if self._search.limited is not None:
            return (
                f"the generator's limit, not the queue's: at {self._search.limited:.0f} jobs/s it was itself too slow;"
                f" {held}. Give it more processes (--processes) or a machine of its own"
            )
        return f"nothing broke in {len(self._steps)} steps; {held}. Set most or first higher"

    def _draw(self, run: LoadRun) -> None:
        by_rate = sorted(self._steps, key=lambda step: step.rate)
        top = max((step.rate for step in by_rate), default=0.0)
        of = {outcome: [step for step in by_rate if step.outcome is outcome] for outcome in Outcome}
        of = {outcome: steps for outcome, steps in of.items() if steps}
        lines = {outcome.value: dots((step.rate, step.p99_ms) for step in steps) for outcome, steps in of.items()}
        lines["bound"] = [(0.0, self.p99_ms), (top, self.p99_ms)]
        run.plot(
            "Start latency p99 by offered rate", "milliseconds", lines, log=True, x="offered jobs per second",
            note="What broke below the bound broke another one: see the steps above.",
        )  # fmt: skip
        lines = {outcome.value: dots((step.rate, step.served) for step in steps) for outcome, steps in of.items()}
        lines["as offered"] = [(0.0, 0.0), (top, top)]
        run.plot("Jobs started by offered rate", "jobs per second", lines, x="offered jobs per second")


def dots(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Points that no line joins: each has a gap behind it."""
    return [dot for x, y in points for dot in ((x, y), (x, None))]
