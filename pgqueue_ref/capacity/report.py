"""What a plan looks like: one HTML page for people, and the same plots as PNG.

A plot is described once, as `Plot`; the page draws it as SVG (`harness.plots`), `write_png` with matplotlib. Called by
the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pgqueue_ref.capacity import model
from pgqueue_ref.capacity.measurement import Measurement
from pgqueue_ref.capacity.plan import Plan, wait_with
from pgqueue_ref.harness.page import figure, page, section, table
from pgqueue_ref.harness.plots import Series, line_plot

POINTS = 24  # of a curve that is simulated
RULES = ("rule of thumb", "says", "slots", "p99 wait", "refused")


class Plot(NamedTuple):
    """A plot, for either way of drawing it."""

    name: str  # of its file
    title: str
    x: str
    unit: str
    series: Sequence[Series]
    note: str = ""
    log: bool = False


def plots(plan: Plan, measured: Measurement) -> list[Plot]:
    """Waiting against slots, utilisation against rate, connections against replicas, throughput against workers."""
    return [_waiting(plan), _utilisation(plan), _connections(plan, measured), _scaling(measured)]


def write(directory: Path, plan: Plan, measured: Measurement, document: dict[str, Any]) -> Path:
    """Write plan.html and the PNGs into a directory; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = plots(plan, measured)
    for plot in drawn:
        write_png(plot, directory / f"{plot.name}.png")
    file = directory / "plan.html"
    file.write_text(render(plan, measured, document, drawn), encoding="utf-8")
    return file


def render(plan: Plan, measured: Measurement, document: dict[str, Any], drawn: Sequence[Plot]) -> str:
    """The page."""
    demand = plan.demand
    wanted = f"{demand.rate:g} jobs/s, p{demand.percentile:g} wait {demand.wait * 1000:g} ms"
    title = f"{'Plan' if plan.feasible else 'No plan'} for {wanted}"
    figures = "".join(
        line_plot(plot.title, plot.series, unit=plot.unit, x_axis=plot.x, note=plot.note, log=plot.log)
        for plot in drawn
    )
    parts = [
        _head(title, plan, measured),
        _verdict(plan),
        section("The plan", table(("", "", "why"), rows(plan))),
        section("Headroom", table(("", "times the rate"), carried(plan))),
        section("Rules of thumb, and what they give", table(RULES, rules(plan))),
        section("Plots", f'<div class="plots">{figures}</div>'),
    ]
    if validations := document.get("validations"):
        names = ("run", "rate", "figure", "measured", "predicted, 90 %", "")
        parts.append(section("Measured against predicted", table(names, _validations(validations))))
    return page(title, parts)


def _head(title: str, plan: Plan, measured: Measurement) -> str:
    service, server = plan.service, str(measured.server.get("description", "a server"))
    about = f"{service.source}, mean {service.mean:.3g} s, squared CV {service.squared_cv:.3g}. Measured on {server}."
    return f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"


def _verdict(plan: Plan) -> str:
    binding = plan.binding
    verdict = "feasible" if plan.feasible else f"infeasible; the nearest feasible rate is {plan.feasible_rate:.3g}/s"
    why = f"Binding: {binding.name} ({binding.says}). What moves it: {binding.moved_by}."
    return f'<p class="verdict {"pass" if plan.feasible else "fail"}"><b>{escape(verdict)}</b> {escape(why)}</p>'


def carried(plan: Plan) -> list[tuple[str, str]]:
    """What each part of the plan carries, in times of the demanded rate."""
    return [(name, "without bound" if math.isinf(times) else figure(times)) for name, times in plan.headroom().items()]


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """The plan's parts: name, value, why. Also printed by the command line."""
    wait = "without bound" if math.isinf(plan.wait) else f"{plan.wait * 1000:.0f} ms"
    demand = plan.demand
    by = "by simulation; Erlang C alone says" if not plan.service.exponential else "by Erlang C, shared by the workers:"
    return [
        ("job slots", f"{plan.slots:,}", f"{by} {plan.erlang_slots:,}"),
        ("workers", f"{plan.workers:,}", f"with {plan.slots_per_worker:,} slots each; {plan.safe_workers:,} are safe"),
        ("connections", f"{plan.connections:,}", f"in a deployment, of {plan.connections_available:,} for workers"),
        ("utilisation", f"{plan.utilisation:.0%}", "busy slots, on average"),
        (f"p{demand.percentile:g} wait", wait, f"of it {plan.pickup * 1000:.0f} ms to pick a job up"),
        ("max_in_flight", f"{plan.max_in_flight:,}", "slots, and what they start within the wait"),
        ("statement timeout", f"{plan.statement_timeout * 1000:.0f} ms", "50 times the slowest claim seen, 1 to 5 s"),
        ("lease", f"{plan.lease:g} s", "30 s, or six statement timeouts if that is more"),
        ("poll interval", f"{plan.poll_interval:g} s", "half the wait at most, for the push that nobody heard"),
        ("prefetch", f"{plan.prefetch}", "a worker claims for free slots only"),
    ]


