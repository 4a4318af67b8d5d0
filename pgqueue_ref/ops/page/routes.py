"""Serves the page's files: `/` and `/page/NAME`. Included by the REST API's app, without authentication.

It promises: the files hold no data and need no token, everything else comes from the API, which asks for one. The
browser is told to run and load only these files (CSP), to treat no text as HTML (trusted types), and to stay out of
other sites' frames. A file that has not changed is not sent again; one that has is never taken from a cache.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final, NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# form-action keeps a token form out of the URL even where the script did not load.
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CSP,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def _read() -> dict[str, _File]:
    """All files of the page, read once: a name that is not among them is no file, wherever it points."""
    found = {}
    for file in files(__package__).iterdir():
        if media_type := TYPES.get("." + file.name.rpartition(".")[2]):
            content = file.read_bytes()
            found[file.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return found


_FILES: Final = _read()

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def index(request: Request) -> Response:
    """The page itself."""
    return _answer(request, _FILES["index.html"])


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def asset(request: Request, name: str) -> Response:
    """A stylesheet, script or icon of the page."""
    if name not in _FILES:
        raise HTTPException(404, "the page has no such file")
    return _answer(request, _FILES[name])


def _answer(request: Request, file: _File) -> Response:
    headers = HEADERS | {"ETag": file.etag}
    if file.etag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
