"""A job's events and result, over HTTP and in `pgqueue-ref show`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from http_api import JOBS, client, refused

from pgqueue_ref.core import Failure, Queue, Want
from pgqueue_ref.extensions import EXTENSIONS, dependencies, events, results
from pgqueue_ref.ops import timeline

Cli = Callable[..., Any]


@pytest.fixture
def queue(db: psycopg.Connection[Any]) -> Queue:
    for extension in EXTENSIONS:
        db.execute(extension.schema_sql)
    return Queue(db)


@pytest.fixture
def api(serve: Callable[..., str]) -> Iterator[httpx.Client]:
    with client(serve()) as api:
        yield api


def done(queue: Queue, value: Any) -> int:
    """A job that succeeded with this result, and is gone."""
    job_id = queue.push("sum", [1, 2]).id
    (job,) = queue.claim([Want("sum", 1)], worker="w1")
    stale = queue.run(results.complete_many([results.returned(job, value, 0.5)], ttl=60, worker="w1"))
    assert stale == []
    return job_id


def test_the_result_of_a_job_can_be_had(queue: Queue, api: httpx.Client) -> None:
    job_id = done(queue, {"sum": 3})
    shown = api.get(f"{JOBS}/{job_id}/result").json()
    assert (shown["value"], shown["duration"], shown["worker"], shown["kind"]) == ({"sum": 3}, 0.5, "w1", "sum")
    assert shown["stored_at"].endswith("Z")


def test_without_a_result_it_is_said_why(queue: Queue, api: httpx.Client) -> None:
    waiting, odd = queue.push("mail").id, done(queue, {1, 2})
    assert "is pending" in refused(api.get(f"{JOBS}/{waiting}/result"), 409, "no_result")["detail"]
    assert "is not JSON" in refused(api.get(f"{JOBS}/{odd}/result"), 409, "no_result")["detail"]
    refused(api.get(f"{JOBS}/999/result"), 404, "job_not_found")
    refused(api.get(f"{JOBS}/x/result"), 422, "invalid_request")


def test_the_events_of_a_job_come_in_pages_also_when_it_is_gone(queue: Queue, api: httpx.Client) -> None:
    job_id = done(queue, 3)
    queue.connection.execute("DELETE FROM pgqueue_jobs")
    first = api.get(f"{JOBS}/{job_id}/events", params={"limit": 2}).json()
    rest = api.get(f"{JOBS}/{job_id}/events", params={"after": first["next"]}).json()
    assert [event["type"] for event in first["events"]] == ["pushed", "claimed"]
    assert [event["type"] for event in rest["events"]] == ["succeeded", "deleted"]
    assert rest["next"] is None
    assert api.get(f"{JOBS}/999/events").json() == {"events": [], "next": None}
    refused(api.get(f"{JOBS}/{job_id}/events", params={"limit": 0}), 422, "invalid_request")


def test_the_history_of_a_job_is_all_that_is_known_of_it(queue: Queue, api: httpx.Client) -> None:
    job_id = queue.push("mail").id
    (job,) = queue.claim([Want("mail", 1)], worker="w1")
    queue.run(
        events.fail_many([Failure(job, "no post office")], {(job.id, job.lease_token): "Traceback: no post office"})
    )
    (job,) = queue.claim([Want("mail", 1)], worker="w2")
    queue.run(results.complete(job, {"sum": 3}))
    waiting = queue.run(dependencies.push("book", depends_on=[queue.push("page", key="p").id])).id
    history = api.get(f"{JOBS}/{job_id}/history").json()
    assert history["job"] == api.get(f"{JOBS}/{job_id}").json()
    assert [moment["event"] for moment in history["timeline"]] == [
        "pushed", "claimed", "failed", "claimed", "succeeded", "deleted"
    ]  # fmt: skip
    assert history["traceback"] == {"attempt": 1, "text": "Traceback: no post office"}
    assert history["result"] == api.get(f"{JOBS}/{job_id}/result").json()
    assert history["waits_for"] == []
    history = api.get(f"{JOBS}/{waiting}/history").json()
    assert history["waits_for"] == [{"id": waiting - 1, "kind": "page", "key": "p", "status": "pending"}]
    assert (history["traceback"], history["result"]) == (None, None)
    refused(api.get(f"{JOBS}/999/history"), 404, "job_not_found")


def test_the_history_has_the_newest_events_of_a_job_that_has_many(
    queue: Queue, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "EVENTS", 3)
    job_id = queue.push("mail").id
    for _ in range(3):
        queue.snooze(queue.claim([Want("mail", 1)], worker="w1")[0], 0)
    told = [moment["event"] for moment in api.get(f"{JOBS}/{job_id}/history").json()["timeline"]]
    assert told[-3:] == ["snoozed", "claimed", "snoozed"]
    assert told.count("claimed") == 1


def test_without_the_extensions_the_history_is_what_the_row_knows(
    api: httpx.Client, db: psycopg.Connection[Any]
) -> None:
    history = api.get(f"{JOBS}/{Queue(db).push('mail').id}/history").json()
    assert [moment["event"] for moment in history["timeline"]] == ["pushed"]
    assert (history["traceback"], history["result"], history["waits_for"]) == (None, None, [])


def test_without_the_extensions_it_is_said_what_to_do(api: httpx.Client) -> None:
    for what in ("events", "result"):
        assert "pgqueue-ref migrate" in refused(api.get(f"{JOBS}/1/{what}"), 503, "schema_missing")["detail"]


def test_show_has_the_result(cli: Cli, queue: Queue) -> None:
    job_id, odd = done(queue, {"sum": 3}), done(queue, {1, 2})
    lines = cli("show", job_id).out.splitlines()
    assert '"sum": 3' in " ".join(lines[lines.index("result") + 1 :][:3])
    shown = cli("show", job_id, "--json").json["result"]
    assert (shown["value"], shown["duration"], shown["error"]) == ({"sum": 3}, 0.5, None)
    assert "the result is not JSON" in cli("show", odd).out
    assert "result" not in cli("show", queue.push("mail").id, "--json").json
