"""The registry of kinds: what it takes, what it refuses, and what it answers when it is asked."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pgqueue_ref.core import InvalidJob, QueueError, UnknownKind, constant
from pgqueue_ref.worker import Job, Kinds, RetryAfter, Snooze


def work(job: Job) -> None:
    """A handler."""


async def async_work(job: Job) -> None:
    """A handler."""


@pytest.fixture
def kinds() -> Kinds:
    return Kinds()


def test_a_registered_function_stays_what_it_is(kinds: Kinds) -> None:
    assert kinds.register("a")(work) is work
    assert kinds["a"].handler is work


def test_options_have_the_documented_defaults(kinds: Kinds) -> None:
    kinds.register("a")(work)
    kind = kinds["a"]
    assert (kind.max_attempts, kind.attempt_timeout, kind.concurrency, kind.max_errors) == (10, None, None, 10)
    assert kind.ttl() == 86_400
    assert all(3 <= kind.backoff(1) <= 6 for _ in range(100))  # equal jitter over 6 s
    assert all(300 <= kind.backoff(50) <= 600 for _ in range(100))  # and its cap


def test_options_are_kept_as_given(kinds: Kinds) -> None:
    backoff = constant(3)
    kinds.register(
        "a", max_attempts=3, attempt_timeout=timedelta(minutes=1), backoff=backoff, concurrency=7,
        terminal_ttl=timedelta(0), max_errors=2,
    )(work)  # fmt: skip
    kind = kinds["a"]
    assert (kind.max_attempts, kind.attempt_timeout, kind.max_errors) == (3, 60, 2)
    assert (kind.backoff, kind.free(100), kind.ttl()) == (backoff, 7, 0)


def test_a_kind_without_concurrency_has_the_worker_s(kinds: Kinds) -> None:
    kinds.register("a")(work)
    assert kinds["a"].free(42) == 42


def test_free_slots_are_those_that_no_attempt_holds(kinds: Kinds) -> None:
    kinds.register("a", concurrency=3)(work)
    kinds["a"].running = 2
    assert kinds["a"].free(100) == 1
    kinds["a"].running = 5  # the limit was lowered meanwhile
    assert kinds["a"].free(100) == 0


def test_callables_are_asked_again_each_time(kinds: Kinds) -> None:
    slots, days = iter([1, 5, None]), iter([timedelta(0), 60, None])
    kinds.register("a", concurrency=lambda: next(slots), terminal_ttl=lambda: next(days))(work)
    assert [kinds["a"].free(100) for _ in range(3)] == [1, 5, 100]
    assert [kinds["a"].ttl() for _ in range(3)] == [0, 60, None]


@pytest.mark.parametrize("answer", [-1, 2.5, "3", True])
def test_a_callable_that_answers_nonsense_is_an_error(kinds: Kinds, answer: Any) -> None:
    kinds.register("a", concurrency=lambda: answer)(work)
    with pytest.raises(InvalidJob, match="concurrency must be a whole number"):
        kinds["a"].free(100)


def test_async_and_plain_functions_are_told_apart(kinds: Kinds) -> None:
    class Callables:
        async def __call__(self, job: Job) -> None: ...
        async def method(self, job: Job) -> None: ...
        def plain(self, job: Job) -> None: ...

    handlers: list[tuple[Callable[..., Any], bool]] = [
        (work, False), (async_work, True), (functools.partial(async_work), True), (Callables(), True),
        (Callables().method, True), (Callables().plain, False), (lambda job: None, False),
    ]  # fmt: skip
    for number, (handler, is_async) in enumerate(handlers):
        kinds.register(str(number))(handler)
        assert kinds[str(number)].is_async is is_async


def test_a_kind_is_registered_once(kinds: Kinds) -> None:
    kinds.register("a")(work)
    with pytest.raises(InvalidJob, match="kind 'a' is registered twice"):
        kinds.register("a")(async_work)
    assert kinds["a"].handler is work


def test_an_unknown_kind_is_named(kinds: Kinds) -> None:
    with pytest.raises(UnknownKind, match="no handler is registered for kind 'b'"):
        kinds["b"]


def test_a_registry_has_a_length_and_an_order(kinds: Kinds) -> None:
    assert len(kinds) == 0
    for name in ("b", "a", "c"):
        kinds.register(name)(work)
    assert [kind.name for kind in kinds] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": ""}, "kind must be a text"),
        ({"kind": "a\0"}, "kind must be a text"),
        ({"kind": "x" * 256}, "kind must be a text"),
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"max_attempts": 1.5}, "max_attempts must be"),
        ({"max_attempts": True}, "max_attempts must be"),
        ({"max_errors": 0}, "max_errors must be"),
        ({"concurrency": -1}, "concurrency must be"),
        ({"concurrency": 1.0}, "concurrency must be"),
        ({"concurrency": "many"}, "concurrency must be"),
        ({"attempt_timeout": 0}, "attempt_timeout must be above 0"),
        ({"attempt_timeout": -1}, "attempt_timeout must be"),
        ({"attempt_timeout": float("nan")}, "attempt_timeout must be"),
        ({"attempt_timeout": "1"}, "attempt_timeout must be"),
        ({"terminal_ttl": -1}, "terminal_ttl must be"),
        ({"terminal_ttl": timedelta(days=-1)}, "terminal_ttl must be"),
        ({"terminal_ttl": float("inf")}, "terminal_ttl must be"),
        ({"terminal_ttl": "a day"}, "terminal_ttl must be"),
        ({"backoff": 5}, "backoff must be a function"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(kinds: Kinds, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words) as refused:
        kinds.register(**({"kind": "a"} | options))(work)
    assert "\n" not in str(refused.value)
    assert len(kinds) == 0


def test_what_cannot_handle_a_job_is_refused(kinds: Kinds) -> None:
    def generates(job: Job) -> Iterator[None]:
        yield

    async def generates_async(job: Job) -> AsyncIterator[None]:
        yield

    for handler in (None, "work", generates, generates_async):
        with pytest.raises(InvalidJob, match="handler of kind 'a' must be a function or an async function"):
            kinds.register("a")(handler)  # type: ignore[type-var]  # that is what is refused
    assert len(kinds) == 0


@pytest.mark.parametrize("exception", [Snooze, RetryAfter])
def test_a_bad_delay_is_refused_where_it_is_raised(exception: type[Exception]) -> None:
    assert isinstance(exception(timedelta(seconds=3)), Exception)
    for delay in (-1, float("nan"), "soon"):
        with pytest.raises(QueueError, match="delay must be"):
            exception(delay)
