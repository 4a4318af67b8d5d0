"""The OpenAPI document and docs/api.md say what the API does: schemathesis sends it whatever the document allows, and a
good deal that it forbids.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from http_api import client

from pgqueue_ref.core import Queue, Want
from pgqueue_ref.extensions import EXTENSIONS, results
from pgqueue_ref.ops.api.problems import PROBLEMS

Serve = Callable[..., str]
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SECRET = "write-secret-0123456789"


def test_no_request_makes_it_fail_or_break_the_word_of_its_document(
    serve: Serve, database: str, tmp_path: Path
) -> None:
    with Queue.connect(database) as queue:  # ids that requests are likely to name, in every status
        for extension in EXTENSIONS:
            queue.connection.execute(extension.schema_sql)
        for _ in range(9):
            queue.push("mail")
        held = queue.claim([Want("mail", 6)], worker="me")
        queue.complete(held[0])
        queue.run(results.complete(held[1], {"sum": 3}))
        for job in held[2:4]:
            queue.fail(job, "broken", final=True)
    base = serve(f"ops:write:{SECRET}", max_in_flight=100_000)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json",
        "--header", f"Authorization: Bearer {SECRET}", "--generation-deterministic",
        "--max-examples", "15", "--no-shrink", "--no-color", "--warnings", "off",
        # What a schema cannot say: lengths in bytes, NUL, surrogates, `delay` or `run_at` but not both.
        "--exclude-checks", "positive_data_acceptance",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout
    assert int(generated[1]) > 300


def test_the_document_names_every_problem_and_the_token_where_one_is_needed(serve: Serve) -> None:
    with client(serve(f"ops:write:{SECRET}", max_page=77)) as api:
        document = api.get("/openapi.json").json()
    assert all(f"`{code}`" in document["info"]["description"] for code in PROBLEMS)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            is_open = path in ("/healthz", "/readyz")
            assert ("security" in operation) is not is_open, path
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)
    listing = document["paths"]["/api/v1/queue/jobs"]["get"]["parameters"]
    assert next(p["schema"]["maximum"] for p in listing if p["name"] == "limit") == 77


def test_the_manual_has_every_endpoint_and_every_problem(serve: Serve) -> None:
    manual = MANUAL.read_text()
    with client(serve()) as api:
        document = api.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            shape = re.sub(r"\{job_id\}", "{id}", path)
            assert f"{method.upper()} {shape}" in manual, (method, path)
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", manual, re.MULTILINE))
    assert rows == {code: str(kind.status) for code, kind in PROBLEMS.items()}
