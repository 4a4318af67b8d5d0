"""A load run over several Locust processes is the same run: the same totals, histograms that add up, and nobody's death
loses or doubles a job."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from loads import Load
from waiting import until

from pgqueue_ref.harness.server import free_port
from pgqueue_ref.harness.slo import Exit


@pytest.fixture
def load(database: str, tmp_path: Path) -> Load:
    return Load(database, tmp_path)


@pytest.fixture
def fleet(load: Load) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[subprocess.Popen[str]]]]]:
    """`fleet(*options)`: a master and its two load workers, started by hand as on several machines."""
    workers: list[subprocess.Popen[str]] = []

    def fleet(*options: str) -> tuple[subprocess.Popen[str], list[subprocess.Popen[str]]]:
        port = free_port()
        binding = ("--master-bind-host", "127.0.0.1", "--master-bind-port", str(port))
        master = load.start("--master", *binding, "--expect-workers", "2", *options)
        workers.extend(load.start_load_worker(port) for _ in range(2))
        return master, workers

    yield fleet
    for worker in workers:
        worker.kill()
        worker.communicate()


def histogram_count(load: Load, name: str) -> int:
    """How many latencies the run saved under a name."""
    (directory,) = load.directories()
    reader = HistogramLogReader(str(directory / "histograms" / f"{name}.hlog"), HdrHistogram(1, 3_600_000_000, 2))
    count = 0
    while (interval := reader.get_next_interval_histogram()) is not None:
        count += interval.get_total_count()
    reader.close()
    return count


@pytest.mark.parametrize("kind", ["--processes", "--master/--worker"])
def test_two_load_workers_push_what_one_would(load: Load, fleet: Callable, kind: str) -> None:
    process = load.start("--processes", "2") if kind == "--processes" else fleet()[0]
    output, _ = process.communicate(timeout=120)
    assert process.returncode == Exit.PASS, output
    result = load.result()
    assert (result["arrivals"]["offered"], result["arrivals"]["achieved"]) == (150, 150)
    assert (result["ledger"]["lost"], result["ledger"]["unexpected"], result["ledger"]["duplicated"]) == (0, 0, 0)
    assert result["generator"]["begun_each"] == [75, 75]
    for name in ("push", "start"):
        assert result["latency"][name]["count"] == histogram_count(load, name) == 150
    assert load.schemas() == []


def test_what_a_killed_load_worker_leaves_is_pushed_by_the_other_and_the_run_is_invalid(
    load: Load, fleet: Callable
) -> None:
    master, (victim, _) = fleet("--speedup", "0.3")  # ten seconds: Locust takes four to miss somebody

    def pushed() -> bool:
        with psycopg.connect(load.database) as connection:
            for schema in load.schemas():
                if connection.execute("SELECT to_regclass(%s)", (f"{schema}.loadtest_pushed",)).fetchone() != (None,):
                    find = f"SELECT count(*) FROM {schema}.loadtest_pushed WHERE measured"
                    return connection.execute(find).fetchone() > (9,)
        return False

    until(pushed, "the load has begun")
    victim.send_signal(signal.SIGKILL)
    output, _ = master.communicate(timeout=120)
    assert master.returncode == Exit.INVALID, output
    (verdict,) = [line for line in output.splitlines() if line.startswith("FAIL")]
    assert verdict.startswith("FAIL steady (exit 4): load worker ")
    assert " died; " in verdict
    assert ";" not in verdict.partition(" died; ")[2], "that is all that is wrong"
    result = load.result()
    assert (result["arrivals"]["offered"], result["arrivals"]["achieved"]) == (150, 150)
    assert (result["ledger"]["lost"], result["ledger"]["unexpected"], result["ledger"]["duplicated"]) == (0, 0, 0)
    assert result["latency"]["start"]["count"] == 150
    assert max(result["generator"]["begun_each"]) > 75
    (schema,) = load.schemas()  # left for inspection
    with psycopg.connect(load.database) as connection:
        jobs = connection.execute(
            f"SELECT count(*), count(DISTINCT external_key) FROM {schema}.pgqueue_jobs"
            " WHERE external_key LIKE 'arrival-%'"
        ).fetchone()
    assert jobs == (150, 150)
