"""Dependencies: a job waits for all of its parents, whichever way each of them ends, and no wake-up is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import CheckViolation, DeadlockDetected, SerializationFailure
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from waiting import until

from pgqueue_ref import sqlalchemy
from pgqueue_ref.core import Failure, InvalidJob, Job, JobNotFound, NewJob, Queue, QueueBusy, QueueError, Want
from pgqueue_ref.extensions import dependencies, events, results
from pgqueue_ref.extensions.dependencies import PUSH_BLOCKED, Dependent, Parent
from pgqueue_ref.worker import Cancel, Kinds, Worker

Background = Callable[..., Future[Any]]


def push(queue: Queue, /, *depends_on: Any, kind: str = "job", **options: Any) -> int:
    return queue.run(dependencies.push(kind, depends_on=depends_on, **options)).id


def status(queue: Queue, *ids: int) -> list[str]:
    return [queue.get(id_).status for id_ in ids]


def take(queue: Queue, *ids: int) -> list[Job]:
    """Claim just these."""
    jobs = queue.claim([Want("job", 1000)], worker="w1")
    queue.release_many([job for job in jobs if job.id not in ids])
    return sorted(job for job in jobs if job.id in ids)


def edges(queue: Queue) -> int:
    return int(queue.connection.execute("SELECT count(*) FROM pgqueue_dependencies").fetchone()[0])


def outcomes(queue: Queue, job_id: int) -> list[tuple[int, str | None]]:
    return [(parent.id, parent.outcome) for parent in queue.run(dependencies.parents(job_id))]


# -- waiting for parents ---------------------------------------------------------------------------------------


def test_a_job_is_blocked_until_all_its_parents_have_succeeded(queue: Queue) -> None:
    a, b = push(queue), push(queue, key="b")
    child = push(queue, a, ("job", "b"))
    assert status(queue, a, b, child) == ["pending", "pending", "blocked"]
    assert take(queue, child) == []
    for job in take(queue, a, b):
        assert status(queue, child) == ["blocked"]
        queue.complete(job)
    assert status(queue, child) == ["pending"]
    assert outcomes(queue, child) == [(a, "succeeded"), (b, "succeeded")]
    assert [job.id for job in take(queue, child)] == [child]


def test_what_a_push_answered_names_a_parent(queue: Queue) -> None:
    parent = queue.push("job")
    child = push(queue, parent)
    assert outcomes(queue, child) == [(parent.id, None)]


def test_a_job_whose_parents_have_succeeded_already_is_not_blocked(queue: Queue) -> None:
    parent = push(queue)
    queue.complete_many(take(queue, parent))
    child = push(queue, parent)
    assert status(queue, child) == ["pending"]
    assert outcomes(queue, child) == [(parent, "succeeded")]


def test_a_job_whose_parent_has_failed_already_is_cancelled_or_runs_as_chosen(queue: Queue) -> None:
    parent = push(queue)
    queue.fail(take(queue, parent)[0], "broken", final=True)
    cancelled, runs = push(queue, parent), push(queue, parent, on_parent_failure="run")
    assert status(queue, cancelled, runs) == ["cancelled", "pending"]


def test_a_job_is_due_from_the_moment_that_frees_it_or_later(queue: Queue) -> None:
    """In the order of claims it does not overtake what was due before."""
    parent = push(queue)
    child, later = push(queue, parent), push(queue, parent, delay=3600)
    queue.complete_many(take(queue, parent))
    assert queue.get(child).run_at == queue.get(parent).finished_at
    assert queue.get(later).run_at > queue.get(child).run_at


@pytest.mark.parametrize("refs", [(999,), (("job", "gone"),), (999, 1000)], ids=str)
def test_a_parent_that_does_not_exist_is_named_and_nothing_is_pushed(queue: Queue, refs: tuple[Any, ...]) -> None:
    parent = push(queue)
    with pytest.raises(JobNotFound, match="to depend on does not exist"):
        push(queue, parent, *refs, on_success=[NewJob("mail")])
    assert [job.id for job in queue.list_jobs()] == [parent]
    assert edges(queue) == 0


def test_the_push_of_a_job_that_exists_changes_nothing_even_when_its_parents_are_gone(queue: Queue) -> None:
    parent = push(queue)
    child = queue.run(dependencies.push("job", key="c", depends_on=[parent]))
    queue.complete_many(take(queue, parent), ttl=0)
    again = queue.run(dependencies.push("job", key="c", depends_on=[parent], on_success=[NewJob("mail")]))
    assert again == (child.id, False)
    assert len(queue.list_jobs()) == 1


def test_a_key_that_occurs_twice_is_one_job_with_the_parents_of_the_first(queue: Queue) -> None:
    parent, other = push(queue), push(queue)
    jobs = [Dependent(NewJob("job", key="c"), [parent]), Dependent(NewJob("job", key="c"), [other])]
    first, second = queue.run(dependencies.push_many(jobs))
    assert (first.id, first.created, second.created) == (second.id, True, False)
    assert outcomes(queue, first.id) == [(parent, None)]


def test_answers_are_in_the_order_of_the_jobs_with_parents_or_without(queue: Queue) -> None:
    parent = push(queue)
    jobs = [Dependent(NewJob("job", 1), [parent]), NewJob("job", 2), Dependent(NewJob("job", 3, key="a"), [parent])]
    pushed = queue.run(dependencies.push_many(jobs))
    assert [queue.get(one.id).payload for one in pushed] == [1, 2, 3]
    assert status(queue, *(one.id for one in pushed)) == ["blocked", "pending", "blocked"]


@pytest.mark.parametrize(
    "options",
    [
        {"depends_on": [0]},
        {"depends_on": [True]},
        {"depends_on": ["a"]},
        {"depends_on": [("job", "")]},
        {"on_parent_failure": "ignore"},
        {"on_success": ["mail"]},
        {"max_in_flight": 0},
        {"key": ""},
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_before_any_statement(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        next(dependencies.push("job", **options))


def test_the_bound_counts_blocked_jobs_and_callbacks_and_refuses_all_or_none(queue: Queue) -> None:
    parent = push(queue)
    wanted: dict[str, Any] = {"key": "c", "depends_on": [parent], "on_failure": [NewJob("mail")]}
    with pytest.raises(QueueBusy):
        queue.run(dependencies.push("job", max_in_flight=2, **wanted))
    assert len(queue.list_jobs()) == 1
    pushed = queue.run(dependencies.push("job", max_in_flight=3, **wanted))
    assert queue.run(dependencies.push("job", max_in_flight=3, **wanted)) == (pushed.id, False)


def test_a_push_rolls_back_whole_with_the_callers_transaction(queue: Queue) -> None:
    parent = push(queue)
    with queue.connection.transaction(force_rollback=True):
        push(queue, parent, on_success=[NewJob("mail")])
    assert (len(queue.list_jobs()), edges(queue)) == (1, 0)


def test_the_blocked_push_is_the_cores_but_for_the_status() -> None:
    from pgqueue_ref.core.sql import PUSH_MANY

    assert PUSH_BLOCKED.replace(", status)", ")").replace(", 'blocked'", "") == PUSH_MANY
    assert PUSH_BLOCKED.count("status") == PUSH_BLOCKED.count("'blocked'") == 1


# -- every way to an end ---------------------------------------------------------------------------------------


def completed(queue: Queue, id_: int) -> None:
    queue.complete_many(take(queue, id_))


def deleted_by_completion(queue: Queue, id_: int) -> None:
    queue.complete_many(take(queue, id_), ttl=0)


def succeeded_by_hand(queue: Queue, id_: int) -> None:
    queue.connection.execute("UPDATE pgqueue_jobs SET status = 'succeeded', finished_at = now() WHERE id = %s", [id_])


def failed(queue: Queue, id_: int) -> None:
    queue.fail(take(queue, id_)[0], "broken", final=True)


def cancelled(queue: Queue, id_: int) -> None:
    queue.cancel(id_)


def expired(queue: Queue, id_: int) -> None:
    queue.connection.execute("UPDATE pgqueue_jobs SET expires_at = '2001-01-01' WHERE id = %s", [id_])
    assert queue.expire() == 1


def rescued(queue: Queue, id_: int) -> None:
    queue.connection.execute("UPDATE pgqueue_jobs SET max_attempts = 1 WHERE id = %s", [id_])
    take(queue, id_)
    queue.connection.execute("UPDATE pgqueue_jobs SET lease_expires_at = '2001-01-01' WHERE id = %s", [id_])
    assert queue.rescue().failed == [id_]


def deleted_unrun(queue: Queue, id_: int) -> None:
    queue.connection.execute("DELETE FROM pgqueue_jobs WHERE id = %s", [id_])


WELL = [completed, deleted_by_completion, succeeded_by_hand]
BADLY = [failed, cancelled, expired, rescued, deleted_unrun]


@pytest.mark.parametrize("end", WELL, ids=lambda end: end.__name__)
def test_every_success_frees_the_children(queue: Queue, end: Callable[[Queue, int], None]) -> None:
    parent = push(queue)
    child = push(queue, parent)
    end(queue, parent)
    assert status(queue, child) == ["pending"]
    assert outcomes(queue, child) == [(parent, "succeeded")]


@pytest.mark.parametrize("end", BADLY, ids=lambda end: end.__name__)
def test_every_failure_cancels_the_children_and_theirs_or_runs_them_as_chosen(
    queue: Queue, end: Callable[[Queue, int], None]
) -> None:
    parent = push(queue)
    child, runs = push(queue, parent), push(queue, parent, on_parent_failure="run")
    grandchild = push(queue, child, runs)
    end(queue, parent)
    assert status(queue, child, runs, grandchild) == ["cancelled", "pending", "cancelled"]
    became = "failed" if end in (failed, rescued) else "was cancelled"
    assert queue.get(child).errors == [f"cancelled because job {parent} {became}"]
    assert queue.get(grandchild).errors == [f"cancelled because job {child} was cancelled"]


def test_attempts_that_are_left_and_jobs_put_back_change_nothing(queue: Queue) -> None:
    parent = push(queue)
    child = push(queue, parent)
    queue.fail(take(queue, parent)[0], "again")
    queue.snooze(take(queue, parent)[0], 0)
    queue.release(take(queue, parent)[0])
    queue.heartbeat(take(queue, parent)[0])
    assert (status(queue, child), outcomes(queue, child)) == (["blocked"], [(parent, None)])


def test_a_parent_that_succeeded_counts_as_such_after_it_was_purged(queue: Queue) -> None:
    first, second = push(queue), push(queue)
    child = push(queue, first, second)
    completed(queue, first)
    assert queue.purge(0) == 1
    completed(queue, second)
    assert status(queue, child) == ["pending"]


def test_edges_go_with_the_job_that_waited(queue: Queue) -> None:
    parent = push(queue)
    child = push(queue, parent)
    completed(queue, parent)
    assert edges(queue) == 1
    queue.complete_many(take(queue, child), ttl=0)
    assert edges(queue) == 0
    push(queue, push(queue))
    queue.connection.execute("TRUNCATE pgqueue_jobs RESTART IDENTITY")
    assert edges(queue) == 0


def test_a_job_that_was_cancelled_while_it_waited_stays_cancelled(queue: Queue) -> None:
    parent = push(queue)
    child = push(queue, parent)
    queue.cancel(child)
    completed(queue, parent)
    assert status(queue, child) == ["cancelled"]


def test_no_cycle_can_be_written(queue: Queue) -> None:
    a = push(queue)
    b = push(queue, a)
    for parent in (b, a):
        with pytest.raises(CheckViolation, match="pgqueue_dependencies_order"):
            queue.connection.execute(
                "INSERT INTO pgqueue_dependencies (job_id, parent_id) VALUES (%s, %s)", [a, parent]
            )


# -- retry -----------------------------------------------------------------------------------------------------


def test_a_retried_parent_takes_back_what_its_failure_cancelled(queue: Queue) -> None:
    parent, other = push(queue), push(queue)
    a, b = push(queue, parent), push(queue, parent, other)
    end = push(queue, a, b)
    failed(queue, parent)
    completed(queue, other)
    assert status(queue, a, b, end) == ["cancelled"] * 3
    queue.retry(parent)
    assert status(queue, a, b, end) == ["blocked"] * 3
    completed(queue, parent)
    assert status(queue, a, b, end) == ["pending", "pending", "blocked"]


def test_what_two_parents_failures_cancelled_is_taken_back_when_both_are_retried(queue: Queue) -> None:
    first, second = push(queue), push(queue)
    child = push(queue, first, second)
    end = push(queue, child, first)
    failed(queue, first)
    failed(queue, second)
    queue.retry(first)
    assert status(queue, child, end) == ["cancelled", "cancelled"]
    queue.retry(second)
    assert status(queue, child, end) == ["blocked", "blocked"]


def test_what_was_taken_back_and_then_cancelled_by_hand_stays_cancelled(queue: Queue) -> None:
    parent = push(queue)
    child = push(queue, parent)
    failed(queue, parent)
    queue.retry(parent)
    assert (status(queue, child), queue.get(child).errors) == (["blocked"], [])
    queue.cancel(child)
    failed(queue, parent)
    queue.retry(parent)
    assert status(queue, child) == ["cancelled"]


def test_a_job_that_waits_for_ends_waits_for_the_new_end_of_a_parent_that_is_retried(queue: Queue) -> None:
    """Unless it was freed before: that is not undone."""
    parent, other = push(queue), push(queue)
    freed = push(queue, parent, on_parent_failure="run")
    waits = push(queue, parent, other, on_parent_failure="run")
    failed(queue, parent)
    queue.retry(parent)
    assert outcomes(queue, freed) == [(parent, "failed")]
    completed(queue, other)
    assert status(queue, freed, waits) == ["pending", "blocked"]
    failed(queue, parent)
    assert status(queue, waits) == ["pending"]


def test_what_an_operator_cancelled_or_retried_is_not_taken_back(queue: Queue) -> None:
    parent = push(queue)
    unwanted, wanted, grandchild = push(queue, parent), push(queue, parent), push(queue, parent)
    queue.cancel(unwanted)
    failed(queue, parent)
    queue.retry(wanted)
    queue.retry(grandchild)
    queue.cancel(grandchild)
    assert status(queue, unwanted, wanted, grandchild) == ["cancelled", "pending", "cancelled"]
    queue.retry(parent)
    assert status(queue, unwanted, wanted, grandchild) == ["cancelled", "pending", "cancelled"]
    failed(queue, parent)
    assert status(queue, wanted) == ["pending"]


def test_what_a_failure_cancelled_stays_as_long_as_the_parent_and_goes_with_it(queue: Queue) -> None:
    parent, other = push(queue), push(queue)
    children = [push(queue, parent), push(queue, other)]
    failed(queue, parent)
    queue.cancel(other, ttl=7)
    assert queue.get(children[0]).delete_after is None
    assert queue.get(children[1]).delete_after == queue.get(other).delete_after
    queue.purge(0, statuses=["failed"])
    assert queue.cleanup() == 1
    assert [job.id for job in queue.list_jobs()] == [other, children[1]]


# -- callbacks -------------------------------------------------------------------------------------------------


def callbacks(queue: Queue, *depends_on: int, **options: Any) -> tuple[int, int, int]:
    """A job with a callback of each sort: their ids."""
    job = push(
        queue,
        *depends_on,
        on_success=[NewJob("thank", metadata={"to": "ada"})],
        on_failure=[NewJob("alarm")],
        **options,
    )
    ((thank, alarm),) = queue.connection.execute(
        "SELECT min(id) FILTER (WHERE kind = 'thank'), min(id) FILTER (WHERE kind = 'alarm') FROM pgqueue_jobs"
    ).fetchall()
    return job, thank, alarm


@pytest.mark.parametrize("end", WELL, ids=lambda end: end.__name__)
def test_a_success_pushes_its_callback_on_with_the_outcome(queue: Queue, end: Callable[[Queue, int], None]) -> None:
    job, thank, alarm = callbacks(queue, key="k")
    assert status(queue, job, thank, alarm) == ["pending", "blocked", "blocked"]
    end(queue, job)
    assert status(queue, thank, alarm) == ["pending", "cancelled"]
    outcome = {"id": job, "kind": "job", "key": "k", "status": "succeeded", "error": None}
    assert queue.get(thank).metadata == {"to": "ada", "parent": outcome}
    assert queue.get(alarm).errors == [f"not needed: job {job} succeeded"]
    assert queue.cleanup() == 1  # it is not needed any more


def test_a_failure_pushes_its_callback_on_with_the_error(queue: Queue) -> None:
    job, thank, alarm = callbacks(queue)
    failed(queue, job)
    assert status(queue, thank, alarm) == ["cancelled", "pending"]
    outcome = {"id": job, "kind": "job", "key": None, "status": "failed", "error": "broken"}
    assert queue.get(alarm).metadata == {"parent": outcome}
    queue.retry(job)
    completed(queue, job)
    assert status(queue, thank, alarm) == ["pending", "pending"]


def test_a_job_that_is_cancelled_with_its_parent_calls_back_as_well(queue: Queue) -> None:
    parent = push(queue)
    job, thank, alarm = callbacks(queue, parent)
    failed(queue, parent)
    assert status(queue, job, thank, alarm) == ["cancelled", "cancelled", "pending"]
    assert queue.get(alarm).metadata["parent"]["status"] == "cancelled"


def test_the_callback_of_a_job_that_is_cancelled_at_its_push_is_pushed_on_at_once(queue: Queue) -> None:
    parent = push(queue)
    failed(queue, parent)
    job, thank, alarm = callbacks(queue, parent)
    assert status(queue, job, thank, alarm) == ["cancelled", "cancelled", "pending"]


def test_parents_come_with_their_results_where_these_are_kept(queue: Queue) -> None:
    first, second = push(queue, key="a"), push(queue)
    child = push(queue, first, second, on_parent_failure="run")
    queue.run(results.complete(take(queue, first)[0], [1], ttl=0))
    done = Parent(first, "succeeded", None, None, None, None, [1])
    assert queue.run(dependencies.parents(child)) == [done, Parent(second, None, "pending", "job", None, None)]
    failed(queue, second)
    broken = Parent(second, "failed", "failed", "job", None, "broken")
    assert queue.run(dependencies.parents(child)) == [done, broken]
    assert queue.run(dependencies.parents(child, after=first)) == [broken]
    assert queue.run(dependencies.parents(child, limit=1)) == [done]
    assert queue.run(dependencies.parents(child, waiting=True)) == []


# -- alone, and with others ------------------------------------------------------------------------------------


def test_it_needs_no_other_extension(database: str) -> None:
    with Queue.connect(database) as queue:
        queue.connection.execute(dependencies.SCHEMA_SQL)
        parent = push(queue, key="k")
        child = push(queue, parent, on_success=[NewJob("mail")])
        completed(queue, parent)
        assert queue.run(dependencies.parents(child)) == [Parent(parent, "succeeded", "succeeded", "job", "k", None)]


def test_events_tell_what_became_of_a_job_that_waited(queue: Queue) -> None:
    parent, broken = push(queue), push(queue)
    freed, spoiled = push(queue, parent), push(queue, broken)
    completed(queue, parent)
    failed(queue, broken)
    told = [[(event.type, event.status) for event in queue.run(events.timeline(id_))[:2]] for id_ in (freed, spoiled)]
    assert told[0] == [("pushed", "blocked"), ("unblocked", "pending")]
    assert told[1] == [("pushed", "blocked"), ("cancelled", "cancelled")]
    assert queue.run(events.timeline(spoiled))[1].message == f"cancelled because job {broken} failed"


def test_events_of_what_is_freed_are_written_without_comparing_each_with_each(queue: Queue, extended: str) -> None:
    """10,000 children and their parent's end took 9 s, in a session that had written no events before."""
    parent = push(queue)
    push(queue, parent)
    (job,) = take(queue, parent)
    plans: list[str] = []
    with Queue.connect(extended) as ending:
        ending.connection.execute("SET debug_print_plan = on; SET client_min_messages = log")
        ending.connection.add_notice_handler(lambda notice: plans.append(notice.message_detail or ""))
        ending.complete(job, ttl=0)
    joins = [plan for plan in plans if ":enrname was" in plan and ":enrname became" in plan and "JOIN " in plan]
    assert any("{HASHJOIN" in plan for plan in joins)
    assert not any("{NESTLOOP" in plan or "{MERGEJOIN" in plan for plan in joins)


