"""`worker`: runs handlers, until a signal or for one turn."""

from __future__ import annotations

from typing import Annotated

import typer

from ..app import DEPLOY, command, export


@command(DEPLOY)
def worker(
    application: Annotated[
        str, typer.Option("--app", metavar="MODULE:KINDS", help="Where the handlers are registered.")
    ],
    worker_queues: Annotated[
        str,
        typer.Option("--queues", "--worker-queues", envvar="PGQUEUE_WORKER_QUEUES", help="Names, comma between them."),
    ] = "default",
    max_concurrent_jobs: Annotated[
        int, typer.Option(envvar="PGQUEUE_MAX_CONCURRENT_JOBS", min=1, help="Attempts at a time in one process.")
    ] = 100,
    poll_interval: Annotated[
        float, typer.Option(envvar="PGQUEUE_POLL_INTERVAL", help="Seconds between looks while nothing wakes it.")
    ] = 1.0,
    lease: Annotated[float, typer.Option(help="Seconds after which a dead worker's jobs run elsewhere.")] = 60.0,
    grace: Annotated[float, typer.Option(help="Seconds that attempts may go on after SIGTERM.")] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Run what is due, then exit.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    listen: Annotated[
        bool,
        typer.Option("--listen/--no-listen", help="LISTEN holds a third connection; a transaction pooler has none."),
    ] = True,
    name: Annotated[
        str | None, typer.Option(help="What jobs record as their worker; host and pid unless given.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Serve Prometheus metrics there; further processes at the ports after."),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address that the metrics are served on.")] = "127.0.0.1",
    events_days: Annotated[
        float | None,
        typer.Option(envvar="PGQUEUE_EVENTS_DAYS", callback=export, min=0, help="Prune older events; 7 unless given."),
    ] = None,
) -> int:
    """Run handlers until SIGTERM or SIGINT."""
    from pgqueue_ref.worker import serve

    return serve(
        application,
        queues=[queue.strip() for queue in worker_queues.split(",")],
        max_concurrent_jobs=max_concurrent_jobs,
        poll_interval=poll_interval,
        lease=lease,
        grace=grace,
        once=once,
        listen=listen,
        processes=processes,
        name=name,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )
