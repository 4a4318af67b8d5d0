"""Fixtures of every suite: which core is tested (`core`), on which server, with a fresh database per test.

`--postgres SPEC` says where PostgreSQL comes from, `--core-package NAME` which copy of the core is tested.
With a DSN this file needs psycopg and pytest alone, so that it can be copied beside a vendored core. On a
server that a DSN names it creates databases with a prefix of its own and drops only those. The server and its
version are named at the end of every run and beside every failure; a DSN's password is masked there.
"""

import importlib
import logging
import os
import re
import secrets
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_SERVERS = pytest.StashKey[set[str]]()  # what the servers of this run call themselves


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pgqueue_ref")
    group.addoption(
        "--postgres",
        metavar="SPEC",
        default=os.environ.get("PGQUEUE_TEST_DSN") or "auto",
        help="auto, docker[:IMAGE], embedded[:16|:18], local[:PATH] or a DSN (PGQUEUE_TEST_DSN, else auto)",
    )
    group.addoption(
        "--core-package",
        metavar="NAME",
        default="pgqueue_ref.core",
        help="the package under test, e.g. acme._jobs for a vendored copy (pgqueue_ref.core)",
    )


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """What a program that a test ran in its own process did to the project's loggers ends with the test."""
    yield
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "pgqueue_ref" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def core(pytestconfig: pytest.Config) -> ModuleType:
    """The core under test."""
    name = pytestconfig.getoption("--core-package")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"--core-package {name} cannot be imported: {error}", pytrace=False)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config, record_testsuite_property: Callable[[str, object], None]) -> Iterator[Any]:
    """The server, provisioned once per process; see `pgqueue_ref.harness.server.Server`."""
    server = _provision(pytestconfig.getoption("--postgres"))
    pytestconfig.stash[_SERVERS].add(server.describe())
    record_testsuite_property("server", server.describe())  # for --junitxml
    yield server
    server.close()


@pytest.fixture(scope="session")
def provisioned(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """`provisioned(spec, **settings)`: another server, for tests that limit, kill or configure one; close it."""

    def provisioned(spec: str, **settings: str) -> Any:
        server = _provision(spec, settings)
        pytestconfig.stash[_SERVERS].add(server.describe())
        return server

    return provisioned


@pytest.fixture(scope="session")
def _clone(server: Any) -> Iterator[Callable[[str], str]]:
    """Creates a database from the named template and returns its name; what is left is dropped at the end."""
    prefix = f"pgq_{secrets.token_hex(5)}_"

    def clone(template: str) -> str:
        name = prefix + secrets.token_hex(5)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        # A connection for each: a test may have restarted the server.
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(create)
        return name

    yield clone
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        find = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        for (name,) in connection.execute(find, [prefix]).fetchall():
            _drop(connection, name)


@pytest.fixture(scope="session")
def _template(server: Any, core: ModuleType, _clone: Callable[[str], str]) -> str:
    """A database with the schema, which is applied once per process."""
    name = _clone("template0")
    with psycopg.connect(_dsn_of(server.dsn, name), autocommit=True) as connection:
        connection.execute(core.SCHEMA_SQL)
    return name


@pytest.fixture
def database(server: Any, _clone: Callable[[str], str], _template: str) -> Iterator[str]:
    """DSN of a fresh database that has the core's schema."""
    yield from _database(server, _clone(_template))


@pytest.fixture
def empty_database(server: Any, _clone: Callable[[str], str]) -> Iterator[str]:
    """DSN of a fresh database without any table."""
    yield from _database(server, _clone("template0"))


def _database(server: Any, name: str) -> Iterator[str]:
    yield _dsn_of(server.dsn, name)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        _drop(connection, name)


def _drop(connection: psycopg.Connection, name: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _dsn_of(dsn: str, database: str) -> str:
    if "://" in dsn:
        return re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\1/{database}", dsn)
    return make_conninfo(dsn, dbname=database)


def _provision(spec: str, settings: Mapping[str, str] | None = None) -> Any:
    try:
        from pgqueue_ref.harness.server import ProvisionError, provision
    except ModuleNotFoundError:  # beside a vendored core
        if "=" not in spec and "://" not in spec:
            pytest.fail(f"--postgres {spec} needs pgqueue-ref[load]; give a DSN instead", pytrace=False)
        return _GivenServer(spec)
    try:
        return provision(spec, settings=settings)
    except ProvisionError as error:
        pytest.fail(str(error), pytrace=False)


class _GivenServer:
    """What the fixtures need of a server, where only psycopg and pytest are installed."""

    tier = "dsn"

    def __init__(self, dsn: str) -> None:
        self.dsn = re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", dsn)
        try:
            given = conninfo_to_dict(self.dsn)
            # An unquoted @ or / in the password ends it: the rest would be taken for the host, port or database. In
            # `host= password=x` all of it is.
            names = f"{given.get('host')} {given.get('dbname')}"
            if re.search("@|password=", names) or not re.fullmatch(r"[\d,]*", str(given.get("port", ""))):
                pytest.fail(
                    "--postgres: percent-encode @ and / in the DSN's password; leave out what has no value",
                    pytrace=False,
                )
            with psycopg.connect(self.dsn, connect_timeout=10) as connection:
                self.version = connection.execute("SHOW server_version").fetchone()[0].split()[0]
        except psycopg.ProgrammingError:  # its message may quote the password
            pytest.fail("the DSN that --postgres gives cannot be read", pytrace=False)
        except psycopg.Error as error:
            pytest.fail(_masked(f"the PostgreSQL that --postgres names refuses: {error}"), pytrace=False)

    def describe(self) -> str:
        return f"{self.tier} PostgreSQL {self.version}"

    def close(self) -> None:
        """Somebody else's: nothing to end."""


# -- Reports ------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SERVERS] = set()
    # A shell starts what runs in its background with SIGINT ignored, and so would be the programs under test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        servers = item.config.stash[_SERVERS]
        report.sections.append(("PostgreSQL", "\n".join(sorted(servers)) or "no server was started"))
        if (text := report.longreprtext) != _masked(text):  # a traceback shows arguments, a DSN among them
            report.longrepr = _masked(text)
        report.sections = [(title, _masked(content)) for title, content in report.sections]
    return report


def _masked(text: str) -> str:
    text = re.sub(r"(://[^\s:/@]*:)[^\s@]+@", r"\1***@", text)
    return re.sub(r"(password=)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)", r"\1***", text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # under xdist the controller prints the summary
    if output is not None:
        output["servers"] = sorted(session.config.stash[_SERVERS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_SERVERS].update(getattr(node, "workeroutput", {}).get("servers", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for server in sorted(config.stash[_SERVERS]):
        terminalreporter.line(f"PostgreSQL: {server}")
