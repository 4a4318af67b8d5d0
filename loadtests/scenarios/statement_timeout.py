from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.pq import TransactionStatus

from pgqueue_ref.core import LockTimeout, NewJob, Queue, QueueError, StatementTimeout, Want
from pgqueue_ref.harness import ledger
from pgqueue_ref.harness.faults import Line
from pgqueue_ref.harness.run import LEAD, LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

LOCK_TIMEOUTS = (0.0, 0.5, 2.0)  # of the probes, as shares of the statement timeout; 0: none
DISTURBED = 0.05  # seconds by which this process may be late itself where it judges the lateness of others

HOLD_STALLED = "SELECT FROM pgqueue_jobs WHERE external_key LIKE 'stall-%' FOR UPDATE"
STALLED = "SELECT count(*) FROM pgqueue_jobs WHERE external_key LIKE 'stall-%' AND status = 'running'"
# A worker that waits to write how attempts ended.
WAITING = "SELECT FROM pg_stat_activity WHERE application_name = 'pgqueue_ref:write' AND wait_event_type = 'Lock'"
CUT = re.compile(r" write failed, next try in .*statement cancelled")  # in a worker's log
# Attempts by the ledger, not by the queue. A failure that was written twice has told its error twice. The last attempt:
# one before it has an effect as well if a fault came before its completion was written.
RETRIED = """
SELECT count(*) FILTER (WHERE e.attempt > 1), count(*) FILTER (WHERE e.attempt <> cardinality(j.errors) + 1)
FROM pgqueue_jobs j JOIN (SELECT job_id, max(attempt) AS attempt FROM loadtest_effects GROUP BY job_id) e
ON e.job_id = j.id WHERE j.external_key LIKE 'stall-%'
"""

# -- what is in the way, from a connection that holds it, in a round known by its number -----------------------


@contextlib.contextmanager
def row_lock(holder: ledger.Connection, turn: int) -> Iterator[None]:
    """A transaction that has a job's row, and has pushed a key without committing."""
    Queue(holder).push("job", key=f"parked-{turn}", delay=3600)
    with holder.transaction(force_rollback=True):
        holder.execute("SELECT FROM pgqueue_jobs WHERE external_key = %s FOR UPDATE", (f"parked-{turn}",))
        Queue(holder).push("job", key=f"held-{turn}")
        yield


@contextlib.contextmanager
def table_lock(holder: ledger.Connection, turn: int) -> Iterator[None]:
    """A transaction that alters the table, so to speak."""
    with holder.transaction():
        holder.execute("LOCK TABLE pgqueue_jobs IN ACCESS EXCLUSIVE MODE")
        yield


@contextlib.contextmanager
def slowness(holder: ledger.Connection, turn: int) -> Iterator[None]:
    """Nothing: the statements are slow by themselves."""
    yield


# -- what probes ask for; `seconds` is how long a statement takes if nothing is in its way ---------------------


def cancel(connection: ledger.Connection, turn: int, seconds: float) -> None:
    Queue(connection).cancel_key("job", f"parked-{turn}")


def push_held(connection: ledger.Connection, turn: int, seconds: float) -> None:
    push(connection, f"held-{turn}")


def push_own(connection: ledger.Connection, turn: int, seconds: float) -> None:
    push(connection, f"probe-{turn}-{connection.info.backend_pid}")


def push(connection: ledger.Connection, key: str) -> None:
    """Push a job that the ledger knows of; another probe may have been first."""
    with connection.transaction():
        pushed = Queue(connection).push("job", {"service_seconds": 0.0}, key=key)
        if pushed.created:
            ledger.record_pushes(connection, [key], [pushed.id], "job")


def claim(connection: ledger.Connection, turn: int, seconds: float) -> None:
    """SKIP LOCKED skips rows; for the table it waits like anybody."""
    Queue(connection).claim([Want("of-nobody", 1)], worker="probe")


def sleep(connection: ledger.Connection, turn: int, seconds: float) -> None:
    connection.execute("SELECT pg_sleep(%s)", (seconds,))


