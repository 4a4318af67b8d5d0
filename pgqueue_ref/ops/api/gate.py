"""What every request passes, before any of its body is read: an ASGI middleware around the whole application.

It promises, for each path, those that do not exist included:
- with tokens: who has none gets 401, who may only read gets 403 for anything but GET and HEAD. Paths are closed unless
  they are in `open_paths`, which holds what gives nothing away: probes and static pages;
- without tokens: the Host must be a loopback name and the Origin, where a browser sends one, this server. A page of
  another site can then neither reach the API through a name of its own (DNS rebinding) nor post to it;
- a body over `max_body` is refused with 413 while it arrives, announced or chunked;
- HEAD is answered wherever GET is;
- every response has the headers of `HEADERS`; every request is one line in the log, without query or headers;
- what nobody else caught is `internal_error`, and its log line has no traceback.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import internal, problem, too_large
from .settings import Settings, Token, find_token

log = logging.getLogger("pgqueue_ref.api")

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
READING: Final = ("GET", "HEAD")
LOOPBACK_HOST: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)


class Gate:
    """See the module."""

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: Sequence[re.Pattern[str]]) -> None:
        self.app, self.tokens, self.max_body, self.open_paths = app, settings.tokens, settings.max_body, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, who = time.monotonic(), 0, "-"

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            token = self._token(headers)
            who = token.name if token else "-"
            refusal = self._refusal(scope, headers, token)
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                # HEAD is GET, of which the server sends no body.
                asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self.app(asked, _limited(receive, self.max_body), answer)
        except Exception as error:  # noqa: BLE001 - the last resort: uvicorn would print a traceback
            response = internal(error)
            if not status:
                await response(scope, receive, answer)
        finally:
            level = logging.DEBUG if scope["path"] in ("/healthz", "/readyz") else logging.INFO
            took = 1000 * (time.monotonic() - began)
            log.log(level, "%s %s %d %.0f ms %s", scope["method"], quote(scope["path"])[:200], status, took, who)

    def _token(self, headers: Headers) -> Token | None:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        return find_token(self.tokens, secret.strip().encode("latin-1")) if scheme.lower() == "bearer" else None

    def _refusal(self, scope: Scope, headers: Headers, token: Token | None) -> Response | None:
        """Why the request is not let in, if so."""
        if not self.tokens:
            if not LOOPBACK_HOST.fullmatch(headers.get("host", "")):
                return problem("foreign_host")
            origin = headers.get("origin")
            if origin is not None and origin.lower() != f"{scope['scheme']}://{headers['host']}".lower():
                return problem("foreign_origin")
        elif scope["method"] not in READING or not any(path.match(scope["path"]) for path in self.open_paths):
            if token is None:
                return problem("unauthorized", headers={"WWW-Authenticate": 'Bearer realm="pgqueue"'})
            if token.scope == "read" and scope["method"] not in READING:
                return problem("read_only_token")
        length = headers.get("content-length", "0")
        # 4,300 digits and more are no number to Python; uvicorn has refused what is not digits.
        if not length.isdecimal() or len(length) > 18 or int(length) > self.max_body:
            return too_large(self.max_body)
        return None


def _limited(receive: Receive, max_body: int) -> Receive:
    """Count the body as it arrives: a chunked one does not announce its length."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_body:
            raise HTTPException(413)  # which FastAPI lets through to the handlers of `problems`
        return message

    return limited
