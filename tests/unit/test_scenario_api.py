"""The scenario api, played small: through a full queue and a kill of the API nothing is lost or done twice."""

from __future__ import annotations

from pathlib import Path

import psycopg
from loads import Load

from pgqueue_ref.harness.slo import Exit

# No bound on time: how late this machine is says nothing here.
SLO = """
[[api.slo]]
metric = "arrivals.achieved_ratio"
min = 1
[[api.slo]]
metric = "ledger.unexplained"
max = 0
breach = "correctness"
[[api.slo]]
metric = "found.above_limit"
max = 0
samples = "found.snapshots"
breach = "correctness"
[[api.slo]]
metric = "found.connections_beyond"
max = 0
[[api.slo]]
metric = "found.burst_busy"
min = 1
breach = "invalid"
[[api.slo]]
metric = "found.restart_unanswered"
min = 1
breach = "invalid"
"""
SMALL = "seconds=1.5", "burst_seconds=1.5", "down_seconds=3", "slots=2", "limit=4", "pool=2", "producers=12"


def test_every_job_is_pushed_once_through_a_full_queue_and_an_api_that_dies(database: str, tmp_path: Path) -> None:
    load = Load(database, tmp_path)
    load.slo.write_text(SLO)
    parameters = [word for name in SMALL for word in ("--set", name)]
    code, output = load.run("--scenario", "api", *parameters)
    assert code == Exit.PASS, output
    result = load.result()
    assert result["ledger"]["pushed"] == result["ledger"]["completed"]
    assert [phase["name"] for phase in result["phases"]] == ["fits", "burst", "restart"]
    (directory,) = load.directories()
    logs = [(directory / f"api-{number}.log").read_text() for number in (1, 2)]
    assert all("lets in: load (write)" in log for log in logs)
    assert " 201 " in logs[0]
    assert " 201 " in logs[1]
    with psycopg.connect(database) as connection:
        held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:api'"
        assert connection.execute(f"{held} AND datname = current_database()").fetchone() == (0,), (
            "it ended with the run"
        )