def compute(connection: ledger.Connection, turn: int, seconds: float) -> None:
    """now() stands still in a transaction, clock_timestamp() does not."""
    condition = f"clock_timestamp() < now() + make_interval(secs => {seconds:f})"
    connection.execute(f"DO $$ BEGIN WHILE {condition} LOOP NULL; END LOOP; END $$")


Obstacle = Callable[[ledger.Connection, int], contextlib.AbstractContextManager[None]]
Call = Callable[[ledger.Connection, int, float], None]

# Phases: name, obstacle, and the probes, each with the lock_timeout that it has.
PHASES: tuple[tuple[str, Obstacle, Sequence[tuple[Call, float]]], ...] = (
    ("row locks", row_lock, list(itertools.product((cancel, push_held), LOCK_TIMEOUTS))),
    # One that computes: it takes a whole core.
    ("slow statements", slowness, [*itertools.product((sleep,), LOCK_TIMEOUTS), (compute, 0.0)]),
    ("table locks", table_lock, list(itertools.product((claim, push_own), LOCK_TIMEOUTS))),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A caller with a connection of its own: what it asks for, and which error has to come after how many seconds."""

    line: Line
    call: Call
    error: type[QueueError]
    after: float

    @property
    def connection(self) -> ledger.Connection:
        """That of now."""
        return self.line.connection

    def ask(self, turn: int, seconds: float) -> QueueError | None:
        """The error that it gets, if any."""
        try:
            with ledger.translated():
                self.call(self.connection, turn, seconds)
        except QueueError as error:
            return error
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe got, and after how many seconds.

    `control` is how late (seconds) a mere sleep was that was to end, in this process, when the statement was to end.
    """

    phase: str
    probe: Probe
    error: QueueError | None
    took: float
    control: float

    @property
    def right(self) -> bool:
        """Whether it is the error that had to come, not another one or none."""
        return type(self.error) is self.probe.error

    @property
    def undisturbed(self) -> bool:
        """Whether the lateness is the server's, not that of a process that was late itself."""
        return self.right and self.control <= DISTURBED

    @property
    def lateness(self) -> float:
        """Milliseconds beyond the timeout that had to end it."""
        return 1000 * (self.took - self.probe.after)

    def __str__(self) -> str:
        got = "no error" if self.error is None else f"{type(self.error).__name__} ({self.error})"
        return (
            f"{self.phase}, {self.probe.call.__name__}: {got} after {self.took:.2f} s, not {self.probe.error.__name__}"
        )


class Timeouts(Scenario):
    """Statements that wait for a lock or are slow are cancelled at the statement timeout, while load goes on.

    In each round an obstacle is put up, probes run into it, and it stays until all have their answer or until a caller
    would have given up (`deadline`). Then each repeats what it asked for, on the same connection, and must have it. The
    obstacles: a row that somebody's transaction holds and a key that it has pushed, a lock on the whole table, and
    statements that sleep or compute. The probes have no lock_timeout, one of half and one of twice the statement
    timeout. The workers have the same statement timeout: in the first phase it cuts statements of their handlers, and
    then the statements that tell the queue of these failures. `--set timeout=0` shows what the scenario says where
    nothing is cancelled.
    """

    name = "statement-timeout"
    quick = {"seconds": 9.0}
    positive = (*Scenario.positive, "deadline", "seconds", "stalled", "rate")
    timeout = 1.0  # seconds; 0: none
    deadline = 3.0  # seconds after which a caller gives up
    seconds = 60.0  # of each phase
    stalled = 12  # jobs whose first attempt is cut
    rate = 40.0  # jobs/s meanwhile
    service = "exp:0.05"  # seconds
    slots = 16  # in each worker
    producers = 48  # a second of table lock holds up 40

    def prepare(self, options: object) -> None:
        self.environment = {"PGQUEUE_STATEMENT_TIMEOUT_MS": str(round(1000 * self.timeout))}

    def play(self, run: LoadRun) -> None:
        self._answers: list[Answer] = []
        self._unusable = 0
        self._phase(run, "retries", self._stall)
        for name, obstacle, calls in PHASES:
            with contextlib.ExitStack() as stack:
                with run.undisturbed():
                    holder = self._line(run, stack, "loadtest holder")
                    probes = [self._probe(run, stack, obstacle, call, share) for call, share in calls]
                self._phase(run, name, self._rounds, name, obstacle, holder, probes)

    def _phase(self, run: LoadRun, name: str, script: Callable[..., None], *arguments: object) -> None:
        """Do what `script` says while jobs arrive."""
        arrivals = poisson(self.rate, self.seconds, service(self.service, self.random), self.random)
        load = run.spawn(run.offer, arrivals, name)
        time.sleep(LEAD)
        script(run, run.elapsed() + self.seconds, *arguments)
        load.join()

    def _stall(self, run: LoadRun, until: float) -> None:
        """Have the first attempts of some jobs cut, and hold their rows while the workers write that down."""
        keys = [f"stall-{number}" for number in range(self.stalled)]
        payload = {"service_seconds": 0.01, "stall_seconds": self.deadline}
        with run.undisturbed(), run.connect("loadtest holder") as holder, run.connect("loadtest watch") as watch:
            with holder.transaction():
                pushed = Queue(holder).push_many([NewJob("job", payload, key=key) for key in keys])
                ledger.record_pushes(holder, keys, [job.id for job in pushed], "job")
            wait(run, until, lambda: watch.execute(STALLED).fetchone() == (self.stalled,))
            with holder.transaction():
                holder.execute(HOLD_STALLED)
                wait(run, until, lambda: watch.execute(WAITING).fetchone() is not None)
                time.sleep(1.5 * self.timeout)  # what waits now is cancelled within

    def _probe(
        self, run: LoadRun, stack: contextlib.ExitStack, obstacle: Obstacle, call: Call, lock_timeout: float
    ) -> Probe:
        """A probe with a lock_timeout of this share of the statement timeout.

        Only where it waits for a lock, and only when it is the smaller of both, may it be what ends the statement.
        """
        timeouts = {
            "statement_timeout_ms": round(1000 * self.timeout),
            "options": f"-c lock_timeout={round(1000 * lock_timeout * self.timeout)}",
        }
        line = self._line(run, stack, "loadtest probe", **timeouts)
        if obstacle is not slowness and 0 < lock_timeout < 1:
            return Probe(line, call, LockTimeout, lock_timeout * self.timeout)
        return Probe(line, call, StatementTimeout, self.timeout)

    def _line(self, run: LoadRun, stack: contextlib.ExitStack, name: str, **settings: Any) -> Line:
        return stack.enter_context(contextlib.closing(Line(lambda: run.connect(name, **settings))))

    def _rounds(
        self,
        run: LoadRun,
        until: float,
        name: str,
        obstacle: Obstacle,
        holder: Line,
        probes: Sequence[Probe],
    ) -> None:
        """Let all probes run into the obstacle, again and again while there is time."""
        for turn in itertools.count():
            asked = run.elapsed()
            if asked >= until:
                return
            # A fault would cut probes off, or stop a worker that holds a lock: another obstacle than the one judged.
            with run.undisturbed():
                until += run.elapsed() - asked  # a fault that came between costs no round
                for line in (holder, *(probe.line for probe in probes)):
                    line.renew()
                self._round(run, name, obstacle(holder.connection, turn), probes, turn)
            time.sleep(self.timeout / 2)

    def _round(
        self,
        run: LoadRun,
        name: str,
        obstacle: contextlib.AbstractContextManager[None],
        probes: Sequence[Probe],
        turn: int,
    ) -> None:
        gone, wanted, threads = threading.Event(), len(self._answers) + len(probes), []
        try:
            with obstacle:
                threads += [run.spawn(self._ask, run, name, probe, turn, gone) for probe in probes]
                wait(run, run.elapsed() + self.deadline, lambda: len(self._answers) >= wanted)
        finally:  # also when the run is stopped: nobody waits for ever
            gone.set()
            for thread in threads:
                thread.join()

    def _ask(self, run: LoadRun, phase: str, probe: Probe, turn: int, gone: threading.Event) -> None:
        """Note the answer; when the obstacle is gone, ask again on the same connection."""
        began = time.monotonic()
        slept: list[float] = []
        control = run.spawn(sleep_until, began + probe.after, slept)
        error = probe.ask(turn, self.deadline)
        took = time.monotonic() - began
        control.join()
        self._answers.append(Answer(phase, probe, error, took, *slept))
        gone.wait()
        idle = probe.connection.info.transaction_status == TransactionStatus.IDLE
        self._unusable += not idle or probe.ask(turn, 0) is not None

    # -- figures ------------------------------------------------------------------------------------------

    def judge(self, run: LoadRun) -> None:
        wrong = [answer for answer in self._answers if not answer.right]
        example = f", the first: {wrong[0]}" if wrong else ""
        run.found("probes", len(self._answers), "", "statements that ran into an obstacle")
        run.found("wrong_class", len(wrong), "probes", f"whose error is not the one that had to come{example}")
        run.found("unusable", self._unusable, "probes", "that could not go on, on the same connection")
        beyond = sum(answer.took >= self.deadline for answer in self._answers)
        run.found("beyond_deadline", beyond, "probes", f"answered after {self.deadline:g} s, when callers gave up")
        late = sorted(answer.lateness for answer in self._answers if answer.undisturbed)
        meaning = f"where a sleep of the same length beside ended at most {1000 * DISTURBED:g} ms late"
        run.found("undisturbed", len(late), "probes", f"{meaning}: only they tell of the server's lateness")
        run.found("late_p50_ms", statistics.median(late) if late else None, "ms", "answer after the timeout, median")
        run.found("late_max_ms", late[-1] if late else None, "ms", "the same, at worst")
        run.found("late_min_ms", late[0] if late else None, "ms", "the same, least; below 0 is too early")
        self._judge_retries(run)
        calm = [phase for phase in run.measured.phases if phase.name in ("row locks", "slow statements")]
        p99 = [run.start_latency(phase)["p99_ms"] for phase in calm]
        meaning = "start latency of the load while rows are locked or statements slow, the worse of both"
        run.found("bystanders_p99_ms", max(filter(None, p99), default=None), "ms", meaning)
        self._draw(run)

    def _judge_retries(self, run: LoadRun) -> None:
        with run.connect("loadtest retries") as connection:
            retried, miscounted = connection.execute(RETRIED).fetchone() or (0, 0)
        cut = sum(len(CUT.findall(log.read_text(errors="replace"))) for log in run.directory.glob("worker-*.log"))
        run.found("retried", retried, "jobs", f"of {self.stalled} whose handler's statement was cut")
        run.found("endings_cut", cut, "statements", "with which workers wrote how attempts ended")
        run.found("miscounted", miscounted, "jobs", "whose attempts are not those that failed and the one that did not")

    def _draw(self, run: LoadRun) -> None:
        lines = {}
        for name in dict.fromkeys(answer.phase for answer in self._answers):
            late = sorted(answer.lateness for answer in self._answers if answer.undisturbed and answer.phase == name)
            lines[name] = [(100 * (place + 1) / len(late), value) for place, value in enumerate(late)]
        run.plot(
            "Lateness of the cancellations", "milliseconds", lines, x="percent of the cancellations",
            note="From the timeout that was to end the statement to the caller's error, in ascending order.",
        )  # fmt: skip


def sleep_until(moment: float, late: list[float]) -> None:
    """Note by how many seconds a sleep until `moment` (monotonic) ends too late."""
    time.sleep(max(0.0, moment - time.monotonic()))
    late.append(time.monotonic() - moment)


def wait(run: LoadRun, until: float, condition: Callable[[], bool]) -> None:
    """Until the condition holds or the time is over; what did not happen shows in the figures."""
    while not condition() and run.elapsed() < until:
        run.check()
        time.sleep(0.01)
