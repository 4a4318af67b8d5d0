"""Several databases behind one push: the shard key of a job decides which of them holds it, always the same one.

    shards = ShardedQueue([Shard("a", "postgresql://a.internal/app"), Shard("b", "postgresql://b.internal/app")])
    shards.push("thumbnail", {"photo": 7}, key="photo-7")

Each shard is a whole queue of its own, with its own workers (`pgqueue-ref worker` with that shard's DSN); nothing here
knows of a job after its push. The promises:

- the same shard key goes to the same shard, in every process and release: rendezvous hashing (Thaler and Ravishankar,
  1998) over the shards' names with BLAKE2b; their order, addresses and passwords do not matter;
- a shard that is added takes its share, one in N of the keys, from all the others, and nothing moves between those;
- a shard that is down fails its own pushes and no others; the error names the shard, and never its DSN.

What it does not do: no transaction spans two shards, and jobs that are already pushed do not move. A new shard does not
know the keys that it takes over: drain first where a second job of the same key would do harm.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, Unpack

import psycopg

from pgqueue_ref.core import (
    AsyncQueue,
    DatabaseUnavailable,
    InvalidJob,
    Json,
    NewJob,
    Operation,
    Pushed,
    Queue,
    QueueError,
    Stat,
    connect,
    connect_async,
    conninfo,
    run,
    run_async,
)
from pgqueue_ref.core import operations as op
from pgqueue_ref.core.jobs import MAX_KEY, PushOptions, text

T = TypeVar("T")
C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])
ShardKey = Callable[[NewJob], str]


class Shard(NamedTuple):
    """A database and the name its keys are hashed with. The address may change; a new name moves the keys."""

    name: str
    dsn: str


class ShardUnavailable(DatabaseUnavailable):
    """One shard cannot be reached; `shard` is its name. Whether its push took effect is not known."""

    def __init__(self, shard: str, error: DatabaseUnavailable) -> None:
        super().__init__(f"shard {shard!r}: {error}")
        self.shard = shard


class ShardsFailed(QueueError):  # noqa: N818 - like the core's
    """Some shards refused their part of `push_many`; the others have taken theirs.

    `failures` has each refusal by shard, `pushed` the answers in the order of the jobs, None where the shard refused.
    Jobs with keys can simply be pushed again.
    """

    def __init__(self, failures: Mapping[str, QueueError], pushed: Sequence[Pushed | None]) -> None:
        lines = (f"{name!r}: {error}" for name, error in failures.items())
        lost = sum(answer is None for answer in pushed)
        super().__init__(f"{lost} of {len(pushed)} jobs were not pushed; shard " + "; shard ".join(lines))
        self.failures, self.pushed = failures, pushed


class ShardStats(NamedTuple):
    """`Queue.stats` of each shard that answered, and why the others did not, both by shard."""

    stats: dict[str, list[Stat]]
    silent: dict[str, QueueError]


def by_key(job: NewJob) -> str:
    """The default shard key: the job's own."""
    if job.key is None:
        raise InvalidJob("the job has no shard key: push it with a key, or give ShardedQueue a shard_key")
    return job.key


class _Shards(Generic[C]):
    """What both faces share: which shard, and one connection to each, made when it is first needed."""

    def __init__(
        self, shards: Iterable[Shard], *, shard_key: ShardKey = by_key, max_in_flight: int | None = None
    ) -> None:
        given = list(shards)
        self._dsns = {text(shard.name, "shard name"): conninfo(shard.dsn) for shard in given}
        if len(self._dsns) < max(1, len(given)):
            raise InvalidJob("give at least one shard, and each a name of its own")
        self._salts = {name: hashlib.blake2b(name.encode()).digest() for name in self._dsns}
        self._shard_key, self._max_in_flight = shard_key, max_in_flight
        self._connections: dict[str, C] = {}
        # Of the asynchronous face: a transaction on the shard's connection is one call's alone.
        self._connecting = defaultdict[str, asyncio.Lock](asyncio.Lock)
        self._turns = defaultdict[str, asyncio.Lock](asyncio.Lock)

    @property
    def names(self) -> list[str]:
        """The shards' names."""
        return list(self._dsns)

    def shard_of(self, shard_key: str) -> str:
        """The name of the shard that holds this shard key: the one whose salted hash of it is highest."""
        data = text(shard_key, "shard key", MAX_KEY).encode()
        return max(self._salts, key=lambda name: hashlib.blake2b(data, key=self._salts[name], digest_size=8).digest())

    def _split(self, jobs: Sequence[NewJob]) -> dict[str, list[int]]:
        """The places in `jobs` of each shard's jobs."""
        places: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            places.setdefault(self.shard_of(self._shard_key(job)), []).append(place)
        return places

    def _push(self, jobs: Iterable[NewJob]) -> Operation[list[Pushed]]:
        return op.push_many(jobs, max_in_flight=self._max_in_flight)

    def _held(self, name: str) -> C | None:
        """The connection to a shard, unless one must be made: none that broke is used again."""
        if name not in self._dsns:
            raise InvalidJob(f"there is no shard {name!r}, only {', '.join(map(repr, self._dsns))}")
        connection = self._connections.get(name)
        return None if connection is None or connection.closed else connection


