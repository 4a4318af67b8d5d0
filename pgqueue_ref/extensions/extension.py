"""What an extension is to others: its tables, its maintenance, and how its SQL joins an operation of the core.

It promises: an extension needs the core and its own DDL, never another extension; its operations are generators like
the core's, run by the same runners; and the core knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from pgqueue_ref.core import Operation, Statement

T = TypeVar("T")


class Chore(NamedTuple):
    """What one small batch of maintenance did, and in how many seconds the next is due: 0 is at once, there is more.

    `refused` has what it could not do, and why, by name; the worker says so once for as long as the reason stays.
    """

    done: int
    due: float
    refused: Mapping[str, str] = {}


class Extension(NamedTuple):
    """One extension: installed where its `table` is, which `schema_sql` makes (and makes again without harm).

    `chore` is maintenance for every worker: one small batch, safe from all of them at once, without a leader. A worker
    runs it at its start and again when the answer says so, though not more often than it polls (`Worker`).
    """

    name: str
    table: str
    schema_sql: str
    chore: Callable[[], Operation[Chore]] | None = None


# One look at the catalog's cache for each name. The search_path decides, as it does for the tables themselves.
INSTALLED = """
SELECT name FROM unnest(%(tables)s::text[]) AS name WHERE to_regclass(name) IS NOT NULL
"""


def installed(*extensions: Extension) -> Operation[frozenset[str]]:
    """The names of those of the extensions whose tables are there."""
    rows = yield Statement(INSTALLED, {"tables": [extension.table for extension in extensions]})
    return frozenset(extension.name for extension in extensions if (extension.table,) in rows)


def within(sql: str, params: Mapping[str, Any], operation: Operation[T]) -> Operation[T]:
    """Run an operation of one statement as the CTE `core` at the head of another, which answers in its stead.

    What an extension adds to an outcome so commits with it, in one round trip and without a transaction around it:
    BEGIN, two statements and COMMIT would be four. `sql` goes on after `WITH core AS (...)` and ends with the rows that
    the operation expects.
    """
    try:
        statement = next(operation)
    except StopIteration as done:  # it had nothing to ask
        nothing: T = done.value
        return nothing
    rows = yield Statement(f"WITH core AS ({statement.sql}){sql}", {**statement.params, **params})
    try:
        operation.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result
    raise TypeError("the operation within has more than one statement")