def test_it_runs_in_a_transaction_of_sqlalchemy(queue: Queue, extended: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(extended))
    with Session(engine) as session, session.begin():
        borrowed = sqlalchemy.queue(session)
        parent = borrowed.push("job")
        child = borrowed.run(dependencies.push("job", depends_on=[parent], on_failure=[NewJob("mail")]))
    engine.dispose()
    assert outcomes(queue, child.id) == [(parent.id, None)]


def test_a_worker_runs_a_graph_in_its_order_and_calls_back(queue: Queue, extended: str) -> None:
    ran: list[Any] = []
    kinds = Kinds()

    @kinds.register("job", result_ttl=60, terminal_ttl=0)
    async def job(job: Job) -> Any:
        ran.append(job.payload)
        if job.payload == "bad":
            raise Cancel("no use")
        return job.payload

    @kinds.register("sum", concurrency=1)
    def total(job: Job) -> None:
        with Queue.connect(extended) as queue:
            ran.append(sum(parent.result for parent in queue.run(dependencies.parents(job.id))))

    @kinds.register("told")
    async def told(job: Job) -> None:
        ran.append(job.metadata["parent"]["error"])

    first = push(queue, payload=1)
    second = push(queue, first, payload=2)
    push(queue, first, second, kind="sum")
    push(queue, second, payload="bad", on_failure=[NewJob("told")], on_success=[NewJob("told")])

    async def work() -> None:
        worker = Worker(kinds, dsn=extended)
        while (await worker.run_once()).claimed:
            pass
        await worker.close()

    asyncio.run(work())
    assert (ran[:2], sorted(map(str, ran[2:]))) == ([1, 2], ["3", "bad", "no use"])


