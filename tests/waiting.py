"""Waiting for a state, with a deadline: the only way in which tests of the worker wait. A deadline is how long a broken
promise takes to fail, never how fast a kept one is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

DEADLINE = 60.0  # seconds


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The condition's first true answer; fails the test when there is none in time."""
    end = time.monotonic() + deadline
    while not (answer := condition()):
        if time.monotonic() > end:
            pytest.fail(f"within {deadline:g} s it did not come true that {what}")
        time.sleep(0.02)
    return answer


async def eventually(condition: Callable[[], Any | Awaitable[Any]], what: str, deadline: float = DEADLINE) -> Any:
    """`until`, for a condition that may be asynchronous, beside a worker on the same event loop."""
    end = time.monotonic() + deadline
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            pytest.fail(f"within {deadline:g} s it did not come true that {what}")
        await asyncio.sleep(0.01)
