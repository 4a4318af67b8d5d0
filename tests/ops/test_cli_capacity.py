"""`pgqueue-ref capacity` as a planner uses it: measure a server, plan, simulate, validate; and every bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from measured import MEASURED

from pgqueue_ref.capacity import measurement, service
from pgqueue_ref.extensions import events
from pgqueue_ref.ops import app

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A measurement's file, as if of a fast server."""
    file = tmp_path / "m.json"
    measurement.save(MEASURED, file)
    return file


def capacity(*arguments: object) -> int:
    return app.run(["capacity", *map(str, arguments)])


def test_a_plan_says_what_to_run_what_binds_and_what_rules_of_thumb_give(
    measured: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # or words are broken where a test process has a narrower one
    assert capacity("plan", "-m", measured, "--rate", 60, "--wait-p99", "500ms", "--report", tmp_path / "out") == 0
    text = capsys.readouterr().out
    for words in ("feasible: 60 jobs/s", "binding: connections", "what moves it", "1.5 x rate x duration", "plan.html"):
        assert words in text
    assert (tmp_path / "out" / "plan.html").exists()


def test_a_plan_as_json_can_be_kept(measured: Path, tmp_path: Path, capsys: Captured) -> None:
    kept = tmp_path / "p.json"
    assert capacity("plan", "-m", measured, "--rate", 60, "--json", "-o", kept) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(kept.read_text())
    assert shown["workers"] * shown["slots_per_worker"] == shown["slots"]


def test_an_infeasible_plan_is_exit_3_and_names_the_nearest_rate(measured: Path, capsys: Captured) -> None:
    options = ("--max-connections", 30, "--slots-per-worker", 10)
    assert capacity("plan", "-m", measured, "--rate", 500, *options) == 3
    assert "the nearest feasible rate is" in capsys.readouterr().out


def test_a_trace_is_planned_for_by_its_busiest_hour(measured: Path, capsys: Captured) -> None:
    log = ROOT / "pgqueue_ref/harness/data/nasa-ipsc-1993.csv.gz"
    assert capacity("plan", "-m", measured, "--trace", log, "--growth", 2, "--wait-p99", "60s", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["demand"]["rate"] == pytest.approx(made["trace"]["busiest"]["rate"])
    assert made["trace"]["busiest"]["wait_as_logged"] >= 0
    assert len(made["trace"]["hours"]) == 24
    assert any("NASA" in line for line in made["trace"]["credits"]), "the log asks to be acknowledged"


def test_the_queue_is_played(capsys: Captured) -> None:
    arguments = ("--rate", 24, "--slots", 15, "--service", "exp:0.5", "--seconds", 60, "--replications", 19)
    assert capacity("simulate", *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wait_p99"]["low"] <= found["wait_p99"]["middle"] <= found["wait_p99"]["high"]
    assert capacity("simulate", *arguments) == 0
    assert "wait_p99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "-m", "{m}", "--rate", "0"), "--rate 0: must be above 0"),
        (("plan", "-m", "{m}"), "give --rate, or --trace"),
        (("plan", "-m", "{m}", "--rate", "60", "--service", "exp:-1"), "service 'exp:-1'"),
        (("plan", "-m", "{m}", "--rate", "60", "--mean", "-0.5"), "service"),
        (("plan", "-m", "{m}", "--rate", "60", "--mean", "1", "--squared-cv", "-1"), "coefficient of variation"),
        (("plan", "-m", "{m}", "--trace", "{dir}/one.csv"), "service times, 20 are needed"),
        (("plan", "-m", "{m}", "--rate", "60", "--max-connections", "5"), "must be above the 13 that are kept"),
        (("plan", "-m", "{dir}/old.json", "--rate", "60"), "format 0, this version reads 1"),
        (("plan", "-m", "{dir}/none.json", "--rate", "60"), "cannot be read"),
        (("plan", "-m", "{m}", "--rate", "60", "--wait-p99", "soon"), "write a time such as 500ms"),
        (("plan", "-m", "{m}", "--rate", "60", "--replicas", "many"), "write auto or a number"),
        (("plan", "-m", "{m}", "--rate", "60", "-o", "{dir}/none/p.json"), "cannot be written"),
        (("simulate", "--rate", "0", "--slots", "4", "--service", "exp:1"), "the rate must be above 0"),
        (("simulate", "--rate", "1", "--slots", "4"), "give the service times"),
        (("simulate", "--rate", "1", "--slots", "4", "--service", "exp:1", "--seconds", "0"), "--seconds 0"),
        (("simulate", "--rate", "1", "--slots", "4", "--service", "exp:1", "--seconds", "inf"), "--seconds inf"),
        (("simulate", "--rate", "1e-6", "--slots", "4", "--mean", "1", "--seconds", "1"), "without a single job"),
        (
            ("simulate", "--rate", "1", "--slots", "4", "--service", "exp:1", "--replications", "18"),
            "greater than or equal to 19",
        ),
        (("plan", "-m", "{m}", "--rate", "1e300"), "slots busy: above 100,000"),
        (("validate", "{m}", "-m", "{m}"), "not a plan ('demand')"),
        (("validate", "{m}", "-m", "{m}", "--seconds", "1"), "--seconds 1"),
        (("validate", "{m}", "-m", "{m}", "--seconds", "inf"), "--seconds inf"),
        (("plan", "-m", "{m}", "--rate", "60", "--surge", "inf"), "--surge inf"),
        (("plan", "-m", "{m}", "--rate", "60", "--wait-p99", "9" * 400), "--wait-p99 inf"),
        (("validate", "{dir}/none.json", "-m", "{m}"), "cannot be read"),
        (("measure", "--dsn", "nowhere"), "no such kind of PostgreSQL server"),
        (("measure", "-o", "{dir}/none/m.json"), "there is no such directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: tuple[str, ...], says: str, measured: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "one.csv").write_text("at,duration,kind\n0,1,job\n")
    (tmp_path / "old.json").write_text('{"format": 0}')
    assert capacity(*(word.format(m=measured, dir=tmp_path) for word in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_server_is_measured_planned_for_and_the_plan_run_for_real(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(ROOT)
    file, kept = tmp_path / "m.json", tmp_path / "p.json"
    assert capacity("measure", "--dsn", database, "-o", file, "--workers", 2, "--service", "exp:0.2") == 0
    made = measurement.load(file)
    assert made.connections_per_worker == 3
    assert set(made.scaling) == {1, 2}
    assert made.claim_by_batch[100] < made.claim_by_batch[1], "a batch costs less for each job than one by one"
    assert capacity("plan", "-m", file, "--rate", 20, "--wait-p99", "500ms", "--slots-per-worker", 4, "-o", kept) == 0
    capsys.readouterr()
    # Chance, and a busy machine, may put a figure outside of its interval: then it is 1. What must be is the account.
    options = ("-m", file, "--dsn", database, "--seconds", 10, "--runs", tmp_path / "runs", "--json")
    assert capacity("validate", kept, *options) in (0, 1)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert json.loads(kept.read_text())["validations"] == found
    assert [run["factor"] for run in found] == [1.0, 1.1]
    for run in found:
        figures = {item["figure"]: item for item in run["figures"]}
        assert set(figures) == {"wait_p95", "wait_p99", "utilisation", "connections"}
        assert figures["connections"]["within"], "three for each worker, whatever the machine does"
        assert all(item["low"] <= item["predicted"] <= item["high"] for item in run["figures"])


@pytest.mark.parametrize("kind", [None, "mail"])
def test_service_times_come_from_events_where_there_are_any_and_else_from_jobs(database: str, kind: str | None) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "INSERT INTO pgqueue_jobs (kind, status, started_at, finished_at, attempt)"
            " SELECT 'mail', 'succeeded', now() - interval '3 s', now(), 1 FROM generate_series(1, 25)"
        )
        seen = service.of_jobs(db, kind)
        assert (set(seen.times), seen.source.endswith("in pgqueue_jobs")) == ({3.0}, True)
        db.execute(events.SCHEMA_SQL)
        # Jobs that are long gone; each was claimed twice and ended the second time.
        db.execute(
            "INSERT INTO pgqueue_events (at, job_id, attempt, type, status, queue, kind)"
            " SELECT now() - make_interval(secs => age), 1000 + n, attempt, type, 'running', 'default', 'mail'"
            " FROM generate_series(1, 25) AS n, (VALUES (9, 1, 'claimed'), (6, 2, 'claimed'), (4, 2, 'succeeded'))"
            " AS past (age, attempt, type)"
        )
        seen = service.of_jobs(db, kind)
    assert (set(seen.times), seen.source.endswith("in pgqueue_events")) == ({2.0}, True)
