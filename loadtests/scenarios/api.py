from __future__ import annotations

import math
import secrets
import time
from urllib.parse import urlsplit

from pgqueue_ref.harness.api_producer import Api
from pgqueue_ref.harness.ledger import Connection
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

ACTIVE = "SELECT count(*) FROM pgqueue_jobs WHERE queue = 'default' AND status IN ('pending', 'blocked', 'running')"
HELD = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:api' AND datname = current_database()
"""
DOWN_AFTER = 3.0  # seconds of the phase in which the API is killed


class RestApi(Scenario):
    """Jobs are pushed through the REST API; clients wait while the queue is full, and ask again when no answer comes.

    `pgqueue-ref api` runs as a process of its own, with a token and with `limit` as its bound. Three phases: load that
    fits; a burst of `burst` times what the slots can serve, in which the API answers 429 and clients come back when
    `Retry-After` says; and load during which the API is killed and started again, so that clients lose answers and send
    their requests again. Every job is pushed in the end, once.
    """

    name = "api"
    quick = {"seconds": 30.0, "burst_seconds": 6.0, "down_seconds": 10.0}
    positive = (*Scenario.positive, "seconds", "burst_seconds", "down_seconds", "service", "limit", "pool")
    tolerates = ("QueueBusy", "ApiUnavailable")
    seconds = 300.0  # of the load that fits
    burst_seconds = 20.0
    down_seconds = 30.0  # of the load during which the API is killed
    slots = 4  # in each worker
    service = 0.2  # seconds; the burst is then a hundred requests a second, which a busy machine answers as well
    limit = 24  # jobs not terminal
    load = 0.5  # of what the slots can serve
    burst = 2.5  # the same
    pool = 5  # connections that the API keeps, and as many again while requests wait
    host = "127.0.0.1"  # where the API listens; for load workers on other machines one that they reach

    def set_up(self, run: LoadRun) -> None:
        self._token = secrets.token_urlsafe(24)
        address = self._start(run, 0)
        self._port = urlsplit(address).port or 0
        self.api = Api(address, self._token)

    def _start(self, run: LoadRun, port: int) -> str:
        options = {"--host": self.host, "--port": port, "--max-in-flight-jobs": self.limit,
                   "--pool-size": self.pool, "--max-overflow": self.pool}  # fmt: skip
        return str(run.start_api(self._token, *(str(word) for pair in options.items() for word in pair)).address)

    def play(self, run: LoadRun) -> None:
        self._capacity = self.workers * self.slots / self.service
        self._most_active = self._most_held = self._looks = 0
        with run.watching(self._look, every=0.02):
            self._offer(run, "fits", self.load, self.seconds)
            self._offer(run, "burst", self.burst, self.burst_seconds)
        with run.watching(self._count, every=0.02):  # the server needs a moment to notice that the killed API is gone
            killer = run.spawn(self._kill, run)
            self._offer(run, "restart", self.load, self.down_seconds)
            killer.join()

    def _offer(self, run: LoadRun, name: str, load: float, seconds: float) -> None:
        draw = service(f"fixed:{self.service}", self.random)
        arrivals = poisson(load * self._capacity, seconds, draw, self.random)
        before = run.generators.tally().refused
        run.offer(arrivals, name)
        run.wait_drained(self.drain_timeout)
        refused = run.generators.tally().refused - before
        run.found(f"{name}_busy", refused["ApiBusy"], "answers", f"of 429 in the phase {name}")
        run.found(f"{name}_unanswered", refused["ApiUnavailable"], "requests", f"without an answer in the phase {name}")

    def _kill(self, run: LoadRun) -> None:
        """As a machine dies: whatever it had under way is cut. The next one takes over its address."""
        time.sleep(min(DOWN_AFTER, self.down_seconds / 2))
        with run.undisturbed():  # an API that finds no database when it starts ends, as it should
            (api,) = run.apis
            api.excused = True
            api.kill()
            self._start(run, self._port)

    def _count(self, connection: Connection) -> None:
        (active,) = connection.execute(ACTIVE).fetchone() or (math.inf,)
        self._most_active, self._looks = max(self._most_active, active), self._looks + 1

    def _look(self, connection: Connection) -> None:
        self._count(connection)
        (held,) = connection.execute(HELD).fetchone() or (math.inf,)
        self._most_held = max(self._most_held, held)

    def judge(self, run: LoadRun) -> None:
        fits, burst, _ = run.measured.phases
        start = run.start_latency(fits)
        pushes = run.measured.request_latencies["push"].between(fits.at, fits.until)
        run.found("start_p99_ms", start["p99_ms"], "ms", "from the intended instant to the start, of load that fits")
        run.found("push_p99_ms", pushes["p99_ms"], "ms", "from the intended instant to the answer, of load that fits")
        run.found("pushes", pushes["count"], "jobs", "of load that fits")
        finished = [at + end for at, _, end in run.measured.latencies]
        last = max((at for at in finished if burst.at <= at < burst.until), default=math.inf)
        served = sum(burst.at <= at <= last for at in finished) / (last - burst.at)
        run.found(
            "goodput_ratio", served / self._capacity, "", "jobs finished in the burst, of what the slots can serve"
        )
        run.found("above_limit", max(0, self._most_active - self.limit), "jobs", "most active beyond the limit")
        run.found("snapshots", self._looks, "", "in which the active jobs were counted")
        run.found("connections", self._most_held, "connections", f"that the API held; its pool lends {2 * self.pool}")
        run.found("connections_beyond", max(0, self._most_held - 2 * self.pool), "connections", "beyond the pool")
