"""Every way to run this project's checks. `nox -l` lists them; `nox -s NAME -- OPTIONS` passes options on.

Needs only nox and Python: environments are made with uv where it is installed, else with virtualenv, and reused.
"""

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"


def install(session: nox.Session, *extras: str) -> None:
    """Install this project, editable, with these of its optional dependencies."""
    session.install("--quiet", "--editable", f".[{','.join(extras)}]" if extras else ".")


@nox.session
def containers(session: nox.Session) -> None:
    """Conformance and settings against PostgreSQL 16 and 18 in containers; options: --summary FILE."""
    install(session, "dev")
    session.run("python", "tests/containers/run.py", *session.posargs)