# -- thousands -------------------------------------------------------------------------------------------------


def statements(operation: Any, queue: Queue) -> int:
    """How many statements an operation sends, run for real."""
    count = 0

    def counted() -> Any:
        nonlocal count
        try:
            step = next(operation)
            while True:
                count += 1
                step = operation.send((yield step))
        except StopIteration as done:
            return done.value

    queue.run(counted())
    return count


def test_fan_out_and_fan_in_of_thousands_are_few_statements(queue: Queue) -> None:
    root = push(queue)
    middle = [Dependent(NewJob("job", n), [root]) for n in range(3000)]
    assert statements(dependencies.push_many(middle), queue) <= 5  # BEGIN, lock, jobs, edges
    ids = [job.id for job in queue.list_jobs(after=root, limit=3000)]
    assert statements(dependencies.push("job", depends_on=ids), queue) <= 5
    end = ids[-1] + 1
    completed(queue, root)
    assert {job.status for job in queue.list_jobs(after=root, limit=3000)} == {"pending"}
    while jobs := queue.claim([Want("job", 500)], worker="w1"):
        assert status(queue, end) == ["blocked"] or jobs[0].id == end
        queue.complete_many(jobs, ttl=0)
    with pytest.raises(JobNotFound):
        queue.get(end)
    assert edges(queue) == 0


