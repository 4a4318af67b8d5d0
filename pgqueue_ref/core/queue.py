"""`Queue` and `AsyncQueue`: the operations as methods, for people and their editors. They add nothing but the
connection; what a method promises is said once, at the operation of the same name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from . import operations as op
from .connect import connect, connect_async
from .operations import Operation
from .runners import run, run_async

P = ParamSpec("P")
T = TypeVar("T")


def _with_self(method: Callable[..., Any], operation: Callable[..., Any]) -> None:
    """Show the operation's own signature and words, so that help() and editors do."""
    functools.update_wrapper(method, operation)
    signature = inspect.signature(operation)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]  # read by inspect


def _sync(operation: Callable[P, Operation[T]], *, bounded: bool = False) -> Callable[Concatenate[Queue, P], T]:
    def method(self: Queue, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if bounded:
            kwargs.setdefault("max_in_flight", self.max_in_flight)
        return self.run(operation(*args, **kwargs))

    _with_self(method, operation)
    return method


def _async(
    operation: Callable[P, Operation[T]], *, bounded: bool = False
) -> Callable[Concatenate[AsyncQueue, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncQueue, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if bounded:
            kwargs.setdefault("max_in_flight", self.max_in_flight)
        return await self.run(operation(*args, **kwargs))

    _with_self(method, operation)
    return method


class Queue:
    """The queue on one connection, which stays the caller's: a psycopg connection, or any other with its runner `run`.

    `max_in_flight` bounds the jobs of each queue that are not terminal (see `operations.push_many`).
    """

    def __init__(
        self, connection: Any, *, max_in_flight: int | None = None, run: Callable[[Any, Operation[Any]], Any] = run
    ) -> None:
        self.connection, self.max_in_flight, self._run = connection, max_in_flight, run

    @classmethod
    def connect(cls, dsn: str | None = None, *, max_in_flight: int | None = None) -> Queue:
        """A queue on an autocommit connection of its own (see `connect`); use it in a `with` block, which closes it."""
        return cls(connect(dsn), max_in_flight=max_in_flight)

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *exc: object) -> None:
        self.connection.close()

    def run(self, operation: Operation[T]) -> T:
        """Run any operation here, an extension's for example: `queue.run(schedules.pause("nightly"))`."""
        result: T = self._run(self.connection, operation)
        return result

    push = _sync(op.push, bounded=True)
    push_many = _sync(op.push_many, bounded=True)
    claim = _sync(op.claim)
    complete = _sync(op.complete)
    complete_many = _sync(op.complete_many)
    fail = _sync(op.fail)
    fail_many = _sync(op.fail_many)
    snooze = _sync(op.snooze)
    snooze_many = _sync(op.snooze_many)
    release = _sync(op.release)
    release_many = _sync(op.release_many)
    heartbeat = _sync(op.heartbeat)
    heartbeat_many = _sync(op.heartbeat_many)
    cancel = _sync(op.cancel)
    cancel_key = _sync(op.cancel_key)
    retry = _sync(op.retry)
    retry_many = _sync(op.retry_many)
    chores = _sync(op.chores)
    rescue = _sync(op.rescue)
    expire = _sync(op.expire)
    cleanup = _sync(op.cleanup)
    purge = _sync(op.purge)
    pause = _sync(op.pause)
    resume = _sync(op.resume)
    paused = _sync(op.paused)
    stats = _sync(op.stats)
    get = _sync(op.get)
    list_jobs = _sync(op.list_jobs)


class AsyncQueue:
    """`Queue` for asyncio: the same methods, awaited."""

    def __init__(
        self,
        connection: Any,
        *,
        max_in_flight: int | None = None,
        run: Callable[[Any, Operation[Any]], Awaitable[Any]] = run_async,
    ) -> None:
        self.connection, self.max_in_flight, self._run = connection, max_in_flight, run

    @classmethod
    async def connect(cls, dsn: str | None = None, *, max_in_flight: int | None = None) -> AsyncQueue:
        """A queue on an autocommit connection of its own; use it in an `async with` block, which closes it."""
        return cls(await connect_async(dsn), max_in_flight=max_in_flight)

    async def __aenter__(self) -> AsyncQueue:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.connection.close()

    async def run(self, operation: Operation[T]) -> T:
        """Run any operation here, an extension's for example: `queue.run(schedules.pause("nightly"))`."""
        result: T = await self._run(self.connection, operation)
        return result

    push = _async(op.push, bounded=True)
    push_many = _async(op.push_many, bounded=True)
    claim = _async(op.claim)
    complete = _async(op.complete)
    complete_many = _async(op.complete_many)
    fail = _async(op.fail)
    fail_many = _async(op.fail_many)
    snooze = _async(op.snooze)
    snooze_many = _async(op.snooze_many)
    release = _async(op.release)
    release_many = _async(op.release_many)
    heartbeat = _async(op.heartbeat)
    heartbeat_many = _async(op.heartbeat_many)
    cancel = _async(op.cancel)
    cancel_key = _async(op.cancel_key)
    retry = _async(op.retry)
    retry_many = _async(op.retry_many)
    chores = _async(op.chores)
    rescue = _async(op.rescue)
    expire = _async(op.expire)
    cleanup = _async(op.cleanup)
    purge = _async(op.purge)
    pause = _async(op.pause)
    resume = _async(op.resume)
    paused = _async(op.paused)
    stats = _async(op.stats)
    get = _async(op.get)
    list_jobs = _async(op.list_jobs)
