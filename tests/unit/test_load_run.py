"""The load run as a person starts it: `locust -f loadtests`, with real workers on a real server."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from loads import ROOT, SMALL_SLO, Load, wait_for_line
from psycopg.conninfo import conninfo_to_dict

from pgqueue_ref.core import DatabaseUnavailable
from pgqueue_ref.harness.run import Live, LoadRun, Settings
from pgqueue_ref.harness.scenario import Scenario
from pgqueue_ref.harness.slo import Exit


@pytest.fixture
def load(database: str, tmp_path: Path) -> Load:
    return Load(database, tmp_path)


def test_a_sound_run_passes_and_leaves_its_directory_and_nothing_else(load: Load, tmp_path: Path) -> None:
    code, output = load.run("--summary", str(tmp_path / "summary.json"))
    assert code == Exit.PASS, output
    lines = output.strip().splitlines()
    assert lines[-2].startswith("PASS steady")
    (directory,) = load.directories()
    assert lines[-1] == f"report: {directory / 'report.html'}"
    names = {path.name for path in directory.iterdir()}
    assert names >= {"manifest.json", "result.json", "report.html", "samples.csv", "histograms", "locust.html",
                     "locust_stats.csv", "worker-1.log", "worker-2.log"}  # fmt: skip
    for number in (1, 2):
        assert "stopped" in (directory / f"worker-{number}.log").read_text()
    assert load.schemas() == []
    result = load.result()
    assert result["schema_version"] == 2
    assert (result["ledger"]["lost"], result["ledger"]["unexpected"], result["ledger"]["undrained"]) == (0, 0, 0)
    assert (result["arrivals"]["offered"], result["arrivals"]["achieved"]) == (150, 150)
    assert result["latency"]["start"]["count"] == 150
    assert sum(result["series"]["offered"]) == sum(result["series"]["pushed"]) == 150
    with (directory / "samples.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= 2
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["server"]["settings"]["fsync"] in ("on", "off")
    assert manifest["trace"]["kinds"] == {"mail": 75, "thumbnail": 75}
    password = str(conninfo_to_dict(load.database)["password"]).encode()
    written = [file for file in directory.rglob("*") if file.is_file()]
    assert [file.name for file in written if password in file.read_bytes()] == []
    assert password.decode() not in output
    assert "Thanks to Ada" in (directory / "report.html").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {figure["name"] for figure in summary["figures"]} >= {"steady.ledger.lost"}
    assert summary["figures"][0] == {"name": "steady.exit_code", "value": 0, "unit": "", "bound": "= 0", "ok": True}


def test_a_breached_objective_is_exit_3_and_the_schema_stays_for_inspection(load: Load) -> None:
    load.slo.write_text(SMALL_SLO + '[[steady.slo]]\nmetric = "latency.start.p99_ms"\nmax = 0.001\n')
    code, output = load.run()
    assert code == Exit.SLO_BREACH, output
    assert "FAIL steady (exit 3): latency.start.p99_ms" in output
    (schema,) = load.schemas()
    assert f"DROP SCHEMA {schema} CASCADE" in output


def test_too_few_jobs_and_faults_that_never_came_are_exit_4(load: Load) -> None:
    load.write_trace(40)
    code, output = load.run("--fault", "kill-worker@1h,pause-worker@2h")
    assert code == Exit.INVALID, output
    assert "rests on 40 samples" in output
    assert "the run ended before 2 of its faults" in output


def test_a_backlog_that_does_not_drain_in_time_is_no_pass(load: Load) -> None:
    load.write_trace(150, duration=60)
    load.slo.write_text(SMALL_SLO + '[[steady.slo]]\nmetric = "ledger.undrained"\nmax = 0\n')
    code, output = load.run("--set", "drain_timeout=1")
    assert code == Exit.SLO_BREACH, output
    assert "ledger.undrained is 150" in output


def test_a_summary_of_an_earlier_run_is_gone_when_this_one_does_not_start(load: Load, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}")
    code, output = load.run("--summary", str(old), "--scenario", "unsteady")
    assert code == Exit.CRASH_OR_USAGE, output
    assert not old.exists()


def worker_pids(parent: int) -> list[int]:
    """The worker processes that the run started; waits until there are two that have pushed through warm-up."""
    import psutil  # Locust brings it

    return [p.pid for p in psutil.Process(parent).children(recursive=True) if "worker" in p.cmdline()]


def test_a_worker_that_dies_unasked_is_exit_2_and_named(load: Load) -> None:
    load.write_trace(3000, duration=0.001)
    process = load.start("--speedup", "0.2")  # long enough for the death to come in the middle
    wait_for_line(process, "workers are at work")
    os.kill(worker_pids(process.pid)[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (Exit.CRASH_OR_USAGE, Exit.INCORRECT), output
    assert "by signal SIGKILL" in output


def test_sigterm_ends_workers_and_is_no_pass(load: Load) -> None:
    process = load.start("--speedup", "0.05")
    wait_for_line(process, "workers are at work")
    pids = worker_pids(process.pid)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.CRASH_OR_USAGE, output
    assert "ended by SIGTERM" in output
    assert "PASS" not in output
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.05)


def test_a_driver_that_would_block_every_producer_is_refused_at_the_start() -> None:
    words = [sys.executable, "-c", "import psycopg; from locust.main import main; main()"]  # before Locust patched it
    done = subprocess.run(
        [*words, "-f", "loadtests", "--headless", "--loglevel", "ERROR"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == Exit.CRASH_OR_USAGE
    assert done.stdout.splitlines() == [
        "psycopg was imported before gevent patched the library; start with `locust -f loadtests`"
    ]


def test_progress_is_a_line_in_columns_that_also_says_what_is_not_known() -> None:
    sample = {"pending": 12_345, "running": 64}
    full = Live(65.4, "spike", 300.4, 160.0, 2.3104, errors=2, refused=1_700, sample=sample)
    assert str(full) == (
        "   65 s  spike       pushed   300/s  finished   160/s  pending 12,345  running   64  start p99  2,310 ms"
        "  errors 2  refused 1,700"
    )
    assert str(Live(5.0, "", 0.0, 0.0, None, errors=0, refused=0)) == (
        "    5 s              pushed     0/s  finished     0/s  pending      -  running    -  start p99         -"
        "  errors 0"
    )


def test_a_server_that_does_not_answer_is_told_and_progress_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("pgqueue_ref.harness.run.PROGRESS_EVERY", 0.001)

    class Unreachable(LoadRun):
        @property
        def over(self) -> bool:
            return len(told) >= 2

        def connect(self, name: str, **settings: Any) -> psycopg.Connection[Any]:
            raise DatabaseUnavailable("connection to postgresql://u:hunter2@db\nrefused")

    settings = Settings(Scenario(quick=True), [], "", tmp_path, tmp_path)
    Unreachable(settings, None, None, told.append)._tell_progress()
    assert told == ["    0 s  no progress to be seen: connection to postgresql://u:***@db refused"] * 2


def test_ctrl_c_drains_and_judges_but_is_no_pass(load: Load) -> None:
    load.slo.write_text(SMALL_SLO.replace("100", "1"))
    process = load.start("--speedup", "0.05")
    line = wait_for_line(process, "start p99")
    assert re.fullmatch(
        r" +\d+ s  load        pushed +\d+/s  finished +\d+/s  pending +\d+  running +\d+  start p99 +[\d,]+ ms"
        r"  errors 0\n",
        line,
    )
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.INVALID, output
    assert "stopped before the scenario was through" in output
    assert load.result()["ledger"]["lost"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trace", "{dir}/cut.swf"), "cut.swf, line 1: 7 fields"),
        (("--trace", "{dir}/columns.csv"), "no column duration, kind"),
        (("--trace", "{dir}/empty.csv"), "is empty"),
        (("--trace-from", "9d"), "no job between"),
        (("--speedup", "0"), "speedup must be"),
        (("--set", "seconds=nan"), "must be a finite number"),
        (("--set", "speed=1"), "steady has no parameter speed"),
        (("--set", "rate"), "write NAME=VALUE"),
        (("--scenario", "unsteady"), "there is none of that name"),
        (("--fault", "kill-worker"), "write KIND@TIME"),
        (("--fault", "kill-dba@3s"), "KIND one of kill-worker"),
        (("--fault", "kill-worker@3s:4s"), "only pause-worker lasts"),
        (("--fault", "crash-postgres@3s"), "was not started here"),
        (("--slo", "{dir}/none.toml"), "none.toml: cannot be read"),
        (("--summary", "{dir}/none/s.json"), "no such directory"),
        (("--postgres", "nowhere"), "no such kind of PostgreSQL server"),
        (("--postgres", "postgresql://u:hunter2@127.0.0.1:1/x"), "refuse"),
        (("--set", "slots=many"), "must be like 32"),
        (("--set", "slots=0"), "must be above 0"),
        (("--seed", "many"), "invalid int value"),
    ],
)
def test_bad_input_costs_one_line_exit_2_and_starts_nothing(
    load: Load, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "cut.swf").write_text("1 0 -1 1451 128 -1 -")
    (tmp_path / "columns.csv").write_text("at,length\n0,1\n")
    (tmp_path / "empty.csv").write_text("")
    code, output = load.run(*(option.format(dir=tmp_path) for option in options))
    assert code == Exit.CRASH_OR_USAGE, output
    (line,) = [line for line in output.splitlines() if line.strip()]
    assert says in line
    assert "hunter2" not in output
    assert load.directories() == []
    assert load.schemas() == []
