"""The page /docs: Swagger UI over /openapi.json, from files of this machine.

FastAPI's own page loads Swagger UI from elsewhere and starts it with an inline script; this one needs no internet, and
its CSP lets nothing run or load but what this server sends. The files come with the package fastapi-swagger, which
carries each release of Swagger UI and is used for nothing else.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Response

ASSETS: Final = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
# Swagger UI writes style attributes into its own markup, and its style sheet has its pictures within.
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Addresses relative to /docs, so that a proxy may put a path before all of it.
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pgqueue_ref API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Without validatorUrl Swagger UI would show the document to a service on the internet.
START: Final = r"""SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger", tryItOutEnabled: true, validatorUrl: null,
  displayRequestDuration: true, defaultModelsExpandDepth: 0,
});

// The `type` of a problem document leads to its code, which is there once Swagger UI has drawn the table.
const drawn = new MutationObserver(() => {
  const code = document.getElementById(location.hash.slice(1));
  const table = code?.closest("details");
  if (!table) return;
  drawn.disconnect();
  table.open = true;
  code.scrollIntoView();
});
if (/^#\w+$/.test(location.hash)) {
  drawn.observe(document.getElementById("swagger"), { childList: true, subtree: true });
}
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def page() -> Response:
    """The page."""
    return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": CSP})


@router.get("/docs/start.js")
def start() -> Response:
    """Starts Swagger UI."""
    return Response(START, media_type="text/javascript")


def _asset(name: str, media_type: str) -> None:
    content = files("fastapi_swagger.resources").joinpath(name).read_bytes()

    @router.get(f"/docs/{name}")
    def asset() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=3600"})


for _name, _media_type in ASSETS.items():
    _asset(_name, _media_type)
