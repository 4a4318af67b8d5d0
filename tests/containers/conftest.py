"""These tests need servers of their own: each runs on every `spec`.

That is the container with `--postgres docker:IMAGE` (`nox -s containers`), else an embedded server of each version:
somebody's server, which a DSN names, is not ours to limit or to kill.
"""

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "spec" in metafunc.fixturenames:
        spec = metafunc.config.getoption("--postgres")
        specs = [spec] if spec.startswith("docker") else ["embedded:16", "embedded:18"]
        metafunc.parametrize("spec", specs, scope="module")
