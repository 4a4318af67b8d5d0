"""Metrics: what the exposition and the workers say, and that dashboard and alerts ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually, until

from pgqueue_ref.core import DatabaseUnavailable, Operation, Queue, QueueError, Want, connect_async, run_async
from pgqueue_ref.ops import metrics
from pgqueue_ref.ops.api import Settings
from pgqueue_ref.ops.api.database import Database
from pgqueue_ref.ops.metrics import Exposition
from pgqueue_ref.ops.overview import Flow, Overview, OverviewRow
from pgqueue_ref.worker import COMPLETED, Cancel, Ignore, Job, Kinds, Snooze, Worker, serve
from pgqueue_ref.worker.metrics import registry
from pgqueue_ref.worker.writer import OUTCOMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Values by name and label values, the latter in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_worker(worker: Worker, made: Any) -> Samples:
    return samples(generate_latest(made).decode())


async def scrape(exposition: Exposition, dsn: str) -> Samples:
    async with await connect_async(dsn) as connection:
        return samples((await exposition.render(lambda operation: run_async(connection, operation))).decode())


def free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    for port in range(32_100, 32_700):
        try:
            for one in range(port, port + number):
                socket.create_server(("127.0.0.1", one)).close()
        except OSError:
            continue
        return port
    pytest.fail("no free ports")


# -- of the database -------------------------------------------------------------------------------------------


def test_the_exposition_tells_jobs_ages_and_pauses_by_queue_and_kind(database: str) -> None:
    with Queue.connect(database) as queue:
        queue.push("mail", queue="a")
        queue.push("mail", queue="a", delay=600)
        queue.pause("b")
        seen = asyncio.run(scrape(Exposition(), database))
    assert seen["pgqueue_up",] == 1
    assert seen["pgqueue_estimated",] == 0
    assert seen["pgqueue_jobs", "mail", "a", "pending"] == 2
    assert seen["pgqueue_jobs", "mail", "a", "failed"] == 0
    assert seen["pgqueue_due_jobs", "mail", "a"] == 1
    assert seen["pgqueue_oldest_due_seconds", "a"] >= 0
    assert seen["pgqueue_oldest_running_seconds", "mail", "a"] == 0
    assert seen["pgqueue_finished_last_hour", "mail", "a"] == 0
    assert seen["pgqueue_paused", "a"] == 0
    assert seen["pgqueue_paused", "b"] == 1
    assert ("pgqueue_last_hour_p95_seconds", "mail", "a") not in seen


def test_many_scrapes_at_once_ask_the_database_once_and_again_when_it_is_time() -> None:
    asked, now = [], 100.0

    async def run(operation: Operation[Overview]) -> Overview:
        operation.close()
        asked.append(now)
        await asyncio.sleep(0)
        return overview_of([], [])

    async def scrapes() -> None:
        nonlocal now
        exposition = Exposition(5.0, clock=lambda: now)
        await asyncio.gather(*(exposition.render(run) for _ in range(20)))
        now = 104.9
        await exposition.render(run)
        now = 105.0
        await asyncio.gather(*(exposition.render(run) for _ in range(20)))

    asyncio.run(scrapes())
    assert asked == [100.0, 105.0]


def overview_of(rows: list[OverviewRow], flows: list[Flow]) -> Overview:
    return Overview(datetime(2026, 1, 1, tzinfo=UTC), False, rows, flows, [])


def test_a_database_that_does_not_answer_is_down_and_not_empty(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    async def run(operation: Operation[Overview]) -> Overview:
        operation.close()
        asked.append(1)
        raise DatabaseUnavailable("connection failed or lost")

    async def scrapes() -> str:
        exposition = Exposition(5.0, clock=lambda: 1.0)
        await exposition.render(run)
        return (await exposition.render(run)).decode()

    seen = samples(asyncio.run(scrapes()))
    assert seen["pgqueue_up",] == 0
    assert {name for name, *_ in seen} == {"pgqueue_up", "pgqueue_overview_seconds"}
    assert len(asked) == 1, "a database in trouble is asked as rarely as a healthy one"
    assert "connection failed or lost" in caplog.text


def test_a_place_that_is_named_like_what_is_left_over_is_counted_with_it() -> None:
    places = [("default", f"customer-{number:05}", 1) for number in range(metrics.PLACES)] + [("(other)", "(other)", 5)]
    rows = [OverviewRow(queue, kind, "failed", jobs, None) for queue, kind, jobs in places]

    flows = [Flow(queue, kind, 0, None, None, 1, 1.0, 1.0) for queue, kind, _ in places]

    async def run(operation: Operation[Overview]) -> Overview:
        operation.close()
        return overview_of(rows, flows)

    text = asyncio.run(Exposition().render(run)).decode()
    assert text.count('pgqueue_jobs{kind="(other)",queue="(other)",status="failed"}') == 1
    assert sum(value for (name, *_), value in samples(text).items() if name == "pgqueue_jobs") == metrics.PLACES + 5


def test_names_without_end_do_not_make_series_without_end() -> None:
    names = [f"customer-{number:05}" for number in range(5_000)]
    rows = [OverviewRow("default", name, "failed", 2, None) for name in names]
    flows = [Flow("default", name, 0, None, None, 1, 1.0, 1.0) for name in names]
    rows[-1] = rows[-1]._replace(jobs=1_000)

    async def run(operation: Operation[Overview]) -> Overview:
        operation.close()
        return overview_of(rows, flows)

    seen = samples(asyncio.run(Exposition().render(run)).decode())
    assert len(seen) < 12 * (metrics.PLACES + 1)
    assert seen["pgqueue_jobs", "customer-04999", "default", "failed"] == 1_000
    assert seen["pgqueue_jobs", "(other)", "(other)", "failed"] == 2 * (5_000 - metrics.PLACES)
    total = sum(value for (name, *_), value in seen.items() if name == "pgqueue_jobs")
    assert total == 2 * 4_999 + 1_000
    assert sum(value for (name, *_), value in seen.items() if name == "pgqueue_finished_last_hour") == 5_000


# -- of a worker -----------------------------------------------------------------------------------------------


@pytest.fixture
def kinds() -> Kinds:
    return Kinds()


def test_every_outcome_is_counted_by_queue_and_kind_with_its_durations(database: str, kinds: Kinds) -> None:
    @kinds.register("work", max_attempts=2, backoff=lambda attempt: 3600)
    async def work(job: Job) -> Any:
        match job.payload:
            case "fail":
                raise ValueError("broken")
            case "ignore":
                raise Ignore("usual")
            case "cancel":
                raise Cancel("no")
            case "snooze":
                raise Snooze(60)
            case "stale":
                queue.cancel(job.id)
            case "own":
                queue.complete(job)
                return COMPLETED
        return None

    async def turn() -> Samples:
        worker = Worker(kinds, dsn=database, queues=["q"])
        made = registry(worker)
        assert of_worker(worker, made)["pgqueue_worker_connections",] == 0
        await worker.run_once()
        seen = of_worker(worker, made)
        await worker.close()
        return seen

    with Queue.connect(database) as queue:
        for payload in ("fine", "own", "fail", "fail", "ignore", "cancel", "snooze", "stale"):
            queue.push("work", payload, queue="q")
        queue.push("work", "fail", queue="q", max_attempts=1)
        seen = asyncio.run(turn())
    outcomes = {
        outcome: n
        for (name, *labels), n in seen.items()
        if name == "pgqueue_attempts_total" and n
        for outcome in labels[1:2]
    }
    assert outcomes == {"succeeded": 2, "retried": 2, "failed": 1, "ignored": 1, "cancelled": 1, "snoozed": 1}
    assert seen["pgqueue_attempts_total", "work", "retried", "q"] == 2
    assert seen["pgqueue_stale_attempts_total",] == 1
    assert seen["pgqueue_claimed_total",] == 9
    assert seen["pgqueue_handler_seconds_count", "work"] == 8
    assert seen["pgqueue_start_latency_seconds_count", "work"] == 8
    assert 0 < seen["pgqueue_handler_seconds_sum", "work"] < 8 * 60
    assert seen["pgqueue_worker_connections",] == 2
    assert seen["pgqueue_worker_slots",] == 100
    assert seen["pgqueue_worker_running", "work"] == 0


def test_a_start_latency_counts_from_the_moment_the_job_was_due(database: str, kinds: Kinds) -> None:
    kinds.register("work")(lambda job: None)

    async def turn() -> Samples:
        worker = Worker(kinds, dsn=database)
        made = registry(worker)
        await worker.run_once()
        await worker.close()
        return of_worker(worker, made)

    with Queue.connect(database) as queue:
        job = queue.push("work")
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE pgqueue_jobs SET run_at = now() - interval '1 h' WHERE id = %s", [job.id])
        seen = asyncio.run(turn())
    assert seen["pgqueue_start_latency_seconds_sum", "work"] >= 3_590
    assert seen["pgqueue_handler_seconds_sum", "work"] < 600


def test_released_attempts_rescued_jobs_and_connections_are_counted(database: str, kinds: Kinds) -> None:
    started = asyncio.Event()

    @kinds.register("work")
    async def work(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    async def life() -> tuple[Samples, Samples]:
        worker = Worker(kinds, dsn=database, grace=0)
        made = registry(worker)
        async with worker:
            await asyncio.wait_for(started.wait(), 60)
            await eventually(lambda: worker.connected() == 3, "all connections are there")
            running = of_worker(worker, made)
        return running, of_worker(worker, made)

    with Queue.connect(database) as queue:
        queue.push("work")
        (lost,) = queue.claim([Want("work", 1)], worker="dead")
        with psycopg.connect(database) as connection:
            connection.execute(
                "UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s' WHERE id = %s", [lost.id]
            )
        running, stopped = asyncio.run(life())
    assert running["pgqueue_rescued_total",] == 1
    assert running["pgqueue_worker_running", "work"] == 1
    assert running["pgqueue_worker_connections",] == 3
    assert stopped["pgqueue_worker_connections",] == 0
    assert stopped["pgqueue_attempts_total", "work", "released", "default"] == 1


APP = "from pgqueue_ref.worker import Kinds\nkinds = Kinds()\n@kinds.register('work')\ndef work(job): pass\n"
SERVE = """
import sys
from pgqueue_ref.worker import serve
if __name__ == "__main__":
    sys.exit(serve("app:kinds", dsn=sys.argv[1], processes=2, metrics_port=int(sys.argv[2])))
