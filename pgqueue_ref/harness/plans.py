"""How the server runs a statement of the queue: the indexes it uses, the tables it reads whole, the pages it touches.

A prepared statement has two plans: one for the values given, as its first executions have, and the generic one that it
may settle on. `explain` makes either, runs it for real and rolls back. Called by the scenario `depth` and by the tests
that guard every hot statement; a plan tells the same on a busy machine as on a quiet one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer

Mode = Literal["custom", "generic"]
MODES: tuple[Mode, ...] = ("custom", "generic")


class Plan(NamedTuple):
    """What EXPLAIN (ANALYZE, BUFFERS) said."""

    indexes: set[str]
    scanned: set[str]  # tables read from end to end
    buffers: int  # pages touched, in memory or not
    text: str


def explain(connection: psycopg.Connection[Any], statement: str, params: Mapping[str, Any], mode: Mode) -> Plan:
    """Run a statement, prepared with the parameter types that psycopg would send, and roll back."""
    formats = {name: PyFormat(letter) for name, letter in re.findall(r"%\((\w+)\)([sb])", statement)}
    names = list(formats)
    numbered = re.sub(r"%\((\w+)\)[sb]", lambda found: f"${names.index(found[1]) + 1}", statement)
    types = [_type(connection, params[name], formats[name]) for name in names]
    given = [sql.Literal(params[name]) for name in names]
    execute = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE guarded {}").format(
        sql.SQL("({})").format(sql.SQL(", ").join(given)) if given else sql.SQL("")
    )
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('plan_cache_mode', %s, true)", [f"force_{mode}_plan"])
        connection.execute(f"PREPARE guarded {'(' + ', '.join(types) + ')' if types else ''} AS {numbered}".encode())
        row = connection.execute(execute).fetchone()
        connection.execute("DEALLOCATE guarded")
    assert row is not None  # noqa: S101  # for the type checker: EXPLAIN answers with one row
    root = row[0][0]["Plan"]
    nodes = list(_walk(root))
    return Plan(
        {node["Index Name"] for node in nodes if "Index Name" in node},
        {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"},
        root["Shared Hit Blocks"] + root["Shared Read Blocks"],
        json.dumps(root, indent=1),
    )


def _type(connection: psycopg.Connection[Any], value: Any, format_: PyFormat) -> str:
    """The name of the type that psycopg would send a value as; unknown for those it leaves to the server."""
    if value is None:
        return "unknown"
    dumper = Transformer(connection).get_dumper(value, format_)
    oid = dumper.upgrade(value, format_).oid
    row = connection.execute("SELECT format_type(nullif(%s, 0)::oid, NULL)", [oid]).fetchone()
    return (row and row[0]) or "unknown"


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)
