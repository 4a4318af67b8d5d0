"""Whole queues: what is in them."""

from __future__ import annotations

from pgqueue_ref.core import Queue

from ..app import AsJson, DatabaseUrl, Schema, StatementTimeout, app, print_json, print_table


@app.command()
def stats(
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
    statement_timeout_ms: StatementTimeout = None,
) -> None:
    """Count jobs by queue, kind and status. Reads the whole table."""
    with Queue.connect() as connected:
        counts = connected.stats()
    if as_json:
        print_json([stat._asdict() for stat in counts])
    else:
        print_table(("queue", "kind", "status", "jobs", "due", "oldest"), counts, right=("jobs", "due", "oldest"))
