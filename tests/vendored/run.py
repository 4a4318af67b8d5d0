"""Runs the conformance suite against a copy of the core in a project that has psycopg alone (`nox -s vendored`).

The project is temporary: `acme/_jobs` is the copied core, `tests` the copied suite. Its environment, given as the path
of a Python, holds psycopg and pytest and nothing else of this project, which is checked first. The server is
provisioned here, by this process and its environment, and reaches the suite as a DSN. Exit code: pytest's, or 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pgqueue_ref.core
from pgqueue_ref.harness.server import SPECS, ProvisionError, provision

CORE = Path(pgqueue_ref.core.__file__).parent
TESTS = Path(__file__).parents[1]
PACKAGE = "acme._jobs"
ALONE = """
import importlib.util, sys
found = [name for name in ("sqlalchemy", "alembic", "pgqueue_ref", "acme.sqlalchemy") if importlib.util.find_spec(name)]
if found:
    sys.exit(f"vendored: the project's environment must have psycopg alone, but has {', '.join(found)}")
import acme._jobs, psycopg
print(f"acme._jobs in an environment of psycopg {psycopg.__version__} alone")
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="vendored", description=__doc__.splitlines()[0])
    parser.add_argument("python", help="the Python of the environment that has psycopg and pytest alone")
    parser.add_argument("--postgres", default="auto", metavar="SPEC", help=SPECS)
    options, for_pytest = parser.parse_known_args()
    try:
        with tempfile.TemporaryDirectory(prefix="pgq-vendored-") as directory:
            project = vendor(Path(directory))
            if code := run(project, options.python, "-c", ALONE):
                return code
            with provision(options.postgres) as server:
                print(f"vendored: {server.describe()}", flush=True)
                arguments = ["--core-package", PACKAGE, "--postgres", server.dsn, *for_pytest]
                return run(project, options.python, "-m", "pytest", "tests/conformance", *arguments)
    except ProvisionError as error:
        print(f"vendored: {error}", file=sys.stderr)
        return 1


def vendor(project: Path) -> Path:
    """Copy the core and its suite as the README tells a user to."""
    shutil.copytree(CORE, project / "acme" / "_jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "acme" / "__init__.py").touch()
    shutil.copytree(TESTS / "conformance", project / "tests" / "conformance")
    shutil.copy(TESTS / "conftest.py", project / "tests" / "conftest.py")
    (project / "pytest.ini").write_text("[pytest]\naddopts = -ra --strict-markers\nfilterwarnings = error\n")
    return project


def run(project: Path, *command: str) -> int:
    """Run in the project, out of reach of this project's packages and settings."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PGQUEUE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(command, cwd=project, env=environment | {"PYTHONPATH": str(project)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
