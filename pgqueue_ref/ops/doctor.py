"""Examines the queue, its server and its tables: what is wrong, why, and the command or setting that mends it.

`pgqueue-ref doctor` is its only caller. It promises: findings, never a traceback, whatever state the server is in; a
question that could not be asked is a WARN that says so; nothing is changed; no password is shown. Takes about
`LOOK_SECONDS` more than its statements, because the backlog is looked at twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg

from pgqueue_ref.core import ConnectionLimit, DatabaseUnavailable, Operation, QueueError, connect, run

from . import checks
from .checks import LEVELS, Finding, Plan
from .overview import overview

T = TypeVar("T")
Connection = psycopg.Connection[Any]

LOOK_SECONDS: Final = 2.0  # between two looks at the backlog
STYLES: Final = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def examine(plan: Plan, dsn: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> list[Finding]:
    """All findings, in the order in which one should read them."""
    try:
        connection = connect(dsn, application_name="pgqueue_ref:doctor")
    except QueueError as error:
        return [_unreachable(error)]
    findings: list[Finding] = []
    with connection:
        try:
            for ask in (_server, _tables, _work):
                findings += ask(connection, plan, sleep)
                if any(finding[:3] == ("schema", "FAIL", "missing") for finding in findings):
                    break
        except DatabaseUnavailable as error:
            findings.append(_unreachable(error))
    return findings


def exit_code(findings: list[Finding], *, strict: bool) -> int:
    """0; 2 with a FAIL; 1 with a WARN if `strict`."""
    worst = max(LEVELS.index(finding.level) for finding in findings)
    return worst if worst == 2 or strict else 0


def _unreachable(error: QueueError) -> Finding:
    fix = "is it running (pg_isready), and is PGQUEUE_DATABASE_URL right? docs/runbook.md#database-rotated"
    if isinstance(error, ConnectionLimit):
        fix = "end sessions that are not needed (pg_stat_activity); docs/runbook.md#too-many-connections"
    elif not isinstance(error, DatabaseUnavailable):
        fix = "mend the setting"
    return Finding("server", "FAIL", "unreachable", str(error), fix)


def _server(connection: Connection, plan: Plan, sleep: Callable[[float], None]) -> list[Finding]:
    return [
        _asked(connection, "server", checks.server()),
        _asked(connection, "statement_timeout", checks.timeout(plan)),
        _asked(connection, "connections", checks.connections(plan)),
        _asked(connection, "transactions", checks.transactions()),
        _asked(connection, "standbys", checks.standbys()),
        _asked(connection, "schema", checks.schema(*_revisions())),
    ]


def _tables(connection: Connection, plan: Plan, sleep: Callable[[float], None]) -> list[Finding]:
    return [
        _asked(connection, "privileges", checks.privileges()),
        _asked(connection, "vacuum", checks.vacuum()),
        _asked(connection, "bloat", checks.bloat()),
    ]


def _work(connection: Connection, plan: Plan, sleep: Callable[[float], None]) -> list[Finding]:
    findings = [
        _asked(connection, "leases", checks.leases()),
        _asked(connection, "running", checks.running()),
        _asked(connection, "failed", checks.failed()),
        _asked(connection, "attempts", checks.attempts()),
    ]
    try:
        first = run(connection, overview())
        sleep(LOOK_SECONDS)
        return findings + checks.backlog(first, run(connection, overview()))
    except DatabaseUnavailable:
        raise
    except QueueError as error:
        return [*findings, _not_asked("backlog", error)]


def _asked(connection: Connection, name: str, check: Operation[Finding]) -> Finding:
    try:
        return run(connection, check)
    except DatabaseUnavailable:
        raise
    except QueueError as error:
        return _not_asked(name, error)


def _not_asked(name: str, error: QueueError) -> Finding:
    fix = "mend what the message says, then look again"
    if getattr(error.__cause__, "sqlstate", None) == "42501":
        fix = "GRANT SELECT ON ALL TABLES IN SCHEMA of the queue (or what the message names) TO this role"
    return Finding(name, "WARN", "not checked", str(error), fix)


def _revisions() -> tuple[set[str], set[str]]:
    """This version's newest revisions, and all it has."""
    from alembic.script import ScriptDirectory

    from .commands.schema import migrations

    script = ScriptDirectory(str(migrations()))
    return set(script.get_heads()), {revision.revision for revision in script.walk_revisions()}


def show(findings: list[Finding]) -> None:
    """For people: a line for what is well, the reason and the remedy for what is not.

    Where stdout is no terminal each finding is one line, for grep and mails; on one the remedy is not broken, so that
    it can be copied.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .app import printable

    console = Console(highlight=False)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        told, fix = printable(f"{finding.value}: {finding.reason}"), printable(finding.fix)
        line = Table.grid(padding=(0, 1))
        line.add_column(width=4)
        line.add_column(width=width)
        line.add_column(overflow="fold")
        line.add_row(Text(finding.level, style=STYLES[finding.level]), finding.check, told)
        if console.is_terminal:
            console.print(line)
            if fix:
                console.print(Text(f"  -> {fix}", style="bold"), soft_wrap=True)
        else:
            remedy = f" -> {fix}" if fix else ""
            console.print(Text(f"{finding.level:<4} {finding.check:<{width}} {told}{remedy}"), soft_wrap=True)
    counts = [f"{sum(finding.level == level for finding in findings)} {level}" for level in LEVELS]
    console.print(Text(", ".join(counts)))
