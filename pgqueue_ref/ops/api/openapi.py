"""The OpenAPI document: FastAPI's, with every error declared and the token where one is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .problems import MEDIA_TYPE, PROBLEMS, RETRY_AFTER, Problem
from .settings import Settings

# What any operation may answer that reaches the database, and any that is closed.
DATABASE: Final = (
    "invalid_request", "invalid_job", "body_too_large", "schema_missing", "server_full", "pool_empty",
    "database_unavailable", "statement_timeout", "lock_timeout", "internal_error",
)  # fmt: skip
CLOSED: Final = ("unauthorized", "read_only_token", "foreign_host", "foreign_origin")
ABOUT = """Push jobs into PostgreSQL, look at them, retry and cancel them.

<details>
<summary>Every error is a problem document with one of these codes</summary>

| code | status | meaning | what to do |
|---|---|---|---|
{rows}

</details>
"""


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for these codes."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = PROBLEMS[code]
        response = found.setdefault(
            kind.status, {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        )
        response["description"] = ", ".join(filter(None, (response.get("description"), f"`{code}`")))
        if code == "queue_busy" or code in RETRY_AFTER:
            response["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds"}}
    return found


def describe(app: FastAPI, settings: Settings, open_paths: Sequence[re.Pattern[str]]) -> None:
    """Make `app.openapi` give the whole document; it is built once."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            rows = "\n".join(
                f'| <a id="{code}"></a>`{code}` | {kind.status} | {kind.title} | {kind.advice} |'
                for code, kind in PROBLEMS.items()
            )
            about = ABOUT.format(rows=rows)
            document.update(get_openapi(title=app.title, version=app.version, description=about, routes=app.routes))
            _complete(document, settings, open_paths)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI wants it to be extended


def _complete(document: dict[str, Any], settings: Settings, open_paths: Sequence[re.Pattern[str]]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    model = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= model.pop("$defs")
    schemas["Problem"] = model
    for parameter in document["paths"]["/api/v1/queue/jobs"]["get"]["parameters"]:
        if parameter["name"] == "limit":
            parameter["schema"] = {"type": "integer", "minimum": 1, "maximum": settings.max_page}
    if settings.tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            responses.pop("422", None)
            is_open = any(pattern.match(path) for pattern in open_paths)
            codes = DATABASE if is_open else DATABASE + CLOSED
            for status, response in problems(*codes).items():
                responses.setdefault(str(status), response)
            if settings.tokens and not is_open:
                operation["security"] = [{"token": []}]
