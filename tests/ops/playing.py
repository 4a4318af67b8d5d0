"""Plays what the documents show (see `documents`): console and SQL blocks in order, on one database."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from documents import Step, blocks, same, steps

ROOT = Path(__file__).resolve().parents[2]


class Player:
    """Called with a text, it fails unless each command prints what is shown and each query shows something.

    A single command, or the first of a pipe, is run in this process by `cli`; the rest by a shell in `directory`.
    """

    def __init__(self, cli: Callable[..., Any], database: str, db: psycopg.Connection[Any], directory: Path) -> None:
        self._cli, self._database, self._db, self._directory = cli, database, db, directory
        program = directory / "pgqueue-ref"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pgqueue_ref "$@"\n')
        program.chmod(0o755)

    def __call__(self, text: str) -> list[Step]:
        """Play all blocks of the text but those that are excused; the commands."""
        played = []
        for block in blocks(text):
            if block.not_run:
                continue
            for statement in statements(block.text) if block.language == "sql" else ():
                cursor = self._db.execute(statement)
                assert cursor.rowcount or not cursor.description, f"{statement}\nshows nothing"
            for step in steps(block) if block.language == "console" else ():
                code, printed = self.command(step)
                assert code == step.exit_code, (step.command, printed)
                assert same(step.shown, printed), f"$ {step.command}\n{printed}\nis not\n{step.shown}"
                played.append(step)
        return played

    def command(self, step: Step) -> tuple[int, str]:
        """The exit code and what is printed."""
        first, _, rest = step.command.partition(" | ")
        if not first.startswith("pgqueue-ref ") or {">", "&&"} & set(first.split()):
            return self._shell(step.command)
        code, out, err = self._cli(*shlex.split(first)[1:], answer=step.answer)
        if step.answer is not None:
            return code, err.replace("[y/N]: ", f"[y/N]: {step.answer}\n") + out
        if rest:
            code, out = self._shell(rest, out)
        return code, out + err

    def _shell(self, command: str, stdin: str = "") -> tuple[int, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
        path = f"{self._directory}:{kept['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-u", "-c", command], cwd=self._directory, input=stdin, capture_output=True, text=True,
            env=kept | {"PGQUEUE_DATABASE_URL": self._database, "PYTHONPATH": str(ROOT), "PATH": path}, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


def statements(sql: str) -> list[str]:
    """The statements of a block, each ending a line with its semicolon; without comments."""
    bare = re.sub(r"--.*", "", sql)
    return [statement for statement in re.split(r";[ \t]*(?:\n|$)", bare) if statement.strip()]
