"""Push through a caller's SQLAlchemy Session or AsyncSession commits or rolls back with the objects in it."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Photo(Base):
    __tablename__ = "photo"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def beside(core: Any) -> Any:
    return importlib.import_module(f"{core.__name__.rpartition('.')[0]}.sqlalchemy")


def engine(dsn: str, **options: Any) -> Any:
    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool, **options)


def async_engine(dsn: str, **options: Any) -> Any:
    connect = lambda: psycopg.AsyncConnection.connect(dsn)  # noqa: E731 - SQLAlchemy wants a callable
    return create_async_engine("postgresql+psycopg://", async_creator=connect, poolclass=NullPool, **options)


def counts(dsn: str) -> tuple[int, int]:
    """Photos and jobs."""
    with psycopg.connect(dsn) as db:
        row = db.execute("SELECT (SELECT count(*) FROM photo), (SELECT count(*) FROM pgqueue_jobs)").fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("max_in_flight", [None, 12])
def test_a_push_through_a_session_commits_and_rolls_back_with_it(beside, core, database, max_in_flight):
    sql = engine(database)
    Base.metadata.create_all(sql)
    with Session(sql) as session:
        queue = beside.queue(session, max_in_flight=max_in_flight)
        session.add(Photo(id=1))
        session.flush()
        pushed = queue.push("thumbnail", {"photo": 1}, key="photo-1")
        queue.push_many([core.NewJob("thumbnail")] * 3)
        session.rollback()
        assert counts(database) == (0, 0)

        session.add(Photo(id=1))
        again = queue.push("thumbnail", {"photo": 1}, key="photo-1")
        assert again.created
        assert again.id != pushed.id
        assert counts(database) == (0, 0)
        session.commit()
    assert counts(database) == (1, 1)


@pytest.mark.parametrize("max_in_flight", [None, 12])
def test_a_push_through_an_async_session_commits_and_rolls_back_with_it(beside, core, database, max_in_flight):
    Base.metadata.create_all(engine(database))

    async def scenario() -> None:
        sql = async_engine(database)
        async with AsyncSession(sql) as session:
            queue = beside.async_queue(session, max_in_flight=max_in_flight)
            session.add(Photo(id=1))
            await session.flush()
            await queue.push("thumbnail", {"photo": 1}, key="photo-1")
            await queue.push_many([core.NewJob("thumbnail")] * 3)
            await session.rollback()
            assert counts(database) == (0, 0)

            session.add(Photo(id=1))
            assert (await queue.push("thumbnail", {"photo": 1}, key="photo-1")).created
            assert counts(database) == (0, 0)
            await session.commit()
        await sql.dispose()

    asyncio.run(scenario())
    assert counts(database) == (1, 1)


def test_a_failed_photo_takes_its_job_with_it(beside, database):
    sql = engine(database)
    Base.metadata.create_all(sql)
    with Session(sql) as session, session.begin():
        session.add(Photo(id=1))
    with Session(sql) as session:
        beside.queue(session).push("thumbnail")
        with pytest.raises(IntegrityError):
            session.execute(text("INSERT INTO photo (id) VALUES (1)"))
        session.rollback()
    assert counts(database) == (1, 0)


def test_the_session_sees_the_job_it_pushed(beside, database):
    with Session(engine(database)) as session:
        pushed = beside.queue(session).push("thumbnail")
        assert session.scalar(text("SELECT status FROM pgqueue_jobs WHERE id = :id"), {"id": pushed.id}) == "pending"


def test_what_must_be_atomic_is_refused_on_an_autocommit_engine(beside, core, database):
    with engine(database, isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(core.QueueError, match="needs a transaction"):
            beside.queue(connection, max_in_flight=5).push("mail")
        with pytest.raises(core.QueueError, match="needs a transaction"):
            beside.queue(connection).push_many(core.NewJob("mail") for _ in range(6_000))
        assert beside.queue(connection).push("mail").created
    with psycopg.connect(database) as db:
        assert db.execute("SELECT count(*) FROM pgqueue_jobs").fetchone() == (1,)


def test_an_empty_pool_is_a_connection_limit(beside, core, database):
    sql = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(database),
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.05,
    )
    with sql.connect(), Session(sql) as session, pytest.raises(core.ConnectionLimit, match="pool") as refused:
        beside.queue(session).push("mail")
    assert refused.value.__cause__ is not None
    sql.dispose()


def test_a_server_that_refuses_a_session_is_unavailable(beside, core, database):
    dead = psycopg.conninfo.make_conninfo(database, dbname="no_such_database_of_pgqueue")
    with Session(engine(dead)) as session, pytest.raises(core.DatabaseUnavailable, match="no such database"):
        beside.queue(session).push("mail")
