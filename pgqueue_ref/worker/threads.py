"""Threads for plain-function handlers. Unlike ThreadPoolExecutor's they are daemons: a handler that never returns must
not keep the process from exiting once its job has been given up."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any


class Threads:
    """As many threads as there are calls at once; idle ones are reused."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._made = 0

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `call` in a thread; the future belongs to the running loop."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._made += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()
        self._calls.put((future, call))
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            result: Any = None
            problem: BaseException | None = None
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - whatever ends a handler ends its attempt, not the thread
                problem = error
            with self._lock:
                self._idle += 1
            try:
                future.get_loop().call_soon_threadsafe(_deliver, future, result, problem)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _deliver(future: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if future.cancelled():
        return
    if problem is None:
        future.set_result(result)
    elif isinstance(problem, StopIteration):  # a future cannot carry it
        future.set_exception(RuntimeError("the handler raised StopIteration"))
    else:
        future.set_exception(problem)
