"""The scenario depth, played small: it holds for this queue, and finds one that left its index or its order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from loads import judged, script, stage

from pgqueue_ref.harness.faults import Line
from pgqueue_ref.harness.run import LoadRun, RunError
from pgqueue_ref.harness.slo import Exit

SMALL = {"deep": "3000", "claims": "5"}


def played(directory: Path, database: str, sabotage: str = "") -> LoadRun:
    """The scenario played, with a statement run at each level but the empty one before the claims."""
    module: Any = script("depth")

    class Sabotaged(module.Depth):
        @contextlib.contextmanager
        def _filled(self, run: LoadRun, level: Any) -> Iterator[Line]:
            with super()._filled(run, level) as line:
                if sabotage and level.name != "empty":
                    line.connection.execute(sabotage)
                yield line

    scenario = Sabotaged(quick=True, overrides=SMALL)
    scenario.prepare(SimpleNamespace(fault=""))
    run = stage(scenario, directory, database)
    scenario.play(run)
    scenario.judge(run)
    return run


def figures(run: LoadRun) -> dict[str, Any]:
    return {figure["name"]: figure["value"] for figure in run.measured.found}


def test_the_claims_of_all_levels_keep_to_their_index_and_nothing_stays_behind(database: str, tmp_path: Path) -> None:
    run = played(tmp_path, database)
    found = figures(run)
    assert (found["claims"], found["plans"], found["plans_off_index"]) == (5, 12, 0)
    assert found["pages_per_job"] <= 60
    assert found["pages_ratio"] <= 4
    # Every objective on the scenario's own figures was measured; all that is wrong is that five claims are too few.
    verdict = judged(run)
    assert verdict.exit is Exit.INVALID
    assert sorted(verdict.reasons) == [
        f"found.{percentile}_ratio rests on 5 samples, 100 are needed" for percentile in ("p50", "p99")
    ]
    with psycopg.connect(database) as connection:
        schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgqueue_load_%'").fetchall()
    assert schemas == []


def test_plans_that_leave_the_claims_index_are_a_breach_with_what_they_read(database: str, tmp_path: Path) -> None:
    run = played(tmp_path, database, "DROP INDEX pgqueue_jobs_claim")
    assert figures(run)["plans_off_index"] == 10
    assert figures(run)["pages_ratio"] > 4
    verdict = judged(run)
    assert any(reason.startswith("found.plans_off_index is 10") for reason in verdict.reasons)
    (meaning,) = (item["meaning"] for item in run.measured.found if item["name"] == "plans_off_index")
    assert "pgqueue_jobs" in meaning


def test_a_claim_that_comes_short_or_out_of_order_ends_the_run_with_the_level(database: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="shallow: a claim took 0 jobs, not the 10 of priority 0"):
        played(tmp_path, database, "UPDATE pgqueue_jobs SET run_at = now() + interval '1 day' WHERE priority = 0")


def test_faults_find_workers_to_hit_where_there_would_be_none() -> None:
    scenario = script("depth").Depth(quick=True)
    scenario.prepare(SimpleNamespace(fault=""))
    assert scenario.workers == 0
    scenario.prepare(SimpleNamespace(fault="kill-worker@3s"))
    assert scenario.workers == 2
