from __future__ import annotations

from pgqueue_ref.harness.backlog import emptied, level_at, time_to_drain, waiting
from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.result import Phase
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, ScenarioError, even

FLOOR = 0.25  # seconds; a calm start latency below it differs by noise only


class Spike(Scenario):
    """Calm load, ten times as much, calm load again: nothing is lost, and the queue recovers as fast as it can.

    Recovered is the queue when nothing waits and the start p99 of a second's arrivals is back within twice that of the
    calm before (or 0.25 s, if that is more). In the spike `factor * rate` is more than the slots serve, so that a
    backlog of (factor * rate - C) * spike builds up, which by the fluid model (harness.backlog) is gone after
    backlog / (C - rate).
    """

    name = "spike"
    quick = {"calm": 12.0, "spike": 6.0, "after": 24.0}
    positive = (*Scenario.positive, "service", "rate", "spike")
    rate = 30.0  # jobs/s, calm
    factor = 10.0  # of the spike
    calm = 60.0  # seconds before the spike
    spike = 30.0  # seconds of it
    after = 180.0  # seconds of calm load behind it
    slots = 20  # in each worker
    service = 0.25  # seconds, fixed

    def prepare(self, options: object) -> None:
        self._capacity = self.workers * self.slots / self.service
        if not self.rate < self._capacity < self.factor * self.rate:
            raise ScenarioError(
                f"--set rate={self.rate:g}: calm load must be below and the spike above what the slots serve,"
                f" {self._capacity:g}/s"
            )

    def play(self, run: LoadRun) -> None:
        for name, rate, seconds in (
            ("calm", self.rate, self.calm),
            ("spike", self.factor * self.rate, self.spike),
            ("after", self.rate, self.after),
        ):
            run.offer(even(rate, seconds, lambda: self.service), name)

    def judge(self, run: LoadRun) -> None:
        calm, spike, after = run.measured.phases
        end = spike.at + self.spike
        steps = waiting((at, max(at, at + start)) for at, start, _ in run.measured.latencies)
        bound = max(FLOOR, 2 * (run.start_latency(calm)["p99_ms"] or 0) / 1000)
        empty, settled = emptied(steps, end), self._settled(run, after, bound)
        recovered = empty is not None and settled is not None
        took = max(empty, settled) - end if empty is not None and settled is not None else after.until - end
        backlog = (self.factor * self.rate - self._capacity) * self.spike
        model = time_to_drain(backlog, self._capacity, self.rate)
        run.found("calm_p99_ms", run.start_latency(calm)["p99_ms"], "ms", "start latency before the spike")
        run.found("spike_p99_ms", run.start_latency(spike)["p99_ms"], "ms", "start latency in the spike")
        run.found("most_waiting", max((n for _, n in steps), default=None), "jobs", "at once, by the ledger")
        run.found("left_waiting", level_at(steps, end), "jobs", f"when the spike ended; model {backlog:.0f}")
        run.found("backlog_ratio", level_at(steps, end) / backlog, "", "the same over the model's")
        run.found(
            "recovered",
            int(recovered),
            "",
            "1: nothing waited any more and the start p99 was back; 0: not in the time given",
        )
        run.found("recovery_seconds", took, "s", f"from the spike's end until then{'' if recovered else ', at least'}")
        run.found("model_seconds", model, "s", "the same by the fluid model")
        run.found("recovery_ratio", took / model, "", "measured over model")
        found = [(t, level_at(steps, t)) for t in (n / 4 for n in range(int(4 * after.until)))]
        run.plot("Jobs that wait", "jobs", {"waiting": found}, note="By the ledger: intended, not yet started.")

    def _settled(self, run: LoadRun, after: Phase, bound: float) -> float | None:
        """The end of the first window after the spike whose start p99 is within the bound (seconds), or None."""
        windows = Latencies("after", self.window)
        for at, start, _ in run.measured.latencies:
            if after.at <= at < after.until:
                windows.record(at - after.at, start)
        within = [w["t"] for w in windows.windows() if (w["p99_ms"] or 0) <= 1000 * bound]
        return after.at + (min(within) or 0) + self.window if within else None
