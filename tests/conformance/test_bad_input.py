"""A bad argument is refused in one line before any statement is sent."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest

NAN, INFINITE, HUGE = float("nan"), float("inf"), "x" * 10_000_000
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - the point
AWARE = datetime(2030, 1, 1, tzinfo=UTC)
ATTEMPT = SimpleNamespace(id=1, lease_token=1)


class Lazy(dict):
    """Its session is closed."""

    def __init__(self, *words):
        super().__init__(a=1)
        self.words = words

    def items(self):
        raise KeyError(*self.words)


CIRCLE: list = []
CIRCLE.append(CIRCLE)
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]

NAMES = ["", "a\0b", "lone \ud800", HUGE, "é" * 200, None, 5, b"bytes"]
KEYS = ["", "a\0b", "lone \udfff", HUGE, "k" * 1025, "é" * 513, 5, b"bytes"]
SECONDS = [-1, -0.001, NAN, INFINITE, -INFINITE, 1e15, "5", timedelta(seconds=-1), timedelta(days=99_999_999)]
COUNTS = [0, -1, 1.5, "3", True, None, 2**31]
PAYLOADS = [object(), {1, 2}, b"bytes", NAN, [INFINITE], {"a": {"b": NAN}}, "NUL \0", {"NUL \0": 1}, ["\\\0"],
            "lone \ud800", {"\udfff": 1}, CIRCLE, DEEP, 10**5000, AWARE, Lazy("closed"), Lazy()]  # fmt: skip
JOB = (
    [("kind", {"kind": value}) for value in NAMES]
    + [("queue", {"queue": value}) for value in NAMES]
    + [("key", {"key": value}) for value in KEYS]
    + [("delay", {"delay": value}) for value in SECONDS]
    + [("delay or run_at", {"delay": 5, "run_at": AWARE})]
    + [("run_at", {"run_at": value}) for value in (NAIVE, "2030-01-01", 5, date(2030, 1, 1), FIRST, LAST)]
    + [("expires_at", {"expires_at": value}) for value in (NAIVE, "tomorrow", 5, FIRST, LAST)]
    + [("priority", {"priority": value}) for value in (1.5, "1", True, None, 2**31, -(2**31) - 1)]
    + [("max_attempts", {"max_attempts": value}) for value in COUNTS if value is not None]
    + [("metadata", {"metadata": value}) for value in ([1], "text", {"a": NAN}, {"a": "\0"}, {"a": object()})]
    + [("payload", {"payload": value}) for value in PAYLOADS]
)


def shown(value: object) -> str:
    if value is DEEP or value is CIRCLE or (isinstance(value, int) and value > 2**64):
        return "circle" if value is CIRCLE else f"huge {type(value).__name__}"
    text = re.sub(r" at 0x\w+", "", ascii(value))
    return text if len(text) < 40 else text[:30] + "..."


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize(("name", "fields"), JOB, ids=[f"{name} {shown(next(iter(f.values())))}" for name, f in JOB])
def test_a_job_that_cannot_be_stored_is_refused_when_it_is_made(core, name, fields):
    with pytest.raises(core.InvalidJob, match=name) as refused:
        core.NewJob(**({"kind": "mail"} | fields))
    assert one_line(refused.value)


def test_push_refuses_the_same_and_inserts_nothing(queue, core, db):
    for _, fields in JOB:
        with pytest.raises(core.InvalidJob):
            queue.push(**({"kind": "mail"} | fields))
    assert db.execute("SELECT count(*) AS n FROM pgqueue_jobs").fetchone() == {"n": 0}


CALLS = {
    "want: kind": lambda queue, core, bad: core.Want(bad, 1),
    "want: queue": lambda queue, core, bad: core.Want("mail", 1, queue=bad),
    "want: slots": lambda queue, core, bad: core.Want("mail", bad),
    "want: max_attempts": lambda queue, core, bad: core.Want("mail", 1, max_attempts=bad),
    "claim: worker": lambda queue, core, bad: queue.claim([core.Want("mail", 1)], worker=bad),
    "claim: lease": lambda queue, core, bad: queue.claim([core.Want("mail", 1)], worker="w", lease=bad),
    "complete: ttl": lambda queue, core, bad: queue.complete(ATTEMPT, ttl=bad),
    "complete_many: ttl": lambda queue, core, bad: queue.complete_many([ATTEMPT], ttl=bad),
    "fail: delay": lambda queue, core, bad: queue.fail(ATTEMPT, "no", delay=bad),
    "fail: max_errors": lambda queue, core, bad: queue.fail(ATTEMPT, "no", max_errors=bad),
    "fail_many: delay": lambda queue, core, bad: queue.fail_many([core.Failure(ATTEMPT, "no", bad)]),
    "snooze: delay": lambda queue, core, bad: queue.snooze(ATTEMPT, bad),
    "snooze_many: delay": lambda queue, core, bad: queue.snooze_many([ATTEMPT], bad),
    "heartbeat: lease": lambda queue, core, bad: queue.heartbeat(ATTEMPT, lease=bad),
    "heartbeat_many: lease": lambda queue, core, bad: queue.heartbeat_many([ATTEMPT], lease=bad),
    "cancel: job_id": lambda queue, core, bad: queue.cancel(bad),
    "cancel: ttl": lambda queue, core, bad: queue.cancel(1, ttl=bad),
    "cancel_key: kind": lambda queue, core, bad: queue.cancel_key(bad, "k"),
    "cancel_key: key": lambda queue, core, bad: queue.cancel_key("mail", bad),
    "cancel_key: ttl": lambda queue, core, bad: queue.cancel_key("mail", "k", ttl=bad),
    "retry: job_id": lambda queue, core, bad: queue.retry(bad),
    "retry_many: limit": lambda queue, core, bad: queue.retry_many(limit=bad),
    "retry_many: queue": lambda queue, core, bad: queue.retry_many(queue=bad),
    "retry_many: kind": lambda queue, core, bad: queue.retry_many(kind=bad),
    "retry_many: error_like": lambda queue, core, bad: queue.retry_many(error_like=bad),
    "rescue: limit": lambda queue, core, bad: queue.rescue(bad),
    "rescue: max_errors": lambda queue, core, bad: queue.rescue(max_errors=bad),
    "expire: limit": lambda queue, core, bad: queue.expire(bad),
    "cleanup: limit": lambda queue, core, bad: queue.cleanup(bad),
    "purge: age": lambda queue, core, bad: queue.purge(bad),
    "purge: limit": lambda queue, core, bad: queue.purge(1, limit=bad),
    "pause: queue": lambda queue, core, bad: queue.pause(bad),
    "resume: queue": lambda queue, core, bad: queue.resume(bad),
    "get: job_id": lambda queue, core, bad: queue.get(bad),
    "list_jobs: queue": lambda queue, core, bad: queue.list_jobs(queue=bad),
    "list_jobs: kind": lambda queue, core, bad: queue.list_jobs(kind=bad),
    "list_jobs: status": lambda queue, core, bad: queue.list_jobs(status=bad),
    "list_jobs: key": lambda queue, core, bad: queue.list_jobs(key=bad),
    "list_jobs: after": lambda queue, core, bad: queue.list_jobs(after=bad),
    "list_jobs: limit": lambda queue, core, bad: queue.list_jobs(limit=bad),
}
TEXTS = ["", "a\0b", "lone \ud800", HUGE, 5]
BAD = {
    **dict.fromkeys(["kind", "queue", "worker", "key", "error_like", "status"], TEXTS),
    **dict.fromkeys(["delay", "lease", "ttl", "age"], SECONDS),
    **dict.fromkeys(["slots", "max_attempts", "max_errors", "limit"], COUNTS),
    "job_id": [0, -1, 1.5, "1", True, None, 2**63],
    "after": [-1, 1.5, "1", True, None, 2**63],
}


@pytest.mark.parametrize("call", CALLS)
def test_every_argument_of_every_operation_is_checked(queue, core, db, put, row, call):
    job_id = put(status="running", lease_token=1, lease_expires_at="2001-01-01T00:00Z")
    before = row(job_id)
    name = call.partition(": ")[2]
    for bad in BAD[name]:
        with pytest.raises(core.InvalidJob, match=name) as refused:
            CALLS[call](queue, core, bad)
        assert one_line(refused.value)
    assert row(job_id) == before


def test_no_statement_is_sent_for_a_bad_argument(core):
    """The operations are generators: what raises before the first `yield` never reached a runner."""
    op = core.operations
    for operation in (
        op.push(""),
        op.push("mail", delay=NAN),
        op.push("mail", max_in_flight=0),
        op.claim([core.Want("mail", 1)], worker="\0"),
        op.complete(ATTEMPT, ttl=-1),
        op.fail(ATTEMPT, "no", delay=-1),
        op.snooze(ATTEMPT, -1),
        op.heartbeat(ATTEMPT, lease=NAN),
        op.cancel(0),
        op.cancel_key("", "k"),
        op.retry(-1),
        op.retry_many(limit=0),
        op.purge(1, statuses=["running"]),
        op.pause(""),
        op.list_jobs(limit=0),
        op.rescue(max_errors=0),
        op.expire(0),
        op.cleanup(0),
    ):
        with pytest.raises(core.InvalidJob):
            next(operation)
