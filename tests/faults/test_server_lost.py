"""The database goes away in the middle of a drain: the worker waits, reconnects, loses nothing."""

import signal

import psycopg
from waiting import until

from pgqueue_ref.core import SCHEMA_SQL


def test_a_worker_outlives_a_crash_and_an_immediate_shutdown_of_the_server(provisioned, bench_on, launch) -> None:
    with provisioned("embedded") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(SCHEMA_SQL)
        bench = bench_on(server.dsn)
        bench.push("work", 2000, payload=0.02)
        worker = launch(server.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "20")
        for share, fail in ((100, server.kill), (700, server.quit)):
            until(lambda: bench.count("succeeded") >= share, "the drain goes on")  # noqa: B023 - asked at once
            fail()
            broken = worker.log().count("next try in")
            until(lambda: worker.log().count("next try in") > broken, "the worker notices")  # noqa: B023
            server.start()
        until(lambda: bench.count("succeeded") == 2000, "all jobs run")
        found = bench.ledger()
        assert (found.lost, found.unexpected, found.undrained, found.completed) == (0, 0, 0, 2000)
        assert bench.most_effects_of_an_attempt() == 1
        worker.signal(signal.SIGTERM)
        assert worker.ends() == 0


def test_a_worker_outlives_the_loss_of_each_of_its_connections(bench, launch) -> None:
    bench.push("work", 3000, payload=0.02)
    worker = launch(bench.dsn, "w", "--lease", "2", "--max-concurrent-jobs", "20")
    for name in ("claim", "write", "listen", "claim", "write"):
        done = bench.count("succeeded")
        until(lambda: bench.count("succeeded") > done + 50, "the drain goes on")  # noqa: B023 - asked at once
        terminate = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s"
        )
        until(lambda: bench.query(terminate, f"pgqueue_ref:{name}"), f"its {name} connection is ended")  # noqa: B023
    until(lambda: bench.count("succeeded") == 3000, "all jobs run")
    found = bench.ledger()
    assert (found.lost, found.unexpected, found.undrained, found.completed) == (0, 0, 0, 3000)
    assert bench.most_effects_of_an_attempt() == 1
    complaints = [line for line in worker.log().splitlines() if "next try in" in line]
    assert all("connection failed or lost" in line for line in complaints), complaints
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0
