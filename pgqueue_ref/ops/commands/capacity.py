"""`capacity`: measure a server, plan for a load, simulate, and see whether the plan holds."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..app import DEPLOY, AsJson, WrongUsage, app, print_json, print_table

if TYPE_CHECKING:
    from pgqueue_ref.capacity.plan import Plan
    from pgqueue_ref.capacity.service import Service

INFEASIBLE = 3

capacity = typer.Typer(help="How many workers, slots and connections a load needs, and what breaks first.")
app.add_typer(capacity, name="capacity", rich_help_panel=DEPLOY)

Measured = Annotated[Path, typer.Option("--measurement", "-m", metavar="FILE", help="What `capacity measure` wrote.")]
Dsn = Annotated[str, typer.Option("--dsn", envvar="PGQUEUE_DATABASE_URL", metavar="SPEC",
                                  help="A DSN, or embedded, docker, local: a server for this alone.")]  # fmt: skip
ServiceTimes = Annotated[
    str | None, typer.Option("--service", help="exp:0.5, fixed:0.5 or lognormal:0.5:4: mean seconds, squared CV.")
]
Mean = Annotated[float | None, typer.Option("--mean", help="Mean seconds of the service times, with --squared-cv.")]
SquaredCv = Annotated[float, typer.Option("--squared-cv", help="Their squared coefficient of variation.")]
TraceFile = Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="SWF or CSV (at,duration,kind).")]
Speedup = Annotated[float, typer.Option("--speedup", help="Divide the trace's times, and durations, by this.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is left to chance.")]


@capacity.command()
def measure(
    dsn: Dsn = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")] = Path("m.json"),
    service: ServiceTimes = None,
    mean: Mean = None,
    squared_cv: SquaredCv = 1.0,
    trace: TraceFile = None,
    speedup: Speedup = 1.0,
    seen: Annotated[bool, typer.Option("--seen", help="Service times: what the queue's own jobs took.")] = False,
    kind: Annotated[str | None, typer.Option(help="With --seen: of this kind only.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Measure from one worker up to so many.")] = 4,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each.")] = 100,
) -> None:
    """Measure what a server and a worker can do, in a schema of its own; about a minute."""
    _needs_extra()
    from pgqueue_ref.capacity import measure as measuring
    from pgqueue_ref.capacity import measurement
    from pgqueue_ref.harness.server import provision

    with _usage():
        if not output.absolute().parent.is_dir():
            raise WrongUsage(f"--output {output}: there is no such directory; make it first")
        times = None if seen else _service(service, mean, squared_cv, _trace(trace, speedup)) or _service("exp:0.1")
        with provision(dsn) as server:
            found = times or _seen(server.dsn, kind)
            made = measuring.measure(
                server, found, workers=workers, slots=slots, say=lambda line: typer.echo(line, err=True)
            )
        measurement.save(made, output)
    typer.echo(f"wrote {output}")


@capacity.command()
def plan(
    measurement: Measured,
    rate: Annotated[
        float | None, typer.Option(help="Jobs a second; with --trace its busiest hour unless given.")
    ] = None,
    wait_p99: Annotated[str, typer.Option(help="How long 99 % of the jobs may wait at most: 500ms, 2s.")] = "1s",
    max_connections: Annotated[int | None, typer.Option(help="The server's, unless given.")] = None,
    reserved: Annotated[int | None, typer.Option(help="Slots that ordinary roles are not given; the server's.")] = None,
    others: Annotated[int, typer.Option(help="Connections of applications beside the workers, at their busiest.")] = 10,
    surge: Annotated[float, typer.Option(help="Times the workers exist while a deployment replaces them.")] = 2.0,
    replicas: Annotated[str, typer.Option(help="Workers; auto: the plan decides.")] = "auto",
    slots_per_worker: Annotated[int, typer.Option(help="At most.")] = 100,
    retries: Annotated[float, typer.Option(help="Share of the attempts that fail and are tried again.")] = 0.0,
    service: ServiceTimes = None,
    mean: Mean = None,
    squared_cv: SquaredCv = 1.0,
    trace: TraceFile = None,
    speedup: Speedup = 1.0,
    growth: Annotated[float, typer.Option(help="With --trace: so many times its rate.")] = 1.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write it as JSON.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Also write a page with plots, and PNGs.")] = None,
    as_json: AsJson = False,
    seed: Seed = 1,
) -> int:
    """Say how many slots, workers and connections a load needs, and what binds. Exit code 3: infeasible."""
    _needs_extra()
    from pgqueue_ref.capacity import measurement as measurements
    from pgqueue_ref.capacity import plan as planning
    from pgqueue_ref.capacity import report as reporting
    from pgqueue_ref.capacity import trace as tracing

    with _usage():
        measured = measurements.load(measurement)
        log = _trace(trace, speedup)
        times = _service(service, mean, squared_cv, log) or measured.service
        busiest = tracing.busiest(log, growth=growth) if log else None
        if rate is None and busiest is None:
            raise WrongUsage("give --rate, or --trace")
        demand = planning.Demand(
            rate=rate if rate is not None else busiest.rate if busiest else 0.0,
            wait=_seconds(wait_p99),
            max_connections=measured.max_connections if max_connections is None else max_connections,
            reserved=measured.reserved if reserved is None else reserved,
            others=others,
            surge=surge,
            replicas=_replicas(replicas),
            slots_per_worker=slots_per_worker,
            retries=retries,
        )
        made = planning.make(measured, demand, times, seed=seed)
        document = made.document()
        if log is not None and busiest is not None:
            as_logged = tracing.wait_as_logged(busiest, made.slots, demand.percentile)
            told = {name: value for name, value in busiest._asdict().items() if name != "arrivals"}
            document["trace"] = {
                "busiest": told | {"wait_as_logged": as_logged}, "credits": list(log.credits),
                "hours": [hour._asdict() for hour in tracing.by_hour(log)] if speedup == 1 else [],
            }  # fmt: skip
        if output is not None:
            _write(output, document)
        page = reporting.write(report, made, measured, document) if report else None
    if as_json:
        print_json(document)
    else:
        _show(made, document)
        if page:
            typer.echo(f"\nreport: {page}")
    return 0 if made.feasible else INFEASIBLE


@capacity.command()
def simulate(
    rate: Annotated[float, typer.Option(help="Jobs a second.")],
    slots: Annotated[int, typer.Option(min=1, help="Of each worker.")],
    workers: Annotated[int, typer.Option(min=1)] = 1,
    service: ServiceTimes = None,
    mean: Mean = None,
    squared_cv: SquaredCv = 1.0,
    trace: TraceFile = None,
    speedup: Speedup = 1.0,
    seconds: Annotated[float, typer.Option(help="Length of the window.")] = 600.0,
    replications: Annotated[int, typer.Option(min=19, help="Windows, each with other chances.")] = 20,
    claim_ms: Annotated[float, typer.Option(min=0, help="What a claim takes.")] = 2.0,
    bell_ms: Annotated[float, typer.Option(min=0, help="Until a sleeping worker hears of a job.")] = 2.0,
    listen: Annotated[bool, typer.Option("--listen/--no-listen", help="Without, only the poll wakes a worker.")] = True,
    poll_interval: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 1.0,
    failing: Annotated[float, typer.Option(min=0, max=0.99, help="Share of the attempts that fail.")] = 0.0,
    backoff: Annotated[float, typer.Option(min=0, help="Seconds before another try.")] = 5.0,
    max_attempts: Annotated[int, typer.Option(min=1)] = 10,
    urgent: Annotated[float, typer.Option(min=0, max=1, help="Share of the jobs with a higher priority.")] = 0.0,
    as_json: AsJson = False,
    seed: Seed = 1,
) -> None:
    """Play the queue: percentiles of the wait, each with an interval: one more window lies in it nine times of ten."""
    _needs_extra()
    from pgqueue_ref.capacity import model
    from pgqueue_ref.capacity import simulate as playing

    with _usage():
        times = _service(service, mean, squared_cv, _trace(trace, speedup))
        if times is None:
            raise WrongUsage("give the service times: --service, --mean or --trace")
        model.offered(rate, times.mean)
        if not 0 < seconds < math.inf:
            raise WrongUsage(f"--seconds {seconds:g}: must be above 0, and end")
        system = playing.System(
            workers, slots, claim=lambda rng: claim_ms / 1000, bell=bell_ms / 1000 if listen else math.inf,
            poll=poll_interval, failing=failing, max_attempts=max_attempts, backoff=backoff, urgent=urgent,
        )  # fmt: skip

        def window(rng: random.Random) -> playing.Played:
            return playing.play(playing.load(rate, seconds, times, rng), system, rng)

        found = playing.replicate(window, replications, seed=seed)
    if as_json:
        print_json({name: interval._asdict() for name, interval in found.items()})
    else:
        rows = [(name, *(f"{value:.4g}" for value in interval)) for name, interval in found.items()]
        print_table(("figure", "from", "middle", "to"), rows, right=("from", "middle", "to"))


@capacity.command()
def validate(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="What `capacity plan -o` wrote.")],
    measurement: Measured,
    dsn: Dsn = "auto",
    seconds: Annotated[float, typer.Option(help="Length of each run.")] = 60.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs at each of 1.0 and 1.1 times the rate.")] = 1,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs' directories go.")] = Path("runs"),
    as_json: AsJson = False,
    seed: Seed = 1,
) -> int:
    """Run the plan for real, at 1.0 and 1.1 times the rate, and compare; appends what it found to the plan.

    Exit code 1 when a figure lies outside its interval: one run in ten does by chance alone.
    """
    _needs_extra()
    from pgqueue_ref.capacity import measurement as measurements
    from pgqueue_ref.capacity import plan as planning
    from pgqueue_ref.capacity import service as services
    from pgqueue_ref.capacity import validate as validating

    with _usage():
        document = measurements.read_json(plan_file, planning.FORMAT, "pgqueue-ref capacity plan -o")
        measured = measurements.load(measurement)
        if not 10 <= seconds < math.inf:
            raise WrongUsage(f"--seconds {seconds:g}: must be 10 or more, or nothing can be said, and end")
        try:
            shape = validating.Shape(
                rate=document["demand"]["rate"] / (1 - document["demand"]["retries"]),
                seconds=seconds,
                workers=document["workers"],
                slots=document["slots_per_worker"],
                service=services.of_document(document["service"]),
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise WrongUsage(f"{plan_file}: not a plan ({error}); make it with pgqueue-ref capacity plan -o") from error
        found = validating.validate(
            shape, measured, dsn, repeats=repeats, runs=runs, seed=seed, say=lambda line: typer.echo(line, err=as_json)
        )
        document.setdefault("validations", []).extend(found)
        _write(plan_file, document)
    if as_json:
        print_json(found)
    return 0 if all(item["within"] for run in found for item in run["figures"]) else 1


def _show(made: Plan, document: dict[str, Any]) -> None:
    from pgqueue_ref.capacity import report

    if made.feasible:
        typer.echo(f"feasible: {made.demand.rate:g} jobs/s\n")
    else:
        typer.echo(
            f"infeasible at {made.demand.rate:g} jobs/s; the nearest feasible rate is {made.feasible_rate:.3g} jobs/s\n"
        )
    print_table(("", "", "why"), report.rows(made))
    typer.echo("")
    print_table(("carries", "times the rate"), report.carried(made), right=("times the rate",))
    typer.echo(f"\nbinding: {made.binding.name} ({made.binding.says})\nwhat moves it: {made.binding.moved_by}\n")
    print_table(report.RULES, report.rules(made), right=("slots", "p99 wait", "refused"))
    if "trace" in document:
        _show_trace(document["trace"])


def _show_trace(trace: dict[str, Any]) -> None:
    wait = trace["busiest"]["wait_as_logged"]
    typer.echo(f"\nthe busiest hour as it was logged, with these slots: p99 wait {wait:.3g} s")
    if trace["hours"]:
        typer.echo("by hour of the trace's day:")
        hours = [(hour["hour"], f"{hour['rate']:.3g}", f"{hour['load']:.3g}") for hour in trace["hours"]]
        print_table(("hour", "jobs/s", "busy slots"), hours, right=("jobs/s", "busy slots"))
    for line in trace["credits"]:
        typer.echo(line)


class _usage:  # noqa: N801  # reads as a block
    """Turns what cannot be planned with into wrong usage: one line, exit code 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from pgqueue_ref.capacity import CapacityError
        from pgqueue_ref.harness.server import ProvisionError
        from pgqueue_ref.harness.traces import TraceError

        if isinstance(error, CapacityError | ProvisionError | TraceError):
            raise WrongUsage(str(error)) from error


