"""Schedules over HTTP: added, changed, listed, fired by hand, removed; and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from http_api import client, refused

from pgqueue_ref.core import Queue
from pgqueue_ref.extensions import schedules

SCHEDULES = "/api/v1/queue/schedules"
SHAPE = set(schedules.Schedule._fields)
Db = psycopg.Connection[Any]


@pytest.fixture
def tables(db: Db) -> None:
    db.execute(schedules.SCHEMA_SQL)


def stored(database: str) -> list[schedules.Schedule]:
    with Queue.connect(database) as queue:
        return queue.run(schedules.list_schedules())


def test_a_schedule_lives_over_http(tables: None, serve: Callable[..., str], database: str) -> None:
    with client(serve()) as api:
        path = f"{SCHEDULES}/nightly/of%20acme"  # names may have slashes
        body = {"kind": "report", "payload": {"a": 1}, "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
        added = api.put(path, json=body)
        assert added.status_code == 201
        assert added.json().keys() == SHAPE
        assert (added.json()["name"], added.json()["state"]) == ("nightly/of acme", "active")
        assert api.put(path, json=body).status_code == 200
        assert api.get(path).json() == added.json()
        paused = api.post(f"{path}/pause").json()
        assert paused["state"] == "paused"
        assert api.post(f"{path}/pause").json() == paused
        assert api.post(f"{path}/resume").json() == added.json()
        ran = api.post(f"{path}/run")
        assert (ran.status_code, ran.json()) == (201, {"id": 1, "created": True})
        assert api.get("/api/v1/queue/jobs/1").json()["payload"] == {"a": 1}
        assert api.delete(path).json() == added.json()
        refused(api.delete(path), 404, "schedule_not_found")
    assert stored(database) == []


def test_lists_come_in_pages(tables: None, serve: Callable[..., str], db: Db) -> None:
    db.execute(
        "INSERT INTO pgqueue_schedules (name, kind, every) SELECT n, 'report', 60 FROM generate_series(1, 3) AS n"
    )
    with client(serve()) as api:
        first = api.get(SCHEDULES, params={"limit": 2}).json()
        assert ([schedule["name"] for schedule in first["schedules"]], first["next"]) == (["1", "2"], "2")
        rest = api.get(SCHEDULES, params={"limit": 2, "after": "2"}).json()
        assert ([schedule["name"] for schedule in rest["schedules"]], rest["next"]) == (["3"], None)
        refused(api.get(SCHEDULES, params={"limit": 0}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "report"}, "invalid_job"),
        ({"kind": "report", "cron": "noon"}, "invalid_job"),
        ({"kind": "report", "cron": "0 3 * * *", "every": 60}, "invalid_job"),
        ({"kind": "report", "cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "invalid_job"),
        ({"kind": "report", "every": 0.5}, "invalid_request"),
        ({"kind": "report", "at": "2027-01-01T00:00:00"}, "invalid_request"),
        ({"kind": "report", "every": 60, "cronn": "0 3 * * *"}, "invalid_request"),
    ],
)
def test_what_is_no_schedule_is_refused(
    tables: None, serve: Callable[..., str], database: str, body: dict[str, Any], code: str
) -> None:
    with client(serve()) as api:
        refused(api.put(f"{SCHEDULES}/x", json=body), 422, code)
    assert stored(database) == []


def test_a_token_that_may_only_read_changes_nothing(tables: None, serve: Callable[..., str], database: str) -> None:
    with client(serve("eye:read:read-secret-0123456789"), "read-secret-0123456789") as api:
        assert api.get(SCHEDULES).json() == {"schedules": [], "next": None}
        refused(api.put(f"{SCHEDULES}/x", json={"kind": "report", "every": 60}), 403, "read_only_token")
        refused(api.post(f"{SCHEDULES}/x/run"), 403, "read_only_token")
    assert stored(database) == []


def test_without_its_table_the_api_says_so(serve: Callable[..., str]) -> None:
    with client(serve()) as api:
        refused(api.get(SCHEDULES), 503, "schema_missing")