def test_a_failure_cancels_a_chain_of_thousands(queue: Queue) -> None:
    """Triggers that fired each other would break the stack's limit, and the first could never fail."""
    queue.connection.execute(
        "INSERT INTO pgqueue_jobs (kind, status) SELECT 'job', 'blocked' FROM generate_series(1, 3000)"
    )
    queue.connection.execute("INSERT INTO pgqueue_dependencies SELECT id, id - 1 FROM pgqueue_jobs WHERE id > 1")
    queue.connection.execute("UPDATE pgqueue_jobs SET status = 'pending' WHERE id = 1")
    failed(queue, 1)
    assert {(stat.status, stat.jobs) for stat in queue.stats()} == {("failed", 1), ("cancelled", 2999)}
    queue.retry(1)
    assert {(stat.status, stat.jobs) for stat in queue.stats()} == {("pending", 1), ("blocked", 2999)}


# -- what it costs ---------------------------------------------------------------------------------------------

OTHERS = """
WITH other AS (
    INSERT INTO pgqueue_jobs (kind, status) SELECT 'other', 'blocked' FROM generate_series(1, 20001) RETURNING id
)
INSERT INTO pgqueue_dependencies (job_id, parent_id)
SELECT id, (SELECT min(id) FROM other) FROM other ORDER BY id OFFSET 1
"""


