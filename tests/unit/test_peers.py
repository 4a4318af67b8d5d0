"""The comparison with other queues: its verdict, table and bookkeeping, with none of the other queues installed."""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"
OURS = "pgqueue_ref"
QUEUES = [OURS, "procrastinate", "pgqueuer psycopg", "pgqueuer asyncpg", "chancy", "pgmq"]


@pytest.fixture(scope="module")
def peers() -> Iterator[SimpleNamespace]:
    """Its modules, which import each other by their bare names; gone again afterwards, like the path to them."""
    names = ("table", "gate", "adapters", "fleet", "scenarios", "fault", "comparison", "run")
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}  # other tests' by the same names
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(HERE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(HERE)):
                del sys.modules[name]
        sys.modules.update(others)


@pytest.fixture
def results(peers):
    """A run in which every bound is met: ours does 100 of everything a second, the others 50, nobody loses anything."""
    results = peers.table.Results(QUEUES)
    for row in peers.table.ROWS:
        if not row.over:
            for queue in QUEUES:
                quiet = {"jobs/s": 100.0 if queue == OURS else 50.0, "x": 1.0}
                results.add(queue, {row.name: quiet.get(row.unit, 0.0)})
    return results


def missed(peers, results) -> list[str]:
    return peers.table.missed(peers.table.figures(results))


def set_value(results, queue: str, row: str, *values: float) -> None:
    assert (queue, row) in results.values
    results.values[queue, row] = list(values)


# -- the verdict -----------------------------------------------------------------------------------------------


def test_a_run_that_meets_every_bound_passes(peers, results) -> None:
    assert missed(peers, results) == []


@pytest.mark.parametrize("row", ["SIGKILL: lost", "SIGKILL: unexpected"])
def test_one_job_of_ours_lost_or_made_up_fails_the_run_and_one_of_another_queue_does_not(peers, results, row) -> None:
    set_value(results, "chancy", row, 3)
    assert missed(peers, results) == []
    set_value(results, OURS, row, 0, 1, 0)  # in one round of three: a median would not show it
    assert missed(peers, results) == [f"MISSED {row}, {OURS}: 1 jobs (= 0)"]


def test_a_job_of_ours_that_nobody_ran_again_fails_the_run(peers, results) -> None:
    row = next(row.name for row in peers.table.ROWS if "not recovered" in row.name)
    set_value(results, "procrastinate", row, 40)
    assert missed(peers, results) == []
    set_value(results, OURS, row, 2)
    assert missed(peers, results) == [f"MISSED {row}, {OURS}: 2 jobs (= 0)"]


def test_less_than_the_offered_load_fails_for_ours(peers, results) -> None:
    row = next(row.name for row in peers.table.ROWS if "achieved" in row.name)
    set_value(results, OURS, row, 0.99)
    assert missed(peers, results) == []
    set_value(results, OURS, row, 0.989)
    assert missed(peers, results) == [f"MISSED {row}, {OURS}: 0.989 x (>= 0.99)"]


def test_as_fast_as_another_queue_is_not_faster_and_pgmq_may_be_a_fifth_ahead(peers, results) -> None:
    set_value(results, "chancy", "bulk push", 100)
    set_value(results, "pgmq", "drain, 1 process", 125)
    set_value(results, "pgmq", "drain, 2 processes", 126)
    assert missed(peers, results) == [
        "MISSED bulk push, ours / chancy: 1.0 x (> 1)",
        "MISSED drain, 2 processes, ours / pgmq: 0.794 x (>= 0.8)",
    ]


def test_a_queue_that_could_not_be_measured_has_missed_its_bounds_and_no_others(peers, results) -> None:
    results.missing["chancy", "bulk push"] = results.missing["chancy", "depth"] = "not measured: ImportError: no chancy"
    assert missed(peers, results) == ["MISSED bulk push, ours / chancy: not measured (> 1)"]


def test_ours_not_measured_has_missed_every_bound_of_that_scenario(peers, results) -> None:
    results.missing[OURS, "fault"] = "not measured: WrongError: a worker process ended"
    lines = missed(peers, results)
    assert len(lines) == 3
    assert all("SIGKILL" in line and "not measured (= 0)" in line for line in lines)


def test_a_scenario_that_failed_in_one_round_has_no_value_from_the_rounds_before(peers, results) -> None:
    results.missing[OURS, "steady"] = "not measured: WrongError: 1600 jobs: 1 lost, 0 unexpected, 0 run again"
    assert [line for line in missed(peers, results) if "achieved" in line]


# -- the table -------------------------------------------------------------------------------------------------


