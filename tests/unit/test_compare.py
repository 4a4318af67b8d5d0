"""Runs side by side: what may be compared, what the intervals mean, and that none is called better without grounds."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from left_runs import PASS, left_run

from pgqueue_ref.harness import compare
from pgqueue_ref.harness.compare import CompareError, weights

Make = Callable[..., Path]
OTHER = {"git": {"commit": "fedcba9876543210", "modified": False}}  # so that something differs


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REPLICATES", 200)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name, **given: left_run(tmp_path / name, **given)


def compared(*directories: Path) -> dict[str, Any]:
    return compare.compare(compare.load(directories))


def figure(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [figure for figure in document["figures"] if figure["name"] == name]
    return found


# -- figures ---------------------------------------------------------------------------------------------


def test_a_figure_is_what_the_run_s_own_histogram_says(make: Make) -> None:
    (run, _) = compare.load([make("a"), make("b")])
    document = compared(run.directory, make("c"))
    latency = run.result["latency"]
    for name, series, percentile in (
        ("start latency p50", "start", "p50_ms"),
        ("start latency p99", "start", "p99_ms"),
        ("push latency p99", "push", "p99_ms"),
        ("end-to-end latency p99", "end_to_end", "p99_ms"),
    ):
        found = figure(document, name)["values"]["A"]
        assert found["value"] == pytest.approx(latency[series][percentile], rel=0.02), name
        assert found["low"] <= found["value"] <= found["high"]
    assert figure(document, "jobs finished")["values"]["A"]["value"] == 20
    assert figure(document, "WAL per job")["values"]["A"]["value"] == pytest.approx(2_000, rel=0.05)
    assert figure(document, "processors busy")["values"]["A"]["value"] == 50


def test_what_is_half_as_fast_is_worse_by_that_much(make: Make) -> None:
    document = compared(make("a"), make("b", factor=2.0, seed=2, facts=OTHER))
    ratio = figure(document, "start latency p50")["ratios"]["B"]
    assert ratio["value"] == pytest.approx(2, rel=0.1)
    assert 1 < ratio["low"] <= ratio["value"] <= ratio["high"] < 3
    assert ratio["says"] == "worse"
    assert figure(document, "jobs finished")["ratios"]["B"]["says"] == "no difference shown"
    assert document["against"]["B"]["conclusion"].startswith(
        "B is worse than A in start latency p50, start latency p99"
    )
    assert document["against"]["B"]["conclusion"].endswith("in one run of each.")
    assert document["note"] == compare.ONCE


def test_the_other_way_round_it_is_better(make: Make) -> None:
    document = compared(make("a", factor=2.0), make("b", seed=2, facts=OTHER))
    assert figure(document, "start latency p99")["ratios"]["B"]["says"] == "better"


def test_the_same_load_in_both_runs_does_not_widen_their_ratio(make: Make) -> None:
    """Within a phase latencies grow tenfold, so one run's interval is wide; both do alike, so the ratio's is not."""
    one = {"phases": [{"name": "all", "from": 0.0, "to": 20.0}]}
    document = compared(make("a", result=one), make("b", seed=2, facts=OTHER, result=one))
    found = figure(document, "start latency p50")
    assert found["values"]["A"]["high"] / found["values"]["A"]["low"] > 3
    assert found["ratios"]["B"]["high"] / found["ratios"]["B"]["low"] < 1.5


def test_of_runs_that_repeat_each_other_none_is_better_and_their_distance_is_noise(make: Make) -> None:
    slow = make("b", factor=1.5, seed=2)
    document = compared(make("a"), slow)
    assert document["repeats"] == [["A", "B"]]
    assert document["against"]["B"]["conclusion"].startswith("B repeats A")
    assert {found["ratios"]["B"]["says"] for found in document["figures"]} == {"no difference shown"}
    document = compared(tmp := slow.with_name("a"), slow, make("c", factor=1.4, seed=3, facts=OTHER))
    assert tmp.exists()
    assert figure(document, "start latency p99")["noise"] == pytest.approx(1.5, rel=0.1)
    assert figure(document, "start latency p99")["ratios"]["C"]["says"] == "no difference shown"
    document = compared(tmp, slow, make("d", factor=4.0, seed=3, facts=OTHER))
    assert figure(document, "start latency p99")["ratios"]["C"]["says"] == "worse"
    assert "in one run" not in document["against"]["C"]["conclusion"]
    assert "A and B" in document["note"]


def test_local_changes_may_be_other_changes(make: Make) -> None:
    modified = {"git": {"commit": "0123456789abcdef", "modified": True}}
    document = compared(make("a", facts=modified), make("b", facts=modified))
    assert document["repeats"] == []
    assert document["against"]["B"]["differences"] == ["revision: local changes in both, which were not recorded"]


def test_the_same_runs_give_the_same_intervals(make: Make) -> None:
    directories = make("a"), make("b", seed=2, facts=OTHER)
    assert compared(*directories) == compared(*directories)


# -- resampling ------------------------------------------------------------------------------------------


def test_a_resample_has_each_phase_at_its_length_in_blocks() -> None:
    rng = random.Random(5)
    lengths = [27, 1, 0, 64]
    for _ in range(50):
        drawn = weights(lengths, rng)
        cuts = list(itertools.accumulate(lengths, initial=0))
        assert [sum(drawn[a:b]) for a, b in itertools.pairwise(cuts)] == lengths
        # 16 blocks of 4 windows in a circle of 64: what is drawn at all is drawn in runs of 4 or more.
        circle = "".join("x" if count else "." for count in drawn[28:])
        inner = (circle + circle).strip("x")
        assert all(len(run) >= 4 for run in re.findall("x+", inner))


def test_every_window_is_drawn_equally_often() -> None:
    rng = random.Random(5)
    totals = [sum(column) for column in zip(*(weights([40], rng) for _ in range(3000)), strict=True)]
    assert max(totals) / min(totals) < 1.2


def test_intervals_of_correlated_windows_cover_the_truth_where_single_windows_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Means of an autoregressive series, whose truth is known; blocks are longer than its memory, nearly."""

    def covered(block: Callable[[float], int]) -> int:
        monkeypatch.setattr(compare.math, "ceil", block)
        rng, hits = random.Random(7), 0
        for _ in range(60):
            values, value = [], rng.gauss(0, 1.25)
            for _ in range(200):
                value = 0.6 * value + rng.gauss(0, 1)
                values.append((100 + value, 1))
            of = compare._Ratio(dict(enumerate(values)), range(200))
            draws = [[1] * 200, *(weights([200], rng) for _ in range(200))]
            found = compare._interval([of(draw) for draw in draws])
            hits += found.low <= 100 <= found.high
        return hits

    ceil = compare.math.ceil
    assert covered(ceil) >= 54  # of 60; it says 99 %, and few blocks make it a little less
    assert covered(lambda x: 1 if x < 100 else ceil(x)) < 54


