"""The REST API as docs/api.md tells it, over HTTP and on a real database: every endpoint, every refusal."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psycopg
import pytest
from http_api import JOBS, client, refused
from psycopg.conninfo import make_conninfo
from waiting import until

from pgqueue_ref.core import Queue, Want
from pgqueue_ref.ops.api import jobs as endpoints
from pgqueue_ref.ops.api import probes
from pgqueue_ref.ops.api.problems import PROBLEMS

Serve = Callable[..., str]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def api(serve: Serve) -> Iterator[httpx.Client]:
    with client(serve()) as api:
        yield api


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue.connect(database) as queue:
        yield queue


@contextmanager
def another_pusher(dsn: str, queue: str = "default") -> Iterator[None]:
    """A transaction that keeps bounded pushes to the queue waiting."""
    with psycopg.connect(dsn) as connection:
        Queue(connection, max_in_flight=1000).push("other", queue=queue)
        yield
        connection.rollback()


def waiting_backends(db: psycopg.Connection[Any]) -> list[int]:
    """Of the API, for a lock."""
    find = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:api' AND wait_event_type = 'Lock'"
    return [pid for (pid,) in db.execute(find)]


def active(db: psycopg.Connection[Any]) -> int:
    ((found,),) = db.execute("SELECT count(*) FROM pgqueue_jobs WHERE status IN ('pending', 'running', 'blocked')")
    return int(found)


# -- push ------------------------------------------------------------------------------------------------------


def test_a_push_is_201_with_its_place_and_every_field_arrives(api: httpx.Client, queue: Queue) -> None:
    body = {
        "kind": "mail", "payload": {"to": ["é", 1.5, None, 12345678901234567890]}, "queue": "a/b", "key": "k",
        "priority": -7, "run_at": "2030-01-01T01:00:00+01:00", "expires_at": "2031-01-01T00:00:00Z",
        "metadata": {"trace": "x"}, "max_attempts": 4,
    }  # fmt: skip
    answer = api.post(JOBS, json=body)
    assert (answer.status_code, answer.json()) == (201, {"id": 1, "created": True})
    assert answer.headers["location"] == f"{JOBS}/1"
    job = api.get(answer.headers["location"]).json()
    expected = body | {"id": 1, "status": "pending", "attempt": 0, "errors": [], "run_at": "2030-01-01T00:00:00Z"}
    assert {name: job[name] for name in expected} == expected
    assert job["started_at"] is job["finished_at"] is job["worker"] is job["lease_expires_at"] is None
    assert datetime.fromisoformat(job["created_at"]).utcoffset() is not None
    assert queue.get(1).payload == body["payload"]


def test_a_key_that_exists_is_200_with_the_same_id_and_changes_nothing(api: httpx.Client, queue: Queue) -> None:
    first = api.post(JOBS, json={"kind": "mail", "payload": 1, "key": "k"})
    again = api.post(JOBS, json={"kind": "mail", "payload": 2, "key": "k"})
    other = api.post(JOBS, json={"kind": "report", "key": "k"})
    assert (again.status_code, again.json()) == (200, {"id": first.json()["id"], "created": False})
    assert again.headers["location"] == first.headers["location"]
    assert (other.status_code, other.json()["created"]) == (201, True)
    assert queue.get(1).payload == 1


def test_a_delay_makes_a_job_due_later(api: httpx.Client, queue: Queue) -> None:
    api.post(JOBS, json={"kind": "mail", "delay": 600})
    assert queue.claim([Want("mail", 1)], worker="me") == []


def test_a_batch_is_pushed_whole_in_its_order_and_200_when_all_existed(api: httpx.Client, queue: Queue) -> None:
    api.post(JOBS, json={"kind": "mail", "key": "b"})
    batch = {"jobs": [{"kind": "mail", "key": "c"}, {"kind": "mail", "key": "b"}, {"kind": "mail", "key": "a"}]}
    answer = api.post(f"{JOBS}/batch", json=batch)
    assert answer.status_code == 201
    assert [job["created"] for job in answer.json()["jobs"]] == [True, False, True]
    assert [queue.get(job["id"]).external_key for job in answer.json()["jobs"]] == ["c", "b", "a"]
    again = api.post(f"{JOBS}/batch", json=batch)
    assert again.status_code == 200
    assert [job["id"] for job in again.json()["jobs"]] == [job["id"] for job in answer.json()["jobs"]]


@pytest.mark.parametrize(
    ("jobs", "status", "code"),
    [
        ([{"kind": "mail"}, {"kind": ""}], 422, "invalid_request"),
        ([{"kind": "mail"}, {"kind": "mail", "payload": {"a\0b": 1}}], 422, "invalid_job"),
        ([{"kind": "mail"}] * 13, 422, "invalid_job"),  # never fits
        ([{"kind": "mail"}] * 12, 429, "queue_busy"),  # does not fit now
        ([], 422, "invalid_request"),
        ([{"kind": "mail"}] * 1001, 422, "invalid_request"),
    ],
)
def test_a_batch_is_pushed_whole_or_not_at_all(
    jobs: list[dict[str, Any]], status: int, code: str, api: httpx.Client, queue: Queue, db: psycopg.Connection[Any]
) -> None:
    queue.push("other")
    refused(api.post(f"{JOBS}/batch", json={"jobs": jobs}), status, code)
    assert active(db) == 1


def test_a_full_queue_is_429_with_retry_after_and_takes_the_next_job_when_one_ends(
    serve: Serve, queue: Queue, db: psycopg.Connection[Any]
) -> None:
    with client(serve(max_in_flight=2)) as api:
        for key in "ab":
            assert api.post(JOBS, json={"kind": "mail", "key": key}).status_code == 201
        answer = api.post(JOBS, json={"kind": "mail"})
        assert "2 of 2 jobs" in refused(answer, 429, "queue_busy")["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        assert active(db) == 2
        assert api.post(JOBS, json={"kind": "mail", "key": "a"}).status_code == 200  # is in the queue already
        assert api.post(JOBS, json={"kind": "mail", "queue": "other"}).status_code == 201  # has a bound of its own
        (job,) = queue.claim([Want("mail", 1)], worker="me")
        refused(api.post(JOBS, json={"kind": "mail"}), 429, "queue_busy")  # running counts
        queue.complete(job)
        assert api.post(JOBS, json={"kind": "mail"}).status_code == 201


def test_concurrent_pushes_never_exceed_the_bound_and_are_refused_as_fast_as_admitted(
    serve: Serve, queue: Queue, db: psycopg.Connection[Any]
) -> None:
    # Counts in each pusher's transaction, where nobody can hide: a look from outside might come too late.
    db.execute("""
        CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM pgqueue_jobs WHERE status IN ('pending', 'running')) > 12 THEN
                RAISE 'above the bound';
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER counted AFTER INSERT ON pgqueue_jobs FOR EACH STATEMENT EXECUTE FUNCTION counted()""")
    address = urlsplit(serve(pool_timeout=60.0)).netloc  # on a busy machine the line is long: another test's matter
    answers: list[tuple[int, float]] = []
    together, turns = threading.Barrier(200), threading.Lock()

    def push(number: int) -> None:
        connection = HTTPConnection(address, timeout=120)  # httpx would be the bottleneck
        together.wait()
        for turn in range(2):  # the second one meets a server that is warm
            key = f"{number // 2}-{turn}" if number % 10 < 2 else None  # some pairs push the same
            began = time.monotonic()
            connection.request("POST", JOBS, json.dumps({"kind": "mail", "key": key}), JSON)
            with connection.getresponse() as response:
                response.read()
            with turns:
                answers.append((response.status, time.monotonic() - began))
                if len(answers) % 3 == 0:  # a third of all can be admitted, all the time
                    queue.complete_many(queue.claim([Want("mail", 1)], worker="me"))
        connection.close()

    with ThreadPoolExecutor(200) as clients:
        list(clients.map(push, range(200)))
    counts = Counter(status for status, _ in answers)
    assert counts.keys() <= {200, 201, 429}
    assert counts.total() == 400
    assert counts[201] >= 100
    assert counts[429] >= 100
    took = {status: statistics.median(t for s, t in answers if s == status) for status in (201, 429)}
    assert took[429] < 2 * took[201]


# -- look ------------------------------------------------------------------------------------------------------


def test_pages_show_every_job_once_newest_first_while_others_push(api: httpx.Client, queue: Queue) -> None:
    ids = [queue.push("mail").id for _ in range(7)]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get(JOBS, params={"limit": 3, **cursor}).json()
        seen += [job["id"] for job in page["jobs"]]
        queue.push("mail")  # moves no page
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == ids[::-1]
    assert api.get(JOBS, params={"limit": 1, "kind": "none"}).json() == {"jobs": [], "next": None}


def test_failed_jobs_come_the_last_failure_first_page_by_page(api: httpx.Client, queue: Queue) -> None:
    ids = [queue.push("mail", key=f"k{n}").id for n in range(5)]
    jobs = {job.id: job for job in queue.claim([Want("mail", 5)], worker="me")}
    order = [ids[n] for n in (3, 0, 4, 1, 2)]
    for id_ in order:
        queue.fail(jobs[id_], "broken", final=True)
    queue.push("mail")
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get(JOBS, params={"status": "failed", "limit": 2, **cursor}).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == order[::-1]
    narrowed = api.get(JOBS, params={"status": "failed", "kind": "mail", "queue": "default", "key": "k4"}).json()
    assert [job["id"] for job in narrowed["jobs"]] == [ids[4]]
    # A place in one order is none in the other.
    refused(api.get(JOBS, params=cursor), 422, "invalid_request")
    newest = api.get(JOBS, params={"limit": 1}).json()["next"]
    refused(api.get(JOBS, params={"status": "failed", "cursor": newest}), 422, "invalid_request")


def test_a_full_last_page_has_no_next(api: httpx.Client, queue: Queue) -> None:
    for _ in range(3):
        queue.push("mail")
    assert api.get(JOBS, params={"limit": 3}).json()["next"] is None
    assert api.get(JOBS, params={"limit": 2}).json()["next"]


def test_filters_narrow_the_list_and_combine(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail", queue="a", key="k")
    queue.push("mail", queue="b")
    queue.cancel(queue.push("report", queue="a").id)

    def ids(**filters: str) -> list[int]:
        return [job["id"] for job in api.get(JOBS, params=filters).json()["jobs"]]

    assert ids() == [3, 2, 1]
    assert ids(queue="a") == [3, 1]
    assert ids(kind="mail") == [2, 1]
    assert ids(status="cancelled") == [3]
    assert ids(kind="mail", key="k") == [1]
    assert ids(queue="a", status="pending") == [1]


def test_a_page_has_as_many_jobs_as_the_settings_allow(serve: Serve, queue: Queue) -> None:
    for _ in range(4):
        queue.push("mail")
    with client(serve(max_page=2)) as api:
        assert len(api.get(JOBS).json()["jobs"]) == 2
        assert "2 jobs at most" in refused(api.get(JOBS, params={"limit": 3}), 422, "invalid_request")["detail"]


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "filters",
    [
        {"limit": 0}, {"limit": 201}, {"limit": "many"}, {"status": "lost"}, {"staus": "failed"}, {"queue": ""},
        {"kind": "x" * 256}, {"cursor": "nonsense"}, {"cursor": "YmVmb3JlOi0x"}, {"cursor": "YmVmb3JlOg"},
        {"cursor": "é"}, {"status": "failed", "cursor": cursor("failed:yesterday/1")},
        {"status": "failed", "cursor": cursor("failed:0001-01-01T00:00:00+23:59/1")},
        {"status": "failed", "cursor": cursor("failed:2026-01-01T00:00:00+00:00/0")},
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_meant_is_422(filters: dict[str, Any], api: httpx.Client) -> None:
    refused(api.get(JOBS, params=filters), 422, "invalid_request")


def test_the_overview_counts_jobs_and_names_paused_queues(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail", queue="a")
    queue.pause("b")
    seen = api.get("/api/v1/queue/stats/overview").json()
    assert seen["estimated"] is False
    assert seen["paused"] == ["b"]
    assert [(r["queue"], r["kind"], r["status"], r["jobs"]) for r in seen["rows"]] == [("a", "mail", "pending", 1)]
    (flow,) = seen["flows"]
    assert (flow["due"], flow["finished_last_hour"], flow["p95_seconds"]) == (1, 0, None)
    assert datetime.fromisoformat(seen["at"]).utcoffset() is not None


# -- change ----------------------------------------------------------------------------------------------------


def test_a_failed_or_cancelled_job_is_retried_and_no_other(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail")
    (job,) = queue.claim([Want("mail", 1)], worker="me")
    assert "is running" in refused(api.post(f"{JOBS}/1/retry"), 409, "wrong_status")["detail"]
    queue.fail(job, "broken", final=True)
    answer = api.post(f"{JOBS}/1/retry")
    assert (answer.status_code, answer.json()["status"], answer.json()["attempt"]) == (200, "pending", 0)
    assert answer.json()["errors"] == ["broken"]
    assert "is pending" in refused(api.post(f"{JOBS}/1/retry"), 409, "wrong_status")["detail"]
    queue.cancel(1)
    assert api.post(f"{JOBS}/1/retry").json()["status"] == "pending"


def test_cancelling_is_safe_to_repeat_and_409_for_what_has_ended(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail")
    queue.push("done")
    queue.complete(queue.claim([Want("done", 1)], worker="me")[0])
    for _ in range(2):
        answer = api.post(f"{JOBS}/1/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert "succeeded already" in refused(api.post(f"{JOBS}/2/cancel"), 409, "wrong_status")["detail"]
    assert queue.get(2).status == "succeeded"


def test_a_running_job_is_cancelled_and_its_worker_told(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail")
    (job,) = queue.claim([Want("mail", 1)], worker="me")
    assert api.post(f"{JOBS}/1/cancel").json()["status"] == "cancelled"
    assert queue.heartbeat_many([job]) == [job]


def test_delete_cancels_by_kind_and_key(api: httpx.Client, queue: Queue) -> None:
    queue.push("mail", key="a/b c")
    queue.push("mail", key="other")
    for _ in range(2):
        answer = api.delete(JOBS, params={"kind": "mail", "key": "a/b c"})
        assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, 1, "cancelled")
    assert queue.get(2).status == "pending"
    refused(api.delete(JOBS, params={"kind": "mail", "key": "none"}), 404, "job_not_found")
    refused(api.delete(JOBS, params={"kind": "mail"}), 422, "invalid_request")
    refused(api.delete(JOBS), 422, "invalid_request")


@pytest.mark.parametrize("path", ["/{}", "/{}/retry", "/{}/cancel"])
def test_an_unknown_job_is_404_and_an_impossible_id_422(path: str, api: httpx.Client) -> None:
    ask = api.get if path == "/{}" else api.post
    for unknown in (1, 2**63 - 1):
        assert str(unknown) in refused(ask(JOBS + path.format(unknown)), 404, "job_not_found")["detail"]
    for impossible in (0, -1, 2**63, "one", "1;DROP", "9" * 5_000):
        refused(ask(JOBS + path.format(impossible)), 422, "invalid_request")


def test_what_there_is_not_is_404_and_a_method_it_does_not_know_405(api: httpx.Client) -> None:
    for path in ("/nothing", "/api/v1/queue", f"{JOBS}/", f"{JOBS}/1/", "/page/../settings.py", "/docs/x", "/%00"):
        refused(api.get(path), 404, "not_found")
    for method, path, allowed in (
        ("PUT", JOBS, "DELETE, GET, HEAD, POST"),
        ("GET", f"{JOBS}/1/retry", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("TRACE", "/", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ):
        answer = api.request(method, path)
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_head_is_get_without_the_body(api: httpx.Client) -> None:
    for path, status in (("/healthz", 200), (JOBS, 200), (f"{JOBS}/1", 404), ("/docs", 200), ("/", 200)):
        head, get = api.head(path), api.get(path)
        assert (head.status_code, head.content) == (status, b"")
        for name in ("content-type", "content-length"):
            assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("name", ["default", "a/b", "ü & ?#", "100% %2f", "pause", "pause/pause", "a\nb"])
def test_a_queue_of_any_name_is_paused_and_resumed(name: str, api: httpx.Client, queue: Queue) -> None:
    path = f"/api/v1/queue/queues/{quote(name, safe='')}"
    for step, paused, changed in (("pause", True, True), ("pause", True, False), ("resume", False, True)):
        answer = api.post(f"{path}/{step}")
        assert answer.json() == {"queue": name, "paused": paused, "changed": changed}
        assert queue.paused() == ([name] if paused else [])


def test_a_queue_s_name_that_cannot_be_one_is_422(api: httpx.Client) -> None:
    refused(api.post(f"/api/v1/queue/queues/{'q' * 256}/pause"), 422, "invalid_request")
    refused(api.post(f"/api/v1/queue/queues/{quote('ü') * 200}/pause"), 422, "invalid_job")  # 400 bytes
    refused(api.post("/api/v1/queue/queues/a%00b/resume"), 422, "invalid_job")


# -- probes ----------------------------------------------------------------------------------------------------


def test_the_probes_tell_the_process_from_its_database(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(serve()) as api:
        assert api.get("/healthz").json() == {"status": "ok"}
        assert api.get("/readyz").json() == {"status": "ready"}
        assert "pgqueue_up 1.0" in api.get("/metrics").text
    with client(serve(dsn=make_conninfo(database, port=1))) as api:
        assert api.get("/healthz").status_code == 200
        refused(api.get("/readyz"), 503, "database_unavailable")
        metrics = api.get("/metrics")
        assert metrics.status_code == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "pgqueue_up 0.0" in metrics.text


def test_the_metrics_tell_how_many_connections_the_pool_holds(
    serve: Serve, database: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(serve(pool_size=3, max_overflow=4)) as api, ThreadPoolExecutor(1) as threads:
        with another_pusher(database):
            waits = threads.submit(api.post, JOBS, json={"kind": "mail"})
            until(lambda: waiting_backends(db), "a push waits")
            told = api.get("/metrics").text
            (held,) = db.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:api'"
            ).fetchone()
        assert waits.result().status_code == 201
    assert 'pgqueue_api_connections{state="used"} 1.0' in told
    assert 'pgqueue_api_connections{state="idle"} 1.0' in told
    assert held == 2
    assert "pgqueue_api_connections_max 7.0" in told


def test_ready_means_this_version_s_schema_or_a_newer_one(
    serve: Serve, empty_database: str, database: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "FRESH", 0.0)
    with client(serve(dsn=empty_database)) as api:
        assert "pgqueue-ref migrate" in refused(api.get("/readyz"), 503, "schema_missing")["detail"]
    db.execute("CREATE TABLE pgqueue_alembic_version (version_num varchar(32) PRIMARY KEY)")
    with client(serve()) as api:
        refused(api.get("/readyz"), 503, "schema_missing")  # a migration that did not get to its end
        for revision, status in ((probes.Readiness.of_this_version().head, 200), ("f00d", 200)):
            db.execute("DELETE FROM pgqueue_alembic_version")
            db.execute("INSERT INTO pgqueue_alembic_version VALUES (%s)", [revision])
            assert api.get("/readyz").status_code == status
        db.execute("ALTER TABLE pgqueue_jobs DROP COLUMN metadata")
        refused(api.get("/readyz"), 503, "schema_missing")


def test_many_probes_at_once_look_at_the_database_once(
    serve: Serve, database: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "FRESH", 60.0)
    with client(serve()) as api, ThreadPoolExecutor(16) as threads:
        with psycopg.connect(database) as other:
            other.execute("LOCK TABLE pgqueue_queues")
            answers = [threads.submit(api.get, "/readyz") for _ in range(16)]
            until(lambda: waiting_backends(db), "one of them waits for the database")
            assert api.get("/healthz").status_code == 200
            assert len(waiting_backends(db)) == 1
        assert [answer.result().status_code for answer in answers] == [200] * 16


# -- the database in trouble -----------------------------------------------------------------------------------

EVERY_KIND_OF_REQUEST = [
    ("POST", JOBS, {"kind": "mail"}),
    ("POST", f"{JOBS}/batch", {"jobs": [{"kind": "mail"}]}),
    ("GET", JOBS, None),
    ("GET", f"{JOBS}/1", None),
    ("POST", f"{JOBS}/1/retry", None),
    ("POST", f"{JOBS}/1/cancel", None),
    ("DELETE", f"{JOBS}?kind=mail&key=k", None),
    ("GET", "/api/v1/queue/stats/overview", None),
    ("POST", "/api/v1/queue/queues/default/pause", None),
    ("POST", "/api/v1/queue/queues/default/resume", None),
    ("GET", "/readyz", None),
]


def all_refuse(api: httpx.Client, status: int, code: str) -> None:
    for method, path, body in EVERY_KIND_OF_REQUEST:
        refused(api.request(method, path, json=body), status, code)


def test_a_missing_schema_is_503_everywhere_with_the_command_that_makes_it(serve: Serve, empty_database: str) -> None:
    with client(serve(dsn=empty_database)) as api:
        all_refuse(api, 503, "schema_missing")
        assert "pgqueue-ref migrate" in api.get(JOBS).json()["detail"]


def test_a_database_that_cannot_be_reached_is_503_everywhere(serve: Serve, database: str) -> None:
    with client(serve(dsn=make_conninfo(database, port=1, password="hush-hush"))) as api:
        all_refuse(api, 503, "database_unavailable")


def test_a_full_server_is_503_everywhere(serve: Serve, server: Any, database: str) -> None:
    role = f"pgq_{secrets.token_hex(5)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush-hush' CONNECTION LIMIT 0")
        try:
            with client(serve(dsn=make_conninfo(database, user=role, password="hush-hush"))) as api:
                all_refuse(api, 503, "server_full")
        finally:
            connection.execute(f"DROP ROLE {role}")


def test_an_empty_pool_is_503_and_the_request_that_waited_for_the_database_goes_on(
    serve: Serve, database: str, db: psycopg.Connection[Any]
) -> None:
    base = serve(pool_size=1, max_overflow=0, pool_timeout=0.1)
    with client(base) as api, ThreadPoolExecutor(1) as threads:
        with another_pusher(database):
            waits = threads.submit(api.post, JOBS, json={"kind": "mail"})
            until(lambda: waiting_backends(db), "the push waits")
            answer = api.get(JOBS)
            refused(answer, 503, "pool_empty")
            assert answer.headers["retry-after"] == "1"
            assert api.get("/healthz").status_code == 200
        assert waits.result().status_code == 201


@pytest.mark.parametrize(("timeouts", "code"), [((100, 5_000), "statement_timeout"), ((60_000, 100), "lock_timeout")])
def test_a_database_that_takes_too_long_is_504_and_nothing_was_pushed(
    timeouts: tuple[int, int], code: str, serve: Serve, database: str, db: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", str(timeouts[0]))
    dsn = make_conninfo(database, options=f"-c lock_timeout={timeouts[1]}")
    with client(serve(dsn=dsn)) as api, another_pusher(database):
        refused(api.post(JOBS, json={"kind": "mail"}), 504, code)
        refused(api.post(f"{JOBS}/batch", json={"jobs": [{"kind": "mail"}]}), 504, code)
        assert api.post(JOBS, json={"kind": "mail", "queue": "other"}).status_code == 201
        assert active(db) == 1


def test_connections_that_the_server_ended_are_replaced_unnoticed(
    api: httpx.Client, db: psycopg.Connection[Any]
) -> None:
    for _ in range(2):
        assert api.get(JOBS).status_code == 200
        (ended,) = db.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:api'"
        ).fetchone() or (0,)
        assert ended >= 1


def test_a_push_cut_while_it_waits_is_503_and_can_be_sent_again(
    serve: Serve, database: str, db: psycopg.Connection[Any]
) -> None:
    with client(serve()) as api, ThreadPoolExecutor(1) as threads, another_pusher(database):
        cut = threads.submit(api.post, JOBS, json={"kind": "mail", "key": "k"})
        (pid,) = until(lambda: waiting_backends(db), "the push waits")
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
        refused(cut.result(), 503, "database_unavailable")
    with client(serve()) as api:
        assert api.post(JOBS, json={"kind": "mail", "key": "k"}).status_code == 201


def test_a_value_that_the_server_refuses_is_422_without_its_words(
    api: httpx.Client, db: psycopg.Connection[Any]
) -> None:
    db.execute("ALTER TABLE pgqueue_jobs ADD CONSTRAINT hush CHECK (payload <> '13')")
    refused(api.post(JOBS, json={"kind": "mail", "payload": 13}), 422, "invalid_job")


def test_what_the_database_says_beyond_that_is_500_without_its_words(
    api: httpx.Client, db: psycopg.Connection[Any]
) -> None:
    db.execute("""
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'hush: SELECT 1 FROM pgqueue_jobs at postgresql://me:hush@host/db'; END $$;
        CREATE TRIGGER no BEFORE INSERT ON pgqueue_jobs FOR EACH ROW EXECUTE FUNCTION no()""")
    refused(api.post(JOBS, json={"kind": "mail"}), 500, "internal_error")


@pytest.mark.parametrize("fault", [RuntimeError, RecursionError, ExceptionGroup])
def test_a_fault_of_our_own_is_500_and_one_line_in_the_log_and_the_next_request_is_served(
    fault: Any, api: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = "hush: SELECT 1 FROM pgqueue_jobs at postgresql://me:hush@host/db"
    api.post(JOBS, json={"kind": "mail"})
    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG):

        def broken(job_id: int) -> Any:
            raise fault(words, [ValueError(words)]) if fault is ExceptionGroup else fault(words)

        patch.setattr(endpoints, "get", broken)
        refused(api.get(f"{JOBS}/1"), 500, "internal_error")
    assert "hush" not in caplog.text
    assert "Traceback" not in caplog.text
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.startswith(f"internal_error: {fault.__name__} at ")
    assert api.get(f"{JOBS}/1").status_code == 200


def test_every_code_is_met_by_a_test() -> None:
    """A code without one is a promise that nobody keeps; those of tokens and hosts are in test_api_safety."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_api*.py"))
    assert [code for code in PROBLEMS if f'"{code}"' not in tests] == []