class ShardedQueue(_Shards[psycopg.Connection[Any]]):
    """Pushes to several queues, from one thread; `with` closes its connections.

    `shard_key` maps a job to the text that decides its shard (default: its key). A key is unique per kind within its
    shard: where `shard_key` looks at something else, one key on two shards is two jobs. `max_in_flight` bounds the
    queues of each shard. Raises `InvalidJob` for bad shards, `QueueError` for a DSN that is not understood.
    """

    def __enter__(self) -> ShardedQueue:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self._connections.values():
            connection.close()

    def queue(self, name: str) -> Queue:
        """One shard's queue, for everything but pushes; it is closed with the others. Raises `ShardUnavailable`."""
        connection = self._held(name)
        if connection is None:
            try:
                connection = self._connections[name] = connect(self._dsns[name])
            except DatabaseUnavailable as error:
                raise ShardUnavailable(name, error) from error
        return Queue(connection, max_in_flight=self._max_in_flight)

    def push(self, kind: str, payload: Json = None, **options: Unpack[PushOptions]) -> Pushed:
        """`Queue.push` on the job's shard. Raises what that raises, `ShardUnavailable` where the shard is down."""
        job = NewJob(kind, payload, **options)
        return self._run(self.shard_of(self._shard_key(job)), self._push([job]))[0]

    def push_many(self, jobs: Iterable[NewJob]) -> list[Pushed]:
        """Put each job on its shard; each shard takes all of its own or none. Raises `ShardsFailed`."""
        given = list(jobs)
        places = self._split(given)
        return _merge(
            places, {name: self._try(name, self._push(given[i] for i in mine)) for name, mine in places.items()}
        )

    def stats(self) -> ShardStats:
        """Jobs by queue, kind and status on every shard that answers. Reads each shard's whole table."""
        return _sort({name: self._try(name, op.stats()) for name in self.names})

    def _run(self, name: str, operation: Operation[T]) -> T:
        connection = self.queue(name).connection
        try:
            return run(connection, operation)
        except DatabaseUnavailable as error:
            raise ShardUnavailable(name, error) from error

    def _try(self, name: str, operation: Operation[T]) -> T | QueueError:
        try:
            return self._run(name, operation)
        except QueueError as error:
            return error


class AsyncShardedQueue(_Shards[psycopg.AsyncConnection[Any]]):
    """`ShardedQueue` for asyncio: the same methods, awaited; all shards are asked at once.

    Many tasks may call it: those for one shard take turns on its connection. A transaction of yours on what `queue`
    gives would have their pushes in it.
    """

    async def __aenter__(self) -> AsyncShardedQueue:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._connections.values():
            await connection.close()

    async def queue(self, name: str) -> AsyncQueue:
        """`ShardedQueue.queue`."""
        async with self._connecting[name]:  # or two first pushes would each make one, and one would stay open
            connection = self._held(name)
            if connection is None:
                try:
                    connection = self._connections[name] = await connect_async(self._dsns[name])
                except DatabaseUnavailable as error:
                    raise ShardUnavailable(name, error) from error
        return AsyncQueue(connection, max_in_flight=self._max_in_flight)

    async def push(self, kind: str, payload: Json = None, **options: Unpack[PushOptions]) -> Pushed:
        """`ShardedQueue.push`."""
        job = NewJob(kind, payload, **options)
        return (await self._run(self.shard_of(self._shard_key(job)), self._push([job])))[0]

    async def push_many(self, jobs: Iterable[NewJob]) -> list[Pushed]:
        """`ShardedQueue.push_many`."""
        given = list(jobs)
        places = self._split(given)
        asked = [self._try(name, self._push(given[i] for i in mine)) for name, mine in places.items()]
        return _merge(places, dict(zip(places, await asyncio.gather(*asked), strict=True)))

    async def stats(self) -> ShardStats:
        """`ShardedQueue.stats`."""
        asked = [self._try(name, op.stats()) for name in self.names]
        return _sort(dict(zip(self.names, await asyncio.gather(*asked), strict=True)))

    async def _run(self, name: str, operation: Operation[T]) -> T:
        async with self._turns[name]:
            connection = (await self.queue(name)).connection
            try:
                return await run_async(connection, operation)
            except DatabaseUnavailable as error:
                raise ShardUnavailable(name, error) from error

    async def _try(self, name: str, operation: Operation[T]) -> T | QueueError:
        try:
            return await self._run(name, operation)
        except QueueError as error:
            return error


def _merge(places: dict[str, list[int]], answers: Mapping[str, list[Pushed] | QueueError]) -> list[Pushed]:
    """The answers of all shards in the order of the jobs. Raises `ShardsFailed` if one refused."""
    pushed: dict[int, Pushed] = {}
    failures: dict[str, QueueError] = {}
    for name, answer in answers.items():
        if isinstance(answer, QueueError):
            failures[name] = answer
        else:
            pushed.update(zip(places[name], answer, strict=True))
    count = sum(map(len, places.values()))
    if failures:
        raise ShardsFailed(failures, [pushed.get(place) for place in range(count)])
    return [pushed[place] for place in range(count)]


def _sort(answers: Mapping[str, list[Stat] | QueueError]) -> ShardStats:
    found = ShardStats({}, {})
    for name, answer in answers.items():
        if isinstance(answer, QueueError):
            found.silent[name] = answer
        else:
            found.stats[name] = answer
    return found
