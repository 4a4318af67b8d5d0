"""Asking the API, and what every refusal of it must look like."""

from __future__ import annotations

import re
from typing import Any

import httpx

from pgqueue_ref.ops.api.problems import PROBLEMS

JOBS = "/api/v1/queue/jobs"
# What a client must never see: of the database, of its address, of the code.
LEAKS = re.compile(
    r"SELECT |INSERT |UPDATE |FROM |pgqueue_jobs|psycopg|sqlalchemy|postgresql:|127\.0\.0\.1|Traceback|\.py\b|hush",
    re.IGNORECASE,
)


def client(address: str, secret: str = "") -> httpx.Client:
    """A client; with a token where `secret` is given."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of a refusal; fails the test unless it is whole and gives nothing away."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    document: dict[str, Any] = response.json()
    assert document["code"] == code, document
    assert document["status"] == PROBLEMS[code].status == status
    assert document["type"] == f"/docs#{code}"
    assert document["title"] == PROBLEMS[code].title
    assert document["detail"]
    assert document.keys() <= {"type", "title", "status", "detail", "code", "errors"}
    assert not LEAKS.search(response.text), response.text
    return document
