"""Whom the API lets in, and what it makes of requests that mean harm: they are refused, and nothing is changed."""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
import re
import socket
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlsplit

import httpx
import pytest
from http_api import JOBS, client, refused
from starlette.routing import Route
from waiting import until

from pgqueue_ref.core import Queue, QueueError
from pgqueue_ref.ops.api import docs, jobs, probes, queues, settings
from pgqueue_ref.ops.api.serve import bind, close, url
from pgqueue_ref.ops.api.settings import NotAllowed, find_token, parse_tokens
from pgqueue_ref.ops.page import routes as page

Serve = Callable[..., str]
READ, WRITE, SECOND = "read-secret-0123456789", "write-secret-0123456789", "second-secret-0123456789"
TOKENS = f"eyes:read:{READ}, ops:write:{WRITE}, deploy:write:{SECOND}"
OPEN = {"/", "/healthz", "/readyz", "/openapi.json", "/docs"}  # and the files of the pages


@pytest.fixture
def api(serve: Serve) -> Iterator[httpx.Client]:
    with client(serve()) as api:
        yield api


def everything() -> list[tuple[str, str]]:
    """Method and path of all there is."""
    found = [("GET", "/openapi.json")]
    for router in (jobs.router, queues.router, probes.router, docs.router, page.router):
        for route in router.routes:
            assert isinstance(route, Route)
            path = re.sub(r"\{[^}]+\}", "1", route.path)
            found += [(method, path) for method in route.methods or ()]
    return found


# -- tokens ----------------------------------------------------------------------------------------------------


def test_everything_is_closed_without_a_token_but_probes_and_static_files(serve: Serve) -> None:
    assert len(everything()) > 20
    unknown = [(method, path) for method in ("GET", "PUT", "TRACE") for path in ("/api", "/api/v1/queue/x", "/api//v1")]
    base = serve(TOKENS)
    wrong = ["", "wrong-secret-0123456789", READ[:-1], f"{READ}x", "eyes", f"eyes:read:{READ}", "é"]
    with client(base) as api:
        for method, path in [*everything(), *unknown]:
            is_open = method in ("GET", "HEAD") and (path in OPEN or path.startswith(("/docs/", "/page/")))
            for secret in wrong if path == JOBS else wrong[:2]:
                headers = {"Authorization": f"Bearer {secret}".encode()} if secret else {}
                answer = api.request(method, path, headers=headers)
                if is_open:
                    assert answer.status_code in (200, 404), (method, path)
                else:
                    if method != "HEAD":
                        refused(answer, 401, "unauthorized")
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
        for scheme in ("Basic", "bearerx", "Token"):
            assert api.get(JOBS, headers={"Authorization": f"{scheme} {WRITE}"}).status_code == 401
        assert api.get(f"{JOBS}?token={WRITE}&access_token={WRITE}").status_code == 401
        assert api.get(JOBS, headers={"Authorization": f"bearer  {WRITE}"}).status_code == 200


def test_a_token_that_may_read_reads_everything_and_changes_nothing(serve: Serve, database: str) -> None:
    with Queue.connect(database) as queue:
        queue.push("mail", key="1")
        with client(serve(TOKENS), READ) as api:
            for method, path in [*everything(), ("PUT", "/api/v1/queue/x"), ("DELETE", "/")]:
                if method in ("GET", "HEAD"):
                    assert api.request(method, path).status_code in (200, 404), (method, path)
                else:
                    refused(api.request(method, path, json={"kind": "mail"}), 403, "read_only_token")
        assert queue.paused() == []
        assert [(job.id, job.status) for job in queue.list_jobs()] == [(1, "pending")]


def test_each_token_that_may_write_writes(serve: Serve) -> None:
    base = serve(TOKENS)
    for secret in (WRITE, SECOND):
        with client(base, secret) as api:
            assert api.post(JOBS, json={"kind": "mail"}).status_code == 201
            assert api.get("/metrics").status_code == 200


def test_a_secret_is_compared_in_constant_time_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    known = parse_tokens(TOKENS)
    compared: list[bytes] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        assert len(a) == len(b) == 32  # digests: the length of a secret is no secret's hint
        return real(a, b)

    monkeypatch.setattr(settings.hmac, "compare_digest", compare)
    for secret, name in ((READ, "eyes"), (SECOND, "deploy"), ("wrong", None), ("", None)):
        compared.clear()
        found = find_token(known, secret.encode())
        assert (found and found.name) == name
        assert compared == [token.digest for token in known]


