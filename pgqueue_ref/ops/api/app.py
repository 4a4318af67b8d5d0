"""Puts the API together: routes, errors, the gate before them, and the pool that lives as long as the application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route, compile_path

from pgqueue_ref import __version__
from pgqueue_ref.ops.metrics import Exposition
from pgqueue_ref.ops.page import routes as page

from . import docs, history, jobs, probes, queues, schedules
from .database import Database
from .gate import Gate
from .openapi import describe
from .problems import handle_errors
from .settings import Settings

# What needs no token: it gives nothing away that is not in this package's source, but for "ready".
OPEN = ("/healthz", "/readyz", "/openapi.json")


def create_app(settings: Settings = Settings()) -> FastAPI:  # noqa: B008 - frozen
    """The ASGI application on the database of the environment. Raises `QueueError` when the DSN will not do."""
    database = Database(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await database.close()

    app = FastAPI(
        title="pgqueue_ref", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=False,  # the Location would repeat the Host header of the request
    )  # fmt: skip
    app.state.settings, app.state.database = settings, database
    app.state.readiness, app.state.exposition = probes.Readiness.of_this_version(), Exposition(besides=[database])
    routers = (
        jobs.router, history.router, queues.router, schedules.router, probes.router, docs.router, page.router,
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    handle_errors(app, [route for part in (app, *routers) for route in part.routes if isinstance(route, Route)])
    static = [route.path for route in docs.router.routes + page.router.routes if isinstance(route, Route)]
    open_paths = [compile_path(path)[0] for path in (*OPEN, *static)]
    describe(app, settings, open_paths)
    app.add_middleware(Gate, settings=settings, open_paths=open_paths)
    return app