def rules(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    """The rules of thumb, as text."""
    return [
        (rule.name, rule.says, f"{rule.slots:,}",
         "without bound" if math.isinf(rule.wait) else f"{rule.wait * 1000:.0f} ms", f"{rule.refused:.1%}")
        for rule in plan.rules
    ]  # fmt: skip


def write_png(plot: Plot, path: Path) -> None:
    """Draw one with matplotlib, without a display."""
    from matplotlib.figure import Figure  # here, because it takes a second to import

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number, line in enumerate(plot.series):
        style = ("-", "--", ":", "-.")[number % 4]
        axes.plot(list(line.times), [math.nan if v is None else v for v in line.values], style, label=line.name)
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.unit)
    if plot.log:
        axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _waiting(plan: Plan) -> Plot:
    """From the fewest slots that can serve the load to where nearly nobody waits."""
    demand, service = plan.demand, plan.service
    load = model.offered(demand.attempts, service.mean)
    least = math.floor(load) + 1
    most = max(least + 3, plan.slots + max(4, (plan.slots - least) // 2))
    step = max(1, (most - least) // POINTS)
    slots = sorted({*range(least, most + 1, step), plan.slots})
    waits = [_ms(wait_with(service, demand.attempts, n, demand.percentile) + plan.pickup) for n in slots]
    target = demand.wait * 1000
    series = [
        Series(f"p{demand.percentile:g} wait", slots, waits),
        Series("wanted", [slots[0], slots[-1]], [target, target]),
        Series("planned", [plan.slots, plan.slots], [_floor(waits), max(target, *filter(None, waits))]),
    ]
    return Plot("waiting", "Waiting time against slots", "job slots", "milliseconds", series, log=True)


def _utilisation(plan: Plan) -> Plot:
    """Up to where the slots are all busy; the knee is where the wait breaks."""
    slots, mean = plan.slots, plan.service.mean
    rates = [slots / mean * n / 20 for n in range(21)]
    knee = plan.planned_rate
    series = [
        Series("busy slots", rates, [100 * rate * mean / slots for rate in rates]),
        Series("knee: the wait breaks", [knee, knee], [0, 100]),
        Series("planned", [plan.demand.rate, plan.demand.rate], [0, 100]),
    ]
    note = f"With {slots} slots the wait is kept up to {knee:.3g} jobs/s."
    return Plot("utilisation", "Utilisation against rate", "jobs per second", "percent of the slots", series, note)


def _connections(plan: Plan, measured: Measurement) -> Plot:
    most = max(plan.safe_workers, plan.workers) + 3
    replicas = list(range(most + 1))
    each = measured.connections_per_worker
    ceiling = plan.connections_available
    series = [
        Series("held", replicas, [n * each for n in replicas]),
        Series("in a deployment", replicas, [n * each * plan.demand.surge for n in replicas]),
        Series("ceiling", [0, most], [ceiling, ceiling]),
    ]
    note = f"{plan.safe_workers} replicas are safe."
    return Plot("connections", "Connections against replicas", "replicas", "connections", series, note)


def _scaling(measured: Measurement) -> Plot:
    law, seen = measured.law, sorted(measured.scaling.items())
    most = max(2 * seen[-1][0], 4)
    series = [
        Series("measured", [n for n, _ in seen], [rate for _, rate in seen]),
        Series("fitted law", list(range(1, most + 1)), [law.throughput(n) for n in range(1, most + 1)]),
    ]
    fitted = f"contention {law.contention:.3f}, coherency {law.coherency:.5f}"
    note = f"Handlers do nothing. Universal Scalability Law: {fitted}."
    return Plot("scaling", "Throughput against workers", "workers", "jobs per second", series, note)


def _validations(validations: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (run["run"], f"{run['rate']:.3g}/s", item["figure"], f"{item['measured']:.3g}",
         f"{item['low']:.3g} to {item['high']:.3g}", "within" if item["within"] else "outside")
        for run in validations for item in run["figures"]
    ]  # fmt: skip


def _ms(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds * 1000


def _floor(waits: Sequence[float | None]) -> float:
    return min(wait for wait in waits if wait)
