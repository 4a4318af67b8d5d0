from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgqueue_ref.core import ConnectionLimit, connect, conninfo
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.connections import WORKER, Slots, safe_workers
from pgqueue_ref.harness.faults import REPLACED_AFTER, Line
from pgqueue_ref.harness.processes import GRACE, WorkerProcess
from pgqueue_ref.harness.run import LEAD, LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service
from pgqueue_ref.harness.slo import Exit
from pgqueue_ref.harness.traces import Arrival
from pgqueue_ref.sqlalchemy import queue

PATIENCE = 60.0  # seconds for what should take a few
POOL_PATIENCE = 0.5  # seconds that a caller waits for a pool's connection
PROGRESS = 1  # connections that the run itself opens now and then, beyond those that it holds

# What the workers of the run hold.
HELD = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND application_name LIKE 'pgqueue_ref:%%'"
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE usename = %s AND application_name LIKE 'pgqueue_ref:%%'
"""

# In a worker's log: what it could not do, and the words of the errors that it may meet here.
COMPLAINT = re.compile(r"^(?:pgqueue-ref: |Traceback|.* failed, next try in |.* (?:ERROR|CRITICAL) ).*$", re.MULTILINE)
# A failed attempt with its traceback: after a crash of the server the connection of the handlers themselves is dead.
ATTEMPT = re.compile(r"^.* job \d+ .* failed\nTraceback .*$", re.MULTILINE)
REFUSED = "no free connection"
CLASSIFIED = (REFUSED, "connection failed or lost")


class Others:
    """What other applications hold: as many connections as leave a wanted number of slots to ordinary roles."""

    def __init__(self, connect: Callable[[], ledger.Connection]) -> None:
        self._connect = connect
        self._held: list[ledger.Connection] = []

    def leave(self, watch: ledger.Connection, free: int) -> Slots:
        """Hold more or fewer, until so many slots are free. Raises `TimeoutError`."""
        deadline, settled = time.monotonic() + PATIENCE, False
        while time.monotonic() < deadline:
            slots = Slots.read(watch)
            if slots.free == free and settled:
                return slots
            settled = slots.free == free
            if slots.free > free:
                self._held.append(self._connect())
            elif slots.free < free and self._held:
                self._held.pop().close()
            # A backend needs a moment to go; one that writes a line of progress is gone at the second look.
            time.sleep(0.5 if settled else 0.01)
        raise TimeoutError(f"{slots.free} connection slots are free, not {free}: something else uses the server")

    def take_all(self) -> None:
        """Hold whatever is free."""
        with contextlib.suppress(ConnectionLimit):
            while True:
                self._held.append(self._connect())

    def close(self) -> None:
        """Give all back."""
        while self._held:
            self._held.pop().close()


class Connections(Scenario):
    """More connections are wanted than the server has: by workers, by pools, by a deployment. Nothing is lost.

    The server has few connections, other applications hold as many of them as leave room for a planned number of
    workers, or of pools. The formula (harness.connections) says how many fit: that many are started and must have all
    their connections, one more must not. Then a deployment starts all workers anew before the old ones stop, first
    without room for both generations, where supervisors start again what was refused, then with the room that the
    formula asks for. Then more pools than fit push jobs, and the workers' connections are cut and taken by others:
    workers wait, come back when there is room, and lose nothing. Workers and pools are of an ordinary role; the ledger
    and the sampler are of the superuser, for whom slots are reserved. `--set per_worker=2` shows what the scenario says
    of a formula that promises too much. Faults come between the phases in which connections are counted, and in the
    last one, in which they are not.
    """

    name = "connection-limit"
    quick = {"seconds": 5.0, "crowd": 8.0}
    positive = (*Scenario.positive, "workers", "per_worker", "pools", "pool", "crowd", "seconds", "rate")
    server_settings = {"max_connections": "70", "superuser_reserved_connections": "12"}
    per_worker = WORKER  # connections that the formula takes a worker for
    pools = 2  # of SQLAlchemy, that fit
    pool = 15  # connections of each at most: pool_size + max_overflow
    overlap = 4.0  # seconds for which both generations of a deployment are there, at least
    crowd = 30.0  # seconds of more pools than fit
    seconds = 20.0  # of arrivals in each phase, at least
    rate = 20.0  # jobs/s
    service = "exp:0.05"  # seconds
    slots = 16  # in each worker
    producers = 8
    lease = 60.0  # longer than workers are kept out: nothing has to run twice

    def set_up(self, run: LoadRun) -> None:
        """An ordinary role for everything but the harness: a superuser would be given the reserved slots."""
        self._role, password = run.schema, secrets.token_urlsafe(16)
        role, schema = sql.Identifier(self._role), sql.Identifier(run.schema)
        with run.connect("loadtest role") as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
            connection.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}").format(schema, role))
        self._dsn = make_conninfo(run.server.dsn, user=self._role, password=password)
        self.environment = {"PGQUEUE_DATABASE_URL": self._dsn, "PGQUEUE_LOADTEST_LEDGER": run.server.dsn}

    def play(self, run: LoadRun) -> None:
        self._refused: Counter[str] = Counter()  # callers of pools who got no connection, by who said so
        self._unclassified: list[str] = []
        self._turns = itertools.count()  # of keeping the workers busy
        self._count = self.workers + 1  # workers that fit
        with contextlib.ExitStack() as stack:
            with run.undisturbed():
                self._watch = stack.enter_context(contextlib.closing(Line(lambda: run.connect("loadtest watch"))))
            self._others = stack.enter_context(contextlib.closing(Others(lambda: self._open(run, "loadtest others"))))
            self._phase(run, "workers", self._fit_workers)
            self._phase(run, "deploy without room", self._deploy_without_room)
            self._phase(run, "deploy with room", self._deploy_with_room)
            self._phase(run, "pools", self._fit_pools)
            self._phase(run, "crowd", self._crowd, self.crowd)
        run.offer(self._arrivals(self.seconds), "after")

    def _phase(self, run: LoadRun, name: str, script: Callable[[LoadRun], None], seconds: float | None = None) -> None:
        """Do what `script` says while jobs arrive."""
        with run.undisturbed():
            if run.measured.faults:
                self._watch.renew()
                self._keep_busy(run, run.elapsed() + PATIENCE)
            load = run.spawn(run.offer, self._arrivals(seconds or self.seconds), name)
            time.sleep(LEAD)
            script(run)
            load.join()
            if run.settings.faults:
                self._others.close()  # what starts in the place of a worker that is killed needs room

    def _arrivals(self, seconds: float) -> list[Arrival]:
        return poisson(self.rate, seconds, service(self.service, self.random), self.random)

    def _open(self, run: LoadRun, name: str) -> ledger.Connection:
        """A connection of the ordinary role."""
        return connect(self._dsn, schema=run.schema, application_name=name)

    # -- workers ------------------------------------------------------------------------------------------

    def _fit_workers(self, run: LoadRun) -> None:
        """Start as many workers as the formula promises, then one more."""
        # What the new worker's handlers write the ledger with is the harness's, not the worker's.
        room = WORKER * (self._count - self.workers)
        slots, others = self._make_room(room, coming=1, ours=WORKER * self.workers)
        promised = safe_workers(
            slots.max_connections, reserved=slots.reserved, others=others, per_worker=self.per_worker
        )
        run.found("workers_promised", promised, "workers", f"{_formula(slots, others)} / {self.per_worker}")
        missing = sum(self._start(run, number) for number in range(self.workers + 1, promised + 1))
        run.found("workers_missing", missing, "connections", "that this many workers wanted and did not get")
        missing = self._start(run, promised + 1)
        run.found("workers_beyond_missing", missing, "connections", "that one worker more wanted and did not get")

    def _make_room(self, free: int, *, coming: int = 0, ours: int = 0) -> tuple[Slots, int]:
        """Leave so many slots. Returns the server's and how many are taken by others when most of them are.

        `coming` are connections of the harness that are not there yet, `ours` those that are there and no others.
        """
        slots = self._others.leave(self._watch.connection, free + coming + PROGRESS)
        return slots, slots.used + coming + PROGRESS - ours

    def _start(self, run: LoadRun, number: int) -> int:
        """Start the worker that makes them `number`. Returns how many of their connections it could not get."""
        worker = run.start_worker()
        worker.excused = True  # until it has what it needs
        _wait(run, lambda: self._held() >= WORKER * number or REFUSED in _log(worker))
        missing = max(0, WORKER * number - self._held())
        if missing:
            run.workers.remove(worker)
            worker.ask_to_stop()
            worker.wait(GRACE + 15, drained=False)
        else:
            worker.excused = False
        return missing

    def _held(self) -> int:
        (held,) = self._watch.connection.execute(HELD, (self._role,)).fetchone() or (0,)
        return int(held)

    def _deploy_without_room(self, run: LoadRun) -> None:
        self._make_room(0)
        before = _refusals(run)
        took = self._deploy(run)
        refused = _refusals(run) - before
        run.found("surge_refused", refused, "tries", "of new workers to connect, while the old ones were there")
        run.found("surge_recovered", took, "s", "from the signal to the old workers until the new ones had everything")

    def _deploy_with_room(self, run: LoadRun) -> None:
        ours = WORKER * self._count
        slots, others = self._make_room(ours, coming=self._count, ours=ours)
        promised = safe_workers(slots.max_connections, reserved=slots.reserved, others=others, surge=2.0)
        before = _refusals(run)
        self._deploy(run)
        refused = _refusals(run) - before
        run.found("surge_promised", promised, "workers", f"{_formula(slots, others)} / {WORKER} / a surge of 2")
        run.found("surge_with_room_refused", refused, "tries", f"of new workers, when {self._count} are replaced")

    def _deploy(self, run: LoadRun) -> float:
        """Start every worker anew, then stop the old ones. Returns seconds from there until all is as before."""
        old, tried = list(run.workers), Counter[int]()
        new = [run.spawn(self._supervise, run, tried, number) for number in range(len(old))]
        time.sleep(self.overlap)
        _wait(run, lambda: len(tried) == len(old))
        run.workers[:] = [worker for worker in run.workers if worker not in old]
        began = run.elapsed()
        for worker in old:
            worker.ask_to_stop()
        for worker in old:
            if line := worker.wait(GRACE + 15, drained=False):
                run.incident(Exit.CRASH_OR_USAGE, line)
        for thread in new:
            thread.join()
        _wait(run, lambda: self._held() == WORKER * self._count)
        return run.elapsed() - began

    def _supervise(self, run: LoadRun, tried: Counter[int], number: int) -> None:
        """Start a worker, again a second later when it ended at once, as a supervisor does; count the tries."""
        while True:
            run.check()
            worker = run.start_worker()
            worker.excused = True
            _wait(run, lambda worker=worker: worker.process.poll() is not None or worker.started)
            tried[number] += 1
            if worker.process.poll() is None:
                worker.excused = False
                return
            run.workers.remove(worker)
            time.sleep(REPLACED_AFTER)

    # -- pools --------------------------------------------------------------------------------------------

    def _fit_pools(self, run: LoadRun) -> None:
        """Take every connection of as many pools as the formula promises, then of one more."""
        slots, others = self._make_room(self.pool * self.pools)
        promised = safe_workers(slots.max_connections, reserved=slots.reserved, others=others, per_worker=self.pool)
        enough = threading.Event()
        pools = [Pool(run, self._dsn, self.pool) for _ in range(promised + 1)]
        try:
            refused = [self._take(run, pool, self.pool, enough) for pool in pools]
            self._take(run, pools[0], 1, enough)  # its last connection is lent
        finally:  # also when the run is stopped: nobody waits for ever
            enough.set()
        for pool in pools:
            pool.close()
        run.found("pools_promised", promised, "pools", f"{_formula(slots, others)} / {self.pool}")
        run.found("pools_refused", sum(refused[:-1]), "callers", "of this many pools, a caller for each connection")
        run.found("pools_beyond_refused", refused[-1], "callers", "of one pool more")

    def _take(self, run: LoadRun, pool: Pool, callers: int, enough: threading.Event) -> int:
        """Have callers push and keep their transactions open until `enough`. Returns how many got no connection."""
        before, got = self._refused.total(), []

        def keep() -> None:
            got.append(True)
            enough.wait()

        for _ in range(callers):
            pool.callers.append(run.spawn(self._push, pool, f"pool-{secrets.token_hex(8)}", keep))
        _wait(run, lambda: len(got) + self._refused.total() - before >= callers)
        return self._refused.total() - before

    def _push(self, pool: Pool, key: str, during: Callable[[], object]) -> bool:
        """Whether there was no connection for it, so that it is worth another try."""
        try:
            pool.push(key, during)
        except ConnectionLimit as error:
            self._refused["pool" if str(error).startswith("the pool") else "server"] += 1
            return True
        except Exception as error:  # noqa: BLE001  # whatever it is, it should have been the other
            self._unclassified.append(f"{type(error).__name__}: {error}")
        return False

    def _crowd(self, run: LoadRun) -> None:
        """More pools than fit push jobs. The workers lose their connections, and others take them."""
        self._others.close()
        until = run.elapsed() + self.crowd
        pools = [Pool(run, self._dsn, self.pool) for _ in range(self.pools + 1)]
        for number, pool in enumerate(pools):
            # Some more than it has connections for.
            callers = [f"crowd-{number}-{caller}" for caller in range(self.pool + 3)]
            pool.callers += [run.spawn(self._push_on, run, pool, name, until) for name in callers]
        time.sleep(1.0)
        before, began = _refusals(run), run.elapsed()
        self._watch.connection.execute(CUT, (self._role,))
        self._others.take_all()
        time.sleep(max(0.0, until - run.elapsed()))
        refused, seconds = _refusals(run) - before, run.elapsed() - began
        self._others.close()
        left = run.elapsed()
        for pool in pools:
            pool.close()
        self._keep_busy(run, left + PATIENCE)
        run.found("recovered", run.elapsed() - left, "s", "from the end of the crowd until workers had everything")
        run.found("workers_refused", refused, "tries", "of workers to connect, while there was no room for them")
        rate = refused / self._count / seconds
        run.found("workers_retry_rate", rate, "1/s", "the same, for each worker and second")

    def _keep_busy(self, run: LoadRun, until: float) -> None:
        """Push jobs for all workers until all are connected: one that has nothing to write does not connect for it."""
        while self._held() < WORKER * len(run.workers) and run.elapsed() < until:
            run.check()
            run.fill(len(run.workers) * self.slots, lambda: 0.05, prefix=f"busy-{next(self._turns)}")
            time.sleep(0.5)

    def _push_on(self, run: LoadRun, pool: Pool, name: str, until: float) -> None:
        """Push one job after the other; who gets no connection tries again a little later, as an application would."""
        number = 0
        while run.elapsed() < until:
            run.check()
            while self._push(pool, f"{name}-{number}", lambda: time.sleep(0.2)):
                run.check()
                time.sleep(self.random.uniform(0.5, 1.0))
            number += 1

    # -- figures ------------------------------------------------------------------------------------------

    def judge(self, run: LoadRun) -> None:
        complaints = _complaints(run)
        strange = [f"{log}: {line}" for log, line in complaints if not any(words in line for words in CLASSIFIED)]
        strange += self._unclassified
        example = f", the first: {strange[0]}" if strange else ""
        run.found("unclassified", len(strange), "errors", f"that do not say what is wrong with connections{example}")
        run.found("refused_by_server", self._refused["server"], "callers", "of pools, who were told so by the server")
        run.found("refused_by_pool", self._refused["pool"], "callers", "of pools that had lent all their connections")
        after = run.measured.phases[-1]
        latency = run.start_latency(after)
        run.found("after_p99_ms", latency["p99_ms"], "ms", "start latency when all is over")
        run.found("after_jobs", latency["count"], "jobs", "that this rests on")
        held = [(row["t"], Counter(json.loads(row["by_application"] or "{}"))) for row in run.measured.samples]
        lines = {
            "workers": [(t, sum(n for name, n in by.items() if name.startswith("pgqueue_ref:"))) for t, by in held],
            "pools": [(t, by["loadtest pool"]) for t, by in held],
            "other applications": [(t, by["loadtest others"]) for t, by in held],
        }
        run.plot("Who holds the connections", "connections", lines, note=f"{self._count} workers want {WORKER} each.")


class Pool:
    """An application process: a pool of connections, and callers who each need one for the length of a transaction."""

    def __init__(self, run: LoadRun, dsn: str, size: int) -> None:
        target = conninfo(dsn, schema=run.schema, application_name="loadtest pool")
        kept = max(1, size // 3)  # for SQLAlchemy 0 is no limit
        self.callers: list[threading.Thread] = []
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(target),
            pool_size=kept,
            max_overflow=size - kept,
            pool_timeout=POOL_PATIENCE,
        )

    def push(self, key: str, during: Callable[[], object]) -> None:
        """Push a job that the ledger knows of, in a transaction that has other things to do as well."""
        with Session(self._engine) as session, session.begin():
            pushed = queue(session).push("job", {"service_seconds": 0.01}, key=key)
            record = (key, pushed.id, "job", False, time.time())
            session.connection().exec_driver_sql(ledger.RECORD_PUSH, record)
            during()

    def close(self) -> None:
        """Wait for the callers, and disconnect."""
        for caller in self.callers:
            caller.join()
        self._engine.dispose()


def _formula(slots: Slots, others: int) -> str:
    return f"by the formula: ({slots.max_connections} connections - {slots.reserved} reserved - {others} of others)"


def _log(worker: WorkerProcess) -> str:
    return worker.log.read_text(encoding="utf-8", errors="replace")


def _complaints(run: LoadRun) -> list[tuple[str, str]]:
    """What workers said went wrong: the name of the log, and the line."""
    logs = [(log.stem, log.read_text(errors="replace")) for log in sorted(run.directory.glob("worker-*.log"))]
    if run.measured.faults:
        logs = [(name, ATTEMPT.sub("", text)) for name, text in logs]
    return [(name, line) for name, text in logs for line in COMPLAINT.findall(text)]


def _refusals(run: LoadRun) -> int:
    """How often workers were told so far that there is no connection for them."""
    return sum(REFUSED in line for _, line in _complaints(run))


def _wait(run: LoadRun, condition: Callable[[], object]) -> None:
    """Until the condition holds, or long enough; what did not happen shows in the figures."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        run.check()
        time.sleep(0.02)
