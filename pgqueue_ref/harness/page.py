"""What every HTML page of the harness is made of: one self-contained file in the style of report.css.

No network; readable in the reader's theme and at the width of a phone, where a wide table scrolls inside its box.
Called by the reports, the index and Locust's tab, which alone brings a script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]
STYLE = Path(__file__).with_name("report.css")


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document; `parts` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A titled part of a page; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text, in a box that scrolls; without a head when every name is empty."""
    # A name may break after its dots and underscores.
    cells = [[re.sub(r"([._])", r"\1<wbr>", escape(row[0])), *map(escape, row[1:])] for row in rows]
    return html_table(names, cells)


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`table` whose cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    head = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def figure(value: float | str | None) -> str:
    """A number as people read it: three digits, all of an integer; "not measured" for None; text as it is."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def at(document: Document, path: str) -> Any:
    """What stands at a dotted path, None where a part of it is missing: runs of older versions have less."""
    node: Any = document
    for name in path.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(name)
    return node
