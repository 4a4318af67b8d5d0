"""The page for people, in a real Chromium, on the real API and a real database.

Each test opens pages in a fresh browser profile and fails when a page logs an error or asks another origin for
anything. What a test waits for is what a reader would see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from browsing import PHONE, STRUCTURE, looks, picture
from playwright.sync_api import Page, Route, expect

from pgqueue_ref.core import Failure, Queue, Want
from pgqueue_ref.extensions import EXTENSIONS, dependencies, events, results
from pgqueue_ref.ops.page.routes import CSP

READ, WRITE = "read-secret-0123456789", "write-secret-0123456789"
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script></td>\u202e&amp;"

Serve = Callable[..., str]
Open = Callable[..., Page]


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue.connect(database) as queue:
        yield queue


def end(queue: Queue, kind: str, error: str | None = None, *, name: str = "default") -> int:
    """Run one job of a kind to its end; returns its id."""
    (job,) = queue.claim([Want(kind, 1, queue=name, max_attempts=1)], worker="host-a:4711")
    if error is None:
        queue.complete(job, ttl=3600)
    else:
        queue.fail(job, error, delay=0)
    return job.id


def fill(queue: Queue) -> dict[str, int]:
    """A queue as one meets it: some of everything. Returns ids by status."""
    for number in range(7):
        queue.push("mail.send", {"to": f"user-{number}@example.org"}, queue="mail")
    queue.push("mail.digest", delay=3600, queue="mail")
    for number in range(5):
        queue.push("thumbnail", {"photo": number, "size": [320, 200]}, priority=number)
    ids = {"pending": queue.push("report", {"month": "2026-10"}, key="report-2026-10").id}
    ids["succeeded"] = end(queue, "thumbnail")
    ids["failed"] = end(queue, "thumbnail", "OSError: [Errno 28] No space left on device: '/var/photos/1.webp'")
    end(queue, "thumbnail", "TimeoutError: attempt_timeout of 30 s is over")
    (running,) = queue.claim([Want("thumbnail", 1)], worker="host-b:99")
    return ids | {"running": running.id}


def cell(page: Page, queue: str, kind: str, column: str) -> Any:
    row = page.get_by_role("region", name=f"Queue {queue}").get_by_role("row").filter(has_text=kind)
    return row.locator(f"[data-label='{column}']")


def api_calls(page: Page) -> re.Pattern[str]:
    return re.compile(r"/api/v1/queue/")


# -- looking -----------------------------------------------------------------------------------------------------


def test_the_counts_are_shown_and_follow_a_push(serve: Serve, visit: Open, queue: Queue) -> None:
    fill(queue)
    page = visit(serve())
    expect(cell(page, "mail", "mail.send", "pending")).to_have_text("7")
    expect(cell(page, "mail", "mail.digest", "due")).to_have_text("0")
    expect(cell(page, "default", "thumbnail", "failed")).to_have_text("2")
    expect(cell(page, "default", "thumbnail", "running")).to_have_text("1")
    expect(page.get_by_text("2 jobs failed")).to_be_visible()
    expect(page.get_by_role("img", name="Depth, jobs not finished: collecting")).to_be_attached()
    link = cell(page, "mail", "mail.send", "pending").get_by_role("link")
    link.focus()
    queue.push("mail.send", queue="mail")
    expect(cell(page, "mail", "mail.send", "pending")).to_have_text("8", timeout=15_000)  # by itself
    expect(link).to_be_focused()  # a refresh takes nothing away
    depth = page.get_by_role("img", name=re.compile(r"Depth, .* over .*: 11 to 12, now 12"))
    expect(depth.locator("path")).to_have_count(2)
    page.reload()
    expect(page.get_by_role("img", name=re.compile(r"Depth, .* over .*: 11 to 12, now 12"))).to_be_visible()


def test_an_empty_queue_says_what_to_do(serve: Serve, visit: Open) -> None:
    page = visit(serve())
    expect(page.get_by_text("pgqueue-ref push hello")).to_be_visible()
    expect(page.get_by_text("All well")).to_be_visible()


def test_jobs_that_wait_while_nothing_runs_are_pointed_out(
    serve: Serve, visit: Open, queue: Queue, database: str
) -> None:
    queue.push("mail")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE pgqueue_jobs SET run_at = now() - interval '10 minutes'")
    page = visit(serve())
    expect(page.get_by_text("Nothing runs in default and 1 job is due, the oldest for 10 min.")).to_be_visible()


def test_figures_from_a_sample_say_so(serve: Serve, visit: Open, queue: Queue) -> None:
    fill(queue)

    def sampled(route: Route) -> None:
        answer = route.fetch()
        told = answer.json() | {"estimated": True}
        for row in told["rows"]:
            row["estimated"] = row["status"] == "failed"
        route.fulfill(response=answer, json=told)

    page = visit(serve())
    page.route(api_calls(page), sampled)
    page.get_by_role("button", name="Refresh").click()
    expect(cell(page, "default", "thumbnail", "failed")).to_have_text("≈ 2")
    expect(cell(page, "default", "thumbnail", "pending")).to_have_text("1")
    expect(page.get_by_text("estimated from a sample")).to_be_visible()


def test_an_attempt_that_runs_for_long_is_pointed_out(serve: Serve, visit: Open, queue: Queue) -> None:
    job = queue.push("mail")
    queue.claim([Want("mail", 1)], worker="host-a:4711")
    queue.connection.execute("UPDATE pgqueue_jobs SET started_at = now() - interval '20 minutes'")
    page = visit(serve())
    expect(cell(page, "default", "mail", "oldest running")).to_have_text("20 min")
    page.get_by_role("link", name="An attempt of mail runs for 20 min").click()
    expect(page.get_by_role("listitem")).to_contain_text(f"#{job.id}")


def test_the_failed_list_shows_errors_and_pages_on(serve: Serve, visit: Open, queue: Queue, database: str) -> None:
    queue.push("old")
    end(queue, "old", "ValueError: the very first")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO pgqueue_jobs (kind, status, attempt, max_attempts, finished_at, errors)"
            " SELECT 'bulk', 'failed', 1, 1, now(), ARRAY['boom ' || n] FROM generate_series(1, 50) AS n"
        )
    page = visit(serve() + "/#/failed")
    expect(page.get_by_role("listitem")).to_have_count(50)
    expect(page.get_by_role("listitem").first).to_contain_text("boom 50")
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_text("ValueError: the very first")).to_be_visible()
    page.get_by_label("kind").fill("bulk")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("listitem")).to_have_count(50)
    assert page.url.endswith("#/failed?kind=bulk")  # a link that can be shared
    page.get_by_label("kind").fill("nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No job matches.")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("listitem")).to_have_count(50)
    expect(page.get_by_label("kind")).to_have_value("bulk")


def test_a_job_has_its_timeline_payload_and_errors(serve: Serve, visit: Open, queue: Queue) -> None:
    pushed = queue.push("mail", {"to": "you", "big": 12345678901234567890}, key="welcome", metadata={"trace": "abc"})
    for error in ("first trouble", "second trouble"):
        (job,) = queue.claim([Want("mail", 1, max_attempts=2)], worker="host-a:4711")
        queue.fail(job, error, delay=0)
    page = visit(f"{serve()}/#/jobs/{pushed.id}")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Job {pushed.id} mail")
    expect(page.locator(".timeline li b")).to_have_text(["Pushed", "Started", "Failed"])
    expect(page.locator(".timeline")).to_contain_text("attempt 2 of 2, worker host-a:4711")
    expect(page.locator(".errors li")).to_have_text(["second trouble", "first trouble"])
    expect(page.get_by_label("Payload")).to_contain_text('"big": 12345678901234567890')  # no digit rounded
    expect(page.get_by_label("Metadata")).to_contain_text('"trace": "abc"')
    expect(page.get_by_text("welcome")).to_be_visible()
    assert page.title() == f"Job {pushed.id} · pgqueue"


def test_a_job_tells_each_attempt_the_last_traceback_its_result_and_what_it_waits_for(
    serve: Serve, visit: Open, queue: Queue
) -> None:
    for extension in EXTENSIONS:
        queue.connection.execute(extension.schema_sql)
    pushed = queue.push("mail").id
    (job,) = queue.claim([Want("mail", 1)], worker="host-a:4711")
    failure = Failure(job, "OSError: no post office")
    queue.run(events.fail_many([failure], {(job.id, job.lease_token): "Traceback ...\nOSError: no post office"}))
    (job,) = queue.claim([Want("mail", 1)], worker="host-b:99")
    queue.run(results.complete(job, {"sent": "<b>yes</b>"}))
    waiting = queue.run(dependencies.push("book", depends_on=[queue.push("page").id])).id
    base = serve()
    page = visit(f"{base}/#/jobs/{pushed}")
    expect(page.locator(".timeline li b")).to_have_text(
        ["Pushed", "Claimed", "Failed", "Claimed", "Succeeded", "Deleted"]
    )
    expect(page.locator(".timeline li").nth(2)).to_contain_text("pending again: OSError: no post office")
    expect(page.locator(".timeline li.open b")).to_have_text(["Deleted"])  # still to come
    expect(page.get_by_label("Traceback")).to_contain_text("OSError: no post office")
    expect(page.get_by_label("Result")).to_contain_text('"sent": "<b>yes</b>"')
    page = visit(f"{base}/#/jobs/{waiting}")
    page.get_by_role("link", name=re.compile("page")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Job {waiting - 1} page")


def test_a_job_that_is_gone_is_said_to_be(serve: Serve, visit: Open) -> None:
    page = visit(serve() + "/#/jobs/4711", faults="404")
    expect(page.get_by_role("heading", level=1)).to_have_text("No job 4711")


# -- mending -----------------------------------------------------------------------------------------------------


def test_a_failed_job_is_retried_by_click(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    page = visit(f"{serve()}/#/jobs/{ids['failed']}")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text(f"Job {ids['failed']} is pending again.")
    expect(page.locator("main .badge")).to_have_text("pending")
    assert queue.get(ids["failed"]).status == "pending"


def test_everything_can_be_done_by_keyboard(serve: Serve, visit: Open, queue: Queue) -> None:
    fill(queue)
    page = visit(serve() + "/#/failed")
    expect(page.get_by_role("listitem")).to_have_count(2)
    page.reload()
    expect(page.get_by_role("listitem")).to_have_count(2)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.className") != "skip":  # where reading begins is the browser's choice
        page.locator(".skip").focus()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert page.url.endswith("/#/failed")
    retry = page.get_by_role("button", name=re.compile(r"^Retry job")).first
    for _ in range(12):
        page.keyboard.press("Tab")
        if retry.evaluate("button => button === document.activeElement"):
            break
    assert retry.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"  # the focus can be seen
    name = retry.get_attribute("aria-label")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("is pending again")
    expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_role("listitem").get_by_role("button")).to_be_focused()  # the next one's, not the page's top


def test_cancelling_asks_first_and_can_be_left(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    page = visit(f"{serve()}/#/jobs/{ids['running']}")
    cancel = page.get_by_role("button", name=f"Cancel job {ids['running']}")
    cancel.click()
    dialog = page.get_by_role("dialog", name=f"Cancel job {ids['running']} (thumbnail)?")
    expect(dialog).to_contain_text("It is running")
    expect(page.get_by_role("button", name="Leave it")).to_be_focused()  # Enter by mistake does nothing
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cancel).to_be_focused()
    assert queue.get(ids["running"]).status == "running"
    cancel.click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_role("status")).to_contain_text("is cancelled.")
    assert queue.get(ids["running"]).status == "cancelled"
    expect(page.locator(".timeline")).to_contain_text("Cancelled")


def test_what_another_did_first_is_told(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    page = visit(f"{serve()}/#/jobs/{ids['failed']}", faults="409")
    expect(page.locator("main .badge")).to_have_text("failed")
    page.get_by_label("live").uncheck()
    queue.retry(ids["failed"])
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("Retry was refused")
    expect(page.locator("main .badge")).to_have_text("pending")


def test_a_queue_is_paused_and_resumed(serve: Serve, visit: Open, queue: Queue) -> None:
    queue.push("mail", queue="a/b ü")
    page = visit(serve())
    page.get_by_role("button", name="Pause queue a/b ü").click()
    page.get_by_role("button", name="Pause it").click()
    expect(page.get_by_role("status")).to_contain_text("Queue a/b ü is paused.")
    assert queue.paused() == ["a/b ü"]
    expect(page.get_by_text("a/b ü is paused: 1 job due.")).to_be_visible()
    resume = page.get_by_role("button", name="Resume queue a/b ü")
    expect(resume).to_be_focused()
    resume.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Queue a/b ü runs again.")
    assert queue.paused() == []


# -- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_stays_in_the_tab(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    page = visit(f"{serve(f'ops:write:{WRITE}')}/#/jobs/{ids['failed']}", faults="401")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    field = page.get_by_label("API token")
    expect(field).to_be_focused()
    assert field.get_attribute("type") == "password"
    field.fill("wrong-secret-0123456789")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="does not know that token")).to_be_visible()
    expect(page.get_by_label("API token")).to_have_value("")
    page.get_by_label("API token").fill(WRITE)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Job {ids['failed']}")  # the link that was shared
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Job {ids['failed']}")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert not [url for url in [*urls, page.url] if "secret" in url]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API token")).to_be_visible()
    expect(page.get_by_text("thumbnail")).to_have_count(0)  # nothing is left to read
    assert page.evaluate("sessionStorage.getItem('pgqueue.token')") is None
    page.get_by_label("live").uncheck()  # tells anew how old the data are
    expect(page.locator("#freshness")).to_have_text("signed out")


def test_a_token_that_may_only_read_is_told_so(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    page = visit(f"{serve(f'eyes:read:{READ}')}/#/failed", faults="401|403")
    page.get_by_label("API token").fill(READ)
    page.keyboard.press("Enter")
    page.get_by_role("button", name=f"Retry job {ids['failed']}", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("This token may only read")
    assert queue.get(ids["failed"]).status == "failed"


# -- safety ------------------------------------------------------------------------------------------------------


def test_markup_in_a_job_is_text(serve: Serve, visit: Open, queue: Queue) -> None:
    name = MARKUP[:200]
    job = queue.push(name, {MARKUP: [MARKUP]}, queue=name, key=MARKUP, metadata={"m": MARKUP})
    end(queue, name, MARKUP, name=name)
    queue.pause(name)
    base = serve()
    for path, title in (("/", "Overview"), ("/#/failed", "Failed jobs"), (f"/#/jobs/{job.id}", f"Job {job.id}")):
        page = visit(base + path)
        expect(page.locator("main").get_by_text(name).first).to_be_visible()
        assert page.locator("main :is(img, script, style, [onerror])").count() == 0
        assert page.title() == f"{title} · pgqueue"
    expect(page.get_by_label("Payload")).to_contain_text("<img src=x onerror=")
    expect(page.locator(".errors")).to_have_text(MARKUP)


def test_the_browser_is_told_to_run_nothing_else(serve: Serve, visit: Open) -> None:
    base = serve()
    page = visit(base)
    response = page.request.get(base)
    assert response.headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert page.request.get(base, headers={"If-None-Match": response.headers["etag"]}).status == 304
    assert page.request.get(f"{base}/page/routes.py").status == 404
    html = response.text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)
    for name in re.findall(r'"(page/[^"]+)"', html):
        assert page.request.get(f"{base}/{name}").ok


def test_old_data_are_called_old_and_come_back(serve: Serve, visit: Open, queue: Queue) -> None:
    fill(queue)
    base = serve()
    page = visit(base, faults="ERR_|503")
    expect(cell(page, "mail", "mail.send", "pending")).to_have_text("7")

    def unavailable(route: Route) -> None:
        problem = '{"title": "The database cannot be reached", "detail": "try again", "status": 503}'
        route.fulfill(status=503, content_type="application/problem+json", body=problem)

    page.route(api_calls(page), lambda route: route.abort())
    page.get_by_role("button", name="Refresh").click()
    trouble = page.get_by_role("alert")
    expect(trouble).to_contain_text(re.compile(r"Cannot reach the API: .* What you see is from \d\d:\d\d:\d\d"))
    expect(page.locator("#freshness")).to_contain_text("stale")
    expect(cell(page, "mail", "mail.send", "pending")).to_have_text("7")
    picture(page, "stale")
    page.unroute(api_calls(page))
    page.route(api_calls(page), unavailable)
    page.get_by_role("button", name="Try again").click()
    expect(trouble).to_contain_text("The API answers, but cannot look at the queue: The database cannot be reached")
    page.get_by_role("link", name="Failed", exact=True).click()
    expect(page.get_by_text("There is nothing to show yet.")).to_be_visible()  # not the overview under a wrong name
    page.unroute(api_calls(page))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("listitem")).to_have_count(2)
    expect(trouble).to_be_empty()
    expect(page.get_by_role("status")).to_contain_text("The API answers again.")


def test_the_type_of_a_problem_leads_to_its_code_in_the_docs(serve: Serve, visit: Open) -> None:
    base = serve()
    page = visit(base + "/docs")
    expect(page.get_by_text("The queue is full")).to_be_hidden()
    kind = page.request.get(base + "/nothing").json()["type"]
    page = visit(base + kind)
    expect(page.locator(f"[id='{kind.partition('#')[2]}']")).to_be_attached()
    expect(page.get_by_text("There is nothing at this path")).to_be_in_viewport()


# -- looks -------------------------------------------------------------------------------------------------------


def test_it_fits_a_phone_and_has_order(serve: Serve, visit: Open, queue: Queue) -> None:
    ids = fill(queue)
    long = "a-very-long-name-without-any-space-" * 6
    queue.push(long, {"text": "x" * 400}, queue=long, key=long)
    end(queue, long, "E" * 3000, name=long)
    queue.pause("mail")
    base = serve()
    views = {"overview": "/", "failed": "/#/failed", "jobs": "/#/jobs", "job": f"/#/jobs/{ids['failed']}",
             "running": f"/#/jobs/{ids['running']}", "long": f"/#/jobs/{max(ids.values()) + 1}"}  # fmt: skip
    for name, path in views.items():
        page = visit(base + path, viewport=PHONE)
        expect(page.locator("#freshness")).to_contain_text("as of")
        assert page.evaluate(STRUCTURE) == [], name
        assert looks(page, name) == []
