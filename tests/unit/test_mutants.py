"""The mutants that `nox -s mutants` makes are mutants still: each text to take away is in the core, and tests exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "mutants"))

from safeguards import SAFEGUARDS, Safeguard  # noqa: E402

CORE = TESTS.parent / "pgqueue_ref" / "core"


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda safeguard: safeguard.name)
def test_a_mutant_takes_away_what_is_there_and_leaves_code(safeguard: Safeguard) -> None:
    text = (CORE / safeguard.file).read_text()
    assert safeguard.before in text
    changed = text.replace(safeguard.before, safeguard.after)
    assert changed != text
    compile(changed, safeguard.file, "exec")
    assert all((TESTS / path).is_file() for path in safeguard.tests)


def test_names_are_unique() -> None:
    assert len({safeguard.name for safeguard in SAFEGUARDS}) == len(SAFEGUARDS)


def test_every_test_that_the_guarantees_name_exists() -> None:
    text = (TESTS.parent / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`((?:\w+/)+test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 20
    for path, name in named:
        assert not name or f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"
