"""The worker: claims jobs, runs their handlers, has their endings written. `serve` starts it for an application, tests
turn it by hand with `run_once`.

One loop claims, one writes endings and does maintenance, one keeps leases, one listens, one does the extensions'
maintenance; claims and writes have a connection each, so that the server works on the next claim while this process
runs handlers.

What goes wrong, and then: this process dies (its leases run out and the attempts run again elsewhere); the database
goes away (the loops wait with jitter and go on, what was buffered is written then), or says nothing any more (the
connection is given up after a lease, and made anew); a handler hangs (its timeout ends
the attempt); a lease is lost (the next heartbeat tells, the attempt is cancelled, whatever it reports is refused).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

from pgqueue_ref.core import (
    Chores,
    DatabaseUnavailable,
    InvalidJob,
    Job,
    Operation,
    Position,
    QueueError,
    SchemaMissing,
    Seconds,
    Want,
    seconds,
)
from pgqueue_ref.core import operations as op
from pgqueue_ref.core.jobs import text, whole
from pgqueue_ref.extensions.results import RESULTS

from .bell import Bell
from .extras import Extras
from .kinds import Kind, Kinds
from .link import Link, Patience
from .slots import Attempt, Ending, Slots
from .writer import Counts, Writer

log = logging.getLogger("pgqueue_ref.worker")

BATCH = 500  # jobs in one claim: in a larger batch the first handlers wait for the last row to be parsed
LINGER = 0.005  # seconds an ending waits for company while other attempts run
LOOK_SHARE = 0.05  # of the time at most goes into claims from the head of the order (docs/adr/0003)
CHORE_INTERVAL = 5.0  # seconds between two questions for maintenance
CHORE_BATCHES = 20  # of one kind of maintenance in a row: the other kinds want their turn
AWAKE = 0.03  # seconds after the last find during which a worker looks again after a nap, and pushes need not notify
NAP = 0.001
ANSWER = 10.0  # seconds: an answer of the database is waited for as long as a lease lasts, but not less than this
LATE_LOOKS = (0.01, 0.05, 0.25)  # seconds after it lay down, for pushes that were committing just then
# The plan of a prepared statement outlives the empty table it was made for; these keep it on the indexes.
PLANNER = "-c enable_seqscan=off -c enable_bitmapscan=off -c jit=off"
WRITER = "-c lock_timeout=2s"  # a row that somebody else's transaction holds must not stop the other endings

Place = tuple[str, str]  # a queue and a kind


class Worker:
    """One asyncio worker. Holds three connections, two with `listen` off, whatever its concurrency.

    `max_concurrent_jobs` bounds attempts at once; `poll_interval` (seconds) is how late a due job is noticed at worst;
    `lease` how long a dead worker's jobs stay with it; `grace` how long `stop` waits for attempts. With `listen` off it
    prepares no statements and sends no planner settings either: what a pooler in transaction mode needs.
    """

    def __init__(
        self,
        kinds: Kinds,
        *,
        dsn: str | None = None,
        queues: Sequence[str] = ("default",),
        max_concurrent_jobs: int = 100,
        poll_interval: Seconds = 1.0,
        lease: Seconds = 60.0,
        grace: Seconds = 30.0,
        listen: bool = True,
        name: str | None = None,
    ) -> None:
        self.kinds = kinds
        self.queues = tuple(dict.fromkeys(text(queue, "queue") for queue in queues))
        self.name = text(name or f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(3)}", "name")
        self.max_concurrent_jobs = whole(max_concurrent_jobs, "max_concurrent_jobs")
        self.poll_interval, self.lease = seconds(poll_interval, "poll_interval"), seconds(lease, "lease")
        self.grace = seconds(grace, "grace")
        if not (self.queues and self.poll_interval and self.lease):
            raise InvalidJob("a worker needs a queue, and a poll_interval and lease above 0")
        self.counts = Counts()
        self.connections = 3 if listen else 2
        # An answer that comes when the leases have run out is worth nothing: the jobs are others' by then.
        self._patience = max(self.lease, ANSWER)
        self._bell = Bell(dsn, self.queues, self._rung, patience=self._patience) if listen else None
        self._claims, self._writes = self._links(dsn, listen)
        self._extras = Extras(self._writes, self.name, min(self.poll_interval, CHORE_INTERVAL))
        self._writer = Writer(self._writes, self.name, self.counts, self._extras)
        self._slots = Slots(self.name, self._ended, self._freed)
        self._positions: dict[Place, Position] = {}
        self._open: set[Place] = set()  # where there may be jobs: not asked yet, or the last claim had all it asked for
        self._unseen: set[Place] = set()  # not asked since the last full look began
        self._shallow = False  # a claim from behind a position came short: only a full look knows
        self._full_look_at = self._chores_at = 0.0
        self._found_at = float("-inf")
        self._chores: Chores | None = None
        self._turns = itertools.count()
        self._wake, self._news, self._hurry, self._idle = (asyncio.Event() for _ in range(4))
        self.broken = asyncio.Event()  # set when the worker cannot go on: stop it
        self._loops: list[asyncio.Task[None]] = []
        self._claiming = self._closing = False

    def _links(self, dsn: str | None, listen: bool) -> tuple[Link, Link]:
        """The connections for claims and for writes."""
        options, writer = (PLANNER, f"{PLANNER} {WRITER}") if listen else ("", "")
        return (
            Link(dsn, self._patience, prepare=listen, application_name="pgqueue_ref:claim", options=options),
            Link(dsn, self._patience, prepare=listen, application_name="pgqueue_ref:write", options=writer),
        )

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect and claim. Raises what is wrong with the database now; what breaks later is waited out."""
        if self._loops:
            return
        try:
            await self._claims.run(op.chores())  # says so when the schema is missing
            await self._meet_extensions()
        except QueueError:
            await self.close()
            raise
        self._claiming, self._closing = True, False
        self._chores_at = self._full_look_at = 0.0
        self._hurry.clear()
        loops = [self._claim_loop(), self._write_loop(), self._beat_loop(), self._extras.run()]
        loops += [self._bell_loop(self._bell)] if self._bell else []
        self._loops = [asyncio.create_task(loop) for loop in loops]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)

    resume = start

    async def stop(self) -> bool:
        """Claim no more, let attempts end within the grace period, put the rest back unspent, write, disconnect.

        Returns whether all endings were written, so that no job is left running here. `resume` starts again.
        """
        if not self._loops:
            return True
        claim, write, *others = self._loops
        self._claiming = False
        self._wake.set()
        await self._last_claim(claim)
        for attempt in self._slots.not_begun():
            self._slots.end(attempt, Ending.RELEASE)
        deadline = time.monotonic() + self.grace
        while self._slots.running and not self._hurry.is_set() and (left := deadline - time.monotonic()) > 0:
            self._idle.clear()
            await first(left, self._idle, self._hurry)
        late = [attempt for attempt in self._writer.held.values() if attempt.ending is None]
        for attempt in late:
            self._slots.take(attempt, Ending.RELEASE)
        await self._slots.finish(1.0)
        written = await self._last_words(write, 1.0 if self._hurry.is_set() else 5.0)
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        self._loops = []
        await self.close()
        return written

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop that dies of something nobody foresaw must not leave half a worker behind."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("a loop of the worker died", exc_info=task.exception(), extra={"worker": self.name})
            self.broken.set()

    def observe(self, observe: Callable[[Attempt, str], None]) -> None:
        """Have `observe` called with each attempt whose outcome was written, and that outcome's name in `Counts`."""
        self._writer.observe = observe

    def connected(self) -> int:
        """How many connections it holds now."""
        return sum(link is not None and link.held for link in (self._claims, self._writes, self._bell))

    def hurry(self) -> None:
        """End the grace period of a `stop` under way."""
        self._hurry.set()

    async def run_once(self) -> Counts:
        """One turn by hand, on a worker that is not started: maintenance, one claim, its handlers, their endings.

        The extensions' maintenance comes first: what a schedule pushes is claimed in the same turn. Returns what it
        did; raises what the database says. Keeps no leases, so handlers must be shorter than theirs.
        """
        before = self.counts.copy()
        if self._extras.installed is None:
            await self._meet_extensions()
        await self._extras.turn()
        self._chores_at = self._full_look_at = 0.0
        while await self._look(ask=True) == 0.0 and not self._writer.held:
            pass  # fewer slots than kinds: on to the next ones
        await self._do_chores()
        while self._writer.held:
            if not self._writer.buffer:
                self._news.clear()
                await self._news.wait()
            await self._writer.flush()
        return self.counts - before

    async def _meet_extensions(self) -> None:
        await self._extras.find()
        keep = [kind.name for kind in self.kinds if kind.result_ttl != 0]
        if keep and not self._extras.has(RESULTS):
            words = "results of %s are not kept: the extension is not installed, run `pgqueue-ref migrate`"
            log.warning(words, ", ".join(keep), extra={"worker": self.name})

    async def close(self) -> None:
        """Drop the connections; they come back when needed."""
        await self._claims.close()
        await self._writes.close()

    async def _last_claim(self, claim: asyncio.Task[None]) -> None:
        """Let a claim under way arrive: what it takes would otherwise stay running until the leases end."""
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([claim, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not claim.done():
            claim.cancel()
            await asyncio.wait([claim])

    async def _last_words(self, write: asyncio.Task[None], patience: float) -> bool:
        """Let the write loop empty the buffer and end."""
        self._closing = True
        self._news.set()
        await asyncio.wait([write], timeout=patience)
        if not write.done():
            write.cancel()
            await asyncio.wait([write])
            log.error("%d endings could not be written: their leases will run out", len(self._writer.buffer))
        unwritten, self._writer.buffer = self._writer.buffer, []
        self._writer.held.clear()
        return not unwritten

    def _ended(self, attempt: Attempt) -> None:
        self._writer.add(attempt)
        self._news.set()
        self._freed()

    def _rung(self) -> None:
        self._open = self._places()
        self._wake.set()

    def _freed(self) -> None:
        if self._open:
            self._wake.set()
        if not self._slots.running:
            self._idle.set()

    # -- claim --------------------------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        patience = Patience()
        while self._claiming:
            self._wake.clear()
            try:
                delay = await self._look()
                patience.reset()
            except QueueError as error:
                delay = self._complain("claim", error, patience)
            if delay:
                await first(delay, self._wake)
                if not self._wake.is_set():
                    self._open = self._places()
            else:
                await asyncio.sleep(0)  # let the slots begin

    def _places(self) -> set[Place]:
        return {(queue, kind.name) for queue in self.queues for kind in self.kinds}

    async def _look(self, *, ask: bool = False) -> float:
        """Claim once; when it is time, ask for chores in the same transaction. Returns seconds until the next."""
        began = time.monotonic()
        # Not before the last one has been round, or with far more places than slots none would ever end.
        full = began >= self._full_look_at and not any(
            place in self._open and self._free(self.kinds[place[1]]) for place in self._unseen
        )
        if full:
            self._open, self._unseen, self._shallow = self._places(), self._places(), False
        wants = self._wants()
        ask = ask or began >= self._chores_at
        operations: list[Operation[Any]] = [op.chores()] if ask else []
        if wants:
            operations.append(op.claim(wants, worker=self.name, lease=self.lease))
        self._open -= {(want.queue, want.kind) for want in wants}  # now: the bell may open them while we wait
        results = await self._claims.run(*operations) if operations else []
        now = time.monotonic()
        if ask:
            self._chores_at = now + CHORE_INTERVAL
            self._chores = results[0]
            self._news.set()
        if full:
            self._full_look_at = now + min(self.poll_interval, (now - began) * (1 / LOOK_SHARE - 1))
        if wants:
            self._admit(wants, results[-1], began)
        if self._slots.running >= self.max_concurrent_jobs:
            self._open = self._places()  # nobody tells what comes meanwhile: the first free slot looks everywhere
            return self.poll_interval
        if wants and self._open:
            return 0.0
        # Nothing more behind the positions. What lies before them (late commits, released jobs) is for a full look.
        return self._rest(max(0.0, self._full_look_at - now) if self._shallow else self.poll_interval)

    def _admit(self, wants: list[Want], jobs: list[Job], began: float) -> None:
        """Run what was claimed; note where each place's claim got to, and which had all that was asked for."""
        self.counts.claimed += len(jobs)
        if jobs:
            self._found_at = time.monotonic()
        attempts = [Attempt(job, self.kinds[job.kind], began) for job in jobs]
        self._writer.held |= {attempt.key: attempt for attempt in attempts}
        self._slots.admit(attempts)
        found: dict[Place, int] = {}
        for job in jobs:  # in claim order, so that the last of a place stays
            place = job.queue, job.kind
            found[place] = found.get(place, 0) + 1
            self._positions[place] = Position(job.priority, job.run_at, job.id)
        for want in wants:
            place = want.queue, want.kind
            self._unseen.discard(place)
            if found.get(place) == want.slots:
                self._open.add(place)
            else:
                self._shallow |= want.after is not None

    def _wants(self) -> list[Want]:
        """What to ask for: free slots, shared out evenly over the open places, in turns."""
        if len(self._writer.buffer) >= max(2 * BATCH, self.max_concurrent_jobs):
            return []  # endings pile up: claim no more than can be written
        room = min(self.max_concurrent_jobs - self._slots.running, BATCH)
        free = {kind.name: self._free(kind) for kind in self.kinds}
        places = [
            (queue, kind)
            for kind in self.kinds
            for queue in self.queues
            if free[kind.name] and (queue, kind.name) in self._open
        ]
        turn = next(self._turns) % len(places) if places else 0
        wants: list[Want] = []
        for index, (queue, kind) in enumerate(places[turn:] + places[:turn]):
            fair = -(-room // (len(places) - index))
            slots = min(fair, -(-free[kind.name] // len(self.queues)), free[kind.name])
            if slots > 0:
                room -= slots
                free[kind.name] -= slots
                place = queue, kind.name
                after = None if place in self._unseen else self._positions.get(place)
                wants.append(Want(kind.name, slots, queue, kind.max_attempts, after))
        return wants

    def _free(self, kind: Kind) -> int:
        """A kind's free slots; its callable may fail, and must not take the worker with it."""
        try:
            return kind.free(self.max_concurrent_jobs)
        except Exception:
            log.exception("concurrency of kind %s could not be asked", kind.name, extra={"worker": self.name})
            return 0

    # -- write --------------------------------------------------------------------------------------------------

    async def _write_loop(self) -> None:
        patience = Patience()
        while not self._closing or self._writer.buffer:
            await self._news.wait()
            if self._claiming and self._slots.running and len(self._writer.buffer) < BATCH:
                await asyncio.sleep(LINGER)
            self._news.clear()
            try:
                await self._writer.flush()
                self._freed()
                if self._claiming:
                    await self._do_chores()
                patience.reset()
            except QueueError as error:
                await first(self._complain("write", error, patience), self._hurry)
                if isinstance(error, SchemaMissing):  # of an extension, perhaps: endings are written without it
                    with contextlib.suppress(QueueError):
                        await self._extras.find()
                self._news.set()

    async def _do_chores(self) -> None:
        """The maintenance that the last look asked for. What fails in one kind does not cost the others."""
        due, self._chores = self._chores, None
        for name, do in (("rescue", self._rescue), ("expire", self._expire), ("cleanup", self._cleanup)):
            if due and getattr(due, name):
                try:
                    await do()
                except DatabaseUnavailable:
                    raise
                except QueueError as error:
                    self._news.set()  # endings may have stayed in the buffer
                    words = "%s failed, next try in %g s: %s"
                    log.warning(words, name, CHORE_INTERVAL, error, extra={"worker": self.name})

    async def _rescue(self) -> None:
        (rescued,) = await self._writes.run(op.rescue())
        self.counts.rescued += len(rescued.retried) + len(rescued.failed)
        for what in ("retried", "failed", "refused"):
            if ids := getattr(rescued, what):
                words = "rescue: %d jobs whose lease ran out: %s (%s ...)"
                log.warning(words, len(ids), what, ids[0], extra={"worker": self.name})

    async def _expire(self) -> None:
        async for count in self._batches(op.expire):
            self.counts.expired += count

    async def _cleanup(self) -> None:
        async for count in self._batches(op.cleanup):
            self.counts.cleaned += count

    async def _batches(self, make: Callable[[int], Operation[int]]) -> AsyncIterator[int]:
        """Batches of maintenance are small, and endings are written in between."""
        for _ in range(CHORE_BATCHES):
            (count,) = await self._writes.run(make(1000))
            yield count
            if count < 1000:
                break
            await self._writer.flush()

    async def _beat_loop(self) -> None:
        patience = Patience()
        delay = self.lease / 6
        while True:
            await asyncio.sleep(delay)
            delay = self.lease / 6
            try:
                for attempt in await self._writer.beat(time.monotonic(), self.lease):
                    self._slots.take(attempt, Ending.GONE)
                patience.reset()
            except QueueError as error:
                delay = min(delay, self._complain("heartbeat", error, patience))

    # -- wake-up ------------------------------------------------------------------------------------------------

    async def _bell_loop(self, bell: Bell) -> None:
        patience = Patience()
        while True:
            try:
                await bell.run(patience.reset)
            except QueueError as error:
                await asyncio.sleep(self._complain("listening", error, patience))

    def _rest(self, delay: float) -> float:
        """How long to wait after a look that found no backlog: a nap while jobs keep coming, then sleep by the bell."""
        bell, now = self._bell, time.monotonic()
        if bell is None:
            return delay
        if now - self._found_at < AWAKE:
            return min(delay, NAP)
        if bell.covered_since is None:
            bell.cover()  # it rings when that is done
            return delay
        later = (bell.covered_since + late - now for late in LATE_LOOKS)
        return min(delay, next((wait for wait in later if wait > 0), delay))

    def _complain(self, what: str, error: QueueError, patience: Patience) -> float:
        """Log a break in one line; returns seconds to wait."""
        delay = patience.delay()
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("%s failed, next try in %.1f s: %s", what, delay, line, extra={"worker": self.name})
        return delay


async def first(delay: float, *events: asyncio.Event) -> None:
    """Until one of the events is set, or `delay` seconds (infinity: for ever)."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=None if delay == float("inf") else delay, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
