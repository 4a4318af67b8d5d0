"""`load all`: the exit code is that of the worst news; the index shows who passed, who failed and who said nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from left_runs import left_run

from pgqueue_ref.harness import suite
from pgqueue_ref.harness.index import Ended, write_index
from pgqueue_ref.harness.slo import Exit
from pgqueue_ref.harness.suite import worst


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], Exit.PASS),
        ([0, 1], Exit.REQUEST_FAILURES),
        ([1, 3], Exit.SLO_BREACH),
        ([3, 4], Exit.INVALID),
        ([4, 2], Exit.CRASH_OR_USAGE),
        ([2, 5, 4, 3, 1, 0], Exit.INCORRECT),
        ([0, -9], Exit.CRASH_OR_USAGE),  # a signal
        ([0, 137], Exit.CRASH_OR_USAGE),
    ],
)
def test_the_worst_news_is_the_exit_code(codes: list[int], code: Exit) -> None:
    assert worst(codes) is code


def write_run(directory: Path, scenario: str, code: int = 0, reasons: Sequence[str] = (), **settings: str) -> Path:
    result: dict[str, Any] = {
        "scenario": scenario,
        "verdict": {"passed": code == 0, "exit_code": code, "outcome": "", "reasons": list(reasons)},
    }
    return left_run(directory / f"20270101T000000-{scenario}", seconds=1, result=result, settings=settings)


def card(page: str, name: str) -> str:
    """The card of a scenario, as text."""
    cards = re.findall(r'<section class="card.*?</section>', page, re.DOTALL)
    texts = [" ".join(re.sub("<[^>]+>", " ", card).split()) for card in cards]
    (found,) = [text for text in texts if text.startswith(name)]
    return found


def test_the_index_leads_to_each_report_and_says_why_one_failed(tmp_path: Path) -> None:
    storm = write_run(tmp_path, "storm", 5, ["ledger.lost is 1 jobs, not <= 0"])
    runs = [write_run(tmp_path, "calm"), storm, tmp_path / "20270101T000000-cut-off"]
    runs[-1].mkdir()
    ended = {"calm": Ended(0, 61.4), "storm": Ended(5, 3.0), "cut-off": Ended(2, 3600.0)}
    page = write_index(tmp_path, runs, [*ended, "later"], ended).read_text()
    assert "<h1>1 of 4 scenarios passed, 2 failed, 1 to come</h1>" in page
    assert '<a href="20270101T000000-calm/report.html">calm</a>' in page
    assert card(page, "calm").startswith("calm PASS Calm load, then more.")
    assert card(page, "calm").endswith("jobs 20 0 lost, 0 unexpected objectives 1 of 1 held took 1 min 1 s")
    assert card(page, "storm").startswith("storm FAIL, exit 5")
    assert "ledger.lost is 1 jobs, not &lt;= 0" in card(page, "storm")
    assert card(page, "cut-off") == (
        "cut-off no verdict It ended with exit code 2 after 1 h 0 min, before it could be judged."
    )
    assert card(page, "later") == "later to come"
    assert page.count("PASS") == 1
    assert "1 h 1 min in all" in page


def test_the_index_states_server_durability_and_machine_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name) for name in ("calm", "storm")]
    ended = {"calm": Ended(0, 1.0), "storm": Ended(0, 1.0)}
    page = write_index(tmp_path, runs, list(ended), ended).read_text()
    server = "embedded PostgreSQL 18.4, fsync = on, synchronous_commit = on, full_page_writes = on."
    assert page.count(server) == 1
    assert page.count("CPU &amp; co, 2 cores, 16 GiB; revision 0123456789ab.") == 1
    assert "<b>PASS</b> every scenario passed" in page
    runs.append(write_run(tmp_path, "risky", fsync="off"))
    page = write_index(tmp_path, runs, [*ended, "risky"], ended | {"risky": Ended(0, 1.0)}).read_text()
    assert f"calm, storm: {server}" in page
    assert "risky: embedded PostgreSQL 18.4, fsync = off" in page


def test_a_pass_whose_process_ended_otherwise_is_none(tmp_path: Path) -> None:
    page = write_index(tmp_path, [write_run(tmp_path, "calm")], ["calm"], {"calm": Ended(-9, 1.0)}).read_text()
    assert "<h1>0 of 1 scenarios passed</h1>" in page
    assert "PASS" not in page
    assert "FAIL, exit -9" in page


def test_the_index_shows_the_figures_that_the_objectives_are_about(tmp_path: Path) -> None:
    run = write_run(tmp_path, "calm")
    result = json.loads((run / "result.json").read_text())
    check = result["slo"][0]
    result["slo"] += [
        check | {"metric": "found.recovery_seconds", "value": 8.53, "unit": "s", "bound": "<= 20"},
        check | {"metric": "latency.start.p99_ms", "value": 1234.5, "unit": "ms", "bound": "<= 2000"},
        check | {"metric": "found.skipped", "skipped": True},
    ]
    (run / "result.json").write_text(json.dumps(result))
    told = card(write_index(tmp_path, [run], ["calm"], {"calm": Ended(0, 1.0)}).read_text(), "calm")
    assert "recovery 8.53 s bound &lt;= 20" in told
    assert "start latency p99 1,234 ms bound &lt;= 2000" in told
    assert "objectives 3 of 3 held" in told
    assert "skipped" not in told


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three scenarios, of which one leaves no verdict; `codes.json` has what they end with."""
    scenarios = tmp_path / "loadtests" / "scenarios"
    scenarios.mkdir(parents=True)
    for name in ("calm", "the_storm", "cut", "_helper"):
        (scenarios / f"{name}.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(monkeypatch: pytest.MonkeyPatch, codes: dict[str, int]) -> list[list[str]]:
    """Put something else in the place of Locust: it leaves a run and a summary for those that have a verdict."""
    commands: list[list[str]] = []

    def run(scenario: str, runs: Path, options: Sequence[str]) -> int:
        commands.append([scenario, *options])
        if codes[scenario] >= 0:
            write_run(runs, scenario, codes[scenario])
            figures = [{"name": f"{scenario}.exit_code", "value": 0}, {"name": f"{scenario}.ledger.lost", "value": 0}]
            Path(options[-1]).write_text(json.dumps({"server": {"version": "18"}, "figures": figures}))
        return codes[scenario]

    monkeypatch.setattr(suite, "_run", run)
    return commands


def test_all_runs_each_scenario_with_the_options_and_merges_what_they_found(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = play(monkeypatch, {"calm": 0, "the-storm": 3, "cut": -15})
    assert suite.main(["all", "--quick", "--summary", "all.json"]) is Exit.CRASH_OR_USAGE
    assert [command[:2] for command in commands] == [[name, "--quick"] for name in ("calm", "cut", "the-storm")]
    (index,) = project.glob("runs/*-all/index.html")
    assert "1 of 3 scenarios passed" in index.read_text()
    summary = json.loads((project / "all.json").read_text())
    assert summary["server"] == {"version": "18"}
    assert [figure["name"] for figure in summary["figures"]] == [
        "calm.exit_code", "calm.ledger.lost", "cut.exit_code", "the-storm.exit_code", "the-storm.ledger.lost"
    ]  # fmt: skip
    ends = [figure for figure in summary["figures"] if figure["name"].endswith("exit_code")]
    assert [(end["value"], end["bound"], end["ok"]) for end in ends] == [
        (0, "= 0", True), (-15, "= 0", False), (3, "= 0", False)
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "PASS  calm                 exit 0" in told
    assert "FAIL  cut                  exit -15" in told


def test_when_all_pass_so_does_the_suite(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, {"calm": 0, "the-storm": 0, "cut": 0})
    assert suite.main(["all"]) is Exit.PASS


def test_one_scenario_is_run_alone_and_its_exit_code_is_the_suites(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = play(monkeypatch, {"calm": 4})
    monkeypatch.setattr(suite, "_run", lambda name, runs, options: commands.append([name, *options]) or 4)
    assert suite.main(["calm", "--quick", "--summary", "one.json"]) == 4
    assert suite.main(["--quick"]) == 4
    assert commands == [["calm", "--quick", "--summary", "one.json"], ["steady", "--quick"]]


@pytest.mark.parametrize("arguments", [["calm"], ["all", "--runs", "file"]])
def test_a_summary_of_an_earlier_run_is_gone_when_this_one_crashes(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (project / "file").touch()
    (project / "old.json").write_text("{}")
    monkeypatch.setattr(suite, "_run", lambda name, runs, options: -9)
    assert suite.main([*arguments, "--summary", "old.json"]) != Exit.PASS
    assert not (project / "old.json").exists()


def test_where_no_scenarios_are_the_suite_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert suite.main(["all"]) is Exit.CRASH_OR_USAGE
    assert "no scenario is there" in capsys.readouterr().err


def test_a_place_where_no_run_can_be_left_is_refused_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").touch()
    commands = play(monkeypatch, {})
    assert suite.main(["all", "--runs", "file"]) is Exit.CRASH_OR_USAGE
    assert "cannot be made there" in capsys.readouterr().err
    assert commands == []


def test_a_summary_that_cannot_be_written_is_refused_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = play(monkeypatch, {})
    assert suite.main(["all", "--summary", "none/all.json"]) is Exit.CRASH_OR_USAGE
    assert "there is no such directory" in capsys.readouterr().err
    assert commands == []
