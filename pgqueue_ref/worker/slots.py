"""Runs handlers: a slot is a task that takes one attempt after the other, and starts the next slot when there is more
than it can do. A handler that never waits costs no task of its own; one that waits has its slot to itself.

Whatever a handler does, its attempt ends exactly once: `Ending` says how, and the worker's `Writer` tells the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pgqueue_ref.core import Job, seconds
from pgqueue_ref.core.jobs import DEFAULT_TTL
from pgqueue_ref.extensions.results import Returned, returned

from .kinds import COMPLETED, Cancel, Ignore, Kind, RetryAfter, Snooze
from .threads import Threads

log = logging.getLogger("pgqueue_ref.worker")

HERE = Path(__file__).parent


class Ending(Enum):
    """How an attempt ended."""

    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    SNOOZE = "snooze"
    RELEASE = "release"
    DONE = "done"  # completed by the handler itself: nothing to write
    GONE = "gone"  # the lease was lost: nothing to write


@dataclass(slots=True, eq=False)
class Attempt:
    """A claimed job in this process, from the claim until its ending is written."""

    job: Job
    kind: Kind
    fresh: float  # when its lease was last known to begin, on this process's clock
    task: asyncio.Task[Any] | None = None
    thread: asyncio.Future[Any] | None = None  # of a plain function, once it was started
    began: float = 0.0  # when its handler was called and when it ended, on this process's clock; 0: never
    ended: float = 0.0
    ending: Ending | None = None
    ignored: bool = False
    ttl: float | None = None
    returned: Returned | None = None  # where the kind keeps results
    delay: float = 0.0
    error: str = ""
    traceback: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What the fence goes by."""
        return self.job.id, self.job.lease_token


