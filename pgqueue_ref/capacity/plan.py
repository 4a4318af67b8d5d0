"""The plan: slots, workers, connections, limits and timeouts for a load, and which of them binds.

Two separate questions. How many job slots does the waiting-time target need: by Erlang C where service times are
exponential, by simulation where they are not. How many connections can the server give: `harness.connections`. A plan
that fails one of them is infeasible and names the nearest rate that is not. Rates in jobs a second, times in seconds.
Called by the command line and by `validate`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pgqueue_ref.capacity import CapacityError, model, simulate
from pgqueue_ref.capacity.measurement import Measurement
from pgqueue_ref.capacity.service import Service
from pgqueue_ref.harness.connections import safe_workers

FORMAT = 1
BUSY = 0.7  # of what workers or the server can do at most: above it waiting grows faster than load
FEWEST_WORKERS = 2  # one may die or be replaced without the queue standing still
LONGEST, MOST_SURGE = 1e9, 100.0  # a wait in seconds, a surge: beyond them nobody means what is asked
SEARCHED = 20_000  # jobs in each of the windows that slots are searched with
WINDOWS = 5
SATURATED = 0.95  # of the slots: with more of them busy, queues grow for longer than a window lasts


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. `wait` is how long so many `percentile` of the jobs may wait at most; `replicas` 0: the plan
    decides; `others` connections of applications beside the workers, at their busiest; `retries` the share of attempts
    that are tried again; `surge` how many times the workers exist while a deployment replaces them.
    """

    rate: float
    wait: float
    percentile: float = 99.0
    max_connections: int = 100
    reserved: int = 3
    others: int = 10
    surge: float = 2.0
    replicas: int = 0
    slots_per_worker: int = 100
    retries: float = 0.0

    def __post_init__(self) -> None:
        kept = self.reserved + self.others
        _require(self.rate > 0 and math.isfinite(self.rate), f"--rate {self.rate:g}: must be above 0 jobs/s")
        _require(0 < self.wait <= LONGEST, f"--wait-p99 {self.wait:g}: must be above 0 s, and {LONGEST:g} at most")
        _require(50 <= self.percentile < 100, f"the percentile {self.percentile:g}: must be 50 to below 100")
        _require(1 <= self.surge <= MOST_SURGE, f"--surge {self.surge:g}: must be 1 to {MOST_SURGE:g}")
        _require(0 <= self.retries < 1, f"--retries {self.retries:g}: must be 0 to below 1")
        _require(self.replicas >= 0, f"--replicas {self.replicas}: must be auto or above 0")
        _require(self.slots_per_worker >= 1, f"--slots-per-worker {self.slots_per_worker}: must be 1 or more")
        _require(self.reserved >= 0 and self.others >= 0, "--reserved and --others must not be negative")
        _require(
            self.max_connections > kept,
            f"--max-connections {self.max_connections}: must be above the {kept} that are kept from workers"
            f" ({self.reserved} reserved, {self.others} others)",
        )

    @property
    def attempts(self) -> float:
        """Attempts a second, retries included."""
        return self.rate / (1 - self.retries)


class Limit(NamedTuple):
    """What a plan cannot exceed: the highest rate (jobs a second) that it allows, what it is, and what moves it."""

    name: str
    rate: float
    says: str
    moved_by: str


