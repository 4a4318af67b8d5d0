"""Every transition of the core's table happens on the server, and no operation makes any other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

STATUSES = ("pending", "blocked", "running", "succeeded", "failed", "cancelled")
PAST = "2001-01-01T00:00Z"
# Every job is as open to a move as it can be: due, its lease, deadline and TTL run out, held under token 1.
OPEN = {"lease_token": 1, "run_at": PAST, "lease_expires_at": PAST, "finished_at": PAST, "delete_after": PAST}
LATE = OPEN | {"expires_at": PAST}


def held(ids):
    return [SimpleNamespace(id=job_id, lease_token=1) for job_id in ids]


def each(operation):
    """Runs the operation on each job, whether it agrees or not."""

    def act(queue, core, ids):
        for job in held(ids):
            try:
                operation(queue, job)
            except core.LeaseLost:
                continue

    return act


# (operation, the row's columns, what is done): once for each way that an operation may go.
CASES = {
    "push the same key": ("push", OPEN, lambda queue, core, ids: [queue.push("mail", key=str(n)) for n in range(6)]),
    "claim": ("claim", OPEN, lambda queue, core, ids: queue.claim([core.Want("mail", 99)], worker="w")),
    "complete": ("complete", OPEN, each(lambda queue, job: queue.complete(job))),
    "complete for ever": ("complete", OPEN, each(lambda queue, job: queue.complete(job, ttl=None))),
    "complete, TTL 0": ("complete", OPEN, each(lambda queue, job: queue.complete(job, ttl=0))),
    "complete_many": ("complete", OPEN, lambda queue, core, ids: queue.complete_many(held(ids))),
    "complete_many, TTL 0": ("complete", OPEN, lambda queue, core, ids: queue.complete_many(held(ids), ttl=0)),
    "fail": ("fail", OPEN | {"max_attempts": 5}, each(lambda queue, job: queue.fail(job, "no"))),
    "fail, none left": ("fail", OPEN | {"attempt": 5, "max_attempts": 5}, each(lambda q, job: q.fail(job, "no"))),
    "fail for good": ("fail", OPEN | {"max_attempts": 5}, each(lambda q, job: q.fail(job, "no", final=True))),
    "fail_many, cancelling": (
        "fail",
        OPEN,
        lambda queue, core, ids: queue.fail_many(core.Failure(job, "no", cancel=True) for job in held(ids)),
    ),
    "snooze": ("snooze", OPEN | {"attempt": 1}, each(lambda queue, job: queue.snooze(job, 60))),
    "release": ("release", OPEN | {"attempt": 1}, each(lambda queue, job: queue.release(job))),
    "release_many": ("release", OPEN | {"attempt": 1}, lambda queue, core, ids: queue.release_many(held(ids))),
    "heartbeat": ("heartbeat", OPEN, each(lambda queue, job: queue.heartbeat(job))),
    "heartbeat_many": ("heartbeat", OPEN, lambda queue, core, ids: queue.heartbeat_many(held(ids))),
    "rescue": ("rescue", OPEN | {"max_attempts": 5}, lambda queue, core, ids: queue.rescue()),
    "rescue, none left": ("rescue", OPEN | {"attempt": 5, "max_attempts": 5}, lambda q, core, ids: q.rescue()),
    "cancel": ("cancel", OPEN, each(lambda queue, job: queue.cancel(job.id))),
    "cancel_key": ("cancel", OPEN, lambda queue, core, ids: [queue.cancel_key("mail", str(n)) for n in range(6)]),
    "expire": ("expire", LATE, lambda queue, core, ids: queue.expire()),
    "claim what is late": (
        "claim what is late",
        LATE,
        lambda q, core, ids: q.claim([core.Want("mail", 99)], worker="w"),
    ),
    "retry": ("retry", OPEN, each(lambda queue, job: queue.retry(job.id))),
    "retry_many": ("retry", OPEN, lambda queue, core, ids: queue.retry_many()),
    "cleanup": ("cleanup", LATE, lambda queue, core, ids: queue.cleanup()),
    "purge": ("purge", LATE, lambda queue, core, ids: queue.purge(1)),
    "purge of all": ("purge", LATE, lambda q, core, ids: q.purge(1, statuses=("succeeded", "failed", "cancelled"))),
    "chores": ("chores", LATE, lambda queue, core, ids: queue.chores()),
    "pause and resume": ("pause", LATE, lambda queue, core, ids: (queue.pause("default"), queue.resume("default"))),
    "look": ("look", LATE, lambda queue, core, ids: (queue.stats(), queue.list_jobs(), queue.get(ids[0]))),
}


def moves(queue, core, put, row, case):
    """(source, target) of every job whose row the case changed in status."""
    _, columns, act = CASES[case]
    # A failed job has no TTL: it stays until somebody retries or purges it.
    extra = {"failed": {"delete_after": None}}
    ids = [
        put(status=status, external_key=str(n), **(columns | extra.get(status, {})))
        for n, status in enumerate(STATUSES)
    ]
    act(queue, core, ids)
    after = [(row(job_id) or {"status": None})["status"] for job_id in ids]
    return {(source, target) for source, target in zip(STATUSES, after, strict=True) if source != target}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_makes_no_move_that_the_table_does_not_name(queue, core, put, row, case):
    operation = CASES[case][0]
    allowed = {(move.source, move.target) for move in core.TRANSITIONS if move.operation == operation}
    assert moves(queue, core, put, row, case) <= allowed


def test_every_move_of_the_table_is_made(queue, core, put, row, db):
    walked = set()
    for case, (operation, _, _) in CASES.items():
        db.execute("TRUNCATE pgqueue_jobs")
        walked |= {(operation, *move) for move in moves(queue, core, put, row, case)}
    db.execute("TRUNCATE pgqueue_jobs")
    walked.add(("push", None, queue.get(queue.push("mail").id).status))
    assert walked == {(move.operation, move.source, move.target) for move in core.TRANSITIONS}


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] in
                                  ("complete", "fail", "snooze", "release", "heartbeat")])  # fmt: skip
def test_a_fenced_operation_writes_nothing_but_running_jobs(queue, core, put, row, case):
    _, columns, act = CASES[case]
    ids = [put(status=status, external_key=str(n), **columns) for n, status in enumerate(STATUSES)]
    before = {job_id: row(job_id) for job_id in ids}
    act(queue, core, ids)
    changed = {before[job_id]["status"] for job_id in ids if row(job_id) != before[job_id]}
    assert changed == {"running"}


def test_a_status_that_is_not_in_the_table_is_refused_by_the_server(put, core, queue):
    with pytest.raises(Exception, match="pgqueue_jobs_status"):
        put(status="sleeping")
    named = {status for move in core.TRANSITIONS for status in (move.source, move.target) if status}
    assert named == set(STATUSES) == set(core.ACTIVE) | set(core.TERMINAL)
