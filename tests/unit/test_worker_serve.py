"""The worker as a process: which applications it refuses, what it says at its start, when it gives up."""

import asyncio
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from pgqueue_ref import __version__
from pgqueue_ref.core import DatabaseUnavailable, Queue, QueueError, SchemaMissing
from pgqueue_ref.worker import Kinds, Worker, load, serve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that modules are imported from, and forgotten with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    with Queue.connect(database) as queue:
        yield queue


GOOD = "from pgqueue_ref.worker import Kinds\nkinds = Kinds()\n@kinds.register('double')\ndef double(job): pass\n"


@pytest.mark.parametrize(
    ("source", "app", "words"),
    [
        (None, "nowhere:kinds", "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"),
        ("import nowhere_either", "app:kinds", "cannot import app: ModuleNotFoundError: No module named"),
        ("1 / 0", "app:kinds", "cannot import app: ZeroDivisionError: division by zero"),
        ("def", "app:kinds", "cannot import app: SyntaxError"),
        ("raise SystemExit('no settings')", "app:kinds", "cannot import app: SystemExit: no settings"),
        (GOOD, "app:other", "app has no 'other'"),
        (GOOD, "app:double", "app:double is a function, not a Kinds registry"),
        ("kinds = {}", "app:kinds", "app:kinds is a dict, not a Kinds registry"),
        ("from pgqueue_ref.worker import Kinds\nkinds = Kinds()", "app:kinds", "app:kinds has no kinds: register"),
        (GOOD, "app", "--app is module:kinds, for example myapp.jobs:kinds, not 'app'"),
        (GOOD, ":kinds", "--app is module:kinds"),
        (GOOD, "app:", "--app is module:kinds"),
        (GOOD, "", "--app is module:kinds"),
        (GOOD, ".app:kinds", "cannot import .app"),
    ],
)
def test_an_application_that_will_not_do_is_refused_with_the_reason(
    source: str | None, app: str, words: str, apps: Path
) -> None:
    if source is not None:
        (apps / "app.py").write_text(source)
    for attempt in (lambda: load(app), lambda: serve(app, dsn="postgresql://nobody@127.0.0.1:1/none")):
        with pytest.raises(QueueError, match=re.escape(words)):
            attempt()


def test_an_application_is_found_in_the_current_directory(apps: Path) -> None:
    (apps / "app.py").write_text(GOOD)
    assert [kind.name for kind in load("app:kinds")] == ["double"]


def test_what_is_wrong_with_the_database_is_told_at_the_start(apps: Path, empty_database: str) -> None:
    (apps / "app.py").write_text(GOOD)
    for processes in (1, 2):
        with pytest.raises(SchemaMissing, match="pgqueue-ref migrate"):
            serve("app:kinds", dsn=empty_database, processes=processes)
        with pytest.raises(DatabaseUnavailable):
            serve("app:kinds", dsn="postgresql://nobody@127.0.0.1:1/none", processes=processes)


def test_once_does_one_turn_and_ends(apps: Path, database: str, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    (apps / "app.py").write_text(GOOD)
    caplog.set_level(logging.INFO, "pgqueue_ref.worker")
    job = queue.push("double")
    assert serve("app:kinds", dsn=database, once=True, name="w1") == 0
    assert queue.get(job.id).status == "succeeded"
    assert "one turn: Counts(claimed=1, succeeded=1" in caplog.text


def test_the_start_line_says_what_runs_and_the_last_one_what_was_done(apps: Path, database: str, queue: Queue) -> None:
    (apps / "app.py").write_text(GOOD + "kinds.register('mail')(double)\n")
    done = queue.push("double", queue="b")
    code = (
        "import sys; from pgqueue_ref.worker import serve\n"
        "sys.exit(serve('app:kinds', queues=['a', 'b'], max_concurrent_jobs=7, name='w1'))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "PGQUEUE_DATABASE_URL": database}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: queue.get(done.id).status == "succeeded", "its job runs")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    first, stopping, stopped = said.splitlines()
    start = f"pgqueue-ref {__version__}, worker w1: queues a, b; kinds double, mail; 7 jobs at once; 3 connections"
    assert start in first
    assert "stopping: at most 30 s for the attempts under way" in stopping
    assert "stopped: Counts(claimed=1, succeeded=1," in stopped
    password = re.search(r":([^:@/]+)@", database)
    assert password is None or password[1] not in said


def test_a_worker_whose_loop_died_says_so_and_gives_up(
    database: str, queue: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = Kinds()
    kinds.register("a")(lambda job: None)

    async def scenario() -> None:
        worker = Worker(kinds, dsn=database, poll_interval=0.02)
        monkeypatch.setattr(worker, "_wants", lambda: 1 // 0)
        await worker.start()
        await asyncio.wait_for(worker.broken.wait(), 60)
        await worker.stop()

    asyncio.run(scenario())
    assert "a loop of the worker died" in caplog.text
