"""Runs a worker as a process: finds the application's kinds, logs, obeys signals, and keeps several processes going.

The command line calls `serve`. The first SIGTERM or SIGINT stops gracefully, a second at once.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from pgqueue_ref import __version__
from pgqueue_ref.core import QueueError

from .kinds import Kinds, require
from .worker import Worker, first

log = logging.getLogger("pgqueue_ref.worker")


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
) -> int:
    """Run the worker of `app` ("module:kinds") until a signal; with `once` for one turn. Returns the exit code.

    0: stopped within the grace period; 1: attempts had to be put back, or a process of several died. Raises
    `QueueError` when the application or the database will not do. `processes` above 1 starts as many, and those that
    die again.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    load(app)
    settings: dict[str, Any] = {
        "dsn": dsn, "queues": queues, "max_concurrent_jobs": max_concurrent_jobs, "poll_interval": poll_interval,
        "lease": lease, "grace": grace, "listen": listen, "name": name,
    }  # fmt: skip
    if processes > 1 and not once:
        return _supervise(app, settings, processes)
    return asyncio.run(_run(app, settings, once=once))


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


async def _run(app: str, settings: dict[str, Any], *, once: bool = False) -> int:
    worker = Worker(load(app), **settings)
    if once:
        try:
            counts = await worker.run_once()
        finally:
            await worker.close()
        log.info("one turn: %s", counts, extra={"worker": worker.name})
        return 0
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def obey() -> None:
        if asked.is_set():
            worker.hurry()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, obey)
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
    clean = await worker.stop()
    log.info("stopped: %s", worker.counts, extra={"worker": worker.name})
    return 0 if clean and not worker.broken.is_set() else 1


def _child(app: str, settings: dict[str, Any]) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    try:
        sys.exit(asyncio.run(_run(app, settings)))
    except QueueError as error:
        log.error("%s", error)
        sys.exit(1)


def _supervise(app: str, settings: dict[str, Any], processes: int) -> int:
    """Keep `processes` workers running until a signal; pass signals on; start those that died again, a second later."""
    spawn = multiprocessing.get_context("spawn")  # a forked child would share the parent's threads and random state
    signals: list[int] = []
    children: list[BaseProcess] = []

    def start(number: int) -> BaseProcess:
        named = settings | {"name": f"{settings['name']}:{number}" if settings["name"] else None}
        child = spawn.Process(target=_child, args=(app, named), name=f"pgqueue-worker-{number}")
        child.start()
        return child

    def obey(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for child in children:
            if child.is_alive():
                child.terminate()

    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, obey)
    children = [start(number) for number in range(processes)]
    died = 0
    while any(child.is_alive() for child in children) or not signals:
        for number, child in enumerate(children):
            child.join(0.1)
            if not child.is_alive() and not signals:
                died += 1
                log.error("worker process %d ended with code %s, starting it again", number, child.exitcode)
                time.sleep(1.0)
                if not signals:
                    children[number] = start(number)
    return max((1 if child.exitcode else 0 for child in children), default=0)
