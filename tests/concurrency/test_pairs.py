"""Every pair of operations that may meet on one job, in both orders: who waits, and who wins.

Where the other order or pair has a place of its own it is not repeated here: claims among each other and against
cancelling in test_claim_races, pushes of one key in test_push_races, batches in test_lock_order, maintenance at once
in test_maintenance_races, operators' commands in test_operator_races.

The first operation is held with its transaction open, so that it has done everything but commit. An operation of
several statements is also held between them, driven by hand.
"""

from __future__ import annotations

import pytest

ENDS = ["commit", "rollback"]


@pytest.fixture
def queue(core, db):
    return core.Queue(db)


@pytest.fixture
def late(core, db, queue):
    """An attempt whose lease ran out, and whose worker does not know."""
    queue.push("mail", key="k")
    (job,) = queue.claim([core.Want("mail", 1)], worker="w", lease=0)
    return job


@pytest.fixture
def old(core, db, queue):
    """A cancelled job past its TTL."""
    pushed = queue.push("mail", key="k")
    queue.cancel(pushed.id, ttl=0)
    return pushed


def impatient(core, connect):
    """A queue that fails a test in which it waits for anybody."""
    return core.Queue(connect(options="-c lock_timeout=1"))


def stepped(connection, operation):
    """Run an operation's first statement; `finish()` runs the rest."""

    def rows(statement):
        return connection.execute(statement.sql, statement.params or None).fetchall()

    answer = rows(next(operation))

    def finish():
        nonlocal answer
        try:
            while True:
                answer = rows(operation.send(answer))
        except StopIteration as done:
            return done.value

    return finish


# -- complete against rescue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
def test_a_rescue_passes_over_a_job_that_is_just_being_completed(core, connect, queue, late, ends):
    worker, rescuer = connect(autocommit=False), impatient(core, connect)
    core.Queue(worker).complete(late)
    assert rescuer.rescue() == ([], [], [])
    getattr(worker, ends)()
    assert rescuer.rescue().retried == ([] if ends == "commit" else [late.id])
    assert queue.get(late.id).status == ("succeeded" if ends == "commit" else "pending")


@pytest.mark.parametrize("ending", ["complete", "fail", "release", "cancel", "heartbeat"])
def test_a_rescue_that_looked_before_an_ending_or_heartbeat_takes_nothing_after_it(core, connect, queue, late, ending):
    """Held between its statements: the look for lost jobs, and the change of them, which looks again."""
    finish = stepped(connect(), core.operations.rescue())
    {
        "complete": lambda: queue.complete(late),
        "fail": lambda: queue.fail(late, "no"),
        "release": lambda: queue.release(late),
        "cancel": lambda: queue.cancel(late.id),
        "heartbeat": lambda: queue.heartbeat(late),
    }[ending]()
    before = queue.get(late.id)
    assert finish() == ([], [], [])
    assert queue.get(late.id) == before


# -- two rescues -----------------------------------------------------------------------------------------------


def test_a_rescue_that_looked_before_another_does_not_take_the_job_from_its_next_worker(core, connect, queue, late):
    finish = stepped(connect(), core.operations.rescue())
    assert queue.rescue().retried == [late.id]
    (again,) = queue.claim([core.Want("mail", 1)], worker="next")
    assert finish() == ([], [], [])
    queue.complete(again)
    assert queue.get(late.id).errors == ["lease ran out, worker w"]


# -- heartbeat against rescue ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
def test_a_heartbeat_does_not_wait_for_a_rescue_and_learns_of_it_at_the_next(core, connect, queue, late, ends):
    rescuer, worker = connect(autocommit=False), impatient(core, connect)
    assert core.Queue(rescuer).rescue().retried == [late.id]
    assert worker.heartbeat_many([late]) == [], "nobody's word is out yet"
    getattr(rescuer, ends)()
    assert worker.heartbeat_many([late]) == ([late] if ends == "commit" else [])
    assert queue.get(late.id).status == ("pending" if ends == "commit" else "running")


