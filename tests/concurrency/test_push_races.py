"""Pushes that meet: one row for each key, the same id for everybody, and no deadlock."""

from __future__ import annotations

from typing import Any

import pytest


def rows(db: Any) -> list[tuple[Any, ...]]:
    return db.execute("SELECT id, external_key FROM pgqueue_jobs ORDER BY id").fetchall()


def one(core, queue, key):
    return queue.push("mail", key=key)


def many(core, queue, key):
    return queue.push_many([core.NewJob("mail", key=key)])[0]


def bounded(core, queue, key):
    return core.Queue(queue.connection, max_in_flight=50).push("mail", key=key)


WAYS = {"push": one, "push_many": many, "bounded": bounded}


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_two_pushes_of_one_key_are_one_job_and_both_get_its_id(
    core, connect, db, background, wait_for_block, first, second
):
    holder, waiter = connect(autocommit=False), connect()
    winner = WAYS[first](core, core.Queue(holder), "k")
    losing = background(WAYS[second], core, core.Queue(waiter), "k")
    wait_for_block(waiter, holder)
    assert rows(db) == []
    holder.commit()
    loser = losing.result()
    assert (winner.created, loser.created) == (True, False)
    assert winner.id == loser.id
    assert rows(db) == [(winner.id, "k")]


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_when_the_first_rolls_back_the_second_creates_the_job(
    core, connect, db, background, wait_for_block, first, second
):
    holder, waiter = connect(autocommit=False), connect()
    WAYS[first](core, core.Queue(holder), "k")
    waiting = background(WAYS[second], core, core.Queue(waiter), "k")
    wait_for_block(waiter, holder)
    holder.rollback()
    pushed = waiting.result()
    assert pushed.created
    assert rows(db) == [(pushed.id, "k")]


@pytest.mark.parametrize("way", WAYS)
def test_many_pushes_of_one_key_at_one_instant_are_one_job(core, connect, db, background, wait_for_block, way):
    """All of them wait for one transaction, and are let go at the same moment."""
    gate, pushers = connect(autocommit=False), [connect() for _ in range(20)]
    WAYS[way](core, core.Queue(gate), "k")
    waiting = [background(WAYS[way], core, core.Queue(pusher), "k") for pusher in pushers]
    for pusher in pushers:
        wait_for_block(pusher, gate)
    gate.rollback()
    answers = [push.result() for push in waiting]
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.id for answer in answers}) == 1
    assert len(rows(db)) == 1
