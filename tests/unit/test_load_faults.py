"""Faults in real load runs: workers die and freeze, a connection is cut, the server crashes; no job is lost by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loads import SMALL_SLO, Load

from pgqueue_ref.harness.slo import Exit


@pytest.fixture
def load(database: str, tmp_path: Path) -> Load:
    return Load(database, tmp_path)


def test_nothing_is_lost_and_every_second_run_is_explained(load: Load) -> None:
    # Two workers have 4 slots each for 6 jobs at a time: whichever is hit has some. Before the frozen one goes on, its
    # leases of 2 s have run out and the other has looked for such (every 5 s): its jobs run again. They have run twice
    # if the frozen one ends them before a heartbeat tells it that they are no longer its own.
    load.write_trace(300, duration=0.06)  # both five times as much at a fifth of the speed
    load.slo.write_text(SMALL_SLO + '[[steady.slo]]\nmetric = "ledger.undrained"\nmax = 0\n')
    faults = ["terminate-backend", "crash-postgres", "kill-worker", "pause-worker"]
    code, output = load.run(
        "--postgres", "embedded", "--speedup", "0.2", "--set", "slots=4", "--set", "lease=2",
        "--fault", "terminate-backend@1s,crash-postgres@1.5s,kill-worker@4s,pause-worker@7s:8s",
    )  # fmt: skip
    assert code == Exit.PASS, output
    result = load.result()
    found = result["ledger"]
    assert (found["lost"], found["unexpected"], found["failed"], found["undrained"]) == (0, 0, 0, 0)
    assert found["recovered"] + found["duplicated"] > 0
    assert found["unexplained"] == 0
    assert [fault["name"] for fault in result["faults"]] == faults
    assert all(fault["until"] > fault["at"] for fault in result["faults"])
    assert re.findall(r"fault: ([\w-]+), ", output) == faults
    assert result["arrivals"]["achieved"] == result["arrivals"]["offered"] == 300
    assert set(result["requests"]["refused"]) == {"DatabaseUnavailable"}, "what the crash answered was expected"
    (directory,) = load.directories()
    assert {path.name for path in directory.glob("worker-*.log")} == {f"worker-{n}.log" for n in (1, 2, 3)}


# Scenarios that count connections, put up locks or claim themselves: what a fault does must not be taken for what they
# look for. Small, as in their own tests.
SMALL = {
    "depth": ("deep=3000", "claims=100"),
    "statement-timeout": ("timeout=0.5", "deadline=1.5", "seconds=2", "rate=20", "stalled=3", "slots=4"),
    "connection-limit": ("seconds=1", "overlap=2", "crowd=2", "slots=4"),
}
JUDGED = {
    "depth": {"plans_off_index": 0},
    "statement-timeout": {"wrong_class": 0, "unusable": 0, "miscounted": 0},
    "connection-limit": {"workers_missing": 0, "pools_refused": 0, "surge_with_room_refused": 0, "unclassified": 0},
}


@pytest.mark.parametrize("scenario", SMALL)
def test_every_fault_can_be_added_also_where_it_has_to_wait_for_the_scenario(load: Load, scenario: str) -> None:
    metrics = [f"found.{name}" for name in JUDGED[scenario]] + ["ledger.unexplained", "ledger.undrained"]
    load.slo.write_text("".join(f'[[{scenario}.slo]]\nmetric = "{metric}"\nmax = 0\n' for metric in metrics))
    kinds = ["terminate-backend", "crash-postgres", "kill-worker", "pause-worker"]
    times = ",".join(f"{kind}@1s" for kind in kinds)
    parameters = [word for setting in (*SMALL[scenario], "lease=2") for word in ("--set", setting)]
    code, output = load.run("--postgres", "embedded", "--scenario", scenario, *parameters, "--fault", f"{times}:1s")
    assert code == Exit.PASS, output
    result = load.result()
    assert [fault["name"] for fault in result["faults"]] == kinds
    found = {figure["name"]: figure["value"] for figure in result["found"]}
    assert {name: found[name] for name in JUDGED[scenario]} == JUDGED[scenario]