def pages(queue: Queue) -> int:
    """Of the table of dependencies and its indexes, touched so far."""
    if queue.connection.info.server_version < 150_000:
        pytest.skip("PostgreSQL 14 hands its statistics in when it likes")
    queue.connection.execute("SELECT pg_stat_force_next_flush()")
    queue.connection.execute("SELECT")
    ((pages,),) = queue.connection.execute("""
        SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
        FROM pg_statio_user_tables WHERE relname = 'pgqueue_dependencies'""").fetchall()
    return int(pages)


@pytest.mark.parametrize(("ttl", "most"), [(60, 3), (0, 6)])
def test_a_job_without_dependents_ends_with_a_probe_of_an_index(queue: Queue, ttl: int, most: int) -> None:
    """Also in a session whose plans were made while nobody waited for anything."""
    for _ in range(10):
        completed(queue, push(queue))
    queue.connection.execute(OTHERS)
    queue.push_many([NewJob("job") for _ in range(20)])
    before = pages(queue)
    jobs = queue.claim([Want("job", 20)], worker="w1")
    queue.heartbeat_many(jobs)
    queue.snooze_many(jobs[:1], 0)
    assert pages(queue) == before
    queue.complete_many(jobs[1:], ttl=ttl)
    assert pages(queue) - before <= 19 * most + 5


