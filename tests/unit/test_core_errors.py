"""The driver's errors as the queue's: by SQLSTATE, and by the server's words where libpq gives nothing else."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as driver

from pgqueue_ref.core import (
    ConnectionLimit,
    DatabaseUnavailable,
    InvalidJob,
    LeaseLost,
    LockTimeout,
    QueueBusy,
    QueueError,
    SchemaMissing,
    StatementTimeout,
    translate,
)

REFUSED = 'connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.UndefinedTable('relation "pgqueue_jobs" does not exist'), SchemaMissing),
        (driver.UndefinedColumn("column x does not exist"), SchemaMissing),
        (driver.UndefinedFunction("function x does not exist"), SchemaMissing),
        (driver.InvalidSchemaName("schema x does not exist"), SchemaMissing),
        (driver.QueryCanceled("canceling statement due to statement timeout"), StatementTimeout),
        (driver.LockNotAvailable("canceling statement due to lock timeout"), LockTimeout),
        (driver.TooManyConnections("sorry, too many clients already"), ConnectionLimit),
        (driver.CheckViolation("violates check constraint"), InvalidJob),
        (driver.NumericValueOutOfRange("out of range"), InvalidJob),
        (driver.StatementTooComplex("stack depth limit exceeded"), InvalidJob),
        (driver.ProgramLimitExceeded("index row size"), InvalidJob),
        (driver.AdminShutdown("terminating connection due to administrator command"), DatabaseUnavailable),
        (driver.CannotConnectNow("the database system is starting up"), DatabaseUnavailable),
        (driver.ConnectionFailure("gone"), DatabaseUnavailable),
        (driver.InvalidPassword("password authentication failed"), DatabaseUnavailable),
        (driver.InvalidCatalogName('database "x" does not exist'), DatabaseUnavailable),
        (psycopg.OperationalError("the connection is closed"), DatabaseUnavailable),
        (psycopg.InterfaceError("the connection is closed"), DatabaseUnavailable),
        (driver.DeadlockDetected("deadlock detected"), QueueError),
        (driver.SerializationFailure("could not serialize"), QueueError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_each_driver_error_has_its_queue_error(error, kind):
    assert type(translate(error)) is kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("FATAL:  sorry, too many clients already", ConnectionLimit),
        ("FATAL:  remaining connection slots are reserved for non-replication superuser connections", ConnectionLimit),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", ConnectionLimit),
        ('FATAL:  too many connections for role "app"', ConnectionLimit),
        ('FATAL:  too many connections for database "app"', ConnectionLimit),
        ("FATAL:  no more connections allowed (max_client_conn)", ConnectionLimit),
        ('FATAL:  password authentication failed for user "app"', DatabaseUnavailable),
        ("fe_sendauth: no password supplied", DatabaseUnavailable),
        ('FATAL:  database "app" does not exist', DatabaseUnavailable),
        ("Connection refused\n\tIs the server running on that host?", DatabaseUnavailable),
    ],
)
def test_a_refusal_at_connect_is_known_by_its_words(words, kind):
    """At connect libpq gives no SQLSTATE. Two addresses were tried here: the server's own words count."""
    translated = translate(psycopg.OperationalError(f"{REFUSED}Connection refused\n{REFUSED}{words}"))
    assert type(translated) is kind
    assert "\n" not in str(translated)


def test_a_pool_that_has_none_to_lend_is_a_connection_limit():
    class PoolTimeout(psycopg.OperationalError):
        """As psycopg_pool's, which the core must not import."""

    translated = translate(PoolTimeout("couldn't get a connection after 30.00 sec"))
    assert type(translated) is ConnectionLimit
    assert "pool" in str(translated)


def test_every_message_is_one_line_even_where_the_servers_is_not():
    assert "\n" not in str(translate(driver.CheckViolation("one\nDETAIL: two\nCONTEXT: three")))
    assert str(translate(psycopg.OperationalError(""))) != ""


def test_errors_carry_what_a_caller_needs():
    busy = QueueBusy("outbox", 12, 11, 1.0)
    assert (busy.queue, busy.limit, busy.active, busy.retry_after) == ("outbox", 12, 11, 1.0)
    lost = LeaseLost(7, 3)
    assert (lost.job_id, lost.lease_token) == (7, 3)
    assert "7" in str(lost)
    assert "3" in str(lost)
