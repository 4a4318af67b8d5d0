"""The faults of a chaos run, by name. Each breaks something, waits, mends it, and says which workers it hit: none where
there was nothing to break."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import psycopg
from fleet import LEASE, Fleet

DOWN = 1.0  # seconds until what died is started again
RETURN = 10.0  # seconds until the workers are connected again after the fault before, at most
SHORT, LONG = 2.0, LEASE + 2  # seconds: within the leases of what is hit, and past them

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %s
"""

Victims = list[str]


def kill_worker(fleet: Fleet, choice: random.Random) -> Victims:
    number = choice.randrange(len(fleet.workers))
    victim = fleet.workers[number]
    victim.excused = True
    victim.kill()
    time.sleep(DOWN)
    fleet.replace(number)
    return [f"pid-{victim.pid}"]


def stop_worker(fleet: Fleet, choice: random.Random) -> Victims:
    victim = choice.choice(fleet.workers)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        time.sleep(choice.choice((SHORT, LONG)))
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    return [f"pid-{victim.pid}"]


def terminate(name: str) -> Callable[[Fleet, random.Random], Victims]:
    """End every worker's connection of this name, whatever it does just now; wait for one if there is none."""

    def terminate(fleet: Fleet, choice: random.Random) -> Victims:
        until = time.monotonic() + RETURN
        with psycopg.connect(fleet.dsn, autocommit=True) as connection:
            while (True,) not in connection.execute(TERMINATE, (name,)).fetchall():
                if time.monotonic() > until:
                    return []
                time.sleep(0.1)
        return fleet.victims()

    return terminate


def crash_server(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.server.kill()
    time.sleep(DOWN)
    fleet.server.start()
    return fleet.victims()


def quit_server(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.server.quit()
    time.sleep(DOWN)
    fleet.server.start()
    return fleet.victims()


def cut_line(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.line.cut()
    time.sleep(choice.choice((SHORT, LONG)))
    fleet.line.mend()
    return fleet.victims("line")


def hold_line(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.line.hold()
    time.sleep(choice.choice((SHORT, LONG)))
    fleet.line.mend()
    return fleet.victims("line")


def lose_answers(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.line.hold_answers()
    time.sleep(0.1)
    fleet.line.reset()
    fleet.line.mend()
    return fleet.victims("line")


def half_open_line(fleet: Fleet, choice: random.Random) -> Victims:
    fleet.line.half_open()
    return fleet.victims("line")


def kill_pooler(fleet: Fleet, choice: random.Random) -> Victims:
    assert fleet.pool is not None
    fleet.pool.kill()
    time.sleep(DOWN)
    fleet.pool.start()
    return fleet.victims("pooler")


CATALOGUE: dict[str, Callable[[Fleet, random.Random], Victims]] = {
    "kill-worker": kill_worker,
    "stop-worker": stop_worker,
    "terminate-claims": terminate("pgqueue_ref:claim"),
    "terminate-writes": terminate("pgqueue_ref:write"),
    "terminate-listeners": terminate("pgqueue_ref:listen"),
    "terminate-handlers": terminate("chaos effects"),
    "crash-server": crash_server,
    "quit-server": quit_server,
    "cut-line": cut_line,
    "hold-line": hold_line,
    "lose-answers": lose_answers,
    "half-open-line": half_open_line,
    "kill-pooler": kill_pooler,
}


def possible(fleet: Fleet) -> tuple[list[str], dict[str, str]]:
    """The faults that can be injected here, and why the others cannot."""
    missing = {}
    if fleet.server.tier == "dsn":
        missing = dict.fromkeys(("crash-server", "quit-server"), "the server was given, not started here")
    if fleet.pool is None:
        missing["kill-pooler"] = "PgBouncer is not installed"
    return [name for name in CATALOGUE if name not in missing], missing


def order(names: list[str], choice: random.Random) -> Iterator[str]:
    """Without end: rounds of all of them, each round in an order of its own."""
    while True:
        yield from choice.sample(names, len(names))
