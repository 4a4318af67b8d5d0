"""What a scenario is. Each is one file in loadtests/scenarios: a subclass of `Scenario`, known by its `name`.

A scenario is a script. Its public class attributes are its parameters, with the values of the full profile; `quick`
replaces some of them by those of the quick profile, about a minute; `--set NAME=VALUE` replaces any. `play` offers
load, waits and disturbs, from top to bottom, while workers work; `judge` looks at the drained run. Both note figures
with `run.found`, which objectives in slo.toml name as `found.NAME`. What is common to all (ledger, latencies, samples)
the run measures itself. Called by the Locust plugin; importing this file registers nothing, defining a subclass does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pgqueue_ref.harness.traces import Arrival

if TYPE_CHECKING:
    from pgqueue_ref.harness.api_producer import Api
    from pgqueue_ref.harness.run import LoadRun

SCENARIOS: dict[str, type[Scenario]] = {}


class ScenarioError(ValueError):
    """A scenario or parameter that cannot be used. Its text is one line for people."""


class Scenario:
    """Base of all scenarios. The docstring of a subclass is what its report says about it."""

    name: ClassVar[str] = ""
    quick: ClassVar[Mapping[str, Any]] = {}
    kinds: ClassVar[Sequence[str]] = ("job",)
    tolerates: ClassVar[Sequence[str]] = ()  # names of errors that a push may meet here without being a failure
    server_settings: ClassVar[Mapping[str, str]] = {}  # for a server that is started for the run
    environment: ClassVar[Mapping[str, str]] = {}  # for the workers
    positive: ClassVar[Sequence[str]] = ("slots", "producers", "lease", "window")  # parameters that cannot be 0
    api: Api | None = None  # where arrivals are pushed, if not into the database; `set_up` may start one
    credits: Sequence[str] = ()  # acknowledgements that the load asks for
    unusable = 0  # jobs of the load's source that could not be used

    # Parameters that every scenario has.
    workers = 2  # worker processes
    slots = 32  # concurrent jobs in each
    producers = 32  # connections that push
    faults = ""  # as of --fault, in every run of the scenario
    lease = 10.0  # seconds after which a dead worker's jobs run elsewhere
    window = 1.0  # seconds, of a point in the latency plots
    drain_timeout = 60.0  # seconds that the backlog may take at the end

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            SCENARIOS[cls.name] = cls

    def __init__(self, *, quick: bool, overrides: Mapping[str, str] = {}, seed: int = 1) -> None:
        self.random = random.Random(seed)  # noqa: S311  # load, not secrets
        self.seed = seed
        known = self.parameters()
        given = {**(self.quick if quick else {}), **overrides}
        for name, value in given.items():
            if name not in known:
                raise ScenarioError(f"{self.name} has no parameter {name}; it has {', '.join(sorted(known))}")
            setattr(self, name, _like(known[name], value, name))
        for name in self.positive:
            if not getattr(self, name):
                raise ScenarioError(f"--set {name}=0: it must be above 0")

    def parameters(self) -> dict[str, int | float | str]:
        """The parameters and their values."""
        names = [name for name in dir(type(self)) if not name.startswith("_") and name not in ("name", "unusable")]
        return {name: getattr(self, name) for name in names if isinstance(getattr(type(self), name), int | float | str)}

    @property
    def text(self) -> str:
        """What the scenario does, in its docstring's first paragraph."""
        return " ".join((type(self).__doc__ or "").split("\n\n")[0].split())

    @property
    def source(self) -> str:
        """Where the load comes from, for people."""
        return f"{self.name}: " + ", ".join(f"{name} {value}" for name, value in self.parameters().items())

    def prepare(self, options: Any) -> None:
        """Read what the scenario needs beyond its parameters, before anything is started. Raises one-line errors."""

    def set_up(self, run: LoadRun) -> None:
        """Make what the scenario needs on the server, when the run's schema is there and no worker is yet."""

    def play(self, run: LoadRun) -> None:
        """Offer the load. Returns when the last of it was offered; the run then drains."""
        raise NotImplementedError(f"{self.name} does not say what to do")

    def judge(self, run: LoadRun) -> None:
        """Note figures that need the drained run."""


def _like(default: int | float | str, value: Any, name: str) -> int | float | str:
    try:
        converted = type(default)(value)
    except ValueError:
        raise ScenarioError(f"--set {name}={value}: it must be like {default!r}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ScenarioError(f"--set {name}={value}: it must be a finite number")
    if isinstance(converted, int | float) and converted < 0:
        raise ScenarioError(f"--set {name}={value}: it must not be negative")
    return converted


# -- load from distributions ---------------------------------------------------------------------------

Draw = Callable[[], float]


def service(text: str, rng: random.Random) -> Draw:
    """Service times in seconds: `0.05` or `fixed:0.05`, `exp:0.05` (mean), `lognormal:0.05:4` (mean and squared
    coefficient of variation). Raises `ScenarioError`.

    Lognormal: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2 (the moments of the distribution).
    """
    shape, *numbers = text.split(":") if ":" in text else ("fixed", text)
    try:
        mean, *rest = (float(number) for number in numbers)
    except ValueError:
        mean, rest = math.nan, []
    if not (mean >= 0 and math.isfinite(mean)) or len(rest) != (shape == "lognormal"):
        raise ScenarioError(f"service {text!r}: write 0.05, exp:0.05 or lognormal:0.05:4 (mean seconds, squared CV)")
    if shape == "fixed" or mean == 0:
        return lambda: mean
    if shape == "exp":
        return lambda: rng.expovariate(1 / mean)
    if shape == "lognormal" and rest[0] > 0:
        variance = math.log1p(rest[0])
        return lambda: rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
    raise ScenarioError(f"service {text!r}: write 0.05, exp:0.05 or lognormal:0.05:4 (mean seconds, squared CV)")


def poisson(rate: float, seconds: float, duration: Draw, rng: random.Random, kind: str = "job") -> list[Arrival]:
    """Arrivals at `rate` a second on average, independent of each other, for so many seconds."""
    arrivals, at = [], rng.expovariate(rate) if rate > 0 else math.inf
    while at < seconds:
        arrivals.append(Arrival(at, duration(), kind))
        at += rng.expovariate(rate)
    return arrivals


def even(rate: float, seconds: float, duration: Draw, kind: str = "job") -> list[Arrival]:
    """Arrivals at equal distances."""
    return [Arrival(n / rate, duration(), kind) for n in range(int(rate * seconds))]