def test_a_figure_that_a_resample_cannot_tell_has_no_interval() -> None:
    assert compare._interval([1.0, None, 2.0]) == (1.0, None, None)
    assert compare._interval([None, 1.0]) == (None, None, None)


# -- comparability ---------------------------------------------------------------------------------------


INVALID = PASS | {"passed": False, "exit_code": 4, "outcome": "invalid"}
OTHER_SERVER = {"description": "dsn PostgreSQL 16.3", "version": "16.3", "settings": {}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": {"fsync": "off"}}, "other durability settings: fsync on against off"),
        ({"settings": {"synchronous_commit": "off"}}, "other durability settings: synchronous_commit on against off"),
        ({"facts": {"server": OTHER_SERVER}}, "other server: description embedded PostgreSQL 18.4 against dsn"),
        ({"facts": {"machine": {"processor": "other", "cores": 64}}}, "other machine: processor CPU & co against"),
        ({"facts": {"scenario": "steady"}}, "other scenario: scenario spike against steady"),
        ({"facts": {"parameters": {"rate": 40.0}}}, "other parameters: rate 20.0 against 40.0"),
        ({"facts": {"seed": 2}}, "other seed: seed 1 against 2"),
        ({"facts": {"faults": ["kill-worker at 5 s"]}}, "other faults: faults none against kill-worker at 5 s"),
        ({"facts": {"trace": {"source": "log", "jobs": 7}}}, "other load: source spike: rate 20.0 against log, jobs"),
        ({"result": {"phases": [{"name": "all", "from": 0.0}]}}, "other load: phases calm, busy against all"),
        ({"result": {"verdict": INVALID}}, "B is no measurement: it ended with exit code 4, invalid"),
        ({"result": {"verdict": INVALID | {"exit_code": 5}}}, "B is no measurement: it ended with exit code 5"),
    ],
)
def test_runs_of_another_experiment_are_not_comparable(make: Make, changes: dict[str, Any], says: str) -> None:
    a, b = compare.load([make("a", seconds=2), make("b", seconds=2, **changes)])
    assert any(says in line for line in compare.hindrances(a, b)), compare.hindrances(a, b)


def test_of_runs_that_are_not_comparable_neither_is_called_better(make: Make) -> None:
    document = compared(make("a"), make("b", factor=5.0, settings={"fsync": "off"}))
    found = document["against"]["B"]
    assert not found["comparable"]
    assert found["conclusion"] == "B and A are not comparable, so neither is called better."
    for item in document["figures"]:
        assert item["ratios"] == {}
        assert item["values"]["A"]["value"] is not None
    assert "worse" not in str(compare.rows(document))


