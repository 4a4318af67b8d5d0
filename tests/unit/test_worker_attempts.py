"""How an attempt ends, whatever its handler does: a worker's turn on a real server, `async def` and threads alike."""

import asyncio
import concurrent.futures
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from waiting import eventually

from pgqueue_ref.core import DatabaseUnavailable, JobNotFound, Queue, constant
from pgqueue_ref.worker import COMPLETED, Cancel, Counts, Ignore, Job, Kinds, RetryAfter, Snooze, Worker

Body = Callable[[Job], Any]


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue.connect(database) as queue:
        yield queue


@pytest.fixture
def kinds() -> Kinds:
    return Kinds()


@pytest.fixture
def turn(database: str, kinds: Kinds) -> Callable[..., Counts]:
    """One turn of a new worker on `kinds`; what it did."""

    async def once(**settings: Any) -> Counts:
        worker = Worker(kinds, dsn=database, **settings)
        try:
            return await worker.run_once()
        finally:
            await worker.close()

    return lambda **settings: asyncio.run(once(**settings))


@pytest.fixture(params=["async", "thread"])
def handler(request: pytest.FixtureRequest) -> Callable[[Body], Callable[[Job], Any]]:
    """Makes a body into a handler of either kind."""

    def make(body: Body) -> Callable[[Job], Any]:
        async def run(job: Job) -> Any:
            return body(job)

        return run if request.param == "async" else body

    return make


def raising(error: BaseException | type[BaseException]) -> Body:
    def body(job: Job) -> None:
        raise error

    return body


def counted(**expected: int) -> Counts:
    return Counts(**{"claimed": 1} | expected)


def wait_seconds(queue: Queue, job_id: int) -> float:
    """How far ahead the job's next attempt is, by the database's clock."""
    (seconds,) = queue.connection.execute(
        "SELECT extract(epoch FROM run_at - now())::float8 FROM pgqueue_jobs WHERE id = %s", [job_id]
    ).fetchone()
    return float(seconds)


def gone(queue: Queue, job_id: int) -> bool:
    try:
        queue.get(job_id)
    except JobNotFound:
        return True
    return False


# -- returning -------------------------------------------------------------------------------------------------