def _needs_extra() -> None:
    try:
        import matplotlib  # noqa: F401 - asked for here, so that its absence is told in one line
        import scipy  # noqa: F401
        import simpy  # noqa: F401
    except ModuleNotFoundError as error:
        raise WrongUsage(f"capacity planning needs {error.name}: pip install 'pgqueue-ref[capacity]'") from None


def _service(spec: str | None, mean: float | None = None, squared_cv: float = 1.0, log: Any = None) -> Service | None:
    """The service times that the options name, None where they name none."""
    from pgqueue_ref.capacity import service as services

    if spec is not None:
        return services.of_spec(spec)
    if mean is not None:
        return services.of_moments(mean, squared_cv)
    return services.of_trace(log) if log is not None else None


def _seen(dsn: str, kind: str | None) -> Service:
    from pgqueue_ref.capacity import service as services
    from pgqueue_ref.core import connect

    with connect(dsn) as connection:
        return services.of_jobs(connection, kind)


def _trace(path: Path | None, speedup: float) -> Any:
    from pgqueue_ref.harness import traces

    if path is None:
        return None
    return traces.scale(traces.load(path), speedup=speedup, duration_scale=1 / speedup if speedup else 0.0)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|)", text.strip())
    if found is None:
        raise WrongUsage(f"--wait-p99 {text}: write a time such as 500ms or 2s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _replicas(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise WrongUsage(f"--replicas {text}: write auto or a number above 0")
    return int(text)


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise WrongUsage(f"{path}: cannot be written ({error.strerror})") from error
