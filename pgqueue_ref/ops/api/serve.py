"""Serves an application with uvicorn: binds first, stops gracefully. Called by `pgqueue-ref api` and `dev`."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pgqueue_ref.core import QueueError

GRACE = 10  # seconds for requests under way after a signal
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class NotAllowed(QueueError):  # noqa: N818
    """The API may not be bound where it was asked to: wrong usage."""


def bind(host: str, port: int, *, with_tokens: bool) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, all on one port (0: a free one).

    Without tokens only on loopback: `NotAllowed` otherwise.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise QueueError(f"cannot listen on {host!r}: {error.strerror}") from error
    addresses = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    if not with_tokens and not all(ipaddress.ip_address(address).is_loopback for _, address in addresses):
        raise NotAllowed(f"without tokens the API listens on loopback only, not on {host}: set PGQUEUE_API_TOKEN")
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            sockets.append(socket.create_server((address, port), family=family, backlog=2048))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        close(sockets)
        raise QueueError(f"cannot listen on {host} port {port}: {error.strerror}; try another --port") from error
    return sockets


def url(sockets: list[socket.socket]) -> str:
    """Where a browser finds them."""
    address, port = sockets[0].getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def close(sockets: list[socket.socket]) -> None:
    """Give the port back."""
    for bound in sockets:
        with contextlib.suppress(OSError):
            bound.close()


def server(app: ASGIApp, **options: Any) -> uvicorn.Server:
    """A server that says nothing about itself and leaves the log to the application."""
    settings = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False,
                "ws": "none", "timeout_graceful_shutdown": GRACE} | options  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, **settings))


def outlive_signals() -> None:
    """uvicorn raises the signal that stopped it once more when it is done; a process that ended as asked exits 0."""

    def ignore(number: int, frame: FrameType | None) -> None:
        """Stopping is under way."""

    for wanted in SIGNALS:
        signal.signal(wanted, ignore)