# -- cancel against complete -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
def test_a_completion_of_a_job_that_is_just_being_cancelled_waits_and_then_decides(
    core, connect, queue, late, background, wait_for_block, ends
):
    operator, worker = connect(autocommit=False), connect()
    assert core.Queue(operator).cancel(late.id)
    completing = background(core.Queue(worker).complete_many, [late])
    wait_for_block(worker, operator)
    getattr(operator, ends)()
    assert completing.result() == ([late] if ends == "commit" else [])
    assert queue.get(late.id).status == ("cancelled" if ends == "commit" else "succeeded")


# -- retry against cleanup -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
def test_a_retry_of_a_job_that_is_just_being_cleaned_up_waits_and_then_decides(
    core, connect, queue, old, background, wait_for_block, ends
):
    cleaner, operator = connect(autocommit=False), connect()
    assert core.Queue(cleaner).cleanup() == 1
    retrying = background(core.Queue(operator).retry, old.id)
    wait_for_block(operator, cleaner)
    getattr(cleaner, ends)()
    assert retrying.result() is (ends == "rollback")
    left = [job.status for job in queue.list_jobs()]
    assert left == ([] if ends == "commit" else ["pending"])


# -- push against cleanup of the same key ----------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True], ids=["push", "push_many"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_push_of_a_key_that_is_just_being_cleaned_up_waits_and_then_decides(
    core, connect, queue, old, background, wait_for_block, ends, many
):
    cleaner, pusher = connect(autocommit=False), connect()
    assert core.Queue(cleaner).cleanup() == 1
    push = core.Queue(pusher).push_many if many else core.Queue(pusher).push
    pushing = background(push, [core.NewJob("mail", key="k")]) if many else background(push, "mail", key="k")
    wait_for_block(pusher, cleaner)
    getattr(cleaner, ends)()
    pushed = pushing.result()[0] if many else pushing.result()
    assert pushed.created is (ends == "commit")
    assert [(job.id, job.status) for job in queue.list_jobs()] == [
        (pushed.id, "pending" if pushed.created else "cancelled")
    ]


@pytest.mark.parametrize("many", [False, True], ids=["push", "push_many"])
def test_a_push_that_met_a_key_whose_job_went_before_it_could_be_named_pushes_again(core, connect, queue, old, many):
    """Held between its statements: the insert, which met the key, and the look for the id."""
    operations = core.operations
    push = operations.push_many([core.NewJob("mail", key="k")]) if many else operations.push("mail", key="k")
    finish = stepped(connect(), push)
    assert queue.cleanup() == 1
    pushed = finish()[0] if many else finish()
    assert pushed.created
    assert pushed.id != old.id
    assert [job.id for job in queue.list_jobs()] == [pushed.id]


def test_a_push_that_named_an_old_job_in_a_transaction_does_not_keep_it_from_the_cleanup(core, connect, queue, old):
    """The key is taken for as long as the row exists, and a push of it changes nothing of how long that is."""
    pusher = connect(autocommit=False)
    assert core.Queue(pusher).push("mail", key="k") == (old.id, False)
    assert impatient(core, connect).cleanup() == 1
    assert core.Queue(pusher).push("mail", key="k").created
    pusher.commit()
    assert len(queue.list_jobs()) == 1


# -- pause against claim ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ENDS)
def test_a_claim_does_not_wait_for_a_pause_and_obeys_it_once_it_is_committed(core, connect, queue, ends):
    queue.push_many([core.NewJob("mail")] * 2)
    operator, worker = connect(autocommit=False), impatient(core, connect)
    assert core.Queue(operator).pause("default")
    assert len(worker.claim([core.Want("mail", 1)], worker="w")) == 1
    getattr(operator, ends)()
    assert len(worker.claim([core.Want("mail", 1)], worker="w")) == (0 if ends == "commit" else 1)


@pytest.mark.parametrize("ends", ENDS)
def test_a_pause_does_not_wait_for_a_claim_whose_jobs_go_on(core, connect, queue, ends):
    queue.push("mail")
    worker, operator = connect(autocommit=False), impatient(core, connect)
    (job,) = core.Queue(worker).claim([core.Want("mail", 1)], worker="w")
    assert operator.pause("default")
    getattr(worker, ends)()
    assert queue.claim([core.Want("mail", 1)], worker="other") == []
    if ends == "commit":
        queue.complete(job)
    assert queue.get(job.id).status == ("succeeded" if ends == "commit" else "pending")
