"""Runs the benchmarks and judges them (`nox -s bench`): one table of figures, counterparts, ratios and bounds.

Exit code 0 when every benchmark ran and every bound is kept, 1 otherwise; the bounds that are missed are named.
`--quick` takes fewer rounds and jobs, `--postgres SPEC` another server, `--summary FILE` writes the figures as JSON,
`--write FILE` puts the table into a document between its markers; anything else goes to pytest, `-k drain` for one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pgqueue_ref.harness import manifest
from pgqueue_ref.harness.slo import summary_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START, END = "<!-- table: start -->", "<!-- table: end -->"
COLUMNS = ("figure", "ours", "counterpart", "ratio", "bound", "ok", "counterpart is")
Rows = list[tuple[str, ...]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--postgres", metavar="SPEC", default="embedded:18", help="where PostgreSQL comes from")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and jobs than the bounds are stated for")
    parser.add_argument("--summary", type=summary_file, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep pytest-benchmark's own result")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="pgq-bench-") as scratch:
        result = options.json or Path(scratch, "result.json")
        code = benchmark(options, rest, result)
        benchmarks = json.loads(result.read_text())["benchmarks"] if result.exists() else []
    figures = [figure for each in benchmarks for figure in each["extra_info"]["figures"]]
    facts = about(benchmarks)
    print("\n".join(["", *facts, "", *aligned([COLUMNS, *map(row, figures)]), ""]))
    if options.summary:
        options.summary.write_text(json.dumps(summary(benchmarks, figures), indent=2) + "\n", encoding="utf-8")
    if options.write:
        write(options.write, facts, figures)
    missed = [figure for figure in figures if not figure["ok"]]
    for figure in missed:
        print(f"bench: missed: {figure['name']}: {judged(figure)} ({figure['bound']})")
    if code:
        print(f"bench: pytest ended with exit code {code}")
    return 1 if code or missed or not figures else 0


def benchmark(options: argparse.Namespace, rest: list[str], result: Path) -> int:
    """Run pytest; its own table is silenced, since it knows neither counterparts nor bounds."""
    command = [sys.executable, "-m", "pytest", str(HERE), "-v", "--no-header", "-p", "no:cacheprovider",
               "-o", "addopts=",
               # It warns when a test failed before its measurement, and would hide the failure as an error.
               "-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning",
               "--benchmark-enable", "--benchmark-quiet", "--benchmark-columns=rounds",
               f"--benchmark-json={result}", "--postgres", options.postgres,
               *(["--quick"] if options.quick else []), *rest]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def about(benchmarks: list[dict[str, Any]]) -> list[str]:
    """What the figures were measured on, and how: a line each."""
    machine, versions = manifest.machine(), manifest.versions()
    when = datetime.datetime.now(datetime.UTC)
    loads = [each["extra_info"]["settings"]["load_average"] for each in benchmarks] or [0.0]
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB",
        f"System: {machine['system']}; load average when the benchmarks began: {min(loads):.1f} to {max(loads):.1f}",
        f"Versions: Python {versions['python']}, psycopg {versions['psycopg']}, libpq {versions['libpq']}",
        f"When: {when:%Y-%m-%d}, revision {(manifest.revision(ROOT) or {}).get('commit', 'unknown')[:10]}",
    ]
    if benchmarks:
        settings = benchmarks[0]["extra_info"]["settings"]
        shown = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "autovacuum")
        lines.append(f"Server: {', '.join(servers(benchmarks).values())}; "
                     + ", ".join(f"{name} {settings[name]}" for name in shown))  # fmt: skip
    return lines


def servers(benchmarks: list[dict[str, Any]]) -> dict[str, str]:
    """The servers that took part, by major version."""
    described = sorted({each["extra_info"]["settings"]["server"] for each in benchmarks}, reverse=True)
    return {text.partition("PostgreSQL ")[2].split(".")[0]: text for text in described}


def row(figure: dict[str, Any]) -> tuple[str, ...]:
    """A figure as words."""
    unit = figure["unit"]
    ok = ("yes" if figure["ok"] else "NO") if figure["bound"] else ""
    return (
        figure["name"], f"{number(figure['ours'])} {unit}", f"{number(figure['counterpart'])} {unit}",
        f"{figure['ratio']:.2f}x", figure["bound"], ok, figure["against"],
    )  # fmt: skip


def judged(figure: dict[str, Any]) -> str:
    """What missed its bound; where that is a time that the bare counterpart misses as well, the machine is to blame."""
    if figure["bound"].endswith("x"):
        return f"{figure['ratio']:.2f}x"
    words = f"{number(figure['ours'])} {figure['unit']}"
    beside = figure["counterpart_rounds"] and figure["counterpart"] > float(figure["bound"].split()[1])
    return (
        f"{words}; so does its counterpart with {number(figure['counterpart'])}: the machine is busy"
        if beside
        else words
    )


def number(value: float) -> str:
    """Three digits are all that a measurement on a shared machine is worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(rows: Rows) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def summary(benchmarks: list[dict[str, Any]], figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What every session that measures writes."""
    return {
        "server": servers(benchmarks),
        "figures": [
            {
                "name": figure["name"], "value": figure["ours"], "unit": figure["unit"], "bound": figure["bound"],
                "ok": figure["ok"], "counterpart": figure["counterpart"], "against": figure["against"],
                "ratio": figure["ratio"],
            }
            for figure in figures
        ],
    }  # fmt: skip


def write(document: Path, facts: list[str], figures: list[dict[str, Any]]) -> None:
    """Replace what stands between the markers of the document."""
    head, found, rest = document.read_text(encoding="utf-8").partition(START)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        sys.exit(f"bench: {document} has no {START} ... {END} to put the table between")
    cells = [COLUMNS, ("---",) * len(COLUMNS), *map(row, figures)]
    lines = [*(f"- {fact}" for fact in facts), "", *("| " + " | ".join(each) + " |" for each in cells)]
    document.write_text("\n".join([f"{head}{START}", *lines, f"{END}{tail}"]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
