"""How Alembic reaches the queue's tables. Run by `alembic` from the project root and by `pgqueue-ref migrate`.

It promises:

- two deployments that migrate at once take turns; each revision is its own transaction;
- a revision that cannot get a table's lock soon gives up, so that a live queue is not held behind it;
- only tables of this queue are created, changed or reported; two schemas of one database migrate apart;
- `downgrade base` leaves nothing behind but the schema itself (it may hold tables of others).

Settings: PGQUEUE_DATABASE_URL (postgresql://, postgresql+psycopg:// or key=value) and PGQUEUE_SCHEMA (created when
missing; empty: the connection's search_path). Connect straight to the server: a pooler in transaction mode would lose
the lock and the settings, which belong to the session.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic import context
from alembic.util import CommandError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import MetaData, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

VERSION_TABLE = "pgqueue_alembic_version"
SCHEMA = os.environ.get("PGQUEUE_SCHEMA") or None
LOCK = "hashtextextended('pgqueue:install', 0)"  # the same as the core's own installer takes
TURN_SECONDS = 300.0  # how long to wait for another deployment
# A queue behind a DDL statement that waits for its lock stands still for as long as that waits. Well below the 5 s
# after which the queue's own statements are cancelled: with 5 s here, the claims behind it were.
SESSION = "SET lock_timeout = '2s'; SET statement_timeout = 0; SET default_transaction_isolation = 'read committed'"


if SCHEMA and len(os.fsencode(SCHEMA)) > 55:  # MAX_SCHEMA of core/connect.py
    raise CommandError("PGQUEUE_SCHEMA is longer than 55 bytes: choose a shorter name")


def quoted(name: str) -> str:
    """An identifier for SQL text."""
    return '"' + name.replace('"', '""') + '"'


def connect(*, moving: bool) -> psycopg.Connection[Any]:
    """A session for Alembic: while `moving`, the only one that migrates this database. Ends with the session."""
    dsn = os.environ.get("PGQUEUE_DATABASE_URL", "").strip()
    if not dsn:
        raise CommandError("no database given: set PGQUEUE_DATABASE_URL, such as postgresql://user@host/database")
    try:
        given = conninfo_to_dict(re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn))
        # A password with a bare @ or / in it: its rest would be taken for the host or port, and be quoted in errors.
        if "@" in str(given.get("host")) or not re.fullmatch(r"[\d,]*", str(given.get("port") or "")):
            raise ValueError
    except (psycopg.Error, ValueError):  # libpq's own words may quote the DSN, and with it a password
        raise CommandError(
            "PGQUEUE_DATABASE_URL is not understood: write postgresql://user:password@host:port/database "
            "(special characters percent-encoded) or host=... dbname=..."
        ) from None
    defaults: dict[str, Any] = {"connect_timeout": 10, "application_name": "pgqueue_ref migrate"}
    connection = psycopg.connect(make_conninfo("", **(defaults | given)), autocommit=True)
    try:
        prepare(connection, moving=moving)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: psycopg.Connection[Any], *, moving: bool) -> None:
    """The session's settings, its turn, its schema; then transactions, as Alembic expects."""
    connection.execute(SESSION)
    if moving:
        take_turn(connection)
    if SCHEMA:
        # CREATE ... IF NOT EXISTS asks for the right to create even where there is nothing to do.
        missing = connection.execute("SELECT to_regnamespace(%s) IS NULL", [quoted(SCHEMA)]).fetchone() == (True,)
        if missing and moving:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(SCHEMA)))
    connection.autocommit = False


def take_turn(connection: psycopg.Connection[Any]) -> None:
    """Wait until nobody else migrates this database, and hold that until the session ends.

    A statement of its own, before Alembic reads the version: read together, the version would be of the moment before
    the wait. Polled, because a session that waits inside pg_advisory_lock() holds a snapshot, and the holder's
    CREATE INDEX CONCURRENTLY would wait for that: a deadlock.
    """
    deadline = time.monotonic() + TURN_SECONDS
    while connection.execute(f"SELECT pg_try_advisory_lock({LOCK})").fetchone() != (True,):
        if time.monotonic() > deadline:
            raise CommandError(f"another migration has held its lock for {TURN_SECONDS:.0f} s: see to it, then retry")
        time.sleep(0.2)


def is_moving() -> bool:
    """Whether the command moves the version (upgrade, downgrade, stamp) rather than looks (current, check)."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def target_metadata() -> MetaData | None:
    """What `check` and `revision --autogenerate` compare with. Moving needs no package: revisions are frozen SQL."""
    try:
        from pgqueue_ref.sqlalchemy import metadata
    except ModuleNotFoundError:
        return None
    return metadata


def include_name(name: str | None, type_: str, _parents: Any) -> bool:
    """Look at this queue's tables only: whatever else lives in the schema is not ours to report or drop."""
    return type_ != "table" or (str(name).startswith("pgqueue_") and name != VERSION_TABLE)


def configure(**how: Any) -> None:
    context.configure(
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        transaction_per_migration=True,
        include_name=include_name,
        compare_server_default=True,
        # Check constraints are compared by name; releases before 1.19 ignore this and do not compare them.
        autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        **how,
    )


def run_offline() -> None:
    """Print the SQL, for psql or somebody who reviews it first."""
    # Named parameters: the driver's own style would double every percent sign of the printed text.
    configure(url="postgresql+psycopg://", dialect_opts={"paramstyle": "named"}, literal_binds=True)
    write = context.get_context().impl.static_output
    removing = context.get_revision_argument() is None  # down to base
    write(f"SELECT pg_advisory_lock({LOCK});")  # before the settings: lock_timeout would end the wait for its turn
    write(SESSION + ";")
    if SCHEMA:
        create = "" if removing else f"CREATE SCHEMA IF NOT EXISTS {quoted(SCHEMA)};\n"
        write(f"{create}SET search_path = {quoted(SCHEMA)};")
    with context.begin_transaction():
        context.run_migrations()
    if removing:
        write(f"DROP TABLE {version_table()};\n")
    write(f"SELECT pg_advisory_unlock({LOCK});\n")


def run_online() -> None:
    moving = is_moving()
    engine = create_engine("postgresql+psycopg://", creator=lambda: connect(moving=moving), poolclass=NullPool)
    with one_line_errors(), engine.connect() as connection:
        configure(connection=connection, target_metadata=None if moving else target_metadata())
        with context.begin_transaction():
            context.run_migrations()
        if moving and not context.get_context().get_current_heads():
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {version_table()}")
            connection.commit()


def version_table() -> str:
    return f"{quoted(SCHEMA)}.{VERSION_TABLE}" if SCHEMA else VERSION_TABLE


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The server's refusal as Alembic's own error, which its command line shows without a traceback."""
    try:
        yield
    except (psycopg.Error, DBAPIError) as error:
        driver = error.orig if isinstance(error, DBAPIError) else error
        lines = [line.strip() for line in str(driver).splitlines() if line.strip()] or [type(driver).__name__]
        raise CommandError(next((line for line in lines if "FATAL" in line), lines[0])) from driver


if context.is_offline_mode():
    run_offline()
else:
    run_online()