def test_the_last_of_many_parents_ends_at_the_price_of_the_first(queue: Queue) -> None:
    ids = [pushed.id for pushed in queue.push_many([NewJob("job") for _ in range(400)])]
    end = push(queue, *ids)
    jobs = queue.claim([Want("job", 400)], worker="w1")
    costs = []
    for start in range(0, 400, 50):
        before = pages(queue)
        for job in jobs[start : start + 50]:
            queue.complete(job)
        costs.append(pages(queue) - before)
    assert costs[-1] < 1.5 * costs[1], costs
    assert status(queue, end) == ["pending"]


# -- races -----------------------------------------------------------------------------------------------------


@pytest.fixture
def transaction(extended: str) -> Iterator[Callable[..., Queue]]:
    """A queue in a transaction that its test commits."""
    with contextlib.ExitStack() as stack:

        def transaction(isolation: IsolationLevel = IsolationLevel.READ_COMMITTED) -> Queue:
            connection = psycopg.connect(extended, options="-c statement_timeout=60000")
            connection.isolation_level = isolation
            return Queue(stack.enter_context(contextlib.closing(connection)))

        yield transaction


@pytest.fixture
def background(transaction: Any) -> Iterator[Background]:
    """Runs a call in a thread."""
    with ThreadPoolExecutor(4) as threads:
        yield threads.submit


def wait_for_block(queue: Queue, waiter: Queue, holder: Queue) -> None:
    """Until the server says that one transaction waits for the other."""
    pids = [other.connection.info.backend_pid for other in (waiter, holder)]
    query = "SELECT %s = ANY (pg_blocking_pids(pid)) FROM pg_stat_activity WHERE pid = %s"
    until(lambda: queue.connection.execute(query, pids[::-1]).fetchone() == (True,), "one waits for the other")


@pytest.mark.parametrize("ttl", [0, 60])
def test_two_last_parents_that_end_at_the_same_instant_lose_no_wake_up(
    queue: Queue, transaction: Callable[..., Queue], background: Background, ttl: int
) -> None:
    parents = [push(queue), push(queue)]
    child = push(queue, *parents)
    jobs = take(queue, *parents)
    one, two = transaction(), transaction()
    one.complete(jobs[0], ttl=ttl)
    completing = background(two.complete, jobs[1], ttl=ttl)
    wait_for_block(queue, two, one)
    one.connection.commit()
    completing.result()
    assert status(queue, child) == ["blocked"]
    two.connection.commit()
    assert status(queue, child) == ["pending"]


