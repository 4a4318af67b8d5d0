"""The tab in Locust's web page: what it shows while a run goes on, over HTTP and in a browser."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import DESK, chromium, picture
from loads import Load
from waiting import until

from pgqueue_ref.harness import webui
from pgqueue_ref.harness.result import Phase
from pgqueue_ref.harness.run import Live
from pgqueue_ref.harness.sampler import COLUMNS
from pgqueue_ref.harness.server import free_port

Start = Callable[..., str]


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[Start]:
    """`start(*options)`: Locust with its page, on a run of half a minute; returns the page's address."""
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> str:
        port = free_port()
        load = Load(database, tmp_path)
        web = ("--web-host", "127.0.0.1", "--web-port", str(port), "--speedup", "0.1")
        processes.append(load.start(*web, *options, headless=False))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def get(address: str) -> tuple[int, str]:
    """The status and the text at an address; 0 while nobody listens there."""
    try:
        with urllib.request.urlopen(address) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def post(address: str, body: str = "") -> Any:
    with urllib.request.urlopen(address, data=body.encode()) as response:
        return json.load(response)


def figures(base: str) -> dict[str, str]:
    """The tab's table, as Locust's page gets it: name and newest value."""
    stats = json.loads(get(f"{base}/stats/requests")[1])
    (table,) = stats["extended_stats"]
    assert table["key"] == "queue"
    return {row["figure"]: row["now"] for row in table["data"]}


def test_the_tab_follows_a_run_from_before_its_start_to_its_verdict(start: Start) -> None:
    base = start()
    until(lambda: get(f"{base}/queue")[0] == 200, "Locust's page is there")
    assert "No run yet" in get(f"{base}/queue")[1]
    assert get(f"{base}/queue/report")[0] == 404
    assert post(f"{base}/swarm", "user_count=1&spawn_rate=1")["success"]
    until(lambda: figures(base).get("start latency p99", "-") != "-", "progress has come")
    shown = figures(base)
    assert re.fullmatch(r"\d+ of \d+", shown["connections"])
    assert re.fullmatch(r"\d+", shown["pending jobs"])
    assert re.fullmatch(r"\d+", shown["dead tuples of the job table"])
    assert re.fullmatch(r"[\d.,]+ ms", shown["start latency p99"])
    page = get(f"{base}/queue")[1]
    assert "steady: phase load." in page
    for title in ("Depth by status", "Connections against the limit", "Dead tuples of the job table", "Start latency"):
        figure = re.search(rf"<b>{title}</b>.*?</figure>", page, re.DOTALL)
        assert figure is not None
        assert re.search('<(path|circle) class="(line|dot) c0"', figure[0])
    assert post(f"{base}/stop")["success"]  # answers when the run was judged
    assert "FAIL, exit code 4" in get(f"{base}/queue")[1]
    status, report = get(f"{base}/queue/report")
    assert status == 200
    assert "stopped before the scenario was through" in report


def test_locusts_page_shows_the_plots_in_the_tab_and_nowhere_else(start: Start) -> None:
    base = start("--web-base-path", "/load")
    until(lambda: get(f"{base}/load/queue")[0] == 200, "Locust's page is there")
    with chromium() as browser:
        page = browser.new_context(viewport=DESK, color_scheme="dark").new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{base}/load/")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("tab", name="Queue").click()
        frame = page.frame_locator("iframe")
        frame.get_by_text("Depth by status").wait_for()
        frame.locator("path.line").first.wait_for(state="attached")  # flat while nothing waits
        page.get_by_role("cell", name="connections", exact=True).wait_for()
        assert not frame.get_by_role("table").is_visible()  # Locust's own shows the figures
        assert page.frames[1].evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
        inner = page.frames[1].evaluate("document.body.offsetHeight")
        until(lambda: page.locator("iframe").bounding_box()["height"] >= inner, "the frame is as high as its page")
        picture(page, "locust-tab")
        before = frame.locator("header p").inner_text()
        page.get_by_role("button", name="Stop").click()
        frame.get_by_text("FAIL, exit code 4").wait_for()  # by itself
        assert frame.locator("header p").inner_text() != before
        page.get_by_role("tab", name="Statistics").click()
        page.locator("iframe").wait_for(state="detached")
        assert complaints == []


# -- without a run -----------------------------------------------------------------------------------------------


def sampled(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS, 0) | {"by_application": None, "wait_events": None, "connection_limit": 97} | values


def running(**changes: Any) -> Any:
    """As much of a load run as the tab looks at."""
    samples = [sampled(t=0.0, pending=7, connections=40), sampled(t=1.0, pending=3, connections=12)]
    live = [Live(5.0, "calm", 30.0, 29.0, None, 0, 0), Live(10.0, "calm", 31.0, 30.0, 0.25, 2, 0)]
    measured = SimpleNamespace(samples=samples, phases=[Phase("<calm>", 0.0)], faults=[])
    run = {"measured": measured, "live": live, "result": {}, "ended": False, "abandoned": False}
    return SimpleNamespace(**run | {"scenario": SimpleNamespace(name="spike"), "elapsed": lambda: 12.0} | changes)


def test_the_figures_are_the_newest_and_the_largest() -> None:
    rows = {name: (now, most) for name, now, most in webui.figures(running())}
    assert rows["pending jobs"] == ("3", "7")
    assert rows["connections"] == ("12 of 97", "40 of 97")
    assert rows["start latency p99"] == ("250 ms", "250 ms")
    assert rows["failed pushes"] == ("2", "2")
    assert "blocked jobs" not in rows


def test_a_run_that_was_not_sampled_yet_shows_dashes_and_says_so() -> None:
    measured = SimpleNamespace(samples=[], phases=[], faults=[])
    run = running(measured=measured, live=[])
    assert {now for _, now, _ in webui.figures(run)} == {"-"}
    page = webui.render(run)
    assert "spike: getting ready." in page
    assert "Nothing was measured." in page
    assert webui.figures(None) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "spike: phase &lt;calm&gt;."),
        ({"ended": True}, "the queue drains"),
        ({"abandoned": True, "ended": True}, "given up"),
        ({"result": {"verdict": {"passed": True, "exit_code": 0}}}, "<b>PASS</b>"),
        ({"result": {"verdict": {"passed": False, "exit_code": 3}}}, "<b>FAIL, exit code 3</b>"),
    ],
)
def test_the_page_says_how_the_run_stands(changes: dict[str, Any], says: str) -> None:
    assert says in webui.render(running(**changes))


def test_a_phase_that_goes_on_is_drawn_until_now() -> None:
    page = webui.render(running())
    assert "0.0 to 12.0 s" in page
    assert str(math.inf) not in page
