"""How extensions meet the worker: which are installed, whose maintenance runs when, and what a broken one costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from waiting import eventually

from pgqueue_ref.core import AsyncQueue, Operation, Queue, Statement, Want
from pgqueue_ref.core import operations as op
from pgqueue_ref.extensions import Chore, Extension, installed, within
from pgqueue_ref.worker import Job, Kinds, Worker, extras

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def kinds() -> Kinds:
    kinds = Kinds()

    @kinds.register("mail")
    async def mail(job: Job) -> None:
        pass

    return kinds


@pytest.fixture
def extend(monkeypatch: pytest.MonkeyPatch, database: str) -> Callable[..., Extension]:
    """Adds an extension whose chore is `chore`, and its table unless told otherwise."""
    known: list[Extension] = []

    def extend(name: str, chore: Callable[[], Operation[Chore]], *, install: bool = True) -> Extension:
        made = Extension(name, f"pgqueue_{name}", f"CREATE TABLE pgqueue_{name} (at timestamptz DEFAULT now())", chore)
        known.append(made)
        monkeypatch.setattr(extras, "EXTENSIONS", tuple(known))
        if install:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(made.schema_sql)
        return made

    return extend


def noting(name: str, due: float = 60.0, after: Callable[[], float] | None = None) -> Callable[[], Operation[Chore]]:
    def chore() -> Operation[Chore]:
        yield Statement(f"INSERT INTO pgqueue_{name} DEFAULT VALUES RETURNING at")
        return Chore(1, after() if after else due)

    return chore


def turns(database: str, name: str) -> int:
    with psycopg.connect(database) as connection:
        return int(connection.execute(f"SELECT count(*) FROM pgqueue_{name}").fetchone()[0])


def test_what_is_installed_is_asked_with_one_statement(database: str, extend: Any) -> None:
    there = extend("there", noting("there"))
    missing = extend("missing", noting("missing"), install=False)
    asked = installed(there, missing)
    with Queue.connect(database) as queue:
        assert queue.run(asked) == {"there"}
    statements = installed(there, missing)
    next(statements)
    with pytest.raises(StopIteration):
        statements.send([])


async def test_a_worker_runs_without_the_extensions_that_are_not_there(
    database: str, extend: Any, kinds: Kinds
) -> None:
    extend("missing", noting("missing"), install=False)
    extend("there", noting("there"))
    async with Worker(kinds, dsn=database, poll_interval=0.05) as worker:
        await eventually(lambda: turns(database, "there"), "the installed one's chore ran")
        async with await AsyncQueue.connect(database) as queue:
            await queue.push("mail")
        await eventually(lambda: worker.counts.succeeded == 1, "the job ran")


async def test_a_chore_runs_again_when_it_said_it_would_be_due(database: str, extend: Any, kinds: Kinds) -> None:
    extend("often", noting("often", due=0.01))
    extend("once", noting("once", due=3600.0))
    async with Worker(kinds, dsn=database, poll_interval=0.02):
        await eventually(lambda: turns(database, "often") >= 5, "the one that is due again ran again")
    assert turns(database, "once") == 1


async def test_a_chore_with_more_to_do_goes_on_at_once_and_others_have_their_turn(
    database: str, extend: Any, kinds: Kinds
) -> None:
    extend("endless", noting("endless", due=0.0))
    extend("other", noting("other"))
    async with Worker(kinds, dsn=database, poll_interval=3600.0):
        await eventually(lambda: turns(database, "other"), "the other one had its turn")
        assert turns(database, "endless") == extras.BATCHES


async def test_a_chore_that_fails_costs_neither_the_others_nor_the_jobs(
    database: str, extend: Any, kinds: Kinds, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Operation[Chore]:
        yield Statement("SELECT 1 / 0")
        return Chore(0, 0.0)

    extend("broken", broken)
    extend("sound", noting("sound", due=0.01))
    async with Worker(kinds, dsn=database, poll_interval=0.02) as worker:
        await eventually(lambda: turns(database, "sound") >= 3, "the sound one goes on")
        async with await AsyncQueue.connect(database) as queue:
            await queue.push("mail")
        await eventually(lambda: worker.counts.succeeded == 1, "the job ran")
    assert any("maintenance of broken failed" in record.message for record in caplog.records)


async def test_one_turn_by_hand_does_every_chore_before_it_claims(database: str, extend: Any, kinds: Kinds) -> None:
    def push() -> Operation[Chore]:
        yield from op.push("mail")
        return Chore(1, 3600.0)

    extend("pusher", push)
    worker = Worker(kinds, dsn=database)
    assert [(await worker.run_once()).succeeded for _ in range(2)] == [1, 1]
    await worker.close()


# -- joining an operation of the core ---------------------------------------------------------------------------


def claimed(queue: Queue, count: int = 2) -> list[Any]:
    queue.push_many([op.NewJob("mail") for _ in range(count)])
    return queue.claim([Want("mail", count)], worker="w")


def test_what_joins_an_operation_is_one_statement_and_commits_with_it(database: str) -> None:
    with Queue.connect(database) as queue:
        queue.connection.execute("CREATE TABLE noted (id bigint, word text)")
        first, second = claimed(queue)
        queue.cancel(second.id)
        sql = ", noted AS (INSERT INTO noted SELECT id, %(word)s FROM core) SELECT id, lease_token FROM core"
        operation = within(sql, {"word": "done"}, op.complete_many([first, second]))
        assert queue.run(operation) == [second]
        assert queue.connection.execute("SELECT * FROM noted").fetchall() == [(first.id, "done")]
        assert queue.get(first.id).status == "succeeded"


def test_an_operation_with_nothing_to_do_sends_nothing(database: str) -> None:
    assert list(within("", {}, op.fail_many([]))) == []


def test_an_operation_of_several_statements_cannot_be_joined(database: str) -> None:
    sql = " SELECT id, kind, external_key FROM core"
    with Queue.connect(database) as queue:
        assert queue.run(within(sql, {}, op.push("mail", key="a"))).created
        with pytest.raises(TypeError, match="more than one statement"):
            queue.run(within(sql, {}, op.push("mail", key="a")))
