"""The scenario pinned-xmin: what it makes of a queue that a held snapshot slows down, and that its snapshot pins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from loads import Load, judged, script, stage, wait_for_line
from waiting import until

from pgqueue_ref.harness.latency import Latencies
from pgqueue_ref.harness.result import Phase
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.slo import Exit

RELEASED, END, RATE = 50.0, 70.0, 100
PHASES = (
    Phase("clean", 0.0, 15.0),
    Phase("history", 15.0, 30.0),
    Phase("pinned", 30.0, 50.0),
    Phase("recovery", 50.0, END),
)


def told(
    directory: Path, *, pinned: float = 0.005, after: float = 0.005, settled: float = RELEASED, vacuumed: float = 53.0,
    dead: int = 602_000, bystander: float = 0.004, clean: float = 0.005,
) -> LoadRun:  # fmt: skip
    """A run of which only this is known, judged: start latencies (s) of each phase, when they fell after the release
    and when the dead tuples did, how many those were, and the bystander's latency while they were there."""
    scenario: Any = script("pinned_xmin").PinnedXmin(quick=True)
    run = stage(scenario, directory)
    run.measured.phases = list(PHASES)
    run.measured.arrivals_ended = END
    scenario._bystander, scenario._released, scenario._nap = Latencies("bystander", 1.0), RELEASED, 5.0
    for tick in range(int(END * RATE)):
        at = tick / RATE
        if not 15 <= at < 30:  # no arrivals in the history
            slow = pinned if at < settled else after
            run.measured.latencies.append((at, clean if at < 15 else slow, 0.03 + slow))
        scenario._bystander.record(at, bystander if 30 <= at < vacuumed else 0.004)
    rows = [{"t": float(t), "dead_tuples": dead if 30 <= t < vacuumed else 100} for t in range(int(END) + 1)]
    run.measured.sampler = SimpleNamespace(samples=rows)  # type: ignore[assignment]
    scenario.judge(run)
    return run


def figures(run: LoadRun) -> dict[str, Any]:
    return {figure["name"]: figure["value"] for figure in run.measured.found}


def test_a_queue_that_does_not_mind_the_snapshot_passes(tmp_path: Path) -> None:
    run = told(tmp_path)
    assert judged(run).reasons == []
    found = figures(run)
    assert (found["start_p50_ratio"], found["start_p99_ratio"], found["bystander_ratio"]) == (1.0, 1.0, 1.0)
    assert found["dead_tuples"] == 602_000
    assert found["pinned_share"] == pytest.approx(602_000 / (2 * (300_000 + 2_000)), rel=0.01)
    assert (found["settled_seconds"], found["vacuumed_seconds"], found["recovered"]) == (1.0, 3.0, 1)
    assert found["recovery_naps"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("happened", "breach", "code"),
    [
        ({"pinned": 0.15}, "found.start_p50_ratio is 6", Exit.SLO_BREACH),
        ({"pinned": 0.15, "after": 0.15}, "found.recovered is 0", Exit.SLO_BREACH),
        ({"pinned": 0.15, "settled": 66.0}, "found.recovery_naps is 3.4", Exit.SLO_BREACH),
        ({"vacuumed": 100.0}, "found.recovered is 0", Exit.SLO_BREACH),
        ({"vacuumed": 66.0}, "found.recovery_naps is 3.2", Exit.SLO_BREACH),
        ({"bystander": 0.2}, "found.bystander_ratio is 6.6", Exit.SLO_BREACH),
        ({"dead": 300_000}, "found.pinned_share is 0.49", Exit.INVALID),
    ],
)
def test_what_a_snapshot_must_not_do_is_a_breach(
    tmp_path: Path, happened: dict[str, float], breach: str, code: Exit
) -> None:
    verdict = judged(told(tmp_path, **happened))  # type: ignore[arg-type]
    assert verdict.exit is code
    assert any(reason.startswith(breach) for reason in verdict.reasons), verdict.reasons


def test_a_machine_that_grew_busy_and_stayed_so_is_no_breach(tmp_path: Path) -> None:
    run = told(tmp_path, pinned=0.045, after=0.045)
    assert figures(run)["start_p50_ratio"] == pytest.approx(1.0, rel=0.01)
    assert judged(run).passed


@pytest.mark.parametrize(
    ("value", "base", "ratio"),
    [(50.0, [10.0], 2.0), (200.0, [50.0], 4.0), (200.0, [50.0, 100.0], 2.0), (5.0, [1.0], 1.0),
     (200.0, [None, 50.0], 4.0), (None, [50.0], None), (200.0, [None], None)],
)  # fmt: skip
def test_ratios_are_over_the_largest_base_and_noise_counts_as_the_floor(
    value: float | None, base: list[float | None], ratio: float | None
) -> None:
    assert script("pinned_xmin").over(value, *base, floor=25.0) == ratio


# -- played ----------------------------------------------------------------------------------------------

SLO = """
[[pinned-xmin.slo]]
metric = "found.pinned_share"
min = 0.8
max = 1.2
[[pinned-xmin.slo]]
metric = "found.probes_per_phase"
min = 1
[[pinned-xmin.slo]]
metric = "ledger.undrained"
max = 0
"""
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'loadtest snapshot' AND state = 'idle in transaction'
  AND backend_xmin IS NOT NULL  -- from its first statement on, not from BEGIN
"""
SMALL = "clean=1", "pinned=3", "recovery=6", "history=20000", "rate=30", "producers=4", "vacuum_every=0.5"


@pytest.fixture
def load(database: str, tmp_path: Path) -> Load:
    load = Load(database, tmp_path)
    load.slo.write_text(SLO)
    return load


def options() -> list[str]:
    return ["--scenario", "pinned-xmin", *(word for parameter in SMALL for word in ("--set", parameter))]


def test_its_snapshot_pins_what_the_jobs_leave_until_it_is_released(load: Load) -> None:
    code, output = load.run(*options())
    assert code == Exit.PASS, output
    result = load.result()
    assert [phase["name"] for phase in result["phases"]] == ["clean", "history", "pinned", "recovery"]
    samples, pinned = result["series"]["samples"], result["phases"][2]
    assert any(row["dead_tuples"] >= 40_000 for row in samples if row["t"] <= pinned["to"])
    assert [plot["title"] for plot in result["plots"]] == ["Latency of the bystander"]


def test_a_snapshot_whose_session_is_ended_is_no_verdict_but_named(load: Load) -> None:
    process = load.start(*options())
    wait_for_line(process, "workers are at work")
    with psycopg.connect(load.database, autocommit=True) as connection:
        until(lambda: connection.execute(CUT).fetchall(), "the snapshot is held, and cut")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == Exit.CRASH_OR_USAGE, output
    assert "the session that held the snapshot was ended meanwhile" in output
