"""The scenario statement-timeout, played small: it holds for this queue, and says what is wrong with others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from loads import Load, wait_for_line

from pgqueue_ref.harness.slo import Exit

# No bound on time: how late this machine is says nothing here.
SLO = """
[[statement-timeout.slo]]
metric = "found.wrong_class"
max = 0
breach = "correctness"
[[statement-timeout.slo]]
metric = "found.unusable"
max = 0
breach = "correctness"
[[statement-timeout.slo]]
metric = "found.miscounted"
max = 0
samples = "found.retried"
breach = "correctness"
[[statement-timeout.slo]]
metric = "found.endings_cut"
min = 1
breach = "invalid"
"""
SMALL = "timeout=0.5", "deadline=1.5", "seconds=2", "rate=20", "producers=12", "stalled=3", "slots=4"

# A queue that writes a failure twice.
LIE = """
SET search_path = {schema};
CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.errors := NEW.errors || NEW.errors; RETURN NEW; END $$;
CREATE TRIGGER twice BEFORE UPDATE ON pgqueue_jobs FOR EACH ROW
    WHEN (OLD.external_key = 'stall-1' AND NEW.errors <> OLD.errors) EXECUTE FUNCTION twice();
"""


@pytest.fixture
def load(database: str, tmp_path: Path) -> Load:
    load = Load(database, tmp_path)
    load.slo.write_text(SLO)
    return load


def options(*more: str) -> list[str]:
    parameters = [word for name in (*SMALL, *more) for word in ("--set", name)]
    return ["--scenario", "statement-timeout", *parameters]


def found(load: Load) -> dict[str, Any]:
    return {figure["name"]: figure["value"] for figure in load.result()["found"]}


def test_each_statement_is_cancelled_with_its_own_error_and_nothing_is_lost(load: Load) -> None:
    code, output = load.run(*options())
    assert code == Exit.PASS, output
    figures = found(load)
    assert figures["probes"] >= 16  # a round at least for each obstacle
    assert figures["retried"] == 3
    assert load.result()["ledger"]["recovered"] == 3
    assert (load.result()["ledger"]["lost"], load.result()["ledger"]["duplicated"]) == (0, 0)


def test_without_a_statement_timeout_it_says_that_nothing_is_cancelled(load: Load) -> None:
    code, output = load.run(*options("timeout=0"))
    assert code == Exit.INCORRECT, output
    figures = found(load)
    assert figures["wrong_class"] == figures["probes"] == figures["beyond_deadline"]
    meaning = next(figure["meaning"] for figure in load.result()["found"] if figure["name"] == "wrong_class")
    assert re.search(r"row locks, \w+: no error after", meaning), "whichever was first"


def test_a_failure_that_is_counted_twice_is_seen(load: Load) -> None:
    process = load.start(*options())
    wait_for_line(process, "workers are at work")
    (schema,) = load.schemas()
    with psycopg.connect(load.database, autocommit=True) as connection:
        connection.execute(LIE.format(schema=schema))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == Exit.INCORRECT, output
    assert "found.miscounted is 1, not <= 0" in output
