"""Every way the queue says no, as one tree under `QueueError`; raised by runners, operations and `connect`.

Each message is one line: what is wrong and what to do. The driver's error stays reachable as `__cause__`, and
no message carries a password (libpq's texts name host, user and database only).
"""

from __future__ import annotations

import psycopg


class QueueError(Exception):
    """Base of all errors of the queue."""


class InvalidJob(QueueError):  # noqa: N818 - the tree's names are the contract
    """An argument, or a value the server refused; nothing was written."""


class UnknownKind(QueueError):  # noqa: N818
    """No handler is registered for the kind."""


class JobNotFound(QueueError):  # noqa: N818
    """No row has that id or key; it may have been deleted after its TTL."""


class LeaseLost(QueueError):  # noqa: N818
    """The attempt is no longer the caller's: rescued, cancelled or finished elsewhere. Nothing was changed."""

    def __init__(self, job_id: int, lease_token: int) -> None:
        super().__init__(f"job {job_id}: lease {lease_token} is no longer held; drop this attempt's outcome")
        self.job_id, self.lease_token = job_id, lease_token


class QueueBusy(QueueError):  # noqa: N818
    """The queue already holds `limit` jobs that are not terminal. Nothing was inserted.

    `active` is how many it held (counted up to the limit), `retry_after` seconds to wait before another try.
    """

    def __init__(self, queue: str, limit: int, active: int, retry_after: float) -> None:
        super().__init__(f"queue {queue!r} is busy: {active} of {limit} jobs; retry in {retry_after:g} s")
        self.queue, self.limit, self.active, self.retry_after = queue, limit, active, retry_after


class DatabaseUnavailable(QueueError):  # noqa: N818
    """No connection could be had, or it broke; whether the statement took effect is not known."""


class ConnectionLimit(DatabaseUnavailable):
    """The server has no connection slot left, or the pool none to lend."""


class SchemaMissing(QueueError):  # noqa: N818
    """The tables are not there, or are older than this code."""


class StatementTimeout(QueueError):  # noqa: N818
    """SQLSTATE 57014: the server cancelled the statement (statement_timeout, or an administrator)."""


class LockTimeout(QueueError):  # noqa: N818
    """SQLSTATE 55P03: a lock was not granted within lock_timeout."""


MISSING = "queue schema is missing or out of date: run `pgqueue-ref migrate` (or `python -m pgqueue_ref.core DSN`)"
UNREACHABLE = "connection failed or lost: check that the database runs, and its address"
# By SQLSTATE: undefined table, column, function, schema; then timeouts; then values the server refused (class 22,
# and check violation, program limit, too complex); then the ways a connection ends (class 08, 57P, and 53300).
BY_STATE: dict[str, tuple[type[QueueError], str]] = {
    "42P01": (SchemaMissing, MISSING), "42703": (SchemaMissing, MISSING), "42883": (SchemaMissing, MISSING),
    "3F000": (SchemaMissing, MISSING),
    "57014": (StatementTimeout, "statement cancelled: raise PGQUEUE_STATEMENT_TIMEOUT_MS or find what held it up"),
    "55P03": (LockTimeout, "lock not granted within lock_timeout: another transaction holds it; retry"),
    "53300": (ConnectionLimit, "the server has no free connection: use fewer or raise max_connections"),
    "23514": (InvalidJob, "the server refused a value"), "54000": (InvalidJob, "the server refused a value"),
    "54001": (InvalidJob, "the server refused a value"), "22": (InvalidJob, "the server refused a value"),
    "28": (DatabaseUnavailable, "login refused: check user and password"),
    "3D000": (DatabaseUnavailable, "no such database: create it or check the DSN"),
    "08": (DatabaseUnavailable, UNREACHABLE), "57P": (DatabaseUnavailable, UNREACHABLE),
}  # fmt: skip
# At connect libpq has no SQLSTATE to give, only the server's text, and that differs: PostgreSQL 15 says "reserved
# for non-replication superuser connections", 16+ "reserved for roles with ...", a role or database limit "too many".
BY_TEXT: tuple[tuple[str, str], ...] = (
    ("remaining connection slots are reserved", "53300"), ("sorry, too many clients", "53300"),
    ("too many connections", "53300"), ("no more connections allowed", "53300"),
    ("password authentication failed", "28"), ("no password supplied", "28"), ("no pg_hba.conf entry", "28"),
    ("FATAL:  role", "28"), ("does not exist", "3D000"),
)  # fmt: skip


def translate(error: psycopg.Error) -> QueueError:
    """The queue's error for a driver's error; raise it `from` the driver's.

    Pool exhaustion (psycopg_pool's PoolTimeout is an OperationalError) counts as `ConnectionLimit`.
    """
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    state = error.sqlstate or ""
    if not state and type(error).__name__ in {"PoolTimeout", "TooManyRequests"}:
        return ConnectionLimit(f"the pool has no free connection: {line}")
    if not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        # Several addresses may have been tried; the server's own words come after FATAL.
        fatal = [part for part in text.splitlines() if "FATAL" in part]
        line = fatal[-1].strip() if fatal else line
        state = next((code for words, code in BY_TEXT if words in line), "08")
    for code in (state, state[:3], state[:2]):
        if code in BY_STATE:
            kind, advice = BY_STATE[code]
            return kind(f"{advice} ({line})")
    return QueueError(f"{type(error).__name__}: {line}")
