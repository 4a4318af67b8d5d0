"""Job traces: which jobs arrive when, and for how long each of them works.

Reads the Standard Workload Format (SWF, the format of the Parallel Workloads Archive) and CSV files with the
columns `at,duration,kind`, both plain or gzipped. A file is read whole and checked before anything is
started, so a broken file costs one line (`TraceError`: file, line, what is wrong, what to do).

The load run calls `load` and `scale`; people call the converter:
`python -m pgqueue_ref.harness.traces convert log.swf.gz jobs.csv.gz`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

SHIPPED = Path(__file__).parent / "data" / "nasa-ipsc-1993.csv.gz"
COLUMNS = ("at", "duration", "kind")
SWF_FIELDS = 18
# Upper bound of processors -> kind. The log's jobs use 1 to 128 processors, always a power of two.
SIZE_CLASSES = ((1, "serial"), (8, "small"), (32, "medium"))
LARGEST_CLASS = "large"
_GZIP_MAGIC = b"\x1f\x8b"


class TraceError(ValueError):
    """A trace that cannot be used. Its text is one line for people: file, line, what is wrong, what to do."""


class Arrival(NamedTuple):
    """One job of a trace. `at` and `duration` are seconds, `at` counted from the start of the trace."""

    at: float
    duration: float
    kind: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in order of time, with where they came from.

    `credits` are the acknowledgements the file carries; whoever shows a figure made from it shows them.
    `unusable` counts jobs that the log lists without a submit or a run time.
    """

    name: str
    arrivals: tuple[Arrival, ...]
    credits: tuple[str, ...] = ()
    unusable: int = 0

    @property
    def span(self) -> float:
        """Seconds from the start of the trace to its last arrival."""
        return self.arrivals[-1].at

    @property
    def kinds(self) -> dict[str, int]:
        """Jobs per kind, most frequent first."""
        return dict(Counter(arrival.kind for arrival in self.arrivals).most_common())


def load(path: str | os.PathLike[str]) -> Trace:
    """Read an SWF or CSV trace; the first arrival is at 0. Raises `TraceError`.

    The format is told from the name (`.swf`, `.csv`, either with `.gz`), else from the first line.
    """
    file = Path(path)
    text = _text(file)
    if not text.strip():
        raise TraceError(f"{file}: the file is empty; give SWF, or CSV with columns {','.join(COLUMNS)}")
    stem = file.name.removesuffix(".gz")
    is_swf = stem.endswith(".swf") or (not stem.endswith(".csv") and text.lstrip()[0] in ";0123456789")
    arrivals, thanks, unusable = _read_swf(file, text) if is_swf else _read_csv(file, text)
    if not arrivals:
        raise TraceError(f"{file}: no usable job in it; give a log with submit and run times")
    arrivals.sort(key=lambda arrival: arrival.at)
    start = arrivals[0].at
    shifted = tuple(arrival._replace(at=arrival.at - start) for arrival in arrivals)
    return Trace(file.name, shifted, tuple(thanks), unusable)


def window(trace: Trace, start: float = 0.0, end: float = math.inf) -> Trace:
    """The part of a trace with `start <= at < end` (seconds), moved to begin at 0. Raises `TraceError`."""
    kept = tuple(a._replace(at=a.at - start) for a in trace.arrivals if start <= a.at < end)
    if not kept:
        raise TraceError(f"{trace.name}: no job between {start:g} s and {end:g} s; the trace lasts {trace.span:.0f} s")
    return replace(trace, arrivals=kept)