class Rule(NamedTuple):
    """A rule of thumb: what it says, and what jobs would really get with it."""

    name: str
    says: str
    slots: int
    wait: float  # seconds at the percentile; infinite where the queue grows for ever
    refused: float = 0.0  # share of the pushes


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `planned_rate` is what the planned slots carry within the wait; more carry more, up to `limits`.
    `safe_workers` is how many workers the server has connections for.
    """

    demand: Demand
    service: Service
    slots: int
    erlang_slots: int
    workers: int
    slots_per_worker: int
    connections: int
    connections_available: int
    safe_workers: int
    utilisation: float
    wait: float
    pickup: float
    max_in_flight: int
    statement_timeout: float
    lease: float
    poll_interval: float
    prefetch: int
    planned_rate: float
    limits: Sequence[Limit]
    rules: Sequence[Rule]

    @property
    def feasible_rate(self) -> float:
        """The highest rate that a plan for this server and target allows, jobs a second."""
        return self.binding.rate

    @property
    def feasible(self) -> bool:
        """Whether every limit allows the demanded rate."""
        return self.feasible_rate >= self.demand.rate

    @property
    def binding(self) -> Limit:
        """What breaks first as the load grows, more slots and workers being added for as long as that helps."""
        return min(self.limits, key=lambda limit: limit.rate)

    def headroom(self) -> dict[str, float]:
        """How many times the demanded rate each part of the plan carries."""
        parts = {"planned job slots": self.planned_rate, **{limit.name: limit.rate for limit in self.limits}}
        return {name: rate / self.demand.rate for name, rate in parts.items()}

    def document(self) -> dict[str, Any]:
        """As JSON."""
        fields = asdict(self) | {"service": self.service.document()}
        fields["limits"] = [limit._asdict() | {"rate": _finite(limit.rate)} for limit in self.limits]
        fields["rules"] = [rule._asdict() | {"wait": _finite(rule.wait)} for rule in self.rules]
        told = {
            "feasible": self.feasible, "binding": self.binding.name, "feasible_rate": _finite(self.feasible_rate),
            "headroom": {name: _finite(times) for name, times in self.headroom().items()},
        }  # fmt: skip
        return {"format": FORMAT, **told, **fields, "wait": _finite(self.wait)}


def make(measured: Measurement, demand: Demand, service: Service | None = None, *, seed: int = 1) -> Plan:
    """Plan for a demand. Raises `CapacityError`; an infeasible plan is returned as one."""
    service = service or measured.service
    load = model.offered(demand.attempts, service.mean)
    pickup = simulate.percentile(sorted(measured.pickup), demand.percentile)
    target = demand.wait - pickup  # what of the target is left for waiting for a slot
    if target <= 0:
        raise CapacityError(
            f"an idle worker alone takes {pickup * 1000:.0f} ms to pick up a job (p{demand.percentile:g}):"
            f" a wait of {demand.wait * 1000:.0f} ms cannot be promised; ask for more, or a faster server"
        )
    slots = slots_for(service, demand.attempts, target, demand.percentile, seed=seed)
    workers = demand.replicas or _workers(measured, demand, slots)
    each = min(-(-slots // workers), demand.slots_per_worker)
    given = workers * each
    statement_timeout = _statement_timeout(measured)
    return Plan(
        demand=demand,
        service=service,
        slots=given,
        erlang_slots=model.slots_needed(load, service.mean, target, demand.percentile),
        workers=workers,
        slots_per_worker=each,
        connections=math.ceil(workers * measured.connections_per_worker * demand.surge),
        connections_available=demand.max_connections - demand.reserved - demand.others,
        safe_workers=_possible(measured, demand),
        utilisation=load / given,
        wait=wait_with(service, demand.attempts, given, demand.percentile, seed=seed) + pickup,
        pickup=pickup,
        # Jobs that wait longer than the target are late already: more than can be started within it need not come in.
        max_in_flight=given + math.ceil(target * given / service.mean),
        statement_timeout=statement_timeout,
        lease=max(30.0, 6 * statement_timeout),
        poll_interval=min(1.0, max(0.1, demand.wait / 2)),
        prefetch=0,  # a worker claims for free slots only: what it held beyond them would wait for it alone
        planned_rate=_highest(service, given, target, demand, seed=seed),
        limits=_limits(measured, demand, service, target, seed=seed),
        rules=rules_of_thumb(demand, service, workers, each, seed=seed),
    )


def slots_for(service: Service, rate: float, wait: float, percentile: float, *, seed: int = 1) -> int:
    """The fewest slots that keep the percentile of the wait within `wait`."""
    load = model.offered(rate, service.mean)
    slots = model.slots_needed(load, service.mean, wait, percentile)
    if service.exponential:
        return slots
    least = math.floor(load) + 1
    while slots > least and wait_with(service, rate, slots - 1, percentile, seed=seed) <= wait:
        slots -= 1
    while wait_with(service, rate, slots, percentile, seed=seed) > wait:
        slots += 1
    return slots


def wait_with(service: Service, rate: float, slots: int, percentile: float, *, seed: int = 1) -> float:
    """The percentile of the wait with so many slots; infinite where they cannot serve the load.

    Simulated windows begin empty. Where they are too short to fill, the wait is not less than (1 + cv^2) / 2 times that
    of exponential service times: exact in the limit for one slot (J. F. C. Kingman, "The single server queue in heavy
    traffic", 1961), for several A. O. Allen and J. L. Cunneen's approximation.
    """
    load = model.offered(rate, service.mean)
    if load >= slots:
        return math.inf
    erlang = model.wait_percentile(slots, load, service.mean, percentile)
    if service.exponential:
        return erlang
    simulated = _simulated(_windows(service, rate, seed), slots, percentile)
    return max(simulated, (1 + service.squared_cv) / 2 * erlang) if load > SATURATED * slots else simulated


def highest_rate(service: Service, slots: int, wait: float, percentile: float, *, seed: int = 1) -> float:
    """The highest rate that so many slots serve within the wait: bisected to half a percent."""
    low, high = 0.0, slots / service.mean
    while high - low > high / 200:
        middle = (low + high) / 2
        good = wait_with(service, middle, slots, percentile, seed=seed) <= wait
        low, high = (middle, high) if good else (low, middle)
    return low


def rules_of_thumb(
    demand: Demand, service: Service, workers: int, each: int, *, alpha: float = 1.5, seed: int = 1
) -> list[Rule]:
    """What teams reckon with today, and what jobs would get: kept beside the plan, because somebody will ask."""

    def wait(count: int) -> float:
        return wait_with(service, demand.attempts, count, demand.percentile, seed=seed) if count > 0 else math.inf

    slots = workers * each
    alone = math.ceil(alpha * demand.rate * service.mean / workers)
    limit = max(1, math.floor(0.8 * slots))
    pools = max(0, (demand.max_connections - 10) // 15)
    load = model.offered(demand.attempts, service.mean)
    return [
        Rule(f"slots of a replica = {alpha:g} x rate x duration / replicas", f"{alone} in each of {workers}",
             alone * workers, wait(alone * workers)),
        # Nobody waits where as many jobs are admitted as slots are free; the others are refused.
        Rule("jobs in flight = 80 % of the slots", f"{limit} of {slots}", slots, 0.0, model.erlang_b(limit, load)),
        Rule("replicas = (max_connections - 10) / 15", f"{pools}, of {each} slots", pools * each, wait(pools * each)),
    ]  # fmt: skip


def _workers(measured: Measurement, demand: Demand, slots: int) -> int:
    """As few as have the slots, keep up with claims and endings at a healthy load, and survive the loss of one."""
    workers = max(FEWEST_WORKERS, -(-slots // demand.slots_per_worker))
    law = measured.law
    while workers < law.most_workers and BUSY * law.throughput(workers) < min(demand.attempts, BUSY * law.peak * 0.95):
        workers += 1
    return workers


def _limits(measured: Measurement, demand: Demand, service: Service, target: float, *, seed: int) -> list[Limit]:
    """What stops the load from growing when slots and workers are added as far as they can be."""
    law, most = measured.law, demand.slots_per_worker
    possible = _possible(measured, demand)
    workers = demand.replicas or possible
    fits = workers <= possible
    slots = workers * most if fits else 0
    useful = max(1, min(workers, math.floor(min(law.most_workers, 1e6))))
    server = law.throughput(useful) * BUSY * (1 - demand.retries)
    connections = Limit(
        "connections",
        _highest(service, slots, target, demand, seed=seed),
        f"{possible} workers of {measured.connections_per_worker} connections fit, {demand.surge:g} times over in a"
        f" deployment, with {most} slots each",
        "max_connections, more slots in each worker, --no-listen (2 connections each), a smaller deploy surge",
    )
    if demand.replicas and fits:
        says = f"{demand.replicas} replicas with {most} slots each"
        connections = connections._replace(name="replicas", says=says, moved_by="--replicas, or more slots in each")
    law_says = f"{BUSY:.0%} of the {law.throughput(useful):,.0f} jobs/s that {useful} workers and this server can do"
    moved = "a larger server or shards" if useful < workers else "more workers, then a larger server or shards"
    return [connections, Limit("server", server, law_says, moved)]


def _possible(measured: Measurement, demand: Demand) -> int:
    return safe_workers(
        demand.max_connections, reserved=demand.reserved, others=demand.others,
        per_worker=measured.connections_per_worker, surge=demand.surge,
    )  # fmt: skip


def _highest(service: Service, slots: int, target: float, demand: Demand, *, seed: int) -> float:
    """The highest rate of jobs, retries taken off."""
    if slots == 0:
        return 0.0
    return highest_rate(service, slots, target, demand.percentile, seed=seed) * (1 - demand.retries)


def _statement_timeout(measured: Measurement) -> float:
    """Seconds: far above what statements take, 50 times the slowest claim seen, but 1 to 5 s."""
    return min(5.0, max(1.0, 50 * max(measured.claim)))


def _windows(service: Service, rate: float, seed: int) -> list[Any]:
    key = (service, rate, seed)
    if key not in _drawn:
        _drawn.clear()  # the last one only: searches ask for one after the other
        rng = random.Random(seed)  # noqa: S311  # load, not secrets
        _drawn[key] = [simulate.load(rate, SEARCHED / rate, service, rng) for _ in range(WINDOWS)]
    return _drawn[key]


_drawn: dict[tuple[Service, float, int], list[Any]] = {}


def _simulated(windows: list[Any], slots: int, percentile: float) -> float:
    return simulate.percentile(sorted(w for window in windows for w in simulate.waits(window, slots)), percentile)


def _require(good: bool, complaint: str) -> None:
    if not good:
        raise CapacityError(complaint)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
