"""A bill of materials of this environment, and the licences in it (`nox -s supply`).

Prints each installed package with its licences. Exit code 1 when one names none, or only one under which a program that
uses the package could not be passed on under its own terms (the GPL and AGPL; the LGPL, psycopg's, allows that).
`--sbom FILE` keeps the bill, CycloneDX as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STRICT = re.compile(r"\bA?GPL|(?<!Lesser )(?<!Library )General Public License", re.IGNORECASE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="supply", description=__doc__.splitlines()[0])
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="write the bill of materials there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bill = options.sbom or Path(directory, "sbom.json")
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", "pyproject.toml"]
        subprocess.run([*command, "--output-reproducible", "--output-file", str(bill)], check=True)
        components = json.loads(bill.read_text())["components"]
    refused = []
    for component in sorted(components, key=lambda component: str(component["name"]).lower()):
        named = licences(component)
        print(f"{component['name']} {component['version']}: {', '.join(named) or 'NONE NAMED'}")
        if not acceptable(named):
            refused.append(component["name"])
    print(f"{len(components)} packages, {len(refused)} with a licence to look at: {', '.join(refused) or 'none'}")
    return 1 if refused or not components else 0


def licences(component: dict[str, Any]) -> list[str]:
    """What the package says of itself: SPDX identifiers, expressions or classifiers."""
    chosen = (entry.get("license", {}) | entry for entry in component.get("licenses", []))
    return sorted({str(entry.get("expression") or entry.get("id") or entry.get("name")) for entry in chosen})


def acceptable(named: list[str]) -> bool:
    """Whether one of the alternatives is not strict. A package that names several licences offers a choice."""
    alternatives = [part for name in named for part in re.split(r"\bOR\b", name)]
    return any(not STRICT.search(part) for part in alternatives)


if __name__ == "__main__":
    sys.exit(main())
