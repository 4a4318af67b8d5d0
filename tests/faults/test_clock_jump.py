"""The clock of a worker's machine jumps: nothing depends on it, since due times and leases are the database's."""

from __future__ import annotations

import signal

import pytest
from waiting import until

HOURS = {"an hour ahead": 3600, "an hour back": -3600, "ten years ahead": 315_360_000}

# A job moves the clock of its process, as NTP or an operator would: time.time() is all that Python has of it.
CLOCK = """

import datetime, time
true_time = time.time

class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)

@kinds.register("jump")
async def jump(job):
    time.time = lambda: true_time() + job.payload
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = Moved
    await record(job)
"""


@pytest.mark.parametrize("jump", HOURS.values(), ids=HOURS)
def test_a_jump_of_the_clock_loses_no_lease_and_delays_nothing(jump, bench, launch, tmp_path) -> None:
    app = tmp_path / "app.py"
    app.write_text(app.read_text() + CLOCK)
    bench.push("work", 20, payload=4.0)  # longer than the lease, which must be kept meanwhile
    worker = launch(bench.dsn, "w", "--lease", "3")
    until(lambda: bench.count("running") == 20, "all of them run")
    bench.push("jump", payload=jump)
    until(lambda: bench.count("succeeded") == 1, "the clock has jumped")
    assert f"{bench.query('SELECT extract(year FROM now())::int')[0][0]}" in worker.log()
    bench.push("fail-once", 5)
    bench.query("UPDATE pgqueue_jobs SET run_at = now() + interval '1 s' WHERE kind = 'fail-once' RETURNING id")
    until(lambda: bench.count("succeeded") == 26, "these, later ones and retries run")
    assert bench.attempts() == {("succeeded", 1), ("succeeded", 2)}
    spent = bench.query("SELECT DISTINCT kind, attempt FROM pgqueue_jobs ORDER BY 1")
    assert spent == [("fail-once", 2), ("jump", 1), ("work", 1)]
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.duplicated, found.completed) == (0, 0, 0, 26)
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0
    assert (worker.counts()["stale"], worker.counts()["rescued"]) == (0, 0)
