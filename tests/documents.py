"""Reading the documents, so that tests can run what they show.

A fenced block that an HTML comment precedes, `<!-- not run: reason -->`, is excused. In a `console` block a line that
begins with `$ ` is a command, and what follows is what it prints; `# exit code 1` behind a command is how it ends, and
what stands behind `[y/N]: ` is typed. A line `...` stands for whatever is printed there, and figures may differ (see
`same`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


class Block(NamedTuple):
    """A fenced block: its language, its text, where it starts, and why it is not run."""

    language: str
    text: str
    line: int
    not_run: str
    document: str = ""


class Step(NamedTuple):
    """A command of a console block, what it prints and how it ends, and what is typed meanwhile."""

    command: str
    shown: str
    exit_code: int
    answer: str | None


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks, in order."""
    found = []
    pattern = r"(?:<!-- not run: (?P<why>[^>]+) -->\s*\n)?^ *```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```\s*$"
    for match in re.finditer(pattern, markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], match["text"], line, match["why"] or ""))
    return found


def commands(block: Block) -> list[str]:
    """A shell block's commands: continued lines joined, prompts and comments cut."""
    joined = block.text.replace("\\\n", " ")
    lines = (re.sub(r"^\$ ", "", line.strip()) for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def steps(block: Block) -> list[Step]:
    """A console block's commands with their output."""
    found = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, shown = part.replace("\\\n", " ").partition("\n")
        command, _, code = line.partition("  # exit code ")
        typed = re.search(r"\[y/N\]: (\w+)$", shown, re.MULTILINE)
        found.append(Step(command.strip(), shown.strip(), int(code or 0), typed and typed[1]))
    return found


def sections(markdown: str) -> dict[str, str]:
    """What stands below each heading, up to the next one, by the heading's anchor."""
    found: dict[str, str] = {}
    name, fenced = "", False
    for line in markdown.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and (heading := re.match(r"#+ (.+)", line)):
            name = anchor(heading[1])
            found[name] = ""
        elif name:
            found[name] += line
    return found


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def same(documented: str, printed: str) -> bool:
    """Whether the two differ in nothing but figures, blanks and what a line `...` leaves out. JSON is compared as such,
    however it is laid out."""
    try:
        return _plain(json.loads(documented)) == _plain(json.loads(printed))
    except ValueError:
        parts = [" ".join(_words(part)) for part in re.split(r"^\.\.\.$", documented, flags=re.MULTILINE)]
        return bool(re.fullmatch(".*".join(map(re.escape, parts)), " ".join(_words(printed))))


def _words(text: str) -> list[str]:
    return FIGURE.sub("0", re.sub("─+", "─", text)).split()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return _words(value)
    return value if value is None or isinstance(value, bool) else "a number"
