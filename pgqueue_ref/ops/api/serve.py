"""Serves an application with uvicorn: binds first, stops gracefully. Called by `pgqueue-ref api` and `dev`."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pgqueue_ref.core import QueueError

from .settings import NotAllowed

# `localhost` has an IPv6 address in most host files, also where the kernel has no IPv6.
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
BACKLOG = 2048  # connections that wait to be accepted
GRACE = 10  # seconds for requests under way after a signal
SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
    absent: OSError | None = None
    for family, address in addresses:
        try:
            sockets.append(_listener(family, address, port))
        except OSError as error:
            if error.errno in ABSENT:
                absent = error
                continue
            close(sockets)
            raise QueueError(f"cannot listen on {host} port {port}: {error.strerror}; try another --port") from error
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise QueueError(f"cannot listen on {host}: this machine does not have that address") from absent
    return sockets


def _listener(family: int, address: str, port: int) -> socket.socket:
    """As socket.create_server, whose sockets do not say that they are TCP: asyncio would leave Nagle's algorithm on for
    their connections, and each answer would wait for the client's delayed acknowledgement, 40 ms.
    """
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def url(sockets: list[socket.socket]) -> str:
    """Where a browser on this machine finds them."""
    address, port = sockets[0].getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = "127.0.0.1" if sockets[0].family == socket.AF_INET else "::1"
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


def obey_signals(server: uvicorn.Server) -> None:
    """End the server at a signal, also one that comes before it runs. While it runs, uvicorn does that by itself and
    raises the signal once more when it is done; that must not end the process, which exits with 0 if it ended as asked.
    """
    for wanted in SIGNALS:
        signal.signal(wanted, server.handle_exit)