def test_a_breached_objective_or_another_revision_hinders_nothing(make: Make) -> None:
    breached = {"verdict": PASS | {"passed": False, "exit_code": 3, "outcome": "slo_breach"}}
    other = OTHER | {"versions": {"python": "3.12.1", "psycopg": "3.3.0"}}
    document = compared(make("a"), make("b", result=breached, facts=other, settings={"shared_buffers": "4GB"}))
    found = document["against"]["B"]
    assert found["comparable"]
    assert found["differences"] == [
        "revision: 0123456789ab against fedcba987654",
        "server settings: shared_buffers 128MB against 4GB",
        "versions: python 3.11.7 against 3.12.1",
    ]


def test_one_run_that_is_not_comparable_leaves_the_others_compared(make: Make) -> None:
    document = compared(make("a"), make("b", settings={"fsync": "off"}), make("c", factor=3.0, facts=OTHER))
    assert list(figure(document, "start latency p50")["ratios"]) == ["C"]
    assert "C is worse" in document["against"]["C"]["conclusion"]


def test_a_phase_that_began_a_moment_later_does_not_matter(make: Make) -> None:
    later = {"phases": [{"name": "calm", "from": 0.0, "to": 10.0}, {"name": "busy", "from": 11.1, "to": 20.0}]}
    document = compared(make("a"), make("b", seed=2, facts=OTHER, result=later))
    assert document["against"]["B"]["comparable"]
    assert figure(document, "start latency p50")["ratios"]["B"]["low"] is not None


def test_a_run_without_arrivals_is_shown_without_intervals(make: Make) -> None:
    directories = [make(name, seconds=0, facts=facts) for name, facts in (("a", {}), ("b", OTHER))]
    document = compared(*directories)
    assert figure(document, "start latency p50")["values"]["A"] == {"value": None, "low": None, "high": None}
    assert document["against"]["B"]["conclusion"] == "No difference shown between B and A."
    assert ["recovery_seconds, s", "2.5", "2.5"] in compare.single_rows(document)[1]


# -- bad input -------------------------------------------------------------------------------------------


def test_bad_run_directories_are_told_in_one_line(make: Make, tmp_path: Path) -> None:
    sound = make("sound")
    (tmp_path / "empty").mkdir()
    old = make("old", result={"schema_version": 1})
    torn = make("torn")
    (torn / "result.json").write_text('{"schema_version": ')
    bare = make("bare")
    (bare / "manifest.json").unlink()
    cut = make("cut")
    log = cut / "histograms" / "start.hlog"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    hollow = make("hollow")
    (hollow / "histograms" / "push.hlog").unlink()
    (tmp_path / "link").symlink_to(sound)
    for given, says in (
        ([sound], "one run is nothing to compare"),
        ([sound, sound], "sound is given twice"),
        ([sound, tmp_path / "link"], "link is given twice, also as"),
        ([sound, tmp_path / "empty"], "empty: no result.json there"),
        ([sound, tmp_path / "none"], "none: no result.json there"),
        ([sound, old], "old: result.json has schema version 1, not"),
        ([sound, torn], "result.json: not JSON"),
        ([sound, bare], "bare: no manifest.json there"),
        ([sound, cut], "start.hlog: holds"),
        ([sound, hollow], "push.hlog: cannot be read"),
        ([tmp_path / str(n) for n in range(7)], "7 runs are too many"),
    ):
        with pytest.raises(CompareError) as caught:
            compared(*given)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


# -- the page --------------------------------------------------------------------------------------------


def test_the_page_has_both_runs_in_every_plot(make: Make) -> None:
    runs = compare.load([make("a"), make("b", seed=2, facts=OTHER | {"faults": []})])
    page = compare.render(runs, compare.compare(runs))
    plots = [plot for plot in re.findall(r"<figure>.*?</figure>", page, re.DOTALL) if "legend" in plot]
    assert len(plots) >= 8
    for plot in plots:
        assert re.findall(r"</svg>([^<]*)</li>", plot) == ["A", "B"]
    assert "<b>B over A</b>" in page
    assert "fedcba987654" in page
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)


def test_the_page_of_runs_that_are_not_comparable_says_so_first_and_draws_no_ratio(make: Make) -> None:
    runs = compare.load([make("a"), make("b", settings={"fsync": "<off>"})])
    page = compare.render(runs, compare.compare(runs))
    assert "not comparable" in page
    assert "fsync on against &lt;off&gt;" in page
    assert "<h2>Ratios" not in page