def test_a_last_parent_that_ends_while_another_fails_does_not_free_the_child(
    queue: Queue, transaction: Callable[..., Queue], background: Background
) -> None:
    parents = [push(queue), push(queue)]
    child = push(queue, *parents)
    jobs = take(queue, *parents)
    one, two = transaction(), transaction()
    one.fail(jobs[0], "broken", final=True)
    completing = background(two.complete, jobs[1])
    wait_for_block(queue, two, one)
    one.connection.commit()
    completing.result()
    two.connection.commit()
    assert status(queue, child) == ["cancelled"]


def test_a_job_pushed_below_a_cascade_under_way_is_locked_before_it_is_looked_at(
    queue: Queue, transaction: Callable[..., Queue], background: Background
) -> None:
    """A cascade that waits may reach further afterwards: the new job's other parent ends at the same instant."""
    root, other = push(queue), push(queue)
    middle = push(queue, root)
    jobs = take(queue, root, other)
    holder, failing, completing = transaction(), transaction(), transaction()
    holder.connection.execute("SELECT FROM pgqueue_jobs WHERE id = %s FOR KEY SHARE", [middle])  # a push may pass
    failure = background(failing.fail, jobs[0], "broken", final=True)
    wait_for_block(queue, failing, holder)
    end = push(queue, middle, other, on_parent_failure="run")
    completing.complete(jobs[1])
    holder.connection.commit()
    wait_for_block(queue, failing, completing)
    completing.connection.commit()
    failure.result()
    failing.connection.commit()
    assert status(queue, middle, end) == ["cancelled", "pending"]


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_above_read_committed_the_second_of_two_last_parents_must_be_repeated(
    queue: Queue, transaction: Callable[..., Queue], isolation: IsolationLevel
) -> None:
    """Its snapshot cannot show what the first did; a wake-up would be lost in silence."""
    parents = [push(queue), push(queue)]
    child = push(queue, *parents)
    jobs = take(queue, *parents)
    two = transaction(isolation)
    two.get(child)  # takes the snapshot
    queue.complete(jobs[0])
    with pytest.raises(QueueError) as refused:
        two.complete(jobs[1])
    assert isinstance(refused.value.__cause__, SerializationFailure)
    two.connection.rollback()
    two.complete(jobs[1])
    two.connection.commit()
    assert status(queue, child) == ["pending"]


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_above_read_committed_an_end_that_cannot_see_a_new_child_must_be_repeated(
    queue: Queue, transaction: Callable[..., Queue], isolation: IsolationLevel
) -> None:
    parent = push(queue)
    (job,) = take(queue, parent)
    handler = transaction(isolation)
    handler.get(parent)  # takes the snapshot
    child = push(queue, parent)
    with pytest.raises(QueueError) as refused:
        handler.complete(job)
    assert isinstance(refused.value.__cause__, SerializationFailure)
    handler.connection.rollback()
    handler.complete(job)
    handler.connection.commit()
    assert status(queue, child) == ["pending"]


def test_a_push_waits_for_the_end_of_its_parent_under_way(
    queue: Queue, transaction: Callable[..., Queue], background: Background
) -> None:
    kept, deleted = push(queue), push(queue)
    jobs = take(queue, kept, deleted)
    for job, ttl in zip(jobs, (60, 0), strict=True):
        ending, pusher = transaction(), transaction()
        ending.complete(job, ttl=ttl)
        pushing = background(push, pusher, job.id, key=f"child of {job.id}")
        wait_for_block(queue, pusher, ending)
        ending.connection.commit()
        if ttl:
            child = pushing.result()
            pusher.connection.commit()
            assert status(queue, child) == ["pending"]
        else:
            with pytest.raises(JobNotFound, match=f"job {job.id} to depend on"):
                pushing.result()


def test_the_end_of_a_parent_waits_for_a_push_under_way_and_sees_its_job(
    queue: Queue, transaction: Callable[..., Queue], background: Background
) -> None:
    parent = push(queue)
    (job,) = take(queue, parent)
    pusher, ending = transaction(), transaction()
    child = push(pusher, parent)
    completing = background(ending.complete, job, ttl=0)
    wait_for_block(queue, ending, pusher)
    pusher.connection.commit()
    completing.result()
    ending.connection.commit()
    assert status(queue, child) == ["pending"]


def test_a_push_locks_running_parents_before_blocked_ones_as_an_end_does(
    queue: Queue, transaction: Callable[..., Queue], background: Background
) -> None:
    """By id alone the push would hold the blocked one, wait for the running one, and deadlock with its end."""
    first = push(queue)
    blocked = push(queue, first)
    last = push(queue)
    jobs = take(queue, first, last)
    ending, pusher = transaction(), transaction()
    ending.complete(jobs[1])
    pushing = background(push, pusher, blocked, last)
    wait_for_block(queue, pusher, ending)
    ending.complete(jobs[0])
    ending.connection.commit()
    child = pushing.result()
    pusher.connection.commit()
    assert status(queue, blocked, child) == ["pending", "blocked"]
    assert outcomes(queue, child) == [(blocked, None), (last, "succeeded")]


