"""States and transitions of a job, as data. The README's diagram is drawn from it; a test walks it on a server."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Status = Literal["pending", "blocked", "running", "succeeded", "failed", "cancelled"]

ACTIVE: Final[tuple[Status, ...]] = ("pending", "blocked", "running")
TERMINAL: Final[tuple[Status, ...]] = ("succeeded", "failed", "cancelled")


class Transition(NamedTuple):
    """`operation` moves a job from `source` to `target`; None is a row that does not exist."""

    operation: str
    source: Status | None
    target: Status | None
    when: str = ""


TRANSITIONS: Final = (
    Transition("push", None, "pending"),
    Transition("claim", "pending", "running", "due"),
    Transition("complete", "running", "succeeded"),
    Transition("complete", "running", None, "TTL 0"),
    Transition("fail", "running", "pending", "attempts left"),
    Transition("fail", "running", "failed", "none left"),
    Transition("fail", "running", "cancelled", "the handler cancels"),
    Transition("snooze", "running", "pending", "later"),
    Transition("release", "running", "pending", "at once"),
    Transition("rescue", "running", "pending", "lease ran out, attempts left"),
    Transition("rescue", "running", "failed", "lease ran out, none left"),
    Transition("cancel", "pending", "cancelled"),
    Transition("cancel", "blocked", "cancelled"),
    Transition("cancel", "running", "cancelled"),
    Transition("expire", "pending", "cancelled", "not started in time"),
    Transition("expire", "blocked", "cancelled", "not started in time"),
    Transition("retry", "failed", "pending"),
    Transition("retry", "cancelled", "pending"),
    Transition("cleanup", "succeeded", None, "after its TTL"),
    Transition("cleanup", "cancelled", None, "after its TTL"),
    Transition("purge", "succeeded", None),
    Transition("purge", "cancelled", None),
    Transition("purge", "failed", None, "when asked"),
)


def mermaid() -> str:
    """The state diagram as Mermaid text, one arrow for each pair of states."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for operation, source, target, when in TRANSITIONS:
        label = f"{operation} ({when})" if when else operation
        arrows.setdefault((source or "[*]", target or "[*]"), []).append(label)
    lines = [f"    {a} --> {b}: {', '.join(labels)}" for (a, b), labels in arrows.items()]
    return "\n".join(["stateDiagram-v2", *lines])
