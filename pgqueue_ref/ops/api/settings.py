"""What the API can be told, and the tokens it accepts. Each field is an option of `pgqueue-ref api` as well."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, Literal

from pgqueue_ref.core import QueueError

MIN_SECRET: Final = 16  # characters

Scope = Literal["read", "write"]


class NotAllowed(QueueError):  # noqa: N818
    """A setting that the API will not serve with: wrong usage."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token: who it stands for, what it may do, and the digest of its secret."""

    name: str
    scope: Scope
    digest: bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """How the API reaches the database and whom it lets in. The DSN and the schema are the environment's.

    `max_in_flight` bounds the jobs of a queue that are not terminal. The pool lends `pool_size` connections, and
    `max_overflow` more under load, each within `pool_timeout` seconds or not at all. A request's body has `max_body`
    bytes at most (a job that needs more should carry a reference, not the thing), a page of a list `max_page` jobs.
    Without `tokens` everybody is let in, so the server binds to loopback only.
    """

    tokens: tuple[Token, ...] = ()
    max_in_flight: int = 12
    pool_size: int = 5
    max_overflow: int = 5
    pool_timeout: float = 5.0
    max_body: int = 1_048_576
    max_page: int = 200


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of `name:scope:secret,...`, scope being `read` or `write`; raises without repeating a secret."""
    tokens = []
    for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        match = re.fullmatch(r"([\w.-]{1,60}):(read|write):([!-~]+)", entry, re.ASCII)
        if match is None:
            raise NotAllowed(
                f"PGQUEUE_API_TOKEN: entry {number} is not name:read:secret or name:write:secret, comma between entries"
            )
        name, scope, secret = match.groups()
        if len(secret) < MIN_SECRET:
            raise NotAllowed(f"PGQUEUE_API_TOKEN: the secret of {name!r} is shorter than {MIN_SECRET} characters")
        tokens.append(Token(name, "read" if scope == "read" else "write", _digest(secret.encode())))
    if len({token.name for token in tokens}) < len(tokens) or len({token.digest for token in tokens}) < len(tokens):
        raise NotAllowed("PGQUEUE_API_TOKEN: two entries have the same name or secret")
    if text.strip() and not tokens:
        raise NotAllowed("PGQUEUE_API_TOKEN has no entry: write name:write:secret, or unset it")
    return tuple(tokens)


def find_token(tokens: tuple[Token, ...], secret: bytes) -> Token | None:
    """The token with this secret. Compares with all of them: the time taken tells neither which nor how much fits."""
    digest, found = _digest(secret), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
