"""Plans: what they ask for, what binds, what is infeasible, and files that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from measured import MEASURED

from pgqueue_ref.capacity import CapacityError, measurement, model, plan, report, service, simulate, trace, validate
from pgqueue_ref.capacity.plan import Demand
from pgqueue_ref.harness.connections import safe_workers
from pgqueue_ref.harness.traces import Arrival, Trace


def test_a_plan_keeps_the_wait_with_the_fewest_slots() -> None:
    made = plan.make(MEASURED, Demand(rate=60, wait=0.5))
    assert made.feasible
    assert made.slots_per_worker * made.workers == made.slots
    assert made.wait <= 0.5
    assert plan.wait_with(MEASURED.service, 60, made.slots - made.workers, 99) + made.pickup > 0.5
    assert made.connections == made.workers * 3 * 2
    assert made.planned_rate >= 60
    assert made.headroom()["planned job slots"] >= 1


def test_service_times_that_vary_more_need_more_slots_than_erlang_c_says() -> None:
    fixed, varied = (plan.slots_for(service.of_spec(spec), 60, 0.5, 99) for spec in ("fixed:0.5", "lognormal:0.5:6"))
    assert fixed < plan.slots_for(service.of_spec("exp:0.5"), 60, 0.5, 99) < varied


def test_the_wait_close_to_saturation_is_not_that_of_a_window_that_began_empty() -> None:
    times, slots, rate, waits = service.of_spec("fixed:1"), 2, 0.99 * 2, []
    for seed in (1, 2):  # 150 times as long as a window; those alone give half of it
        waits += simulate.waits(simulate.load(rate, 3_000_000 / rate, times, random.Random(seed)), slots)
    long = simulate.percentile(sorted(waits), 99)
    assert plan.wait_with(times, rate, slots, 99) == pytest.approx(long, rel=0.2)


def test_the_safe_workers_are_those_of_the_formula_that_the_scenario_confirms() -> None:
    made = plan.make(MEASURED, Demand(rate=60, wait=0.5, max_connections=50, others=5, surge=1))
    assert made.safe_workers == safe_workers(50, reserved=3, others=5, per_worker=3) == 14


def test_too_few_connections_are_infeasible_and_the_nearest_rate_is_feasible() -> None:
    demand = Demand(rate=500, wait=0.5, max_connections=40, slots_per_worker=20)
    made = plan.make(MEASURED, demand)
    assert not made.feasible
    assert made.binding.name == "connections"
    nearest = plan.make(MEASURED, dataclasses.replace(demand, rate=0.98 * made.feasible_rate))
    assert nearest.feasible


def test_more_than_the_server_can_do_is_infeasible() -> None:
    made = plan.make(MEASURED, Demand(rate=50_000, wait=0.5), service.of_spec("exp:0.001"))
    assert not made.feasible
    assert made.binding.name == "server"


def test_replicas_that_are_given_are_kept_and_may_be_too_few() -> None:
    given = plan.make(MEASURED, Demand(rate=60, wait=0.5, replicas=5))
    assert given.workers == 5
    few = plan.make(MEASURED, Demand(rate=60, wait=0.5, replicas=1, slots_per_worker=10))
    assert not few.feasible
    assert few.binding.name == "replicas"
    many = plan.make(MEASURED, Demand(rate=60, wait=0.5, replicas=50))
    assert many.feasible_rate == 0
    assert many.binding.name == "connections"


def test_retries_are_attempts_too() -> None:
    once, again = (plan.make(MEASURED, Demand(rate=60, wait=0.5, retries=share)).slots for share in (0.0, 0.5))
    assert again > 1.5 * once


def test_a_rule_of_thumb_tells_the_wait_that_it_gives() -> None:
    made = plan.make(MEASURED, Demand(rate=60, wait=0.5))
    product, share, pools = made.rules
    assert product.slots == 46
    assert product.wait == plan.wait_with(MEASURED.service, 60, 46, 99)
    assert 0 < share.refused < 1
    assert "6" in pools.says
    tight = plan.make(MEASURED, Demand(rate=60, wait=0.5, max_connections=24))
    assert math.isinf(tight.rules[2].wait), "no replica at all: the queue grows for ever"


def test_a_wait_below_the_pickup_cannot_be_promised() -> None:
    with pytest.raises(CapacityError, match="alone takes 10 ms to pick up"):
        plan.make(MEASURED, Demand(rate=60, wait=0.01))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rate": 0}, "--rate 0: must be above 0"),
        ({"rate": -1}, "--rate -1"),
        ({"rate": math.nan}, "--rate nan"),
        ({"wait": 0}, "--wait-p99 0"),
        ({"wait": math.inf}, "--wait-p99 inf"),
        ({"wait": 1e300}, "--wait-p99 1e\\+300"),
        ({"surge": 0.5}, "--surge 0.5"),
        ({"surge": math.inf}, "--surge inf"),
        ({"retries": 1}, "--retries 1"),
        ({"slots_per_worker": 0}, "--slots-per-worker 0"),
        ({"max_connections": 13}, "above the 13 that are kept from workers"),
        ({"reserved": -1}, "must not be negative"),
        ({"percentile": 100}, "percentile 100"),
        ({"replicas": -1}, "--replicas -1"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CapacityError, match=says):
        Demand(**{"rate": 60, "wait": 0.5} | fields)


# -- files ------------------------------------------------------------------------------------------------------


def test_a_measurement_survives_its_file(tmp_path: Path) -> None:
    measurement.save(MEASURED, tmp_path / "m.json")
    assert measurement.load(tmp_path / "m.json") == MEASURED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "format None, this version reads 1"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1}', "not a measurement"),
        ('{"format": 1, "push_by_batch": 3}', "not a measurement"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused_in_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "m.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CapacityError, match=says) as refused:
        measurement.load(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["claim", "pickup"])
def test_a_measurement_without_times_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(MEASURED.document() | {name: []}))
    with pytest.raises(CapacityError, match=f"m.json: not a measurement \\(no times of {name}\\); make it with"):
        measurement.load(file)


def test_a_plan_is_json_without_infinities(tmp_path: Path) -> None:
    made = plan.make(MEASURED, Demand(rate=60, wait=0.5, max_connections=24))
    document = json.loads(json.dumps(made.document(), allow_nan=False))
    assert document["rules"][2]["wait"] is None
    assert document["feasible"] is made.feasible
    assert service.of_document(document["service"]) == MEASURED.service


def test_the_report_has_its_page_and_its_pictures(tmp_path: Path) -> None:
    made = plan.make(MEASURED, Demand(rate=60, wait=0.5))
    validations = [{"run": "r1", "rate": 60.0, "figures": [
        {"figure": "wait_p99", "low": 0.1, "high": 0.3, "measured": 0.4, "within": False}]}]  # fmt: skip
    page = report.write(tmp_path / "out", made, MEASURED, {"validations": validations}).read_text()
    assert "feasible" in page
    assert "outside" in page
    for word in ("Waiting time against slots", "Utilisation against rate", "Connections against replicas"):
        assert word in page
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["connections.png", "scaling.png", "utilisation.png", "waiting.png"]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


# -- service times and traces -----------------------------------------------------------------------------------


def test_moments_name_a_distribution() -> None:
    assert service.of_moments(0.5, 0).spec == "fixed:0.5"
    assert service.of_moments(0.5, 1).exponential
    varied = service.of_moments(0.5, 4)
    assert (varied.mean, varied.squared_cv) == (0.5, 4)


@pytest.mark.parametrize("spec", ["exp:-1", "exp:0", "gamma:1", "lognormal:1", "exp:nan", "0"])
def test_a_distribution_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(CapacityError, match="service"):
        service.of_spec(spec)


def test_times_that_are_too_few_or_mean_nothing_are_refused() -> None:
    with pytest.raises(CapacityError, match="1 service times, 20 are needed"):
        service.of_times([1.0], "a trace")
    with pytest.raises(CapacityError, match="negative"):
        service.of_times([1.0] * 30 + [-1.0], "a trace")
    with pytest.raises(CapacityError, match="nothing to plan for"):
        service.of_times([0.0] * 30, "a trace")


def test_seen_times_are_drawn_from_and_described() -> None:
    times = service.of_times([0.1, 0.3] * 50_000, "a trace")
    assert len(times.times) <= service.KEPT
    assert times.mean == pytest.approx(0.2)
    assert times.squared_cv == pytest.approx(0.25)


def test_a_trace_has_its_busiest_hour_and_its_day() -> None:
    quiet = [Arrival(60.0 * n, 1.0, "job") for n in range(24 * 60)]
    rush = [Arrival(5 * 3600 + n, 2.0, "job") for n in range(3600)]
    log = Trace("log", tuple(sorted(quiet + rush)))
    busiest = trace.busiest(log, growth=2.0)
    assert busiest.start == 5 * 3600
    assert busiest.rate == pytest.approx(2 * (1 + 1 / 60))
    assert trace.wait_as_logged(busiest, 5, 99) == 0
    assert trace.wait_as_logged(busiest, 3, 99) > 0, "twice as dense, two seconds each: four slots are busy"
    hours = trace.by_hour(log)
    assert max(hours, key=lambda hour: hour.load).hour == 5
    assert len(hours) == 24


@pytest.mark.parametrize(
    ("cut", "start", "rate"),
    [
        (1800.0, 3600.0, 3.0),  # half an hour of a busier load counts as what it is
        (30.0, 0.0, 1.0),  # seconds of it do not
    ],
)
def test_the_last_hour_of_a_trace_is_as_long_as_the_trace_covers_it(cut: float, start: float, rate: float) -> None:
    calm = [Arrival(float(n), 1.0, "job") for n in range(3600)]
    busy = [Arrival(3600 + n / 3, 1.0, "job") for n in range(int(3 * cut) + 1)]
    found = trace.busiest(Trace("log", tuple(calm + busy)))
    assert (found.start, found.rate) == (start, pytest.approx(rate, rel=0.01))


def test_every_hour_of_the_day_counts_as_often_as_the_trace_covers_it() -> None:
    log = Trace("log", tuple(Arrival(60.0 * n, 1.0, "job") for n in range(36 * 60 + 1)))
    assert [hour.rate * 3600 for hour in trace.by_hour(log)] == pytest.approx([60.0] * 24, rel=0.02)
    short = Trace("log", tuple(Arrival(60.0 * n, 1.0, "job") for n in range(91)))
    assert [hour.rate * 3600 for hour in trace.by_hour(short)] == pytest.approx([60, 60, *[0] * 22], rel=0.05)


def test_a_trace_with_one_job_and_a_growth_of_nothing_are_refused() -> None:
    with pytest.raises(CapacityError, match="1 job; a plan needs"):
        trace.busiest(Trace("log", (Arrival(0.0, 1.0, "job"),)))
    with pytest.raises(CapacityError, match="--growth 0"):
        trace.busiest(Trace("log", (Arrival(0.0, 1.0, "job"), Arrival(5.0, 1.0, "job"))), growth=0)


def test_the_table_of_shards_in_the_documentation_is_erlang_c() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) % \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for shards, load, slots, all_slots, busy in (map(int, row) for row in rows):
        assert shards * load == 480 * 0.5
        assert slots == model.slots_needed(load, 0.5, 0.5, 99)
        assert all_slots == shards * slots
        assert busy == round(100 * load / slots)


def test_a_run_is_held_against_its_window_alone() -> None:
    shape = validate.Shape(rate=1, seconds=10, workers=2, slots=2, service=MEASURED.service)
    samples = [
        {"t": str(t), "running": "2" if 3 <= t <= 13 else "0", "by_application": '{"pgqueue_ref:claim": 6}'}
        for t in range(20)
    ]
    result = {"latency": {"start": {"p95_ms": 10, "p99_ms": 20}}, "phases": [{"from": 2.5}]}
    interval = simulate.Interval(0.0, 0.1, 0.4)
    predicted = dict.fromkeys(("wait_p95", "wait_p99", "utilisation"), interval)
    found = {item.figure: item for item in validate.compare(predicted, result, samples, shape, MEASURED)}
    assert found["utilisation"].measured == 0.5, "neither what came before the load counts, nor the drain"
    assert not found["utilisation"].within
    assert (found["wait_p99"].measured, found["connections"].measured) == (0.02, 6)
