"""The queue over HTTP: `create_app(Settings())` makes the ASGI application, `pgqueue-ref api` serves it.

Read `gate` for what stands before every request, `problems` for every error a client can meet, `jobs` and `queues` for
the endpoints; docs/api.md is their manual.
"""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]
