"""Runs a worker as a process: finds the application's kinds, logs, obeys signals, and keeps several processes going.

The command line calls `serve`. The first SIGTERM or SIGINT stops gracefully, a second at once. Of several processes a
parent passes signals on; a child whose parent is gone stops by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from pgqueue_ref import __version__
from pgqueue_ref.core import QueueError, connect, run
from pgqueue_ref.core.operations import chores

from .kinds import Kinds, require
from .metrics import Address, check, exposed
from .worker import Worker, first

log = logging.getLogger("pgqueue_ref.worker")

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_PATIENCE = 5.0  # seconds for handlers that go on although their jobs were given up


def serve(
    app: str,
    *,
    dsn: str | None = None,
    queues: Sequence[str] = ("default",),
    max_concurrent_jobs: int = 100,
    poll_interval: float = 1.0,
    lease: float = 60.0,
    grace: float = 30.0,
    once: bool = False,
    listen: bool = True,
    processes: int = 1,
    name: str | None = None,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
) -> int:
    """Run the worker of `app` ("module:kinds") until a signal; with `once` for one turn. Returns the exit code.

    0: stopped as asked, with every ending written; 1: endings could not be written, or the worker broke. Raises
    `QueueError` when the application or the database will not do. `processes` above 1 starts as many, and those that
    die again. With `metrics_port` the first process serves its metrics there, the second at the next port, and so on.
    """
    logging.basicConfig(format=FORMAT, level=logging.INFO)
    load(app)
    settings: dict[str, Any] = {
        "dsn": dsn, "queues": queues, "max_concurrent_jobs": max_concurrent_jobs, "poll_interval": poll_interval,
        "lease": lease, "grace": grace, "listen": listen, "name": name,
    }  # fmt: skip
    metrics = None if metrics_port is None or once else Address(metrics_host, metrics_port)
    if metrics:
        check(metrics, processes)
    if processes > 1 and not once:
        with connect(dsn) as connection:  # what the children would find out again and again
            run(connection, chores())
        return _supervise(app, settings, processes, metrics)
    return _in_loop(app, settings, metrics, once=once)


def load(app: str) -> Kinds:
    """The registry that "module:attribute" names; the current directory can be imported from."""
    module_name, _, attribute = app.partition(":")
    if not module_name or not attribute:
        raise QueueError(f"--app is module:kinds, for example myapp.jobs:kinds, not {app!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise QueueError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    try:
        kinds = getattr(module, attribute)
    except AttributeError as error:
        raise QueueError(f"{module_name} has no {attribute!r}") from error
    return require(kinds, app)


def _in_loop(app: str, settings: dict[str, Any], metrics: Address | None, *, once: bool = False) -> int:
    """Run a worker on an event loop, and end even if handlers will not."""
    with asyncio.Runner() as runner:
        code = runner.run(_once(app, settings) if once else _run(app, settings, metrics))
        # The loop's end waits for tasks that swallow their cancellation, and for threads of asyncio.to_thread.
        guard = threading.Timer(LAST_PATIENCE, _abandon, [code])
        guard.daemon = True
        guard.start()
    guard.cancel()
    return code


def _abandon(code: int) -> None:
    log.error("handlers do not end, though their jobs are given up: exiting without them")
    logging.shutdown()
    os._exit(code)


async def _once(app: str, settings: dict[str, Any]) -> int:
    worker = Worker(load(app), **settings)
    try:
        counts = await worker.run_once()
    finally:
        await worker.close()
    log.info("one turn: %s", counts, extra={"worker": worker.name})
    return 0


async def _run(app: str, settings: dict[str, Any], metrics: Address | None) -> int:
    worker = Worker(load(app), **settings)
    with exposed(worker, metrics) if metrics else contextlib.nullcontext():
        return await _until_asked(worker)


async def _until_asked(worker: Worker) -> int:
    asked = asyncio.Event()
    _obey_signals(worker, asked)
    await worker.start()
    kinds = ", ".join(kind.name for kind in worker.kinds)
    words = "pgqueue-ref %s, worker %s: queues %s; kinds %s; %d jobs at once; %d connections"
    queues = ", ".join(worker.queues)
    log.info(
        words, __version__, worker.name, queues, kinds, worker.max_concurrent_jobs, worker.connections,
        extra={"worker": worker.name},
    )  # fmt: skip
    await first(float("inf"), asked, worker.broken)
    log.info("stopping: at most %g s for the attempts under way", worker.grace, extra={"worker": worker.name})
    written = await worker.stop()
    log.info("stopped: %s", worker.counts, extra={"worker": worker.name})
    return 0 if written and not worker.broken.is_set() else 1


def _obey_signals(worker: Worker, asked: asyncio.Event) -> None:
    """Set `asked` at the first signal, end the grace period at the second."""
    loop = asyncio.get_running_loop()

    def obey() -> None:
        if asked.is_set():
            worker.hurry()
        asked.set()

    loop.add_signal_handler(signal.SIGTERM, obey)
    parent = multiprocessing.parent_process()
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, obey)
        return

    def orphaned() -> None:
        loop.remove_reader(parent.sentinel)
        asked.set()

    # Ctrl-C at a terminal reaches the whole group, and again through the parent: that must not count as two.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop.add_reader(parent.sentinel, orphaned)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _child(app: str, settings: dict[str, Any], metrics: Address | None) -> None:
    logging.basicConfig(format=FORMAT, level=logging.INFO)
    try:
        sys.exit(_in_loop(app, settings, metrics))
    except QueueError as error:
        log.error("%s", error)
        sys.exit(1)


def _supervise(app: str, settings: dict[str, Any], processes: int, metrics: Address | None) -> int:
    """Keep `processes` workers running until a signal; pass signals on; start those that died again, a second later."""
    spawn = multiprocessing.get_context("spawn")  # a forked child would share the parent's threads and random state
    signals: list[int] = []
    children: dict[int, BaseProcess] = {}

    def start(number: int) -> None:
        named = settings | {"name": f"{settings['name']}:{number}" if settings["name"] else None}
        own = metrics and metrics._replace(port=metrics.port + number)
        child = spawn.Process(target=_child, args=(app, named, own), name=f"pgqueue-worker-{number}")
        # A signal waits until the child is on our list, and in the child until it can obey.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            if not signals:
                child.start()
                children[number] = child
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def obey(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for child in children.values():
            if child.is_alive():
                child.terminate()

    for wanted in SIGNALS:
        signal.signal(wanted, obey)
    resource_tracker.ensure_running()  # now: when spawn starts it, it unblocks the signals that `start` blocks
    for number in range(processes):
        start(number)
    while any(child.is_alive() for child in children.values()) or not signals:
        for number, child in list(children.items()):
            child.join(0.1)
            if not child.is_alive() and not signals:
                log.error("worker process %d ended with code %s, starting it again", number, child.exitcode)
                del children[number]
                time.sleep(1.0)
                start(number)
    return max((1 if child.exitcode else 0 for child in children.values()), default=0)
