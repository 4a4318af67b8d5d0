"""docs/cli.md is true: each section's examples are run in order on the example queue, and print what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documents import Step, blocks, same, sections, steps
from typer.main import get_command

import pgqueue_ref.ops.commands  # noqa: F401 - registers them
from pgqueue_ref.ops.app import EXIT_CODES, app

ROOT = Path(__file__).resolve().parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text()
Play = Callable[[str], list[Step]]

# What a shop's queue may look like in the afternoon.
EXAMPLE = """
INSERT INTO pgqueue_jobs (id, queue, kind, external_key, status, payload, attempt, max_attempts, worker, errors,
                          created_at, run_at, started_at, finished_at, lease_expires_at, delete_after)
SELECT id, queue, kind, key, status, payload::jsonb, attempt, 3, worker, errors::text[], now() - created, now() - due,
       now() - started, now() - ended, now() + lease, now() - ended + kept
FROM (VALUES
    (1, 'default', 'mail', 'order-1', 'succeeded', '{"order": 1}', 1, 'host:4711', '{}',
     interval '40 days', interval '40 days', interval '40 days', interval '40 days', NULL::interval, NULL::interval),
    (2, 'reports', 'monthly', NULL, 'failed', '{"month": "2026-07"}', 3, 'host:4711', '{TimeoutError: 30 s}',
     '100 days', '100 days', '100 days', '100 days', NULL, NULL),
    (3, 'default', 'mail', 'order-2', 'succeeded', '{"order": 2}', 1, 'host:4711', '{}',
     '4 min', '4 min', '180.2 s', '180 s', NULL, '1 day'),
    (4, 'default', 'thumbnail', NULL, 'failed', '{"photo": 7}', 3, 'host:4711',
     '{ConnectionError: images.example refused,ConnectionError: images.example refused}',
     '3 h', '130 min', '121 min', '2 h', NULL, NULL),
    (5, 'default', 'thumbnail', NULL, 'running', '{"photo": 8}', 1, 'host:4711', '{}',
     '5 min', '5 min', '4 min', NULL, '5 min', NULL),
    (6, 'reports', 'monthly', NULL, 'running', '{"month": "2026-10"}', 1, 'host:23', '{}',
     '20 min', '20 min', '20 min', NULL, '-2 min', NULL),
    (7, 'default', 'mail', 'order-3', 'pending', '{"order": 3}', 0, NULL, '{}',
     '12 min', '12 min', NULL, NULL, NULL, NULL),
    (8, 'default', 'mail', 'order-4', 'pending', '{"order": 4}', 0, NULL, '{}',
     '12 min', '-1 h', NULL, NULL, NULL, NULL)
) AS shop (id, queue, kind, key, status, payload, attempt, worker, errors, created, due, started, ended, lease, kept);
SELECT setval(pg_get_serial_sequence('pgqueue_jobs', 'id'), 8);
"""


# -- docs/cli.md -----------------------------------------------------------------------------------------------


def cli_sections() -> dict[str, str]:
    return {name: text for name, text in sections(CLI).items() if "```console" in text}


@pytest.mark.parametrize("section", cli_sections())
def test_the_examples_of_a_command_print_what_they_say(section: str, play: Play, db: Any) -> None:
    db.execute(EXAMPLE)
    assert play(cli_sections()[section])


def test_every_command_has_an_example_and_its_json() -> None:
    group: Any = get_command(app)
    examples = [step.command for text in cli_sections().values() for block in blocks(text) for step in steps(block)]
    for name, command in group.commands.items():
        if hasattr(command, "commands"):  # a group, which has a page of its own
            continue
        own = [example for example in examples if example.split()[:2] == ["pgqueue-ref", name]]
        assert own, name
        if any("--json" in parameter.opts for parameter in command.params):
            assert any("--json" in example for example in own), name


def test_the_exit_codes_are_documented() -> None:
    documented = sections(CLI)["exit-codes"]
    for code in re.findall(r"\b(\d+) ", EXIT_CODES):
        assert re.search(rf"^\| {code} \|", documented, re.MULTILINE), code


# -- the rules above, on a document of our own -----------------------------------------------------------------

SAMPLE = """
# One
## Two things

```console
$ pgqueue-ref push mail --key k
{"id": 1, "created": true}
$ pgqueue-ref cancel 1
Cancel 1 job, mail 1 (pending, attempts 0/?)? [y/N]: n
pgqueue-ref: nothing was changed
```
"""


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("", "  # exit code 1"),
        ("  # exit code 2", "  # exit code 1"),
    ],
)
def test_an_example_that_does_not_do_what_it_says_is_found(play: Play, wrong: str, right: str) -> None:
    (text,) = (text for name, text in sections(SAMPLE).items() if name == "two-things")
    told = text.replace("cancel 1\n", f"cancel 1{right}\n")
    with pytest.raises(AssertionError):
        play(text.replace("cancel 1\n", f"cancel 1{wrong}\n"))
    with pytest.raises(AssertionError):
        play(told.replace('"created": true', '"created": 1'))
    assert [step.answer for step in play(told.replace("true", "false"))] == [None, "n"]


@pytest.mark.parametrize(
    ("documented", "printed", "alike"),
    [
        ("12 jobs", "  3,400 jobs\n", True),
        ("12 jobs", "12 job", False),
        ("a   b\n────", "a b ──────", True),
        ("a\n...\nb 1\n...", "a\nx\nb 2\ny", True),
        ("a\n...\nb\n...", "a\nx\ny", False),
        ("...\nb", "b\nc", False),
        ('{"a": 1, "b": [null]}', '{\n"b": [null], "a": 2.5}', True),
        ('{"a": 1}', '{"a": null}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("[1, 2]", "[1]", False),
        ('{"at": "2026-01-01T00:00:00Z"}', '{"at": "2027-11-12T01:02:03.456Z"}', True),
        ("", "something", False),
    ],
)
def test_only_figures_and_blanks_may_differ(documented: str, printed: str, alike: bool) -> None:
    assert same(documented, printed) is alike
