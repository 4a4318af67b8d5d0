"""The Alembic chain, run as its users run it: `alembic` from the project root, and inside an installed package."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine

from pgqueue_ref.core import SCHEMA_SQL, Queue
from pgqueue_ref.core.connect import MAX_SCHEMA
from pgqueue_ref.extensions import EXTENSIONS
from pgqueue_ref.sqlalchemy import metadata

ROOT = Path(__file__).resolve().parents[2]
LOCK = "hashtextextended('pgqueue:install', 0)"
# Everything that makes two schemas the same, as text in which the schema's own name is cut out. The version table is
# Alembic's.
CATALOG = """
WITH tables AS (
    SELECT oid, relname, reloptions FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'p') AND relname <> 'pgqueue_alembic_version')
SELECT 'table', relname, 0, reloptions::text FROM tables
UNION ALL
SELECT 'column', relname, attnum, concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                                            attcollation::regcollation, attstorage, pg_get_expr(adbin, adrelid))
FROM tables JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = tables.oid AND adnum = attnum
UNION ALL
SELECT 'constraint', relname, 0, concat_ws(' ', conname, convalidated, pg_get_constraintdef(pg_constraint.oid))
FROM tables JOIN pg_constraint ON conrelid = tables.oid
UNION ALL
SELECT 'index', relname, 0, concat_ws(' ', indisvalid, pg_get_indexdef(indexrelid))
FROM tables JOIN pg_index ON indrelid = oid
UNION ALL
SELECT 'trigger', relname, 0, concat_ws(' ', tgenabled, pg_get_triggerdef(pg_trigger.oid))
FROM tables JOIN pg_trigger ON tgrelid = tables.oid AND NOT tgisinternal
UNION ALL
SELECT 'function', proname, 0, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'sequence', relname, 0, format_type(seqtypid, NULL) || seqincrement || seqcache
FROM pg_class JOIN pg_sequence ON seqrelid = oid WHERE relnamespace = %(schema)s::regnamespace
ORDER BY 1, 2, 3, 4
"""
EVERYTHING = """
SELECT relname::text FROM pg_class WHERE relnamespace = %(schema)s::regnamespace
UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
"""


def alembic(dsn: str, *arguments: str, schema: str = "", program: tuple[str, ...] = ("-m", "alembic")) -> str:
    """Run Alembic from the project root and return what it printed; fails the test unless it succeeds."""
    done = attempt(dsn, *arguments, schema=schema, program=program)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(dsn: str, *arguments: str, schema: str = "", program: tuple[str, ...] = ("-m", "alembic")):
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, env=environment(dsn, schema), capture_output=True, text=True
    )


def environment(dsn: str, schema: str = "") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQUEUE_")}
    return kept | {"PGQUEUE_DATABASE_URL": dsn, "PGQUEUE_SCHEMA": schema, "PYTHONPATH": str(ROOT)}


def execute(dsn: str, script: str) -> None:
    """Run a script as `psql -c` does: one simple query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script)


def install_extensions(dsn: str) -> None:
    """As somebody does who has no Alembic."""
    for extension in EXTENSIONS:
        execute(dsn, extension.schema_sql)


def catalog(dsn: str, schema: str = "public") -> list[tuple[str, ...]]:
    """`schema` as an identifier, quoted where it must be."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(CATALOG, {"schema": schema}).fetchall()
    # Functions keep the search_path that they were made under.
    schema_names = re.compile(rf"{re.escape(schema)}\.|(?<=SET search_path TO ).*")
    return [(sort, name, str(order), schema_names.sub("", str(text))) for sort, name, order, text in rows]


def everything(dsn: str, schema: str = "public") -> list[str]:
    """The names of all relations and functions in the schema."""
    with psycopg.connect(dsn) as connection:
        return [name for (name,) in connection.execute(EVERYTHING, {"schema": schema})]


@pytest.fixture
def expected(database: str) -> list[tuple[str, ...]]:
    """The catalog that core/schema.sql and the extensions' DDL build."""
    install_extensions(database)
    rows = catalog(database)
    assert {row[0] for row in rows} == {"table", "column", "constraint", "index", "trigger", "function", "sequence"}
    return rows