def test_a_handler_gets_the_job_as_it_was_pushed(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    seen: list[Job] = []
    kinds.register("a", max_attempts=4)(handler(seen.append))
    pushed = queue.push("a", {"x": ["y", None, 1.5]}, key="k", priority=7, metadata={"trace": "t"})
    assert turn() == counted(succeeded=1)
    (job,) = seen
    assert (job.id, job.kind, job.queue, job.external_key, job.priority) == (pushed.id, "a", "default", "k", 7)
    assert (job.payload, job.metadata) == ({"x": ["y", None, 1.5]}, {"trace": "t"})
    assert (job.attempt, job.max_attempts, job.lease_token) == (1, 4, 1)


def test_returning_succeeds(queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any) -> None:
    kinds.register("a")(handler(lambda job: {"any": "value"}))
    id_ = queue.push("a").id
    assert turn() == counted(succeeded=1)
    row = queue.get(id_)
    assert (row.status, row.attempt, row.errors, row.lease_expires_at) == ("succeeded", 1, [], None)
    assert row.finished_at is not None
    assert turn() == Counts()


@pytest.mark.parametrize(
    ("ttl", "kept"), [(0, None), (timedelta(0), None), (None, "until purged"), (90, 90), (timedelta(minutes=2), 120)]
)
def test_the_kind_decides_how_long_a_succeeded_job_stays(
    ttl: Any, kept: Any, queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    kinds.register("fixed", terminal_ttl=ttl)(lambda job: None)
    kinds.register("asked", terminal_ttl=lambda: ttl)(lambda job: None)
    ids = [queue.push("fixed").id, queue.push("asked").id]
    assert turn().succeeded == 2
    for id_ in ids:
        if kept is None:
            assert gone(queue, id_)
            continue
        row = queue.get(id_)
        assert row.status == "succeeded"
        assert row.finished_at is not None
        if kept == "until purged":
            assert row.delete_after is None
        else:
            assert row.delete_after == row.finished_at + timedelta(seconds=kept)


def test_callables_are_asked_at_each_turn(queue: Queue, kinds: Kinds, database: str) -> None:
    slots, ttl = 0, 0.0
    kinds.register("a", concurrency=lambda: slots, terminal_ttl=lambda: ttl)(lambda job: None)
    for _ in range(5):
        queue.push("a")

    async def scenario() -> list[int]:
        nonlocal slots, ttl
        worker, claimed = Worker(kinds, dsn=database), []
        for slots, ttl in ((0, 0), (2, 0), (1, 60), (5, 60)):  # noqa: B007 - read by the callables
            claimed.append((await worker.run_once()).claimed)
        await worker.close()
        return claimed

    assert asyncio.run(scenario()) == [0, 2, 1, 2]
    assert [(stat.status, stat.jobs) for stat in queue.stats()] == [("succeeded", 3)]


@pytest.mark.parametrize("answer", ["raises", 2.5, "two"])
def test_a_callable_that_fails_costs_its_own_kind_the_turn_and_no_other(
    answer: Any, queue: Queue, kinds: Kinds, turn: Callable[..., Counts], caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("bad", concurrency=lambda: {}["no such setting"] if answer == "raises" else answer)(lambda job: None)
    kinds.register("good")(lambda job: None)
    bad, good = queue.push("bad").id, queue.push("good").id
    assert turn() == counted(succeeded=1)
    assert (queue.get(bad).status, queue.get(good).status) == ("pending", "succeeded")
    assert "concurrency of kind bad could not be asked" in caplog.text


def test_a_ttl_that_cannot_be_asked_keeps_the_job_for_a_day(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a", terminal_ttl=lambda: {}["no such setting"])(lambda job: None)
    id_ = queue.push("a").id
    assert turn() == counted(succeeded=1)
    row = queue.get(id_)
    assert row.finished_at is not None
    assert row.delete_after == row.finished_at + timedelta(days=1)
    assert "terminal_ttl of kind a could not be asked" in caplog.text


def test_a_plain_function_that_returns_a_coroutine_has_not_run_it(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    ran: list[int] = []

    async def work(job: Job) -> None:
        ran.append(job.id)

    kinds.register("a", backoff=constant(60))(lambda job: work(job))  # a decorator that hides the async def
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert ran == []
    assert "never awaited" in queue.get(id_).errors[0]


# -- raising ---------------------------------------------------------------------------------------------------


def test_raising_retries_after_the_kind_s_backoff(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    asked: list[int] = []

    def backoff(attempt: int) -> float:
        asked.append(attempt)
        return 1000.0 * attempt

    kinds.register("a", backoff=backoff)(handler(raising(ValueError("no such photo"))))
    id_ = queue.push("a").id
    for attempt in (1, 2):
        assert turn() == counted(retried=1)
        row = queue.get(id_)
        assert (row.status, row.attempt, row.finished_at) == ("pending", attempt, None)
        assert row.errors == ["ValueError: no such photo"] * attempt
        assert 1000 * attempt - 900 < wait_seconds(queue, id_) <= 1000 * attempt
        assert turn() == Counts()  # not due
        queue.connection.execute("UPDATE pgqueue_jobs SET run_at = now()")
    assert asked == [1, 2]


def test_the_last_attempt_ends_failed_and_stays(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    kinds.register("a", max_attempts=2, backoff=constant(0))(handler(raising(ValueError("no"))))
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert turn() == counted(failed=1)
    row = queue.get(id_)
    assert (row.status, row.attempt, row.delete_after) == ("failed", 2, None)
    assert turn() == Counts()


def test_the_job_s_own_max_attempts_wins(queue: Queue, kinds: Kinds, turn: Callable[..., Counts]) -> None:
    kinds.register("a", max_attempts=10)(raising(ValueError))
    id_ = queue.push("a", max_attempts=1).id
    assert turn() == counted(failed=1)
    assert queue.get(id_).status == "failed"


def test_a_job_keeps_its_newest_max_errors_messages(queue: Queue, kinds: Kinds, turn: Callable[..., Counts]) -> None:
    def body(job: Job) -> None:
        raise ValueError(f"attempt {job.attempt}")

    kinds.register("a", max_errors=2, backoff=constant(0))(body)
    id_ = queue.push("a").id
    for _ in range(4):
        turn()
    assert queue.get(id_).errors == ["ValueError: attempt 3", "ValueError: attempt 4"]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class BaseOnlyError(BaseException):
    """Like gevent.Timeout or pytest's own."""


ERRORS: list[tuple[BaseException, str]] = [
    (SystemExit(3), "the handler called sys.exit(3)"),
    (StopIteration("x"), "StopIteration"),
    (StopAsyncIteration("x"), "StopAsyncIteration: x"),
    (asyncio.CancelledError(), "the handler was cancelled"),
    (concurrent.futures.CancelledError(), "CancelledError"),
    (concurrent.futures.InvalidStateError("x"), "InvalidStateError: x"),
    (TimeoutError("its own"), "TimeoutError: its own"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (BaseOnlyError("x"), "BaseOnlyError: x"),
    (BaseExceptionGroup("several", [ValueError("one"), SystemExit(2)]), "BaseExceptionGroup: several"),
    (UnspeakableError(), "UnspeakableError, whose text cannot be had"),
    (ValueError("a\0b"), "ValueError: a\N{REPLACEMENT CHARACTER}b"),
    (ValueError("x" * 1_000_000), "ValueError: xxx"),
    (ValueError("two\nlines"), "ValueError: two\nlines"),
    (Snooze.__new__(Snooze), "Snooze, whose text cannot be had"),  # a subclass that forgot its super().__init__
]


@pytest.mark.parametrize("attempt_timeout", [None, 3600])
def test_whatever_a_handler_raises_ends_its_attempt_and_not_the_worker(
    attempt_timeout: Any, queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    words = {}
    for number, (error, expected) in enumerate(ERRORS):
        kinds.register(f"bad-{number}", backoff=constant(60), attempt_timeout=attempt_timeout)(handler(raising(error)))
        words[queue.push(f"bad-{number}").id] = expected
    kinds.register("good")(handler(lambda job: None))
    good = queue.push("good").id
    assert turn() == Counts(claimed=len(ERRORS) + 1, retried=len(ERRORS), succeeded=1)
    for id_, expected in words.items():
        row = queue.get(id_)
        assert (row.status, row.attempt) == ("pending", 1)
        assert expected in row.errors[0]
        assert len(row.errors[0]) <= 10_000
    assert queue.get(good).status == "succeeded"


def test_a_message_that_is_no_unicode_is_recorded(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pgqueue_ref.worker"), "disabled", True)  # pytest could not report it
    kinds.register("a")(raising(ValueError("\udcff")))
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert queue.get(id_).errors == ["ValueError: ?"]


def test_sys_exit_in_a_handler_does_not_end_the_process(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    kinds.register("a", max_attempts=1)(lambda job: sys.exit("bye"))
    id_ = queue.push("a").id
    assert turn() == counted(failed=1)
    assert queue.get(id_).errors == ["the handler called sys.exit('bye')"]


@pytest.mark.parametrize("backoff", [lambda attempt: {}[attempt], lambda attempt: -1, lambda attempt: float("nan")])
def test_a_backoff_that_fails_waits_a_minute(
    backoff: Any, queue: Queue, kinds: Kinds, turn: Callable[..., Counts], caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a", backoff=backoff)(raising(ValueError("no")))
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert 0 < wait_seconds(queue, id_) <= 60
    assert "backoff of kind a failed, waiting 60 s" in caplog.text


# -- instructions ----------------------------------------------------------------------------------------------


def test_cancel_ends_the_job_cancelled_with_its_reason(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    kinds.register("a")(handler(raising(Cancel("the photo is gone"))))
    kinds.register("b")(handler(raising(Cancel)))
    ids = [queue.push("a").id, queue.push("b").id]
    assert turn() == Counts(claimed=2, cancelled=2)
    rows = [queue.get(id_) for id_ in ids]
    assert [(row.status, row.errors) for row in rows] == [
        ("cancelled", ["the photo is gone"]), ("cancelled", ["cancelled by its handler"]),
    ]  # fmt: skip
    assert all(row.delete_after and row.finished_at for row in rows)


def test_snooze_puts_the_job_back_without_spending_the_attempt(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    kinds.register("a", max_attempts=1)(handler(raising(Snooze(timedelta(seconds=500)))))
    id_ = queue.push("a").id
    for token in (1, 2, 3):  # as often as it likes
        assert turn() == counted(snoozed=1)
        row = queue.get(id_)
        assert (row.status, row.attempt, row.errors, row.lease_token) == ("pending", 0, [], token)
        assert 400 < wait_seconds(queue, id_) <= 500
        queue.connection.execute("UPDATE pgqueue_jobs SET run_at = now()")


def test_retry_after_waits_as_told_and_spends_the_attempt(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any
) -> None:
    kinds.register("a", max_attempts=2, backoff=constant(1))(handler(raising(RetryAfter(500, "429"))))
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert 400 < wait_seconds(queue, id_) <= 500
    assert queue.get(id_).errors == ["429"]
    queue.connection.execute("UPDATE pgqueue_jobs SET run_at = now()")
    assert turn() == counted(failed=1)
    assert (queue.get(id_).status, queue.get(id_).errors) == ("failed", ["429", "429"])


def test_ignore_spends_the_attempt_and_is_counted_apart(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a", max_attempts=2, backoff=constant(0))(handler(raising(Ignore("not there yet"))))
    id_ = queue.push("a").id
    assert turn() == counted(retried=1, ignored=1)
    assert turn() == counted(failed=1, ignored=1)
    assert (queue.get(id_).status, queue.get(id_).errors) == ("failed", ["not there yet"] * 2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_ordinary_failure_is_logged_with_its_traceback_and_fields(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a")(handler(raising(ValueError("no such photo"))))
    id_ = queue.push("a").id
    turn(name="w1")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"job {id_} (a) attempt 1 of 10 failed"
    assert (record.job_id, record.kind, record.attempt, record.worker) == (id_, "a", 1, "w1")  # type: ignore[attr-defined]  # extra
    assert "ValueError: no such photo" in caplog.text


# -- completed by the handler itself ---------------------------------------------------------------------------


def test_a_handler_completes_its_job_in_the_transaction_of_its_own_writes(
    queue: Queue, database: str, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    queue.connection.execute("CREATE TABLE photos (id bigint)")

    def body(job: Job) -> Any:
        with psycopg.connect(database) as connection, connection.transaction():
            connection.execute("INSERT INTO photos VALUES (%s)", [job.id])
            Queue(connection).complete(job, ttl=60)
            if job.attempt == 1:
                raise ValueError("both are undone")
        return COMPLETED

    kinds.register("a", backoff=constant(0))(body)
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert queue.connection.execute("SELECT FROM photos").fetchall() == []
    assert turn() == counted(succeeded=1)
    assert queue.connection.execute("SELECT id FROM photos").fetchall() == [(id_,)]
    assert queue.get(id_).status == "succeeded"


def test_completed_without_completing_comes_back_when_its_lease_runs_out(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    kinds.register("a")(lambda job: COMPLETED)
    id_ = queue.push("a").id
    turn()
    assert queue.get(id_).status == "running"
    queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s'")
    assert turn().rescued == 1


# -- attempts that take too long -------------------------------------------------------------------------------


def test_an_async_attempt_is_cancelled_at_its_timeout(queue: Queue, kinds: Kinds, turn: Callable[..., Counts]) -> None:
    ended: list[str] = []

    async def body(job: Job) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    kinds.register("a", attempt_timeout=0.05, backoff=constant(60))(body)
    id_ = queue.push("a").id
    assert turn() == counted(retried=1)
    assert ended == ["cleaned up"]
    assert queue.get(id_).errors == ["attempt timed out after 0.05 s"]


def test_a_thread_that_outlives_its_timeout_is_named_keeps_its_slot_and_is_not_heard(
    queue: Queue, database: str, kinds: Kinds, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def body(job: Job) -> str:
        if job.attempt == 1:
            go_on.wait()
            ended.set()
        return "too late"

    kinds.register("a", attempt_timeout=0.05, backoff=constant(0), concurrency=1)(body)
    id_ = queue.push("a").id

    async def scenario() -> list[Counts]:
        worker = Worker(kinds, dsn=database, name="w1")
        try:
            turns = [await worker.run_once(), await worker.run_once()]
            go_on.set()
            await eventually(lambda: ended.is_set() and kinds["a"].running == 0, "the thread gives its slot back")
            return [*turns, await worker.run_once()]
        finally:
            go_on.set()
            await worker.close()

    timed_out, no_slot, second = asyncio.run(scenario())
    assert timed_out == counted(retried=1)
    assert no_slot == Counts()
    assert second == counted(succeeded=1)
    row = queue.get(id_)
    assert (row.status, row.attempt, row.errors) == ("succeeded", 2, ["attempt timed out after 0.05 s"])
    (record,) = [record for record in caplog.records if "cannot be stopped" in record.getMessage()]
    assert f"job {id_} (a) attempt 1" in record.getMessage()
    assert (record.job_id, record.kind, record.attempt, record.worker) == (id_, "a", 1, "w1")  # type: ignore[attr-defined]  # extra


def test_a_thread_that_fails_after_its_timeout_is_not_heard_either(queue: Queue, database: str, kinds: Kinds) -> None:
    go_on = threading.Event()

    def body(job: Job) -> None:
        go_on.wait()
        raise ValueError("too late")

    kinds.register("a", attempt_timeout=0.05, max_attempts=1)(body)
    id_ = queue.push("a").id

    async def scenario() -> None:
        worker = Worker(kinds, dsn=database)
        try:
            await worker.run_once()
            go_on.set()
            await eventually(lambda: kinds["a"].running == 0, "the thread ends")
        finally:
            go_on.set()
            await worker.close()

    asyncio.run(scenario())
    assert queue.get(id_).errors == ["attempt timed out after 0.05 s"]


# -- the turn --------------------------------------------------------------------------------------------------


def test_a_turn_rescues_expires_and_cleans_up(queue: Queue, kinds: Kinds, turn: Callable[..., Counts]) -> None:
    kinds.register("a")(lambda job: None)
    lost, late, old = (queue.push("b").id for _ in range(3))
    queue.connection.execute(
        "UPDATE pgqueue_jobs SET status = 'running', attempt = 1, max_attempts = 1, worker = 'dead',"
        " lease_expires_at = now() - interval '1 s' WHERE id = %s", [lost],
    )  # fmt: skip
    queue.connection.execute("UPDATE pgqueue_jobs SET expires_at = now() - interval '1 s' WHERE id = %s", [late])
    queue.connection.execute(
        "UPDATE pgqueue_jobs SET status = 'succeeded', finished_at = now(), delete_after = now() WHERE id = %s", [old]
    )
    assert turn() == Counts(rescued=1, expired=1, cleaned=1)
    assert (queue.get(lost).status, queue.get(lost).errors) == ("failed", ["lease ran out, worker dead"])
    assert queue.get(late).status == "cancelled"
    assert gone(queue, old)


def test_a_row_that_refuses_to_expire_stalls_neither_cleanup_nor_claims(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts], caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a")(lambda job: None)
    late, old = queue.push("b").id, queue.push("b").id
    queue.push("a")
    queue.connection.execute("UPDATE pgqueue_jobs SET expires_at = now() - interval '1 s' WHERE id = %s", [late])
    queue.connection.execute(
        "UPDATE pgqueue_jobs SET status = 'succeeded', finished_at = now(), delete_after = now() WHERE id = %s", [old]
    )
    refuse(queue, late)
    assert turn() == counted(succeeded=1, cleaned=1)
    assert "expire failed" in caplog.text


def test_jobs_of_an_unknown_kind_are_never_claimed_and_show_in_stats(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    kinds.register("known")(lambda job: None)
    queue.push("unknown")
    queue.push("known")
    assert turn() == counted(succeeded=1)
    assert turn() == Counts()
    assert [(stat.kind, stat.status, stat.jobs, stat.due) for stat in queue.stats()] == [
        ("known", "succeeded", 1, 0), ("unknown", "pending", 1, 1),
    ]  # fmt: skip


def test_a_turn_takes_only_its_own_queues_and_not_the_paused_ones(
    queue: Queue, kinds: Kinds, turn: Callable[..., Counts]
) -> None:
    kinds.register("a")(lambda job: None)
    ids = {name: queue.push("a", queue=name).id for name in ("default", "mail", "photos")}
    queue.pause("mail")
    assert turn(queues=["mail", "photos", "photos"]) == counted(succeeded=1)
    assert {name: queue.get(id_).status for name, id_ in ids.items()} == {
        "default": "pending", "mail": "pending", "photos": "succeeded",
    }  # fmt: skip
    queue.resume("mail")
    assert turn(queues=["mail", "photos"]) == counted(succeeded=1)


def refuse(queue: Queue, *ids: int) -> None:
    """Put a trigger on these jobs that refuses any end of theirs."""
    queue.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'poisonous row %', OLD.id; END$$"
    )
    condition = f"OLD.id IN ({', '.join(map(str, ids))})"
    queue.connection.execute(
        f"CREATE TRIGGER refuse BEFORE UPDATE ON pgqueue_jobs FOR EACH ROW"
        f" WHEN ({condition} AND NEW.status NOT IN ('running', 'pending')) EXECUTE FUNCTION refuse()"
    )
    queue.connection.execute(
        f"CREATE TRIGGER refuse_delete BEFORE DELETE ON pgqueue_jobs FOR EACH ROW"
        f" WHEN ({condition}) EXECUTE FUNCTION refuse()"
    )


@pytest.mark.parametrize("ttl", [0, 60])
def test_a_row_that_refuses_its_outcome_does_not_hold_up_the_others(
    ttl: float, queue: Queue, kinds: Kinds, turn: Callable[..., Counts], caplog: pytest.LogCaptureFixture
) -> None:
    kinds.register("a", terminal_ttl=ttl)(lambda job: None)
    ids = [queue.push("a").id for _ in range(50)]
    poisonous = ids[17], ids[18], ids[42]
    refuse(queue, *poisonous)
    assert turn() == Counts(claimed=50, succeeded=47)
    rows = {row.id: row for row in queue.list_jobs()}
    for id_ in ids:
        if id_ in poisonous:
            assert rows[id_].status == "running"
            assert f"job {id_} (a) attempt 1: its outcome was refused, its lease will run out" in caplog.text
        else:
            assert rows[id_].status == "succeeded" if ttl else id_ not in rows


def test_a_turn_with_a_lost_database_says_so_and_later_ones_go_on(queue: Queue, database: str, kinds: Kinds) -> None:
    kinds.register("a")(lambda job: None)

    async def scenario() -> tuple[int, Counts]:
        worker, refused = Worker(kinds, dsn=database), 0
        queue.push("a")
        await worker.run_once()
        for _ in range(2):  # the connection that claims notices, then the one that writes
            queue.push("a")
        queue.connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pgqueue_ref:%' AND datname = current_database()"
        )
        while worker.counts.succeeded < 3:
            try:
                await worker.run_once()
            except DatabaseUnavailable:
                refused += 1
        await worker.close()
        return refused, worker.counts

    assert asyncio.run(scenario()) == (2, Counts(claimed=3, succeeded=3))