"""


def test_each_process_serves_its_own_port(database: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "main.py").write_text(SERVE)
    port = free_ports(2)
    with Queue.connect(database) as queue:
        for _ in range(5):
            queue.push("work")
    command = [sys.executable, "main.py", database, str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        try:
            totals = until(lambda: all_done(port, 2, 5), "both processes tell, and together of all jobs")
        finally:
            process.terminate()
            _, log = process.communicate(timeout=60)
    assert len(totals) == 2
    assert process.returncode == 0, log
    assert f"http://127.0.0.1:{port + 1}/metrics".encode() in log


def all_done(port: int, processes: int, jobs: int) -> list[float]:
    totals = []
    for number in range(processes):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port + number}/metrics", timeout=10) as response:
                totals.append(samples(response.read().decode()).get(("pgqueue_claimed_total",), 0.0))
        except OSError:
            return []
    return totals if sum(totals) == jobs else []


def test_a_port_in_use_is_said_in_one_line_before_anything_starts(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metricsapp.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", port + 1)), pytest.raises(QueueError) as refused:
        serve("metricsapp:kinds", dsn=database, processes=2, metrics_port=port)
    assert f"127.0.0.1:{port + 1}" in str(refused.value)
    with pytest.raises(QueueError, match="65535"):
        serve("metricsapp:kinds", dsn=database, processes=2, metrics_port=65_535)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(QueueError, match=re.escape("pip install 'pgqueue-ref[ops]'")):
        serve("metricsapp:kinds", dsn=database, metrics_port=port)


def test_a_worker_without_metrics_does_not_import_their_library() -> None:
    code = "import sys, pgqueue_ref.worker; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the manual, the dashboard and the alerts --------------------------------------------------------------------


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, kinds: Kinds) -> dict[str, set[str]]:
    """Every sample that the API and a worker can export, with its labels."""

    async def run(operation: Operation[Overview]) -> Overview:
        operation.close()
        flow = Flow("default", "work", 1, 1.0, 1.0, 1, 1.0, 1.0)
        return overview_of([OverviewRow("default", "work", "failed", 1, None)], [flow])

    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    kinds.register("work")(lambda job: None)
    text = asyncio.run(Exposition(besides=[Database(Settings())]).render(run))
    text += generate_latest(registry(Worker(kinds)))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_manual_lists_every_metric_with_its_labels(exported: dict[str, set[str]]) -> None:
    rows = re.findall(r"^\| `(pgqueue_\w+)` \|([^|]*)\|", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    parts = {"_bucket", "_sum", "_count", "_created"}  # of a histogram, or of prometheus-client's making
    series = {name: labels for name, labels in exported.items() if name.startswith("pgqueue_")}
    families = {re.sub(rf"({'|'.join(parts)})$", "", name) for name in series}
    families = {name for name in families if f"{name}_total" not in series}
    assert told.keys() == families
    for name, labels in told.items():
        assert labels == series.get(name, series.get(f"{name}_count")), name


def test_every_outcome_is_there_before_it_happens(exported: dict[str, set[str]], kinds: Kinds) -> None:
    seen = of_worker(worker := Worker(kinds), registry(worker))
    outcomes = {outcome for (name, *labels) in seen if name == "pgqueue_attempts_total" for outcome in labels[1:2]}
    manual = (DOCS / "metrics.md").read_text()
    assert outcomes == {"succeeded", "retried", "failed", "cancelled", "ignored", "snoozed", "released"}
    assert all(f"`{outcome}`" in manual for outcome in outcomes)
    assert {value for (name, *_), value in seen.items() if name.startswith("pgqueue_attempts_total")} == {0}


def expressions() -> dict[str, str]:
    """Of the alerts and of the dashboard's panels and variables, by what they are for."""
    found = {}
    for group in yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"].keys() == {"summary", "description"}
            found[f"alert {rule['alert']}"] = rule["expr"]
    dashboard = json.loads((DOCS / "monitoring" / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["definition"]
    return found


def test_the_dashboard_and_the_alerts_ask_for_nothing_that_is_not_exported(exported: dict[str, set[str]]) -> None:
    assert len(expressions()) > 40
    for use, expression in expressions().items():
        names = set(re.findall(r"\b(?:pgqueue|process)_\w+", expression))
        assert names, use
        assert names <= exported.keys(), (use, names - exported.keys())
        labels = {"instance", "job"}.union(*(exported[name] for name in names))
        for clause in re.findall(r"(?:by|on|group_left) \(([^)]*)\)", expression):
            assert set(filter(None, map(str.strip, clause.split(",")))) <= labels, use
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression)) <= labels, use
        for outcome in re.findall(r'outcome=~?"([\w|]+)"', expression):
            assert set(outcome.split("|")) <= {*OUTCOMES.values(), "ignored"}, use


def test_the_panels_of_the_dashboard_have_places_of_their_own() -> None:
    panels = json.loads((DOCS / "monitoring" / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