# What would be wrong when nobody is at work: each finds edges that do not tell the truth.
WRONG = {
    "blocked, and waits for nothing": """
        SELECT id FROM pgqueue_jobs WHERE status = 'blocked'
        AND NOT EXISTS (SELECT FROM pgqueue_dependencies WHERE job_id = id AND outcome IS NULL)""",
    "waits for what has ended": """
        SELECT job_id FROM pgqueue_dependencies LEFT JOIN pgqueue_jobs ON id = parent_id
        WHERE outcome IS NULL AND (status IN ('pending', 'running', 'blocked')) IS NOT TRUE""",
    "waits no more for what has not ended": """
        SELECT job_id FROM pgqueue_dependencies JOIN pgqueue_jobs AS parent ON parent.id = parent_id
        JOIN pgqueue_jobs AS child ON child.id = job_id
        WHERE outcome IS NOT NULL AND child.status = 'blocked'
        AND parent.status IN ('pending', 'running', 'blocked')""",
    "goes on though a parent has not ended as it needs": """
        SELECT job_id FROM pgqueue_dependencies JOIN pgqueue_jobs ON id = job_id
        WHERE status IN ('pending', 'running', 'succeeded') AND (outcome IS NULL
            OR needs = 'success' AND outcome <> 'succeeded' OR needs = 'failure' AND outcome = 'succeeded')""",
    "is cancelled though all its parents may still succeed": """
        SELECT DISTINCT id FROM pgqueue_jobs JOIN pgqueue_dependencies AS edge ON job_id = id
        WHERE status = 'cancelled' AND errors[cardinality(errors)] LIKE 'cancelled because job %' AND outcome IS NULL
        AND NOT EXISTS (SELECT FROM pgqueue_dependencies AS other
                        WHERE other.job_id = id AND other.needs = 'success' AND other.outcome <> 'succeeded')""",
    "is gone": "SELECT job_id FROM pgqueue_dependencies LEFT JOIN pgqueue_jobs ON id = job_id WHERE id IS NULL",
}


def at_random(queue: Queue, random: Random) -> None:
    """Something that somebody might do, to one of the newest jobs where it is about one."""
    newest = max((job.id for job in queue.list_jobs(limit=1000)), default=1)
    one = random.randint(max(1, newest - 25), newest)
    what = random.randrange(12)
    if what < 4:
        parents = {random.randint(max(1, newest - 15), newest) for _ in range(random.randint(0, 3))}
        known = [job.id for job in queue.list_jobs(limit=1000) if job.id in parents]
        more: Any = {"on_failure": [NewJob("job")], "on_success": [NewJob("job")]} if random.random() < 0.2 else {}
        push(queue, *known, on_parent_failure=random.choice(["cancel", "run"]), **more)
    elif what < 8:
        jobs = queue.claim([Want("job", random.choice([1, 3, 8]))], worker="w1")
        if what < 6:
            queue.complete_many(jobs, ttl=random.choice([0, 60]))
        else:
            queue.fail_many([Failure(job, "broken", final=random.random() < 0.7) for job in jobs])
    elif what == 8:
        queue.cancel(one, ttl=random.choice([0, 60]))
    elif what == 9:
        queue.retry(one)
    elif what == 10:
        queue.retry_many(limit=3)
    else:
        queue.cleanup()


def test_whatever_four_do_at_once_the_edges_tell_the_truth_when_they_rest(
    queue: Queue, extended: str, background: Background
) -> None:
    def work(seed: int) -> None:
        random = Random(seed)
        with Queue.connect(extended) as mine:
            for _ in range(150):
                try:
                    at_random(mine, random)
                except JobNotFound:
                    pass
                except QueueError as error:
                    if not isinstance(error.__cause__, DeadlockDetected):  # which changes nothing
                        raise

    for worker in [background(work, seed) for seed in range(4)]:
        worker.result()
    assert {what: queue.connection.execute(sql).fetchall() for what, sql in WRONG.items()} == {
        what: [] for what in WRONG
    }


def test_a_worker_that_sleeps_is_woken_for_what_is_freed(queue: Queue, extended: str) -> None:
    parent = push(queue)
    push(queue, parent, delay=0)
    push(queue, parent, queue="later", delay=3600)
    (job,) = take(queue, parent)
    asleep = "SELECT pg_advisory_lock_shared(hashtextextended('pgqueue:asleep:public:' || %s, 0))"
    with psycopg.connect(extended, autocommit=True) as sleeper:
        for name in ("default", "later"):
            sleeper.execute(asleep, [name])
        sleeper.execute('LISTEN "pgqueue:public"')
        queue.complete(job)
        assert [notice.payload for notice in sleeper.notifies(timeout=20, stop_after=1)] == ["default"]
        assert list(sleeper.notifies(timeout=0)) == []
