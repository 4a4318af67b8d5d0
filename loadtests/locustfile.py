"""`locust -f loadtests --scenario NAME` plays a scenario against the queue and judges what it did.

Needs pgqueue-ref[load]. With --headless it prints a verdict and ends with its exit code; without, Locust's
web page starts and stops runs. Scenarios are in the folder beside, one in a file. Options:
`locust -f loadtests --help`, group "pgqueue_ref load run".
"""

from __future__ import annotations

from pathlib import Path

from locust import LoadTestShape, User, task
from locust.exception import StopUser

# Locust patches the standard library on import; psycopg, which the next import brings, must find it patched.
from pgqueue_ref.harness import plugin

session = plugin.install(Path(__file__).resolve().parent.parent)


class Producer(User):
    """A connection that pushes arrivals when the clock says so; Locust counts them as requests."""

    def on_start(self) -> None:
        try:
            self.producer = session.producer()
        except Exception as error:
            session.abort(error)
            raise StopUser from error

    def on_stop(self) -> None:
        if hasattr(self, "producer"):
            self.producer.close()

    @task
    def arrival(self) -> None:
        if not session.produce(self.producer):
            raise StopUser


class Script(LoadTestShape):
    """All producers at once, until the scenario has played; its arrival clock makes the load."""

    def tick(self) -> tuple[int, float] | None:
        if session.run is not None and self.runner.state != "ready" and session.ended:
            return None
        return session.producers, session.producers