def test_the_chain_builds_what_the_schemas_build(empty_database: str, expected: list[tuple[str, ...]]) -> None:
    alembic(empty_database, "upgrade", "head")
    assert catalog(empty_database) == expected


def test_the_metadata_builds_what_the_schemas_build_but_for_triggers(
    empty_database: str, expected: list[tuple[str, ...]]
) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database))
    metadata.create_all(engine)
    engine.dispose()
    assert catalog(empty_database) == [row for row in expected if row[0] not in {"trigger", "function"}]


def test_downgrade_removes_everything_and_upgrade_builds_it_again(
    empty_database: str, expected: list[tuple[str, ...]]
) -> None:
    alembic(empty_database, "upgrade", "head")
    alembic(empty_database, "downgrade", "base")
    assert everything(empty_database) == []
    alembic(empty_database, "upgrade", "head")
    assert catalog(empty_database) == expected


@pytest.mark.parametrize(("schema", "where"), [("", "public"), ("blue", "blue"), ('odd "name', '"odd ""name"')])
def test_offline_sql_does_the_same_both_ways(
    empty_database: str, schema: str, where: str, expected: list[tuple[str, ...]]
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    execute(empty_database, alembic(nowhere, "upgrade", "head", "--sql", schema=schema))
    assert catalog(empty_database, where) == expected
    assert alembic(empty_database, "current", schema=schema).endswith(" (head)\n")
    execute(empty_database, alembic(nowhere, "downgrade", "head:base", "--sql", schema=schema))
    assert everything(empty_database, where) == []


def test_check_finds_no_drift(empty_database: str) -> None:
    alembic(empty_database, "upgrade", "head")
    assert "No new upgrade operations detected" in alembic(empty_database, "check")


def test_check_finds_what_was_changed_by_hand(empty_database: str) -> None:
    drift = {
        "ALTER TABLE pgqueue_jobs ADD COLUMN colour text": "('remove_column', None, 'pgqueue_jobs', Column('colour'",
        "ALTER TABLE pgqueue_jobs ALTER COLUMN attempt TYPE bigint": "'modify_type', None, 'pgqueue_jobs', 'attempt'",
        "ALTER TABLE pgqueue_jobs ALTER COLUMN priority SET DEFAULT 1": "'modify_default', None, 'pgqueue_jobs', 'prio",
        "ALTER TABLE pgqueue_jobs ALTER COLUMN kind DROP NOT NULL": "'modify_nullable', None, 'pgqueue_jobs', 'kind'",
        "ALTER TABLE pgqueue_jobs DROP CONSTRAINT pgqueue_jobs_names": "('add_constraint', CheckConstraint(",
        "DROP INDEX pgqueue_jobs_claim": "('add_index', Index('pgqueue_jobs_claim'",
        "DROP TABLE pgqueue_queues": "('add_table', Table('pgqueue_queues'",
        "CREATE TABLE pgqueue_more (id int)": "('remove_table', Table('pgqueue_more'",
    }
    alembic(empty_database, "upgrade", "head")
    for by_hand in drift:
        execute(empty_database, by_hand)
    checked = attempt(empty_database, "check")
    assert checked.returncode != 0
    assert [found for found in drift.values() if found not in checked.stdout] == []


def test_tables_made_without_alembic_are_adopted_with_their_jobs(
    database: str, expected: list[tuple[str, ...]]
) -> None:
    with Queue.connect(database) as queue:
        job = queue.push("kept")
    alembic(database, "upgrade", "head")
    assert catalog(database) == expected
    with Queue.connect(database) as queue:
        assert queue.get(job.id).kind == "kept"


def test_two_upgrades_at_once_take_turns(empty_database: str, expected: list[tuple[str, ...]]) -> None:
    with psycopg.connect(empty_database, autocommit=True) as first:
        first.execute(f"SELECT pg_advisory_lock({LOCK})")
        command = [sys.executable, "-m", "alembic", "upgrade", "head"]
        both = [
            subprocess.Popen(command, cwd=ROOT, env=environment(empty_database), stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        waiting = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND application_name = 'pgqueue_ref migrate' AND query LIKE '%pg_try_advisory_lock%'"""
        for _ in polls("two migrations wait for their turn"):
            if first.execute(waiting).fetchone() == (2,):
                break
        assert everything(empty_database) == []  # neither has begun
        first.execute(f"SELECT pg_advisory_unlock({LOCK})")
        errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert catalog(empty_database) == expected


def test_a_migration_gives_up_rather_than_hold_a_live_queue_behind_its_lock(empty_database: str) -> None:
    alembic(empty_database, "upgrade", "0001")
    before = catalog(empty_database)
    with psycopg.connect(empty_database) as reader:
        reader.execute("SELECT FROM pgqueue_jobs")  # holds its lock until the transaction ends
        refused = attempt(empty_database, "downgrade", "base")
    assert refused.returncode != 0
    assert refused.stdout.splitlines() == ["FAILED: canceling statement due to lock timeout"]
    assert catalog(empty_database) == before


def test_two_schemas_of_one_database_migrate_apart(empty_database: str, expected: list[tuple[str, ...]]) -> None:
    for schema in ("blue", "green"):
        alembic(empty_database, "upgrade", "head", schema=schema)
        assert "No new upgrade operations" in alembic(empty_database, "check", schema=schema)
    alembic(empty_database, "downgrade", "base", schema="blue")
    assert everything(empty_database, "blue") == []
    assert everything(empty_database) == []
    assert catalog(empty_database, "green") == expected
    assert alembic(empty_database, "current", schema="blue") == ""
    assert alembic(empty_database, "current", schema="green").endswith(" (head)\n")


def test_looking_creates_no_schema(empty_database: str) -> None:
    alembic(empty_database, "current", schema="blue")
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('blue')").fetchone() == (None,)


def test_tables_of_others_are_neither_touched_nor_reported(empty_database: str) -> None:
    execute(
        empty_database,
        """CREATE TABLE photos (id int PRIMARY KEY, name text); INSERT INTO photos VALUES (1, 'mine');
           CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('theirs')""",
    )
    alembic(empty_database, "upgrade", "head")
    assert "No new upgrade operations" in alembic(empty_database, "check")
    alembic(empty_database, "downgrade", "base")
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT * FROM photos").fetchall() == [(1, "mine")]
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == [("theirs",)]


def test_every_form_of_dsn_is_understood(empty_database: str, expected: list[tuple[str, ...]]) -> None:
    parameters = conninfo_to_dict(empty_database)
    alembic(make_conninfo(**parameters), "upgrade", "head")
    assert catalog(empty_database) == expected
    url = "postgresql+psycopg://{user}:{password}@{host}:{port}/{dbname}".format_map({"password": ""} | parameters)
    alembic(url, "downgrade", "base")
    assert everything(empty_database) == []


def test_the_revisions_need_no_pgqueue_ref(empty_database: str, expected: list[tuple[str, ...]]) -> None:
    without = "import sys; sys.modules['pgqueue_ref'] = None; from alembic.config import main; main(sys.argv[1:])"
    alembic(empty_database, "upgrade", "head", program=("-c", without))
    assert catalog(empty_database) == expected
    for revision in (ROOT / "migrations" / "versions").glob("*.py"):
        assert "import pgqueue_ref" not in (text := revision.read_text())
        assert "from pgqueue_ref" not in text


def test_a_schema_name_that_no_channel_could_have_is_refused(empty_database: str) -> None:
    refused = attempt(empty_database, "upgrade", "head", schema="x" * (MAX_SCHEMA + 1))
    assert refused.returncode != 0
    assert f"longer than {MAX_SCHEMA} bytes" in refused.stdout
    assert everything(empty_database) == []


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The files laid out as the wheel lays them out (pyproject.toml says how)."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in build["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in build["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_an_installed_package_brings_its_migrations(
    wheel: Path, empty_database: str, expected: list[tuple[str, ...]]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue_ref", "migrate"],
        cwd=wheel, env=environment(empty_database) | {"PYTHONPATH": str(wheel)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert catalog(empty_database) == expected


def test_the_schema_can_be_run_again(database: str, expected: list[tuple[str, ...]]) -> None:
    execute(database, SCHEMA_SQL)
    install_extensions(database)
    assert catalog(database) == expected


def polls(what: str) -> Iterator[None]:
    """Iterate over polls of a condition; fails the test when the loop is not left in a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    pytest.fail(f"not within a minute: {what}")
