"""`pgqueue-ref report compare`: what it prints, writes, refuses. What is compared how: tests/unit/test_compare.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from left_runs import left_run

from pgqueue_ref.harness import compare
from pgqueue_ref.ops import app

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two runs of another revision, and one of the second's without fsync."""
    monkeypatch.setattr(compare, "REPLICATES", 100)
    monkeypatch.setenv("COLUMNS", "200")
    git = {"git": {"commit": "fedcba9876543210", "modified": False}}
    return [
        left_run(tmp_path / "before"),
        left_run(tmp_path / "after", factor=2.0, seed=2, facts=git),
        left_run(tmp_path / "unsafe", factor=0.1, facts=git, settings={"fsync": "off"}),
    ]


def report(*arguments: object) -> int:
    return app.run(["report", *map(str, arguments)])


def test_it_prints_the_runs_their_figures_and_what_follows(runs: list[Path], capsys: Captured) -> None:
    assert report("compare", *runs[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "differs, A against B: revision: 0123456789ab against fedcba987654" in lines
    (row,) = [line for line in lines if line.startswith("start latency p99, ms")]
    assert row.rstrip().endswith("worse")
    assert "99% intervals" in text
    assert "recovery_seconds, s" in text
    assert lines[-2].startswith("B is worse than A in start latency p50")
    assert lines[-1] == compare.ONCE


def test_it_says_that_runs_are_not_comparable_and_calls_none_better(runs: list[Path], capsys: Captured) -> None:
    assert report("compare", *runs) == 0
    out = capsys.readouterr().out
    assert "not comparable, A against C: other durability settings: fsync on against off" in out
    assert "C and A are not comparable, so neither is called better." in out
    assert "C / A" not in out


def test_json_is_the_same_document(runs: list[Path], capsys: Captured) -> None:
    assert report("compare", *runs, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(json.dumps(compare.compare(compare.load(runs))))
    assert {label: found["comparable"] for label, found in document["against"].items()} == {"B": True, "C": False}


def test_the_page_goes_where_it_is_asked_to(runs: list[Path], tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "page.html"
    assert report("compare", *runs[:2], "--html", page) == 0
    assert capsys.readouterr().out.endswith(f"page: {page}\n")
    assert "<h1>A and B: load runs of spike compared</h1>" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare",), "Missing argument"),
        (("compare", "{before}"), "one run is nothing to compare"),
        (("compare", "{before}", "{before}"), "given twice"),
        (("compare", "{before}", "{dir}/none"), "no result.json there"),
        (("compare", "{before}", "{after}", "--html", "{dir}/none/x.html"), "there is no such directory"),
        (("compare", "{before}", "{after}", "--html", "{dir}"), "cannot be written"),
    ],
)
def test_bad_input_costs_one_line_and_exit_2(
    runs: list[Path], tmp_path: Path, capsys: Captured, arguments: tuple[str, ...], says: str
) -> None:
    given = [word.format(before=runs[0], after=runs[1], dir=tmp_path) for word in arguments]
    assert report(*given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert says in line


def test_without_the_extra_it_says_what_to_install(
    runs: list[Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pgqueue_ref.harness

    monkeypatch.delattr(pgqueue_ref.harness, "compare")
    monkeypatch.delitem(sys.modules, "pgqueue_ref.harness.compare")
    monkeypatch.delitem(sys.modules, "pgqueue_ref.harness.latency")
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    assert report("compare", *runs[:2]) == 2
    assert "pip install 'pgqueue-ref[load]'" in capsys.readouterr().err
