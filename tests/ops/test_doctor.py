"""The doctor: every finding provoked on a real server, and none where all is well."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from waiting import until

from pgqueue_ref.core import SCHEMA_SQL, Queue, QueueError, Want
from pgqueue_ref.extensions import EXTENSIONS, events
from pgqueue_ref.ops import checks, doctor
from pgqueue_ref.ops.app import run as cli
from pgqueue_ref.ops.checks import Finding, Plan

Execute = Callable[..., list[Any]]


def now(seconds: float) -> None:
    """Instead of a sleep between two looks."""


def examine(dsn: str, plan: Plan | None = None, sleep: Callable[[float], None] = now) -> dict[str, Finding]:
    """Findings by check; the gravest where there are several."""
    findings = doctor.examine(plan or Plan(), dsn, sleep=sleep)
    return {finding.check: finding for finding in sorted(findings, key=lambda one: checks.LEVELS.index(one.level))}


def not_ok(findings: dict[str, Finding]) -> dict[str, str]:
    """The level of every check that is not OK; each of them says what mends it."""
    assert all(finding.fix for finding in findings.values() if finding.level != "OK")
    return {finding.check: finding.level for finding in findings.values() if finding.level != "OK"}


def recorded(connection: psycopg.Connection[Any], revisions: set[str]) -> None:
    """What Alembic leaves behind."""
    connection.execute("CREATE TABLE pgqueue_alembic_version (version_num varchar(32) PRIMARY KEY)")
    for revision in revisions:
        connection.execute("INSERT INTO pgqueue_alembic_version VALUES (%s)", [revision])


@pytest.fixture
def healthy(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS"):
        monkeypatch.delenv(name, raising=False)
    with psycopg.connect(database) as connection:
        recorded(connection, doctor._revisions()[0])
    return database


@pytest.fixture
def execute(healthy: str) -> Iterator[Execute]:
    with psycopg.connect(healthy, autocommit=True) as connection:

        def execute(statement: str, *arguments: object) -> list[Any]:
            cursor = connection.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

        yield execute


@pytest.fixture
def plain(healthy: str, execute: Execute) -> Iterator[tuple[str, str]]:
    """A role without any right, and its DSN."""
    role, password = f"pgq_{secrets.token_hex(6)}", secrets.token_hex(12)
    execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    yield role, psycopg.conninfo.make_conninfo(healthy, user=role, password=password)
    execute(f"DROP OWNED BY {role}")
    execute(f"DROP ROLE {role}")


def test_where_all_is_well_every_check_says_so(healthy: str) -> None:
    with Queue.connect(healthy) as queue:
        queue.push("mail")
        queue.complete(queue.claim([Want("mail", 1)], worker="me")[0])
        queue.push("mail")
    findings = doctor.examine(Plan(), healthy, sleep=now)
    assert [(finding.check, finding.level) for finding in findings] == [
        (name, "OK")
        for name in (
            "server", "statement_timeout", "connections", "transactions", "standbys", "schema",
            "privileges", "vacuum", "bloat", "leases", "running", "failed", "attempts", "backlog",
        )
    ]  # fmt: skip
    assert doctor.exit_code(findings, strict=True) == 0


def test_a_plain_role_with_plain_grants_gets_every_answer(
    healthy: str, execute: Execute, plain: tuple[str, str]
) -> None:
    role, dsn = plain
    execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    # The fixture's own session belongs to a superuser: a plain role cannot see how old its transaction is.
    findings = examine(dsn)
    assert not_ok(findings) == {"transactions": "WARN"}
    assert "cannot be seen" in findings["transactions"].reason
    execute(f"GRANT pg_read_all_stats TO {role}")
    assert not_ok(examine(dsn)) == {}
    execute(f"REVOKE DELETE ON pgqueue_jobs FROM {role}")
    assert not_ok(examine(dsn)) == {"privileges": "WARN"}


def test_every_table_is_asked_for_the_rights_that_its_use_needs(
    healthy: str, execute: Execute, plain: tuple[str, str]
) -> None:
    role, dsn = plain
    for extension in EXTENSIONS:
        execute(extension.schema_sql)
    execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT pg_read_all_stats TO {role}; REVOKE UPDATE ON pgqueue_queues FROM {role}")
    assert not_ok(examine(dsn)) == {}
    execute(f"REVOKE INSERT ON pgqueue_events FROM {role}; REVOKE INSERT, DELETE ON pgqueue_queues FROM {role}")
    execute(f"REVOKE UPDATE ON pgqueue_results FROM {role}")
    findings = examine(dsn)
    assert not_ok(findings) == {"privileges": "WARN"}
    lacking = ("INSERT, DELETE on pgqueue_queues", "INSERT on pgqueue_events", "UPDATE on pgqueue_results")
    assert f"lacks {' and '.join(lacking)}: " in findings["privileges"].reason
    with Queue.connect(dsn) as queue:
        with pytest.raises(QueueError, match="permission denied for table pgqueue_events"):
            queue.push("mail")
        with pytest.raises(QueueError, match="permission denied for table pgqueue_queues"):
            queue.pause("default")
    execute("SELECT pgqueue_events_switch(false)")
    assert "pgqueue_events" not in examine(dsn)["privileges"].reason  # switched off, nothing writes there
    execute("SELECT pgqueue_events_switch(true)")
    execute(findings["privileges"].fix)
    assert not_ok(examine(dsn)) == {}
    with Queue.connect(dsn) as queue:
        queue.push("mail")
        assert queue.pause("default")


def test_what_may_not_be_asked_is_said_and_not_passed(healthy: str, plain: tuple[str, str]) -> None:
    findings = examine(plain[1])
    asked = ("transactions", "schema", "privileges", "leases", "running", "failed", "backlog")
    assert not_ok(findings) == dict.fromkeys(asked, "WARN")
    for name in ("schema", "leases", "running", "failed", "backlog"):
        assert findings[name].value == "not checked"
        assert "permission denied" in findings[name].reason
        assert "GRANT" in findings[name].fix


# -- the server ------------------------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_a_finding_without_the_password(
    healthy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dsn, word in (
        ("postgresql://me:s3cret@127.0.0.1:1/jobs", "check that the database runs"),
        (psycopg.conninfo.make_conninfo(healthy, password="s3cret"), "check user and password"),
        (psycopg.conninfo.make_conninfo(healthy, dbname="pgq_nowhere"), "no such database"),
        ("postgresql://me:s3@cret@127.0.0.1:1/jobs", "percent-encoded"),
        ("", "PGQUEUE_DATABASE_URL"),
    ):
        (finding,) = doctor.examine(Plan(), dsn)
        assert (finding.check, finding.level, finding.value) == ("server", "FAIL", "unreachable")
        assert word in finding.reason
        assert "s3cret" not in str(finding)
        assert doctor.exit_code([finding], strict=False) == 2


def test_a_connection_that_breaks_meanwhile_is_a_finding(healthy: str, execute: Execute) -> None:
    def cut(seconds: float) -> None:
        execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:doctor'")

    findings = doctor.examine(Plan(), healthy, sleep=cut)
    assert findings[-1][:3] == ("server", "FAIL", "unreachable")


def test_a_server_that_only_reads_or_is_of_another_age_is_told(
    healthy: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name,),) = execute("SELECT current_database()")
    execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert not_ok(examine(healthy))["server"] == "FAIL"
    execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    monkeypatch.setattr(checks, "NEWEST", 9)
    assert not_ok(examine(healthy)) == {"server": "WARN"}
    monkeypatch.setattr(checks, "OLDEST", 99)
    assert not_ok(examine(healthy)) == {"server": "FAIL"}


@pytest.mark.parametrize(
    ("milliseconds", "level"), [("0", "WARN"), ("500", "WARN"), ("29000", "OK"), ("45000", "WARN"), ("60000", "FAIL")]
)
def test_a_statement_timeout_must_fit_the_leases(
    healthy: str, monkeypatch: pytest.MonkeyPatch, milliseconds: str, level: str
) -> None:
    monkeypatch.setenv("PGQUEUE_STATEMENT_TIMEOUT_MS", milliseconds)
    assert examine(healthy, Plan(lease=60))["statement_timeout"].level == level


def test_a_schema_that_is_missing_old_new_or_damaged_is_told(
    healthy: str, empty_database: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = examine(empty_database)
    assert not_ok(findings) == {"schema": "FAIL"}
    assert findings["schema"].value == "missing"
    assert "pgqueue-ref migrate" in findings["schema"].fix
    assert "leases" not in findings
    with psycopg.connect(empty_database) as connection:
        connection.execute(SCHEMA_SQL)
    assert not_ok(examine(empty_database)) == {"schema": "WARN"}
    heads, known = doctor._revisions()
    monkeypatch.setattr(doctor, "_revisions", lambda: ({"9999"}, known | {"9999"}))
    assert not_ok(examine(healthy)) == {"schema": "FAIL"}
    monkeypatch.setattr(doctor, "_revisions", lambda: (set(), {"0000"}))
    assert not_ok(examine(healthy)) == {"schema": "WARN"}
    monkeypatch.setattr(doctor, "_revisions", lambda: (heads, known))
    execute("DROP INDEX pgqueue_jobs_claim")
    findings = examine(healthy)
    assert not_ok(findings) == {"schema": "FAIL"}
    assert "pgqueue_jobs_claim" in findings["schema"].reason


def test_connections_are_counted_against_every_limit(healthy: str, execute: Execute) -> None:
    ((most, name),) = execute("SELECT current_setting('max_connections')::int, current_database()")
    findings = examine(healthy, Plan(workers=most, surge=1))
    assert not_ok(findings) == {"connections": "FAIL"}
    ((reserved,),) = execute("SELECT current_setting('superuser_reserved_connections')::int")
    assert str(most - reserved) in findings["connections"].reason
    # Exactly the room there is, but the fixture has a connection of it.
    assert not_ok(examine(healthy, Plan(workers=0, pool=most - reserved, surge=1))) == {"connections": "WARN"}
    execute(f"ALTER DATABASE {name} CONNECTION LIMIT 5")
    findings = examine(healthy, Plan(workers=1, surge=2))
    assert not_ok(findings) == {"connections": "FAIL"}
    assert "the database's limit" in findings["connections"].reason
    assert not_ok(examine(healthy, Plan(workers=1, surge=2, listen=False, pool=0))) == {}


def test_what_runs_now_is_what_connections_are_counted_for_unless_a_plan_is_given(
    healthy: str, execute: Execute
) -> None:
    ((name,),) = execute("SELECT current_database()")
    names = ["claim", "write", "listen"] * 2 + ["api"]
    with contextlib.ExitStack() as sessions:
        for session in names:
            sessions.enter_context(psycopg.connect(healthy, application_name=f"pgqueue_ref:{session}"))
        finding = examine(healthy)["connections"]
        assert finding.value.startswith("14 needed of ")  # two workers, one of a pool, twice
        assert "now 7 in use by the queue, " in finding.value
        assert "workers 2 x 3 (as now), pools 1" in finding.reason
        execute(f"ALTER DATABASE {name} CONNECTION LIMIT 13")
        assert not_ok(examine(healthy)) == {"connections": "WARN"}, "a deployment would be refused"
        assert not_ok(examine(healthy, Plan(workers=2, pool=1))) == {"connections": "FAIL"}
        execute(f"ALTER DATABASE {name} CONNECTION LIMIT 8")
        findings = examine(healthy, Plan(workers=1, pool=0, surge=1))
        assert not_ok(findings) == {"connections": "WARN"}
        assert "soon nobody can connect" in findings["connections"].reason


def test_sessions_of_other_databases_and_roles_count_where_the_limit_is_theirs_too(
    healthy: str, empty_database: str, execute: Execute, plain: tuple[str, str]
) -> None:
    role, dsn = plain
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT pg_read_all_stats TO {role}")
    with psycopg.connect(empty_database, application_name="pgqueue_ref:claim"), psycopg.connect(healthy):
        others = re.search(r"0 in use by the queue, (\d+) by others", examine(healthy)["connections"].value)
        assert others is not None
        assert int(others[1]) >= 3  # the fixture's, and those of another queue and another role
        execute(f"ALTER ROLE {role} CONNECTION LIMIT 7")
        finding = examine(dsn)["connections"]
        assert (finding.level, finding.value) == ("OK", "6 needed of 7, now 0 in use by the queue, 0 by others")


def test_a_small_server_with_what_pins_and_piles_up(provisioned: Any) -> None:
    settings = {"max_connections": "10", "max_prepared_transactions": "2", "track_counts": "off"}
    with provisioned("embedded", **settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(SCHEMA_SQL)
            recorded(connection, doctor._revisions()[0])
            connection.execute("SELECT pg_create_physical_replication_slot('standby', true)")
            connection.execute("BEGIN; INSERT INTO pgqueue_jobs (kind) VALUES ('x'); PREPARE TRANSACTION 'it''s'")
        findings = examine(server.dsn, Plan(workers=2))
        assert not_ok(findings) == {"connections": "FAIL", "standbys": "WARN", "vacuum": "FAIL"}
        assert "12 needed of 7" in findings["connections"].value
        assert "'standby'" in findings["standbys"].reason
        assert "whole server" in findings["vacuum"].reason
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checks, "PINNED_WARN", 0.0)
            findings = examine(server.dsn)
        assert findings["transactions"].level == "WARN"
        assert "ROLLBACK PREPARED 'it''s'" in findings["transactions"].fix


def test_a_standby_that_holds_the_horizon_back_is_told() -> None:
    operation = checks.standbys()
    next(operation)
    operation.send([("copy", True, checks.PINNED_XIDS, "reserved")])
    with pytest.raises(StopIteration) as done:
        operation.send([])
    assert done.value.value.level == "WARN"
    operation = checks.standbys()
    next(operation)
    operation.send([])
    with pytest.raises(StopIteration) as done:
        operation.send([("copy", checks.PINNED_XIDS)])
    assert done.value.value.level == "WARN"


def test_a_pinned_snapshot_is_told_with_its_session(healthy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(healthy, application_name="forgotten") as pinning:
        pinning.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pinning.execute("SELECT 1")
        assert not_ok(examine(healthy)) == {}
        monkeypatch.setattr(checks, "PINNED_WARN", 0.0)
        findings = examine(healthy)
        assert not_ok(findings) == {"transactions": "WARN"}
        assert "'forgotten', idle in transaction" in findings["transactions"].reason
        assert f"pg_terminate_backend({pinning.info.backend_pid})" in findings["transactions"].fix
        monkeypatch.setattr(checks, "PINNED_FAIL", 0.0)
        assert not_ok(examine(healthy)) == {"transactions": "FAIL"}
    assert not_ok(examine(healthy)) == {}


# -- the table -------------------------------------------------------------------------------------------------


def test_autovacuum_off_or_reset_and_dead_rows_are_told(
    healthy: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("ALTER TABLE pgqueue_jobs SET (autovacuum_enabled = false)")
    findings = examine(healthy)
    assert not_ok(findings) == {"vacuum": "FAIL"}
    assert "RESET (autovacuum_enabled)" in findings["vacuum"].fix
    execute("ALTER TABLE pgqueue_jobs RESET (autovacuum_enabled, autovacuum_vacuum_scale_factor)")
    assert not_ok(examine(healthy)) == {"vacuum": "WARN"}
    execute("ALTER TABLE pgqueue_jobs SET (autovacuum_vacuum_scale_factor = 0)")
    execute("INSERT INTO pgqueue_jobs (kind, run_at) SELECT 'x', now() + interval '1 h' FROM generate_series(1, 900)")
    execute("DELETE FROM pgqueue_jobs WHERE id > 100")
    monkeypatch.setattr(checks, "DEAD_ROWS", 500)
    with psycopg.connect(healthy) as other:  # the statistics of a session are written when it ends, at the latest
        other.execute("SELECT 1")
    findings = until(
        lambda: (seen := examine(healthy)) and "vacuum" in not_ok(seen) and seen, "the dead rows are counted"
    )
    assert not_ok(findings) == {"vacuum": "WARN"}
    assert "does not keep up" in findings["vacuum"].reason


def test_files_much_larger_than_their_rows_are_told(
    healthy: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("ALTER TABLE pgqueue_jobs DISABLE TRIGGER ALL")
    execute("INSERT INTO pgqueue_jobs (kind, run_at) SELECT 'x', now() + interval '1 h' FROM generate_series(1, 8000)")
    monkeypatch.setattr(checks, "BLOAT_BYTES", 400_000)
    findings = examine(healthy)
    assert not_ok(findings) == {"bloat": "WARN"}
    assert findings["bloat"].fix == "ANALYZE pgqueue_jobs"
    execute("VACUUM ANALYZE pgqueue_jobs")
    assert not_ok(examine(healthy)) == {}
    execute("DELETE FROM pgqueue_jobs WHERE id < 7900")
    execute("VACUUM ANALYZE pgqueue_jobs")
    findings = examine(healthy)
    assert not_ok(findings) == {"bloat": "WARN"}
    assert "VACUUM (FULL)" in findings["bloat"].fix
    execute("VACUUM (FULL, ANALYZE) pgqueue_jobs")
    assert not_ok(examine(healthy)) == {}


# -- the jobs --------------------------------------------------------------------------------------------------


def test_a_running_job_without_a_lease_is_told_and_what_the_doctor_says_mends_it(
    healthy: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("INSERT INTO pgqueue_jobs (kind, status, attempt) VALUES ('mail', 'running', 1)")
    findings = examine(healthy)
    assert not_ok(findings) == {"leases": "FAIL"}
    assert "without a lease" in findings["leases"].value
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", healthy)
    assert cli([*findings["leases"].fix.removeprefix("pgqueue-ref ").split(), "--yes"]) == 0
    assert "leases" not in not_ok(examine(healthy))


@pytest.mark.parametrize(
    "options", [("doctor", "--lease", "inf"), ("doctor", "--surge", "inf"), ("watch", "--interval", "inf")]
)
def test_numbers_without_an_end_are_wrong_usage(
    healthy: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", healthy)
    assert cli([*options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert options[1] in line


def test_leases_that_nobody_takes_back_are_told(healthy: str, execute: Execute) -> None:
    with Queue.connect(healthy) as queue:
        queue.push("mail")
        queue.claim([Want("mail", 1)], worker="dead")
    execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 s'")
    assert not_ok(examine(healthy)) == {}, "workers look every five seconds"
    execute("UPDATE pgqueue_jobs SET lease_expires_at = now() - interval '1 h'")
    findings = examine(healthy)
    assert not_ok(findings) == {"leases": "FAIL"}
    assert "60 min ago" in findings["leases"].reason


def test_jobs_that_run_for_long_are_told(healthy: str, execute: Execute) -> None:
    with Queue.connect(healthy) as queue:
        job = queue.push("mail")
        queue.claim([Want("mail", 1)], worker="me")
    execute("UPDATE pgqueue_jobs SET started_at = now() - interval '10 min'")
    findings = examine(healthy)
    assert not_ok(findings) == {"running": "WARN"}
    assert f"pgqueue-ref cancel {job.id}" in findings["running"].fix


def test_more_failures_than_before_are_told(healthy: str, execute: Execute) -> None:
    fail = "INSERT INTO pgqueue_jobs (kind, status, finished_at) SELECT 'x', 'failed', now() - interval '{}' FROM {}"
    execute(fail.format("1 min", "generate_series(1, 12)"))
    assert not_ok(examine(healthy)) == {"failed": "WARN"}
    execute(fail.format("30 min", "generate_series(1, 60)"))
    assert not_ok(examine(healthy)) == {}, "as many as ever"


def test_attempts_that_fail_and_are_tried_again_are_told_where_there_are_events(healthy: str, execute: Execute) -> None:
    assert examine(healthy)["attempts"].value == "not counted"
    execute(events.SCHEMA_SQL)
    assert examine(healthy)["attempts"].value == "0 failed in 10 min, 0 in the hour before"
    with Queue.connect(healthy) as queue:
        queue.push("mail")
        for _ in range(12):
            queue.fail(queue.claim([Want("mail", 1, max_attempts=20)], worker="me")[0], "no post office", delay=0)
    findings = examine(healthy)
    assert not_ok(findings) == {"attempts": "WARN"}
    assert "most of them of 'mail'" in findings["attempts"].reason
    execute("""
        INSERT INTO pgqueue_events (at, job_id, attempt, type, status, queue, kind)
        SELECT now() - interval '30 min', 1, 1, 'failed', 'pending', 'default', 'mail' FROM generate_series(1, 60)""")
    assert not_ok(examine(healthy)) == {}, "as many as ever"


def test_all_kinds_of_a_queue_that_wait_for_the_same_are_one_finding(healthy: str, execute: Execute) -> None:
    execute("""
        INSERT INTO pgqueue_jobs (queue, kind, run_at)
        SELECT queue, 'k' || n, now() - n * interval '2 min'
        FROM unnest(ARRAY['a', 'b']) AS queue, generate_series(1, 7) AS n""")
    waiting = [finding for finding in doctor.examine(Plan(), healthy, sleep=now) if finding.check == "backlog"]
    assert [finding.level for finding in waiting] == ["FAIL", "FAIL"]
    assert waiting[0].value == "7 due, oldest 14 min"
    assert "'k5' and 2 other kinds in queue 'a'" in waiting[0].reason
    assert "--queues b" in waiting[1].fix


def test_jobs_that_wait_are_told_with_what_they_wait_for(healthy: str, execute: Execute) -> None:
    with Queue.connect(healthy) as queue:
        queue.push_many([])
        for _ in range(3):
            queue.push("mail", queue="post")
        execute("UPDATE pgqueue_jobs SET run_at = now() - interval '2 min'")
        findings = examine(healthy)
        assert not_ok(findings) == {"backlog": "WARN"}
        assert "none is running" in findings["backlog"].reason
        execute("UPDATE pgqueue_jobs SET run_at = now() - interval '1 h'")
        findings = examine(healthy)
        assert not_ok(findings) == {"backlog": "FAIL"}
        assert "--queues post whose app registers 'mail'" in findings["backlog"].fix
        queue.pause("post")
        findings = examine(healthy)
        assert not_ok(findings) == {"backlog": "WARN"}
        assert findings["backlog"].fix == "pgqueue-ref resume post"
        queue.resume("post")
        queue.claim([Want("mail", 1, "post")], worker="me")
        findings = examine(healthy, sleep=lambda seconds: queue.push("mail", queue="post") and None)
        assert not_ok(findings) == {"backlog": "WARN"}
        assert "1 more than" in findings["backlog"].reason
        findings = examine(healthy, sleep=lambda seconds: queue.claim([Want("mail", 1, "post")], worker="me") and None)
        assert not_ok(findings) == {}, "fewer than a moment ago"


@pytest.mark.parametrize(("name", "shown"), [("a; rm x", "'a; rm x'"), ("it's", """'it'"'"'s'"""), ("-x", "-- -x")])
def test_the_name_of_a_queue_can_be_copied_into_a_shell(healthy: str, execute: Execute, name: str, shown: str) -> None:
    with Queue.connect(healthy) as queue:
        queue.push("mail", queue=name)
        execute("UPDATE pgqueue_jobs SET run_at = now() - interval '1 h'")
        assert f"--queues {shown.removeprefix('-- ')} whose app" in examine(healthy)["backlog"].fix
        queue.pause(name)
        assert examine(healthy)["backlog"].fix == f"pgqueue-ref resume {shown}"


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_prints_for_people_and_for_scripts_and_exits_by_the_worst(
    healthy: str, execute: Execute, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", healthy)
    assert cli(["doctor", "--strict"]) == 0
    assert "14 OK, 0 WARN, 0 FAIL" in capsys.readouterr().out
    execute("INSERT INTO pgqueue_jobs (queue, kind, run_at) VALUES ('[red]\x1b[2J', 'x', now() - interval '2 min')")
    assert cli(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "[red]" in shown
    assert "\x1b[2J" not in shown
    (line,) = (line for line in shown.splitlines() if "WARN backlog" in line)  # one for grep, with its remedy
    assert "-> start a worker" in line
    assert line.endswith("docs/runbook.md#queue-not-moving")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # how rich is told that it is a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli(["doctor"]) == 0
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    remedies = [line for line in lines if line.lstrip().startswith("-> ")]
    assert len(remedies) == 1, "what is to be copied is not broken"
    assert remedies[0].endswith("docs/runbook.md#queue-not-moving")
    assert max(len(line) for line in lines if line not in remedies) <= 80
    monkeypatch.delenv("TTY_COMPATIBLE")
    assert cli(["doctor", "--strict", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 1
    assert {finding["check"]: finding["level"] for finding in told["findings"]}["backlog"] == "WARN"
    assert cli(["doctor", "--workers", "100000"]) == 2
