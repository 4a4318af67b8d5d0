"""A producer of the load run pushes each arrival once through the API, whatever becomes of its answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import ConnectionLimit, Queue, QueueBusy, QueueError, SchemaMissing, Want
from pgqueue_ref.harness import api_producer, ledger
from pgqueue_ref.harness.api_producer import ERRORS, Api, ApiProducer, ApiUnavailable
from pgqueue_ref.harness.traces import Arrival
from pgqueue_ref.ops.api.problems import BY_ERROR, PROBLEMS

ARRIVAL = Arrival(0.0, 0.25, "mail")
SECRET = "write-secret-0123456789"
Serve = Callable[..., str]


class Reports(list[type[Exception] | None]):
    def __call__(self, kind: str, latency: float, error: Exception | None) -> None:
        assert kind == "mail"
        assert latency >= 0
        self.append(type(error) if error else None)


@pytest.fixture
def pusher(serve: Serve, database: str, db: psycopg.Connection[Any]) -> Iterator[Callable[..., ApiProducer]]:
    """`pusher(address=None, **settings)`: a producer of the API at an address, else of one with these settings."""
    ledger.create(db)
    made = []

    def pusher(address: str | None = None, **settings: Any) -> ApiProducer:
        api = Api(address or serve(f"load:write:{SECRET}", **settings), SECRET)
        connect = lambda: psycopg.connect(database, autocommit=True)  # noqa: E731 - as the generator hands it over
        made.append(ApiProducer(api, connect, ledger.DatabaseClock.measure(db)))
        return made[-1]

    yield pusher
    for producer in made:
        producer.close()


def recorded(db: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute("SELECT key, job_id, kind, measured FROM loadtest_pushed ORDER BY key").fetchall()


def pushed(db: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute("SELECT external_key, id, kind, true FROM pgqueue_jobs ORDER BY external_key").fetchall()


def test_what_the_api_answers_is_recorded(pusher: Callable[..., ApiProducer], db: psycopg.Connection[Any]) -> None:
    producer, reports = pusher(), Reports()
    for key in ("a", "b"):
        assert producer.push(key, ARRIVAL, time.monotonic(), reports)
    assert recorded(db) == pushed(db) == [("a", 1, "mail", True), ("b", 2, "mail", True)]
    assert db.execute("SELECT DISTINCT payload FROM pgqueue_jobs").fetchall() == [({"service_seconds": 0.25},)]
    assert reports == [None, None]


@pytest.mark.parametrize("part", ["_post", "_record"])
def test_an_answer_that_is_lost_is_asked_for_again_and_makes_no_second_job(
    part: str, pusher: Callable[..., ApiProducer], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, reports = pusher(), Reports()
    whole = getattr(producer, part)

    def cut(*arguments: Any) -> Any:
        done = whole(*arguments)
        if not reports:
            raise ApiUnavailable("cut after the commit")
        return done

    monkeypatch.setattr(producer, part, cut)
    assert producer.push("a", ARRIVAL, time.monotonic(), reports)
    assert recorded(db) == pushed(db) == [("a", 1, "mail", True)]
    assert reports == [ApiUnavailable, None]


def test_a_full_queue_is_waited_for_at_least_as_long_as_the_api_says(
    pusher: Callable[..., ApiProducer], db: psycopg.Connection[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, reports, waits = pusher(max_in_flight=1), Reports(), []
    with Queue.connect(database) as queue:
        queue.push("other")

        def wait(seconds: float) -> None:
            waits.append(seconds)
            queue.complete(queue.claim([Want("other", 1)], worker="me")[0])

        monkeypatch.setattr(api_producer.time, "sleep", wait)
        assert producer.push("a", ARRIVAL, time.monotonic(), reports)
    assert 1.0 <= waits[0] <= 1.5
    assert len(reports) == 2
    assert issubclass(reports[0], QueueBusy)
    assert recorded(db) == [("a", 2, "mail", True)]


def test_an_api_that_is_gone_is_given_up_and_nothing_is_recorded(
    pusher: Callable[..., ApiProducer], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApiProducer, "give_up_after", 0.01)
    reports = Reports()
    assert not pusher("http://127.0.0.1:1").push("a", ARRIVAL, time.monotonic(), reports)
    assert set(reports) == {ApiUnavailable}
    assert recorded(db) == []


def test_a_refusal_is_the_error_that_the_library_would_raise(
    pusher: Callable[..., ApiProducer], serve: Serve, empty_database: str
) -> None:
    with pytest.raises(SchemaMissing):
        pusher(dsn=empty_database)._post({"kind": "mail"})
    with pytest.raises(QueueError, match="the API answered 422"):
        pusher()._post({"kind": ""})
    with pytest.raises(QueueError, match="the API answered 401"):
        pusher(serve("other:write:another-secret-0123456789"))._post({"kind": "mail"})
    told = {code: kind for kind, code in BY_ERROR if PROBLEMS[code].status >= 500}
    assert told | {"pool_empty": ConnectionLimit} == dict(ERRORS)