def cells(peers, results) -> dict[str, list[str]]:
    lines = [line for line in peers.table.render(results).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_every_row_has_its_unit_and_bound_and_every_queue_its_column(peers, results) -> None:
    table = cells(peers, results)
    assert table["measured"] == ["unit", "our bound", *QUEUES]
    assert set(table) - {"measured"} >= {row.name for row in peers.table.ROWS}
    assert table["bulk push"][:2] == ["jobs/s", "> others, >= 0.8x pgmq"]
    assert table["SIGKILL: lost"][:3] == ["jobs", "= 0", "0"]


def test_rates_stand_beside_their_multiple_of_ours(peers, results) -> None:
    set_value(results, OURS, "bulk push", 120_000)
    set_value(results, "pgmq", "bulk push", 150_000)
    assert cells(peers, results)["bulk push"][2] == "120,000 (1.00)"
    assert cells(peers, results)["bulk push"][-1] == "150,000 (1.25)"


def test_rates_are_medians_over_the_rounds_and_lost_jobs_add_up(peers, results) -> None:
    set_value(results, "chancy", "bulk push", 10, 90, 50)
    set_value(results, "chancy", "SIGKILL: lost", 1, 0, 2)
    set_value(results, "chancy", "SIGKILL: the last of these ended after", 2.5, 4.5, 3.0)
    column = 2 + QUEUES.index("chancy")
    table = cells(peers, results)
    assert table["bulk push"][column] == "50 (0.50)"
    assert table["SIGKILL: lost"][column] == "3"
    assert table["SIGKILL: the last of these ended after"][column] == "4.5"


def test_deep_over_shallow_is_a_ratio_of_the_two_rows_above_it(peers, results) -> None:
    deep = next(row.name for row in peers.table.ROWS if row.name.startswith("depth: first") and "none" not in row.name)
    set_value(results, "pgmq", deep, 5)
    assert cells(peers, results)["depth: deep / shallow"][-1] == "0.10"


def test_a_queue_without_a_value_says_why_below_the_table_once(peers, results) -> None:
    why = "not measured: WrongError: handlers did not run for all jobs within 60 s"
    results.missing["chancy", "depth"] = results.missing["pgmq", "steady"] = why
    results.missing["pgmq", "depth"] = "no queue, only a floor to the rates"
    table, text = cells(peers, results), peers.table.render(results)
    assert table["depth: deep / shallow"][2 + QUEUES.index("chancy") :] == ["[1]", "[2]"]
    assert text.count(why) == 1
    assert "] no queue, only a floor to the rates" in text


# -- the run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "code", "last"), [(0, 0, "PASS"), (1, 1, "FAIL")])
def test_the_exit_code_is_the_verdict(peers, results, monkeypatch, capsys, tmp_path, lost, code, last) -> None:
    set_value(results, OURS, "SIGKILL: lost", lost)
    results.missing["chancy", "depth"] = "not measured: ImportError: no chancy"
    run, summary, written = peers.run, tmp_path / "summary.json", tmp_path / "table.md"
    fake = SimpleNamespace(results=results, loads=[1.0], run=lambda *, quick: None, configurations=lambda: "- none")
    monkeypatch.setattr(run, "provision", lambda spec: contextlib.nullcontext(None))
    monkeypatch.setattr(run, "describe", lambda server: {"server": "none"})
    monkeypatch.setattr(run, "Comparison", lambda server: fake)
    monkeypatch.setattr(run, "signal", SimpleNamespace(SIGTERM=15, signal=lambda *_: None))
    monkeypatch.setattr(sys, "argv", ["peers", "--summary", str(summary), "--write", str(written)])
    assert run.main() == code
    assert capsys.readouterr().out.splitlines()[-1] == last
    found = json.loads(summary.read_text())
    (row,) = (row for row in found["figures"] if row["name"] == f"SIGKILL: lost, {OURS}")
    assert row == {"name": f"SIGKILL: lost, {OURS}", "value": lost, "unit": "jobs", "bound": "= 0", "ok": not lost}
    assert found["missing"] == {"depth, chancy": "not measured: ImportError: no chancy"}
    assert "| SIGKILL: lost" in written.read_text()


def test_a_queue_that_fails_in_a_scenario_costs_neither_the_others_nor_its_own_other_scenarios(peers, capsys) -> None:
    comparison = peers.comparison.Comparison(None)
    comparison.peers = {name: SimpleNamespace(name=name) for name in (OURS, "chancy")}

    def measure(peer):
        yield
        if peer.name == "chancy":
            raise RuntimeError("connection refused\nand more")
        return {"bulk push": 7.0}

    comparison.measure("bulk push", measure, 0)
    comparison.measure("bulk push", measure, 1)
    assert comparison.results.values == {(OURS, "bulk push"): [7.0, 7.0]}
    why = "not measured: RuntimeError: connection refused"
    assert comparison.results.missing == {("chancy", "bulk push"): why}
    assert capsys.readouterr().out.count(f"chancy, bulk push: {why}") == 1


def test_a_queue_that_is_not_installed_is_missing_everywhere(peers, monkeypatch) -> None:
    @contextlib.contextmanager
    def connect():
        yield SimpleNamespace(execute=lambda statement: None)

    def make(name, dsn):
        raise ImportError("No module named 'chancy'")

    monkeypatch.setattr(peers.comparison, "make", make)
    comparison = peers.comparison.Comparison(SimpleNamespace(dsn="postgresql://u@h/d", connect=connect))
    comparison.add("chancy", "peer_0")
    assert comparison.peers == {}
    assert {scenario for _, scenario in comparison.results.missing} == set(peers.comparison.SCENARIOS)


def test_every_scenario_of_a_row_is_run(peers) -> None:
    assert {row.scenario for row in peers.table.ROWS} == set(peers.comparison.SCENARIOS)


# -- effects ---------------------------------------------------------------------------------------------------


def effect(peers, number: int, ended: float = 9.0):
    return peers.gate.Effect(number, 1.0, ended)


def workers(effects):
    return SimpleNamespace(gates=SimpleNamespace(effects=lambda: effects))


@pytest.mark.parametrize(
    ("ran", "complaint"),
    [
        ([[1, 2], [3]], None),
        ([[1, 2], [4]], "1 lost, 1 unexpected, 0 run again"),  # as many runs as jobs
        ([[1, 2], [2]], "1 lost, 0 unexpected, 1 run again"),
        ([[1, 2, 3], []], "a worker process did nothing"),
    ],
)
def test_every_job_once_means_these_jobs_and_every_worker(peers, ran, complaint) -> None:
    peer = SimpleNamespace(counts=lambda: peers.adapters.Counts(0, None))
    effects = [[effect(peers, number) for number in numbers] for numbers in ran]
    expected = pytest.raises(peers.fleet.WrongError, match=complaint) if complaint else contextlib.nullcontext()
    with expected:
        peers.scenarios.every_job_once(peer, workers(effects), [1, 2, 3])


@pytest.mark.parametrize("counts", [(1, None), (0, 2)])
def test_handlers_that_ran_are_not_enough_if_the_queue_does_not_know(peers, counts) -> None:
    peer = SimpleNamespace(counts=lambda: peers.adapters.Counts(*counts))
    with pytest.raises(peers.fleet.WrongError, match="3 jobs ran"):
        peers.scenarios.every_job_once(peer, workers([[effect(peers, number) for number in (1, 2, 3)]]), [1, 2, 3])


def test_the_verdict_on_a_kill_tells_lost_from_waiting_and_cut_off_from_run_twice(peers) -> None:
    victim = [effect(peers, 1), effect(peers, 2), effect(peers, 3, ended=0), effect(peers, 4, ended=0)]
    other = [effect(peers, 2), effect(peers, 3, ended=12.0), effect(peers, 5), effect(peers, 99)]
    found = peers.fault.verdict([victim, other], 0, 10.0, pushed={1, 2, 3, 4, 5, 6}, unfinished=1)
    # 4 was cut off and never ran, 6 was never started; the queue still has one of them, 99 was never pushed.
    assert found == peers.fault.Verdict(cut_off=2, again=1, last=2.0, waiting=1, lost=1, unexpected=1, duplicated=1)


def test_a_clean_recovery_has_nothing_to_report(peers) -> None:
    found = peers.fault.verdict([[effect(peers, 1, ended=0)], [effect(peers, 1, ended=14.0)]], 0, 10.0, {1}, 0)
    assert found == peers.fault.Verdict(1, 1, 4.0, 0, 0, 0, 0)
    assert len(peers.table.names("fault")) == len(found)


def test_what_a_handler_leaves_is_there_at_once_even_if_it_never_ends(peers, tmp_path, monkeypatch) -> None:
    gates = peers.gate.Gates(tmp_path / "gate", 2, capacity=10)
    worker = peers.gate.Gate(peers.gate._file(tmp_path / "gate", 1))
    worker.handle_blocking({"n": 7})
    worker._begin(8)
    idle, busy = gates.effects()
    assert (idle, [e.number for e in busy], gates.begun()) == ([], [7, 8], [0, 2])
    assert busy[0].ended >= busy[0].began > 0
    assert busy[1].ended == 0


def test_a_stalled_push_delays_arrivals_but_keeps_their_number_and_their_instants(peers, monkeypatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(peers.scenarios, "time", SimpleNamespace(monotonic=lambda: now))
    smooth = peers.scenarios.Arrivals(SimpleNamespace(push=lambda jobs: None), rate=50, seconds=2)
    smooth.start()
    while not smooth.done():
        now += 0.01
        smooth.turn()

    def stall(jobs) -> None:
        nonlocal now
        now += 5.0 if not stalled.pushed else 0.0

    now = 1_000.0
    stalled = peers.scenarios.Arrivals(SimpleNamespace(push=stall), rate=50, seconds=2)
    stalled.start()
    while not stalled.done():
        now += 0.01
        stalled.turn()
    assert list(stalled.pushed.values()) == list(smooth.pushed.values())
    assert len(stalled.pushed) == 100
    assert not stalled.pushed.keys() & smooth.pushed.keys()  # no number is used twice