def scale(trace: Trace, *, speedup: float, duration_scale: float) -> Trace:
    """Divide arrival times by `speedup` and multiply durations by `duration_scale`. Raises `TraceError`.

    With `duration_scale = 1 / speedup` the load keeps its shape: as many jobs at work at once as in the log.
    """
    if not (speedup > 0 and math.isfinite(speedup)):
        raise TraceError(f"speedup must be a positive number, not {speedup:g}")
    if not (duration_scale >= 0 and math.isfinite(duration_scale)):
        raise TraceError(f"duration scale must be 0 or a positive number, not {duration_scale:g}")
    scaled = tuple(Arrival(a.at / speedup, a.duration * duration_scale, a.kind) for a in trace.arrivals)
    return replace(trace, arrivals=scaled)


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds(text: str) -> float:
    """`90`, `90s`, `15m`, `6h`, `28d`, `4w` -> seconds. Raises `TraceError`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smhdw]?)", text.strip())
    if match is None:
        raise TraceError(f"{text!r} is not a time; write a number with a unit s, m, h, d or w, such as 28d")
    return float(match[1]) * _UNITS[match[2]]


def _text(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise TraceError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(f"{file}: the gzip data is cut off or damaged; fetch the file again") from error
    elif file.suffix == ".gz" and raw:
        raise TraceError(f"{file}: named .gz but not gzip data; fetch it again, or drop .gz from its name")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def _read_swf(file: Path, text: str) -> tuple[list[Arrival], list[str], int]:
    arrivals: list[Arrival] = []
    header: list[str] = []
    unusable = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if line.startswith(";"):
            header.append(line[1:].strip())
            continue
        if len(fields) != SWF_FIELDS:
            raise TraceError(
                f"{file}, line {number}: {len(fields)} fields instead of the {SWF_FIELDS} of SWF; "
                "the file is cut off or not SWF: fetch it again"
            )
        numbers = _numbers(file, number, fields)
        at, duration, processors = numbers[1], numbers[3], numbers[4] if numbers[4] > 0 else numbers[7]
        if at < 0 or duration < 0:  # -1 is SWF's "unknown"
            unusable += 1
            continue
        arrivals.append(Arrival(at, duration, _size_class(processors)))
    return arrivals, _swf_credits(header), unusable


def _numbers(file: Path, line: int, fields: Sequence[str]) -> list[float]:
    values = []
    for position, field in enumerate(fields, start=1):
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise TraceError(
                f"{file}, line {line}: field {position} is {field[:40]!r}, not a number; "
                "the file is cut off or not SWF: fetch it again"
            )
        values.append(value)
    return values


def _size_class(processors: float) -> str:
    if processors <= 0:
        return "unknown"
    return next((name for most, name in SIZE_CLASSES if processors <= most), LARGEST_CLASS)


def _swf_credits(header: Iterable[str]) -> list[str]:
    wanted = ("Computer", "Installation", "Acknowledge", "Information", "Conversion")
    found = [line for line in header if line.partition(":")[0] in wanted]
    if found:
        found.append("Source: Parallel Workloads Archive, Hebrew University of Jerusalem (Dror Feitelson)")
    return [re.sub(r"\s+", " ", line) for line in found]


def _read_csv(file: Path, text: str) -> tuple[list[Arrival], list[str], int]:
    thanks: list[str] = []
    rows = csv.reader(_without_comments(text, thanks), strict=True)
    arrivals: list[Arrival] = []
    where: list[int] | None = None
    names: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            raise TraceError(f"{file}, line {rows.line_num}: not CSV ({error}); quote it properly") from error
        if not row:
            continue
        if where is None:
            names = [name.strip() for name in row]
            missing = [column for column in COLUMNS if column not in names]
            if missing:
                raise TraceError(
                    f"{file}, line {rows.line_num}: no column {', '.join(missing)}; "
                    f"the first line must name the columns {','.join(COLUMNS)}"
                )
            where = [names.index(column) for column in COLUMNS]
            continue
        if len(row) != len(names):
            raise TraceError(
                f"{file}, line {rows.line_num}: {len(row)} values under {len(names)} columns; "
                "the file is cut off or a comma is missing: complete or remove the line"
            )
        arrivals.append(_csv_arrival(file, rows.line_num, *(row[i] for i in where)))
    return arrivals, thanks, 0


def _without_comments(text: str, comments: list[str]) -> Iterator[str]:
    """Lines of `text`; leading `#` lines go to `comments` and are passed on empty: line numbers stay true."""
    leading = True
    for line in io.StringIO(text, newline=""):
        if leading and line.startswith("#"):
            comments.append(line[1:].strip())
            yield "\n"
            continue
        leading = leading and not line.strip()
        yield line


def _csv_arrival(file: Path, line: int, at: str, duration: str, kind: str) -> Arrival:
    values = []
    for column, text in (("at", at), ("duration", duration)):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise TraceError(
                f"{file}, line {line}: {column} is {text[:40]!r}; it must be a number of seconds, 0 or more"
            )
        values.append(value)
    name = kind.strip()
    if not re.fullmatch(r"[\w.:-]{1,100}", name):
        raise TraceError(f"{file}, line {line}: kind is {kind[:40]!r}; it must be 1 to 100 letters, digits, or _ . : -")
    return Arrival(values[0], values[1], name)


def write_csv(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace as CSV, gzipped if the name ends in `.gz`: whole or not at all. Raises `TraceError`."""
    file = Path(path)
    lines = [f"# {credit}" for credit in trace.credits] + [",".join(COLUMNS)]
    lines += [f"{a.at:.10g},{a.duration:.10g},{a.kind}" for a in trace.arrivals]
    data = ("\n".join(lines) + "\n").encode()
    if file.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # no time stamp inside: the same trace gives the same bytes
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(data)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TraceError(f"{file}: cannot be written ({error.strerror}); choose another place") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The converter's command line: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m pgqueue_ref.harness.traces", description="Job traces.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="SWF or CSV in, CSV with columns at,duration,kind out")
    convert.add_argument("source", help="SWF or CSV file, plain or gzipped")
    convert.add_argument("target", help="CSV file to write; gzipped if it ends in .gz")
    convert.add_argument("--from", dest="start", default="0", help="drop what arrives before, e.g. 7d")
    convert.add_argument("--to", dest="end", default=None, help="drop what arrives from then on, e.g. 35d")
    options = parser.parse_args(argv)
    try:
        end = seconds(options.end) if options.end else math.inf
        trace = window(load(options.source), seconds(options.start), end)
        write_csv(trace, options.target)
    except TraceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    left_out = f", {trace.unusable} without times left out" if trace.unusable else ""
    kinds = ", ".join(f"{kind} {count}" for kind, count in trace.kinds.items())
    days = trace.span / 86400
    sys.stdout.write(f"{options.target}: {len(trace.arrivals)} jobs in {days:.1f} days ({kinds}){left_out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
