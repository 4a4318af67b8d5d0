"""The lock of CI's environment, `.ci/requirements.txt`: writes it anew, or says whether it is stale.

    python tests/supply/lock.py            # pins the newest of everything
    python tests/supply/lock.py --check    # exit code 1 when it does not fit pyproject.toml; `nox -s lint` does this

Pins and hashes for every platform and Python that pyproject.toml allows, made by uv, without the address of any index.
`.ci/run` makes pip and uv hold to it; whoever works on the project without it gets the newest.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / ".ci" / "requirements.txt"
AGAIN = "python tests/supply/lock.py"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"usage: {AGAIN} [--check]", file=sys.stderr)
        return 2
    if not arguments:
        compiled(LOCK, "--upgrade")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        anew = Path(directory, LOCK.name)
        anew.write_text(LOCK.read_text())  # uv keeps its pins where they still fit
        compiled(anew)
        stale = sorted(pins(LOCK) ^ pins(anew))
    if stale:
        print(f"{LOCK.name} does not fit pyproject.toml: {', '.join(stale)}; run: {AGAIN}", file=sys.stderr)
    return 1 if stale else 0


def compiled(target: Path, *options: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--extra", "supply"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--quiet", *options]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", AGAIN]
    subprocess.run([*command, "--output-file", str(target)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def pins(lock: Path) -> set[str]:
    """`name==version ; marker` of each. Not the hashes: to a version files may be added, which makes nothing stale."""
    return set(re.findall(r"^([\w.\[\]-]+==[^\\\n]+?) *\\?$", lock.read_text(), re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
