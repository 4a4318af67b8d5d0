"""Every way to run this project's checks. `nox -l` lists them; `nox -s NAME -- OPTIONS` passes options on.

Needs only nox and Python: environments are made with uv where it is installed, else with virtualenv, and
reused.
"""

import sys
from pathlib import Path

import nox
import nox.command

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"


def install(session: nox.Session, *extras: str) -> None:
    """Install this project, editable, with these of its optional dependencies."""
    session.install("--quiet", "--editable", f".[{','.join(extras)}]" if extras else ".")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite on a process for each core; options: --postgres SPEC, pytest's own."""
    install(session, "dev")
    # A file stays with one process: what its tests share, a table of a million rows for one, is made once.
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, the direction of imports, and whether CI's lock fits pyproject.toml."""
    install(session, "dev")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")
    session.run("python", "tests/supply/lock.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over the package and the Alembic environment."""
    install(session, "dev")
    session.run("mypy")
    session.run("mypy", "migrations/env.py")


@nox.session
def vendored(session: nox.Session) -> None:
    """The core copied into a project with psycopg alone, its conformance there; options: --postgres SPEC."""
    install(session, "load")  # provisions the server
    session.install("--quiet", "uv")  # holds to CI's lock, which pip as a constraint does not read
    project = Path(session.virtualenv.location, "project")
    session.run_install(sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(project), external=True)
    python = str(project / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    session.run_install(
        "python", "-m", "uv", "pip", "install", "--quiet", "--python", python, "psycopg[binary]", "pytest"
    )
    session.run("python", "tests/vendored/run.py", python, *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Take one safeguard at a time from a copy of the core: the suite must fail; options: --postgres SPEC,
    --only WORDS, --summary FILE."""
    install(session, "dev")
    session.run("python", "tests/mutants/run.py", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """1,000,000 jobs through four workers while faults hit them, their connections and the server.

    Options: --quick (50,000 jobs, two minutes), --postgres SPEC, --summary FILE, --jobs N, --seed N.
    """
    install(session, "load")
    session.run("python", "tests/chaos/run.py", *session.posargs)


@nox.session
def containers(session: nox.Session) -> None:
    """Conformance and settings against PostgreSQL 16 and 18 in containers; options: --summary FILE."""
    install(session, "dev")
    session.run("python", "tests/containers/run.py", *session.posargs)


@nox.session
def matrix(session: nox.Session) -> None:
    """The suite on PostgreSQL 14 to 18, Python 3.11 to 3.14 as far as they are here, with the newest and the oldest
    dependencies; options: --quick, --only WORDS, --summary FILE."""
    install(session, "dev")
    session.run("python", "tests/matrix/run.py", *session.posargs)


@nox.session
def supply(session: nox.Session) -> None:
    """The licences of everything that is installed; options: --sbom FILE (CycloneDX)."""
    install(session, "dev", "supply")
    session.run("python", "tests/supply/licences.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Whether anything in CI's lock has a known vulnerability; skipped, not passed, where PyPI cannot be asked."""
    install(session, "supply")
    try:
        session.run("python", "tests/supply/audit.py")
    except nox.command.CommandFailed as failed:
        if getattr(failed, "return_code", None) != 3:  # audit.py's NOT_CHECKED
            raise
        session.skip("vulnerabilities were NOT CHECKED: the line above says why")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the queue against the bare driver and judge the bounds, about ten minutes; options: --quick,
    --postgres SPEC, --summary FILE, --write docs/performance.md, pytest's own.

    Exit code 1 when a bound is missed.
    """
    install(session, "dev")
    session.run("python", "tests/benchmarks/run.py", *session.posargs)


@nox.session
def load(session: nox.Session) -> None:
    """Play a load scenario, or `all`, against the queue; without a name the quick `steady`, about a minute.

    Options: NAME --quick --postgres SPEC --summary FILE, locust's own. Exit codes: 0 pass, 1 request failures,
    2 crash or usage, 3 SLO breach, 4 invalid run, 5 correctness broken.
    """
    install(session, "load")
    named = bool(session.posargs) and not session.posargs[0].startswith("-")
    profile = () if named else ("steady", "--quick")
    try:
        session.run("python", "-m", "pgqueue_ref.harness.suite", *profile, *session.posargs)
    except nox.command.CommandFailed as failed:
        # nox would end with 1 whatever it was. An older nox does not keep the code; then it is a crash.
        sys.exit(getattr(failed, "return_code", None) or 2)


@nox.session
def peers(session: nox.Session) -> None:
    """This queue against procrastinate, pgqueuer, chancy and pgmq; options: --quick, --postgres SPEC,
    --summary FILE, --write FILE (the table as Markdown)."""
    install(session, "load")
    # Only here, in this session's own environment, and the newest of each.
    others = ("procrastinate", "pgqueuer[asyncpg,psycopg]", "chancy", "pgmq", "uvloop")
    session.install("--quiet", "--upgrade", *others)
    session.run("python", "tests/benchmarks/peers/run.py", *session.posargs)