class Slots:
    """`on_end` is called once for each attempt, on the event loop, when its `ending` is set; `on_free` when a thread
    that had been given up returns its slot."""

    def __init__(self, worker: str, on_end: Callable[[Attempt], None], on_free: Callable[[], None]) -> None:
        self.running = 0  # attempts admitted and not ended
        self._worker, self._on_end, self._on_free = worker, on_end, on_free
        self._ready: deque[Attempt] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = False
        self._threads = Threads("pgqueue-handler")

    def admit(self, attempts: list[Attempt]) -> None:
        """Run these, in their order."""
        for attempt in attempts:
            attempt.kind.running += 1
        self.running += len(attempts)
        self._ready.extend(attempts)
        self._more()

    def end(self, attempt: Attempt, ending: Ending) -> None:
        """The attempt is over, whoever says so first; later words about it are dropped."""
        if attempt.ending is not None:
            return
        attempt.ending, attempt.ended = ending, time.monotonic()
        if attempt.thread is None or attempt.thread.done():
            attempt.kind.running -= 1
        else:  # the kind's slot stays taken until the thread is done
            attempt.thread.add_done_callback(lambda thread: self._thread_ended(attempt.kind, thread))
            job = attempt.job
            words = "job %d (%s) attempt %d: its thread cannot be stopped; its outcome will be discarded"
            log.warning(words, job.id, job.kind, job.attempt, extra=about(job, self._worker))
        self.running -= 1
        self._on_end(attempt)

    def take(self, attempt: Attempt, ending: Ending) -> None:
        """End an attempt from outside (`RELEASE`, `GONE`) and cancel its handler."""
        task = attempt.task
        self.end(attempt, ending)
        if task is not None:
            task.cancel()

    def not_begun(self) -> list[Attempt]:
        """The attempts that wait for a slot; they will not begin."""
        waiting = list(self._ready)
        self._ready.clear()
        return waiting

    async def finish(self, patience: float) -> None:
        """Give cancelled handlers `patience` seconds to clean up. Threads cannot be stopped, and are not waited for."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)

    def _more(self) -> None:
        if self._ready and not self._coming:
            self._coming = True
            task = asyncio.create_task(self._slot())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _slot(self) -> None:
        self._coming = False
        task = asyncio.current_task()
        while self._ready:
            attempt = self._ready.popleft()
            self._more()  # the next slot gets its turn only if this handler waits for something
            if attempt.ending is None:
                attempt.task = task
                await self._attempt(attempt)

    async def _attempt(self, attempt: Attempt) -> None:
        kind = attempt.kind
        limit = None if kind.attempt_timeout is None else asyncio.timeout(kind.attempt_timeout)
        attempt.began = time.monotonic()
        try:
            if not kind.is_async:
                value = await self._in_thread(attempt, limit)
            elif limit is None:
                value = await kind.handler(attempt.job)
            else:
                async with limit:
                    value = await kind.handler(attempt.job)
        except asyncio.CancelledError:
            if attempt.ending is None:  # not `take`
                self._failed(attempt, "the handler was cancelled")
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises ends its attempt, not the worker
            if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                self._failed(attempt, f"attempt timed out after {kind.attempt_timeout:g} s")
            else:
                self._raised(attempt, error)
        else:
            self._returned(attempt, value)
        finally:
            task, attempt.task = attempt.task, None
            while task is not None and task.cancelling():  # a cancellation that the handler swallowed ends with it
                task.uncancel()

    async def _in_thread(self, attempt: Attempt, limit: asyncio.Timeout | None) -> Any:
        """Run a plain function in a thread. When it is given up the thread goes on; see `end`."""
        kind, job = attempt.kind, attempt.job
        attempt.thread = self._threads.submit(lambda: kind.handler(job))
        async with limit or contextlib.nullcontext():
            return await asyncio.shield(attempt.thread)

    def _thread_ended(self, kind: Kind, future: asyncio.Future[Any]) -> None:
        kind.running -= 1
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio does not complain, and dropped
        self._on_free()

    def _returned(self, attempt: Attempt, value: Any) -> None:
        if value is COMPLETED:
            self.end(attempt, Ending.DONE)
            return
        if inspect.iscoroutine(value):
            value.close()
            self._failed(attempt, "the handler returned a coroutine that was never awaited: register an async def")
            return
        if attempt.kind.result_ttl != 0:
            # On the event loop, as jobs are decoded: a result as large as may be kept takes some ten milliseconds.
            job = attempt.job
            attempt.returned = returned(job, value, time.monotonic() - attempt.began)
            if error := attempt.returned.error:
                words = "job %d (%s) attempt %d: its result is not kept: %s"
                log.error(words, job.id, job.kind, job.attempt, error, extra=about(job, self._worker))
        try:
            attempt.ttl = attempt.kind.ttl()
        except Exception:
            log.exception(
                "terminal_ttl of kind %s could not be asked", attempt.kind.name, extra={"worker": self._worker}
            )
            attempt.ttl = DEFAULT_TTL
        self.end(attempt, Ending.COMPLETE)

    def _raised(self, attempt: Attempt, error: BaseException) -> None:
        try:
            self._obey(attempt, error)
        except Exception as odd:  # noqa: BLE001 - a __str__ that raises, an instruction without its delay
            self._failed(attempt, f"{type(error).__name__}, whose text cannot be had ({type(odd).__name__})")

    def _obey(self, attempt: Attempt, error: BaseException) -> None:
        job = attempt.job
        if isinstance(error, Snooze):
            attempt.delay = error.delay
            self.end(attempt, Ending.SNOOZE)
        elif isinstance(error, Cancel):
            attempt.error = str(error) or "cancelled by its handler"
            self.end(attempt, Ending.CANCEL)
        elif isinstance(error, RetryAfter):
            self._failed(attempt, str(error), error.delay)
        elif isinstance(error, Ignore):
            message = str(error) or "ignored failure"
            attempt.ignored = True
            self._failed(attempt, message)
        else:
            words = "job %d (%s) attempt %d of %d failed"
            log.warning(
                words, job.id, job.kind, job.attempt, job.max_attempts, exc_info=error, extra=about(job, self._worker)
            )
            if isinstance(error, SystemExit):
                self._failed(attempt, f"the handler called sys.exit({error.code!r})")
            else:
                attempt.traceback = _traceback(error)
                self._failed(attempt, f"{type(error).__name__}: {error}")

    def _failed(self, attempt: Attempt, message: str, delay: float | None = None) -> None:
        attempt.error = message
        if delay is None:
            try:
                delay = seconds(attempt.kind.backoff(attempt.job.attempt), "backoff")
            except Exception:
                log.exception(
                    "backoff of kind %s failed, waiting 60 s", attempt.kind.name, extra={"worker": self._worker}
                )
                delay = 60.0
        attempt.delay = delay
        self.end(attempt, Ending.FAIL)


def _traceback(error: BaseException) -> str:
    """As Python prints it, from the handler's own first frame on."""
    frames = error.__traceback__
    while frames and frames.tb_next and Path(frames.tb_frame.f_code.co_filename).parent == HERE:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def about(job: Job, worker: str) -> dict[str, Any]:
    """The fields of a log record about an attempt."""
    return {"worker": worker, "job_id": job.id, "kind": job.kind, "attempt": job.attempt}


def keys(attempts: Iterable[Attempt]) -> set[tuple[int, int]]:
    """The fences of several attempts."""
    return {attempt.key for attempt in attempts}
