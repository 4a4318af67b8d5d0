"""The kinds of job that an application handles: what it registers, and what its handlers may raise."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pgqueue_ref.core import Backoff, InvalidJob, Jitter, Job, Json, QueueError, Seconds, UnknownKind, seconds
from pgqueue_ref.core.jobs import DEFAULT_MAX_ATTEMPTS, DEFAULT_TTL, text, whole

Handler = Callable[[Job], Json] | Callable[[Job], Awaitable[Json]]
H = TypeVar("H", bound=Handler)
Ttl = Seconds | None

# A handler that has completed its job itself, in the transaction of its own writes, returns this.
COMPLETED: Final = object()


class Cancel(Exception):  # noqa: N818 - an instruction, not an error
    """Raise from a handler: end the job `cancelled`, with the reason."""


class Ignore(Exception):  # noqa: N818
    """Raise from a handler: an expected failure. Spends the attempt like any, but is counted and logged apart."""


class Snooze(Exception):  # noqa: N818
    """Raise from a handler: put the job back for `delay` (seconds or timedelta), attempt unspent."""

    def __init__(self, delay: Seconds) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = seconds(delay, "delay")


class RetryAfter(Exception):  # noqa: N818
    """Raise from a handler: the attempt failed; try again after `delay` instead of the kind's backoff."""

    def __init__(self, delay: Seconds, reason: str = "asked to retry later") -> None:
        super().__init__(reason)
        self.delay = seconds(delay, "delay")


@dataclass(slots=True)
class Kind:
    """How one kind is handled; see `Kinds.register`."""

    name: str
    handler: Handler
    max_attempts: int
    attempt_timeout: float | None
    backoff: Backoff
    concurrency: int | Callable[[], int] | None
    terminal_ttl: Ttl | Callable[[], Ttl]
    max_errors: int
    result_ttl: float | None
    is_async: bool
    running: int = field(default=0, init=False)  # attempts that hold a slot

    def free(self, otherwise: int) -> int:
        """Free slots now; `otherwise` bounds a kind without a concurrency of its own."""
        limit = self.concurrency() if callable(self.concurrency) else self.concurrency
        return max(0, (otherwise if limit is None else whole(limit, "concurrency", 0)) - self.running)

    def ttl(self) -> float | None:
        """How long a succeeded job stays, in seconds; None is until purged."""
        value = self.terminal_ttl() if callable(self.terminal_ttl) else self.terminal_ttl
        return None if value is None else seconds(value, "terminal_ttl")


class Kinds:
    """A registry of kinds; an application makes one and gives it to the worker."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}

    def register(
        self,
        kind: str,
        *,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        attempt_timeout: Seconds | None = None,
        backoff: Backoff = Jitter.equal(base=6, cap=600),  # noqa: B008 - a pure function, made once
        concurrency: int | Callable[[], int] | None = None,
        terminal_ttl: Ttl | Callable[[], Ttl] = DEFAULT_TTL,
        max_errors: int = 10,
        result_ttl: Ttl = 0.0,
    ) -> Callable[[H], H]:
        """Register the decorated function as the handler of a kind.

        `async def` runs on the event loop, a plain function in a thread. `attempt_timeout` (seconds) fails an attempt
        that takes longer; a thread cannot be stopped, so it keeps its slot until it ends, and its outcome is discarded.
        `backoff` maps attempts spent to seconds. `concurrency` bounds the attempts at once in one worker process (None:
        the worker's bound), `terminal_ttl` is how long succeeded jobs stay (0: not at all, None: until purged); both
        may be callables, asked again at each turn. `max_errors` is how many messages a job keeps, `result_ttl` how long
        what the handler returned is kept, which must be JSON (0: not at all, None: until deleted; see
        `extensions.results`). Raises `InvalidJob`.
        """
        text(kind, "kind")
        whole(max_attempts, "max_attempts")
        whole(max_errors, "max_errors")
        if concurrency is not None and not callable(concurrency):
            whole(concurrency, "concurrency", 0)
        if terminal_ttl is not None and not callable(terminal_ttl):
            seconds(terminal_ttl, "terminal_ttl")
        keep = None if result_ttl is None else seconds(result_ttl, "result_ttl")
        timeout = None if attempt_timeout is None else seconds(attempt_timeout, "attempt_timeout")
        if timeout == 0:
            raise InvalidJob("attempt_timeout must be above 0; None is no timeout")
        if not callable(backoff):
            raise InvalidJob("backoff must be a function of the attempts spent: constant(60), Jitter.equal(base=6)")

        def decorate(handler: H) -> H:
            # A generator runs nothing when it is called: each job would succeed without a line of it executed.
            if not callable(handler) or inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
                raise InvalidJob(f"the handler of kind {kind!r} must be a function or an async function")
            if kind in self._kinds:
                raise InvalidJob(f"kind {kind!r} is registered twice")
            self._kinds[kind] = Kind(
                kind,
                handler,
                max_attempts,
                timeout,
                backoff,
                concurrency,
                terminal_ttl,
                max_errors,
                keep,
                is_async=inspect.iscoroutinefunction(handler)
                or inspect.iscoroutinefunction(getattr(handler, "__call__", None)),  # noqa: B004 - an instance with async __call__
            )
            return handler

        return decorate

    def __iter__(self) -> Any:
        return iter(self._kinds.values())

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, name: str) -> Kind:
        try:
            return self._kinds[name]
        except KeyError:
            raise UnknownKind(f"no handler is registered for kind {name!r}") from None


def require(kinds: object, name: str) -> Kinds:
    """The registry an application names, or one line that says what is wrong with it."""
    if not isinstance(kinds, Kinds):
        raise QueueError(f"{name} is a {type(kinds).__name__}, not a Kinds registry")
    if not len(kinds):
        raise QueueError(f"{name} has no kinds: register a handler with @kinds.register(...)")
    return kinds
