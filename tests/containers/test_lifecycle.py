"""What `Server` promises of a server that was started here: kill, start, restart, set, close."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgqueue_ref.harness.server import ProvisionError, Server


@pytest.fixture(scope="module")
def own(spec: str, provisioned: Callable[..., Server]) -> Iterator[Server]:
    with provisioned(spec, work_mem="3MB") as server:
        yield server


def ask(server: Server, statement: str) -> Any:
    with server.connect() as connection:
        row = connection.execute(statement).fetchone()
    return row and row[0]


def test_it_is_of_the_version_that_was_asked_for(own: Server, spec: str) -> None:
    asked = re.search(r":(\d+)", spec)
    assert asked is None or own.version.split(".")[0] == asked[1]
    assert ask(own, "SHOW server_version").split()[0] == own.version
    assert f"PostgreSQL {own.version}" in own.describe()
    assert own.describe().startswith(spec.split(":")[0])


def test_the_dsn_is_a_superusers_url_and_its_password_is_shown_nowhere(own: Server) -> None:
    password = psycopg.conninfo.conninfo_to_dict(own.dsn)["password"]
    assert own.dsn.startswith("postgresql://")
    assert ask(own, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    for shown in (own.describe(), repr(own), str(own)):
        assert str(password) not in shown


def test_a_wrong_password_is_refused(own: Server) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own.dsn, password="wrong")


def test_what_a_crash_may_lose_is_not_switched_off(own: Server) -> None:
    assert ask(own, "SHOW fsync") == "on"
    assert ask(own, "SHOW synchronous_commit") == "on"
    assert ask(own, "SHOW full_page_writes") == "on"


@pytest.mark.parametrize("end", ["kill", "quit"])
def test_a_crash_ends_every_connection_and_the_start_recovers_what_was_committed(own: Server, end: str) -> None:
    with own.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS survives")
        connection.execute("CREATE TABLE survives (number int)")
        connection.execute("INSERT INTO survives VALUES (1)")
    dsn = own.dsn
    with own.connect() as committed, psycopg.connect(own.dsn) as open_transaction:
        committed.execute("INSERT INTO survives VALUES (2)")
        open_transaction.execute("INSERT INTO survives VALUES (3)")
        getattr(own, end)()
        with pytest.raises(psycopg.OperationalError):
            committed.execute("SELECT 1")
        open_transaction.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own.dsn, connect_timeout=5)
    own.start()
    assert own.dsn == dsn
    assert ask(own, "SELECT array_agg(number ORDER BY number) FROM survives") == [1, 2]


def test_a_second_kill_or_start_changes_nothing(own: Server) -> None:
    started = ask(own, "SELECT pg_postmaster_start_time()")
    own.start()
    assert ask(own, "SELECT pg_postmaster_start_time()") == started
    own.kill()
    own.kill()
    own.start()
    assert ask(own, "SELECT pg_postmaster_start_time()") > started


def test_a_restart_keeps_the_dsn_and_the_data(own: Server) -> None:
    dsn, started = own.dsn, ask(own, "SELECT pg_postmaster_start_time()")
    own.restart()
    assert own.dsn == dsn
    assert ask(own, "SELECT pg_postmaster_start_time()") > started


def test_a_reloadable_setting_is_set_without_a_restart_and_none_resets_it(own: Server) -> None:
    started = ask(own, "SELECT pg_postmaster_start_time()")
    own.set(deadlock_timeout="123ms")
    assert ask(own, "SHOW deadlock_timeout") == "123ms"
    own.set(deadlock_timeout=None)
    assert ask(own, "SHOW deadlock_timeout") == "1s"
    assert ask(own, "SELECT pg_postmaster_start_time()") == started


def test_a_setting_that_needs_a_restart_is_in_force_when_set_returns(own: Server) -> None:
    own.set(max_connections=17, deadlock_timeout="2s")
    assert ask(own, "SHOW max_connections") == "17"
    assert ask(own, "SHOW deadlock_timeout") == "2s"


def test_a_setting_given_at_the_start_is_changed_or_refused_never_ignored(own: Server) -> None:
    assert ask(own, "SHOW work_mem") == "3MB"
    if own.tier == "docker":  # a container's command line is fixed
        with pytest.raises(ProvisionError, match="work_mem"):
            own.set(work_mem="5MB")
        assert ask(own, "SHOW work_mem") == "3MB"
    else:
        own.set(work_mem="5MB")
        assert ask(own, "SHOW work_mem") == "5MB"


@pytest.mark.parametrize("gucs", [{"no_such_setting": 1}, {"max_connections": "many"}])
def test_a_refused_setting_is_one_clear_line_and_the_server_goes_on(own: Server, gucs: dict[str, object]) -> None:
    with pytest.raises(ProvisionError, match=next(iter(gucs))) as error:
        own.set(**gucs)
    assert "\n" not in str(error.value)
    assert ask(own, "SELECT 1") == 1


def test_a_server_that_cannot_start_says_what_postgresql_said(spec: str, provisioned: Callable[..., Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"max_connections.*many"):
        provisioned(spec, max_connections="many")


def test_close_ends_the_server_and_may_be_called_twice(spec: str, provisioned: Callable[..., Server]) -> None:
    server = provisioned(spec)
    server.close()
    server.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn, connect_timeout=5)


def test_close_after_a_kill_leaves_nothing(spec: str, provisioned: Callable[..., Server]) -> None:
    server = provisioned(spec)
    server.kill()
    server.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn, connect_timeout=5)
