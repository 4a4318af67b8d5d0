from __future__ import annotations

from pgqueue_ref.harness.ledger import Connection
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

COUNT = "SELECT count(*) FROM pgqueue_jobs WHERE queue = 'default' AND status IN ('pending', 'blocked', 'running')"


class BackPressure(Scenario):
    """More is offered than max_in_flight admits: the bound holds, refusals are fast, what was admitted goes on.

    The queue serves `slots * workers / service` jobs a second at most; `limit` of them may be in it. Three phases:
    load that fits, an overload of `factor`, and load that fits again, of which nothing should be refused.
    """

    name = "back-pressure"
    quick = {"seconds": 17.0}
    positive = (*Scenario.positive, "seconds", "service", "limit")
    tolerates = ("QueueBusy",)
    seconds = 60.0  # of each phase
    slots = 4  # in each worker
    service = 0.4  # seconds; so that the overload is 60 pushes a second: they take turns, and are not what is measured
    limit = 24  # jobs not terminal
    factor = 3.0  # overload, as a multiple of what the slots can serve

    def play(self, run: LoadRun) -> None:
        self._capacity = self.workers * self.slots / self.service
        self._most, self._looks = 0, 0
        draw = service(f"fixed:{self.service}", self.random)
        # As often as the server answers: each look is a snapshot, and none may be above the bound.
        with run.watching(self._look, every=0.01):
            for name, share in (("fits", 0.4), ("overload", self.factor), ("fits again", 0.4)):
                arrivals = poisson(share * self._capacity, self.seconds, draw, self.random)
                before = run.generators.tally().refused["QueueBusy"]
                phase = run.offer(arrivals, name, max_in_flight=self.limit)
                run.wait_drained(self.drain_timeout)
                refused = run.generators.tally().refused["QueueBusy"] - before
                name = name.replace(" ", "_")
                run.found(
                    f"{name}_refused_ratio", refused / len(arrivals), "", f"of the arrivals of the phase {phase.name}"
                )

    def _look(self, connection: Connection) -> None:
        (active,) = connection.execute(COUNT).fetchone() or (0,)
        self._most, self._looks = max(self._most, active), self._looks + 1

    def judge(self, run: LoadRun) -> None:
        _, overload, _ = run.measured.phases
        finished = [at + end for at, _, end in run.measured.latencies]
        served = sum(overload.at <= at < overload.until for at in finished) / (overload.until - overload.at)
        pushed, refused = (
            run.measured.request_latencies[name].between(overload.at, overload.until)["p50_ms"]
            for name in ("push", "refused")
        )
        run.found("most_active", self._most, "jobs", f"not terminal in any snapshot; the limit is {self.limit}")
        run.found("above_limit", max(0, self._most - self.limit), "jobs", "most active beyond the limit")
        run.found("snapshots", self._looks, "", "in which the active jobs were counted")
        run.found(
            "goodput_ratio", served / self._capacity, "", "jobs finished in the overload, of what the slots can serve"
        )
        ratio = refused / pushed if refused and pushed else None
        run.found("refusal_ratio", ratio, "", "median time to a refusal, as a multiple of that to an admission")