@pytest.mark.parametrize(
    "text",
    [
        WRITE, f"ops:{WRITE}", f"ops:admin:{WRITE}", "ops:write:short-secret", "ops:write:", ":write:" + WRITE,
        f"ops:write:{WRITE} {WRITE}", f"ops:write:{WRITE}é", f"a:read:{WRITE},b:write:{WRITE}",
        f"a:read:{READ},a:write:{WRITE}", ",", " , ",
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_meant_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(NotAllowed) as refusal:
        parse_tokens(text)
    assert "PGQUEUE_API_TOKEN" in str(refusal.value)
    assert "secret-0" not in str(refusal.value)
    assert "short-secret" not in str(refusal.value)


def test_no_token_is_no_token() -> None:
    assert parse_tokens("") == parse_tokens("  ") == ()


def test_secrets_and_queries_stay_out_of_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), client(serve(TOKENS), WRITE) as api:
        api.get(JOBS, params={"key": "hush-hush"})
        api.post(JOBS, json={"kind": "hush-hush"})
        api.get(f"/{quote(chr(10))}forged line")
    mine = [record.getMessage() for record in caplog.records if record.name.startswith("pgqueue_ref")]
    assert any(re.fullmatch(rf"GET {JOBS} 200 \d+ ms ops", line) for line in mine)
    assert not [line for line in mine if "hush" in line or "secret" in line or "\n" in line]


# -- without tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_tokens_it_binds_to_loopback_only(host: str) -> None:
    with pytest.raises(NotAllowed, match="PGQUEUE_API_TOKEN"):
        bind(host, 0, with_tokens=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_loopback_needs_no_token(host: str) -> None:
    sockets = bind(host, 0, with_tokens=False)
    try:
        assert len({bound.getsockname()[1] for bound in sockets}) == 1
        # asyncio turns Nagle's algorithm off for these alone: every answer would take 40 ms longer.
        assert {bound.proto for bound in sockets} == {socket.IPPROTO_TCP}
        with socket.create_connection((urlsplit(url(sockets)).hostname, urlsplit(url(sockets)).port), timeout=10):
            pass
    finally:
        close(sockets)


def test_with_tokens_it_listens_everywhere_and_says_where() -> None:
    sockets = bind("0.0.0.0", 0, with_tokens=True)
    assert url(sockets) == f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    close(sockets)


def test_an_address_that_cannot_be_had_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QueueError, match=rf"cannot listen on 127.0.0.1 port {port}: .*; try another --port"):
            bind("127.0.0.1", port, with_tokens=False)
    with pytest.raises(QueueError, match="does not have that address"):
        bind("192.0.2.1", 0, with_tokens=True)
    with pytest.raises(QueueError, match="cannot listen on 'no such host'"):
        bind("no such host", 0, with_tokens=True)


def test_without_tokens_other_sites_reach_nothing_through_a_browser(serve: Serve, database: str) -> None:
    base = serve()
    port = urlsplit(base).port
    with client(base) as api:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0", ""):
            refused(api.post(JOBS, json={"kind": "mail"}, headers={"Host": host}), 403, "foreign_host")
            refused(api.get("/", headers={"Host": host}), 403, "foreign_host")
        for origin in ("https://evil.example", "null", f"http://localhost:{port}", f"https://127.0.0.1:{port}"):
            refused(api.post(JOBS, json={"kind": "mail"}, headers={"Origin": origin}), 403, "foreign_origin")
        # A form of another site, with a browser that sends no Origin: no JSON.
        form = {"Content-Type": "text/plain"}
        refused(api.post(JOBS, content=b'{"kind": "mail"}', headers=form), 422, "invalid_request")
        assert api.post(JOBS, json={"kind": "mail"}, headers={"Origin": base}).status_code == 201
        assert api.get(JOBS, headers={"Host": f"localhost:{port}"}).status_code == 200
        preflight = api.options(JOBS, headers={"Origin": base, "Access-Control-Request-Method": "POST"})
        assert "access-control-allow-origin" not in preflight.headers
    with Queue.connect(database) as queue:
        assert len(queue.list_jobs()) == 1


def test_every_answer_forbids_what_browsers_would_do_with_it(serve: Serve) -> None:
    with client(serve(TOKENS)) as api:
        for path in ("/", "/docs", "/healthz", JOBS, "/nothing"):
            headers = api.get(path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["referrer-policy"] == "no-referrer"
            assert "server" not in headers


# -- requests that mean harm -----------------------------------------------------------------------------------

SQL = [
    "'; DROP TABLE pgqueue_jobs; --", "' OR '1'='1", "\\'; SELECT pg_sleep(60); --", "$$; SELECT 1; $$",
    "%(id)s %s %%", "{}; {0}", "mail\"); --", "*/ SELECT /*", "E'\\x27'", "a'||'b",
]  # fmt: skip


def test_sql_is_text_wherever_it_stands(api: httpx.Client, database: str) -> None:
    for words in SQL:
        job = {"kind": words, "queue": words, "key": words, "payload": {words: words}, "metadata": {words: words}}
        answer = api.post(JOBS, json=job)
        assert answer.status_code == 201, words
        shown = api.get(f"{JOBS}/{answer.json()['id']}").json()
        assert {name: shown[name] for name in job} == job
        for name in ("queue", "kind", "key"):
            assert [found["id"] for found in api.get(JOBS, params={name: words}).json()["jobs"]] == [shown["id"]], words
        cursor = base64.urlsafe_b64encode(b"before:" + words.encode()).decode()
        for bad in ({"status": words}, {"limit": words}, {"cursor": words}, {"cursor": cursor}):
            assert api.get(JOBS, params=bad).json()["code"] == "invalid_request", words
        assert api.get(f"{JOBS}/{quote(words, safe='')}").status_code in (404, 422), words
        assert api.post(f"/api/v1/queue/queues/{quote(words, safe='')}/pause").json()["queue"] == words
        assert api.delete(JOBS, params={"kind": words, "key": words}).json()["status"] == "cancelled", words
    with Queue.connect(database) as queue:
        assert queue.paused() == sorted(SQL)
        assert len(queue.list_jobs()) == len(SQL)


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{kind: mail}",
    "cut": b'{"kind": "mail", "payload": "',
    "two": b'{"kind": "mail"}{"kind": "mail"}',
    "a list": b'[{"kind": "mail"}]',
    "a text": b'"mail"',
    "null": b"null",
    "no kind": b'{"payload": 1}',
    "kind null": b'{"kind": null}',
    "kind a number": b'{"kind": 7}',
    "kind empty": b'{"kind": ""}',
    "kind long": b'{"kind": "' + b"k" * 256 + b'"}',
    "kind long in bytes": b'{"kind": "' + "é".encode() * 200 + b'"}',
    "kind with NUL": b'{"kind": "a\\u0000b"}',
    "kind a surrogate": b'{"kind": "\\ud800"}',
    "key a surrogate": b'{"kind": "mail", "key": "\\udfff"}',
    "key long": b'{"kind": "mail", "key": "' + b"k" * 1025 + b'"}',
    "unknown field": b'{"kind": "mail", "prioritty": 1}',
    "priority a text": b'{"kind": "mail", "priority": "1"}',
    "priority true": b'{"kind": "mail", "priority": true}',
    "priority large": b'{"kind": "mail", "priority": 2147483648}',
    "delay negative": b'{"kind": "mail", "delay": -1}',
    "delay infinite": b'{"kind": "mail", "delay": Infinity}',
    "delay 1e999": b'{"kind": "mail", "delay": 1e999}',
    "delay of two centuries": b'{"kind": "mail", "delay": 6.4e9}',
    "delay and run_at": b'{"kind": "mail", "delay": 1, "run_at": "2030-01-01T00:00:00Z"}',
    "run_at without zone": b'{"kind": "mail", "run_at": "2030-01-01T00:00:00"}',
    "run_at a number": b'{"kind": "mail", "run_at": 1900000000}',
    "run_at no moment": b'{"kind": "mail", "run_at": "2030-02-30T00:00:00Z"}',
    "run_at infinity": b'{"kind": "mail", "run_at": "infinity"}',
    "run_at year 1": b'{"kind": "mail", "run_at": "0001-01-01T00:00:00Z"}',
    "max_attempts 0": b'{"kind": "mail", "max_attempts": 0}',
    "metadata a list": b'{"kind": "mail", "metadata": []}',
    "metadata null": b'{"kind": "mail", "metadata": null}',
    "NaN": b'{"kind": "mail", "payload": NaN}',
    "payload with NUL": b'{"kind": "mail", "payload": "a\\u0000b"}',
    "payload key with NUL": b'{"kind": "mail", "payload": {"a\\u0000b": 1}}',
    "payload a surrogate": b'{"kind": "mail", "payload": ["\\ud800"]}',
    "number of 5,000 digits": b'{"kind": "mail", "payload": ' + b"9" * 5_000 + b"}",
    "201 deep": b'{"kind": "mail", "payload": ' + b"[" * 201 + b"]" * 201 + b"}",
    "100,000 deep": b'{"kind": "mail", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 deep, open": b'{"kind": "mail", "payload": ' + b'{"a":' * 100_000,
    "metadata 300 deep": b'{"kind": "mail", "metadata": {"a": ' + b"[" * 300 + b"]" * 300 + b"}}",
    "not UTF-8": b'{"kind": "mail", "payload": "\xff\xfe"}',
    "overlong UTF-8": b'{"kind": "\xc0\xaf"}',
    "UTF-16": '{"kind": "mail"}'.encode("utf-16"),
    "a surrogate in UTF-8": b'{"kind": "\xed\xa0\x80"}',
    "a NUL byte": b'{"kind": "mail"\0}',
}  # fmt: skip


def test_a_body_that_cannot_be_meant_is_422_and_pushes_nothing(api: httpx.Client, database: str) -> None:
    for name, body in BAD_BODIES.items():
        for path, content in ((JOBS, body), (f"{JOBS}/batch", b'{"jobs": [{"kind": "fine"}, ' + body + b"]}")):
            answer = api.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, (name, answer.text)
            assert answer.json()["code"] in ("invalid_request", "invalid_job"), name
            refused(answer, 422, answer.json()["code"])
            assert len(answer.content) < 2_000, name
    with Queue.connect(database) as queue:
        assert queue.list_jobs() == []


def test_a_payload_as_deep_as_the_queue_allows_comes_back(api: httpx.Client) -> None:
    deep = b'{"kind": "mail", "payload": ' + b"[" * 200 + b"]" * 200 + b"}"
    assert api.post(JOBS, content=deep, headers={"Content-Type": "application/json"}).status_code == 201
    assert "[" * 200 in api.get(f"{JOBS}/1").text
    assert "[" * 200 in api.get(JOBS).text


def test_a_body_beyond_the_limit_is_413_announced_or_not(serve: Serve, database: str) -> None:
    large = b'{"kind": "mail", "payload": "' + b"x" * 10_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 65_536):
            yield large[start : start + 65_536]

    with client(serve()) as api:
        for path in (JOBS, f"{JOBS}/batch", f"{JOBS}/1/retry"):
            assert (
                "1,048,576" in refused(api.post(path, content=large, headers=headers), 413, "body_too_large")["detail"]
            )
        refused(api.post(JOBS, content=chunks(), headers=headers), 413, "body_too_large")
        fits = b'{"kind": "mail", "payload": "' + b"x" * 1_000_000 + b'"}'
        assert api.post(JOBS, content=fits, headers=headers).status_code == 201
    with client(serve(max_body=100)) as api:
        refused(api.post(JOBS, json={"kind": "mail", "payload": "x" * 100}), 413, "body_too_large")
        assert api.post(JOBS, json={"kind": "mail"}).status_code == 201
    with Queue.connect(database) as queue:
        assert len(queue.list_jobs()) == 2


GET, POST = f"GET {JOBS} HTTP/1.1\r\n".encode(), f"POST {JOBS} HTTP/1.1\r\n".encode()
HOST = b"Host: 127.0.0.1\r\n"
HARDLY_HTTP: dict[str, bytes] = {
    "not HTTP": b"hello\r\n\r\n",
    "no Host": GET + b"\r\n",
    "a length that is no number": POST + HOST + b"Content-Length: ten\r\n\r\n",
    "a negative length": POST + HOST + b"Content-Length: -1\r\n\r\n",
    "a length of 5,000 digits": POST + HOST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    "two lengths": POST + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "an unknown coding": POST + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "bytes in a header": GET + b"Host: \xff\xfe\r\n\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header of 1 MB": GET + HOST + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "a path of 1 MB": b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
}


def test_what_is_hardly_http_is_refused_too(serve: Serve) -> None:
    address = urlsplit(serve())
    for name, words in HARDLY_HTTP.items():
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            with contextlib.suppress(OSError):  # it may have answered and hung up before it heard everything
                connection.sendall(words)
            with contextlib.suppress(ConnectionResetError):
                answer = connection.recv(65_536)
        assert re.match(rb"HTTP/1.1 4\d\d ", answer), (name, answer)
        assert b"Traceback" not in answer
    with client(address.geturl()) as api:
        assert api.get("/healthz").status_code == 200


def test_requests_that_are_cut_leave_the_pool_whole(serve: Serve) -> None:
    address = urlsplit(serve(pool_size=1, max_overflow=0))
    body = b'{"kind": "mail"}'
    head = POST + HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for cut in [head, head + body[:-1], head + body] * 5:
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(cut)
    with client(address.geturl()) as api:
        until(lambda: api.get(JOBS).status_code == 200, "it serves on its one connection")
