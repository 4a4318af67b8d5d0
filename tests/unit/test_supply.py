"""What says whether CI's packages are in order, and the suite on all versions, cannot pass without having looked."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "supply"))

import audit  # noqa: E402
import licences  # noqa: E402
import lock  # noqa: E402

# By its file: other directories have a run.py as well.
_FOUND = importlib.util.spec_from_file_location("matrix", TESTS / "matrix" / "run.py")
assert _FOUND is not None
assert _FOUND.loader is not None
matrix = importlib.util.module_from_spec(_FOUND)
_FOUND.loader.exec_module(matrix)

CLEAN, BROKEN = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "1", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("known", "locked", "code", "words"),
    [
        ([BROKEN], [CLEAN, CLEAN], 0, "2 packages checked, 0 vulnerable"),
        ([BROKEN], [CLEAN, BROKEN], 1, "b 1: CVE-1"),
        ([BROKEN], [CLEAN, SKIPPED], 3, "NOT CHECKED for vulnerabilities: 1 packages"),
        ([BROKEN], [], 3, "NOT CHECKED"),
        ([CLEAN], [CLEAN], 3, "NOT CHECKED"),  # a service that knows no vulnerability at all
        ([SKIPPED], [SKIPPED], 3, "NOT CHECKED"),  # a mirror
        ([], [], 3, "NOT CHECKED"),  # nobody answers
    ],
)
def test_an_audit_passes_only_when_everything_was_checked(
    known: list[Any], locked: list[Any], code: int, words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answers = iter([known, locked])
    monkeypatch.setattr(audit, "audited", lambda *_: (next(answers), "why"))
    assert audit.main() == code
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "fine"),
    [
        (["MIT"], True),
        (["LGPL-3.0-only"], True),
        (["GNU Lesser General Public License v3"], True),
        (["GPL-2.0-only OR MIT"], True),
        (["GPL-3.0-or-later"], False),
        (["AGPL-3.0-only"], False),
        (["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], False),
        ([], False),
    ],
)
def test_a_licence_that_is_missing_or_strict_is_refused(named: list[str], fine: bool) -> None:
    entries = [{"expression": name} if " OR " in name else {"license": {"name": name}} for name in named]
    assert licences.licences({"licenses": entries}) == named
    assert licences.acceptable(named) is fine


def test_the_lock_has_hashes_for_every_pin_and_names_no_index() -> None:
    text = lock.LOCK.read_text()
    assert {"psycopg", "uv", "nox", "hatchling", "pip-audit"} <= {
        pin.partition("==")[0] for pin in lock.pins(lock.LOCK)
    }
    assert text.count("\n    --hash=sha256:") >= len(lock.pins(lock.LOCK)) > 100
    assert "://" not in text


def test_a_pin_that_has_gone_makes_the_lock_stale_and_a_hash_does_not(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(lock.LOCK.read_text().replace("--hash=sha256:", "--hash=sha256:00", 1))
    assert lock.pins(other) == lock.pins(lock.LOCK)
    other.write_text(lock.LOCK.read_text().replace("\npsycopg==", "\npsycopg==0", 1))
    assert lock.pins(other) != lock.pins(lock.LOCK)


def report(path: Path, **counts: int) -> Path:
    attributes = " ".join(f'{name}="{count}"' for name, count in counts.items())
    path.write_text(f'<testsuites><testsuite {attributes}><properties><property name="server" value="here"/>'
                    "</properties></testsuite></testsuites>")  # fmt: skip
    return path


def test_a_cell_passes_only_when_tests_ran_and_none_failed(tmp_path: Path) -> None:
    file = tmp_path / "results.xml"
    judged = matrix.judged(report(file, tests=5, skipped=2, failures=0, errors=0), 0)
    assert (judged.ran, judged.skipped, judged.server, judged.ok) == (3, 2, "here", True)
    assert not matrix.judged(report(file, tests=5, skipped=5), 0).ok
    assert not matrix.judged(report(file, tests=5, failures=1), 1).ok
    assert not matrix.judged(report(file, tests=5), 2).ok
    assert not matrix.judged(tmp_path / "none.xml", 0).ok


def test_an_interpreter_that_is_not_here_is_said_to_be_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(matrix, "interpreter", lambda _: None)
    summary = tmp_path / "summary.json"
    monkeypatch.setattr(sys, "argv", ["matrix", "--only", "newest", "--summary", str(summary)])
    assert matrix.main() == 1  # nothing was run: nothing has passed
    said = capsys.readouterr().out
    assert said.count("NOT RUN newest dependencies, Python 3.") == len(matrix.PYTHONS)
    assert "0 of 0 cells passed, 4 not run" in said
    written = json.loads(summary.read_text())
    assert (written["figures"], len(written["not_run"])) == ([], 4)
