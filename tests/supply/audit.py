"""Asks PyPI whether anything in the lock of CI has a known vulnerability (`nox -s audit`).

Exit code: 0 when every pinned package was checked and none is vulnerable, 1 when one is, 3 when not all could be
checked: pip-audit itself ends with 0 where its service answers and knows none of the packages, as behind a mirror. So
it is asked first for a version whose vulnerabilities are public; where it finds none, nothing it says is believed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lock import LOCK

KNOWN = "urllib3==1.24.1"  # CVE-2019-11324 and more since
NOT_CHECKED = 3


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        known = Path(directory, "known.txt")
        known.write_text(KNOWN + "\n")
        found, why = audited(known, Path(directory, "known.json"), "--no-deps")
        if not any(package.get("vulns") for package in found):
            print(f"NOT CHECKED for vulnerabilities: asked for {KNOWN}, the service does not know any ({why})")
            return NOT_CHECKED
        packages, why = audited(LOCK, Path(directory, "lock.json"), "--require-hashes")
    checked = [package for package in packages if "vulns" in package]
    vulnerable = [package for package in checked if package["vulns"]]
    for package in vulnerable:
        ids = ", ".join(vulnerability["id"] for vulnerability in package["vulns"])
        print(f"{package['name']} {package['version']}: {ids}")
    print(f"{len(checked)} packages checked, {len(vulnerable)} vulnerable")
    if vulnerable:
        return 1
    if not checked or len(checked) < len(packages):
        print(f"NOT CHECKED for vulnerabilities: {len(packages) - len(checked)} packages ({why})")
        return NOT_CHECKED
    return 0


def audited(requirements: Path, report: Path, pinned: str) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package, and why it says nothing of some."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", pinned, "--progress-spinner", "off"]
    command += ["--format", "json", "--output", str(report), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        return [], (done.stderr.strip().splitlines() or ["no report"])[-1][:300]
    packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    return packages, skipped[0] if skipped else "no reason given"


if __name__ == "__main__":
    sys.exit(main())
