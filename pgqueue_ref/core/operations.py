"""The queue's operations, sans I/O: each is a generator that yields statements, is sent their rows, and returns a typed
result. `runners` (psycopg) and `pgqueue_ref.sqlalchemy` execute them; `Queue` and `AsyncQueue` are their faces.

An operation runs in the transaction that its connection has open, and then commits or rolls back with it; on an idle
autocommit connection it is its own. All raise `InvalidJob` for a bad argument before the first statement.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol, TypeVar, Unpack

from . import sql
from .errors import InvalidJob, JobNotFound, LeaseLost, QueueBusy, QueueError
from .jobs import (
    DEFAULT_LEASE,
    DEFAULT_TTL,
    MAX_ERROR,
    MAX_KEY,
    MAX_NAME,
    Chores,
    Job,
    JobRow,
    Json,
    NewJob,
    Pushed,
    PushOptions,
    Rescued,
    Seconds,
    Stat,
    Want,
    ellipsis,
    seconds,
    text,
    whole,
)
from .states import ACTIVE, TERMINAL, Status

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
CHUNK = 5_000  # jobs in one INSERT: 1,000 cost 4 % more a job, 50,000 no less
RETRY_AFTER = 1.0  # seconds that `QueueBusy` advises


class Statement(NamedTuple):
    """What an operation yields: SQL in psycopg's `%(name)s` style and its parameters."""

    sql: str
    params: Mapping[str, Any] = {}


Operation = Generator[Statement, Rows, T]
ATOMIC: Final = Statement("BEGIN")  # to the runner: what follows belongs into one transaction; answered with no rows


class Held(Protocol):
    """An attempt that somebody holds: a `Job`, or anything with its id and token."""

    @property
    def id(self) -> int: ...
    @property
    def lease_token(self) -> int: ...


class Failure(NamedTuple):
    """One failed attempt for `fail_many`; `final` ends the job `failed`, `cancel` `cancelled`, attempts left or not."""

    job: Held
    error: str
    delay: Seconds = 0.0
    final: bool = False
    cancel: bool = False


# -- push ------------------------------------------------------------------------------------------------------

ROUNDS = 100  # a key that is met and gone so often was never there


def push(
    kind: str, payload: Json = None, *, max_in_flight: int | None = None, **options: Unpack[PushOptions]
) -> Operation[Pushed]:
    """Put one job in the queue; `options` are the fields of `NewJob`.

    With a `key` it is idempotent per kind for as long as the row exists, terminal or not: the id of that row comes back
    with `created=False`. `max_in_flight` as in `push_many`. Raises `QueueBusy`.
    """
    job = NewJob(kind, payload, **options)
    if max_in_flight is not None:
        return (yield from push_many([job], max_in_flight=max_in_flight))[0]
    row = dict(zip(_PARAMETERS, _values(job), strict=True))
    rows = yield Statement(sql.PUSH, row)
    if rows:
        return Pushed(rows[0][0], created=True)
    first = {} if job.key is None else {(job.kind, job.key): 0}
    existing = yield from _existing([job], first, [0])
    # None: the row went between the two statements (completed with TTL 0, or cleaned up), and the key is free again.
    return (existing or (yield from _insert([job], first, [0])))[0]


def push_many(jobs: Iterable[NewJob], *, max_in_flight: int | None = None) -> Operation[list[Pushed]]:
    """Put many jobs in the queue, all or none; the answers are in the order of `jobs`.

    A key that occurs twice is one job, created by its first occurrence. Jobs with keys are inserted in the order of
    their keys (two overlapping batches would deadlock otherwise), others in the order given.
    `max_in_flight` bounds the jobs of a queue that are not terminal: strict among pushers that give the same bound,
    who take turns until their transactions end, so keep those short. Only new jobs count against it; it does not
    hold back `retry`. Raises `QueueBusy`, with nothing inserted.
    """
    given = list(jobs)
    first: dict[tuple[str, str], int] = {}
    for index, job in enumerate(given):
        if job.key is not None:
            first.setdefault((job.kind, job.key), index)
    todo = [index for index, job in enumerate(given) if job.key is None]
    todo += [index for _, index in sorted(first.items())]
    answers: dict[int, Pushed] = {}
    if max_in_flight is not None:
        whole(max_in_flight, "max_in_flight")
        yield ATOMIC
        answers |= yield from _admit(given, first, todo, max_in_flight)
        todo = [index for index in todo if index not in answers]
    elif len(todo) > CHUNK:
        yield ATOMIC
    for start in range(0, len(todo), CHUNK):
        answers |= yield from _insert(given, first, todo[start : start + CHUNK])
    return [
        answers[index] if index in answers else Pushed(answers[first[job.kind, str(job.key)]].id, created=False)
        for index, job in enumerate(given)
    ]


def _insert(given: list[NewJob], first: dict[tuple[str, str], int], chunk: list[int]) -> Operation[dict[int, Pushed]]:
    """Insert one chunk; jobs whose keys exist get the ids of their rows."""
    answers: dict[int, Pushed] = {}
    for _ in range(ROUNDS):
        rows = yield Statement(sql.PUSH_MANY, _columns([given[index] for index in chunk]))
        keyless = (index for index in chunk if given[index].key is None)
        for id_, kind, key in rows:
            answers[next(keyless) if key is None else first[kind, key]] = Pushed(id_, created=True)
        chunk = [index for index in chunk if index not in answers]
        if any(given[index].key is None for index in chunk):
            break
        answers |= yield from _existing(given, first, chunk)
        chunk = [index for index in chunk if index not in answers]  # gone in between: their keys are free again
        if not chunk:
            return answers
    raise QueueError("the server inserted nothing: a trigger on pgqueue_jobs suppresses the row")


def _existing(given: list[NewJob], first: dict[tuple[str, str], int], todo: list[int]) -> Operation[dict[int, Pushed]]:
    """The jobs among `todo` whose keys exist already."""
    keyed = [given[index] for index in todo if given[index].key is not None]
    if not keyed:
        return {}
    params = {"kind": [job.kind for job in keyed], "key": [job.key for job in keyed]}
    rows = yield Statement(sql.FIND_KEYS, params)
    return {first[kind, key]: Pushed(id_, created=False) for id_, kind, key in rows}


def _admit(
    given: list[NewJob], first: dict[tuple[str, str], int], todo: list[int], limit: int
) -> Operation[dict[int, Pushed]]:
    """Take the locks of the bounded queues, in the order of their names, and check that the new jobs fit.

    Answers for the jobs that exist, which must not be inserted afterwards: their rows may be deleted meanwhile.
    """
    queues = sorted({given[index].queue for index in todo})
    for queue in queues:
        rows = yield Statement(sql.LOCK_QUEUE, {"queue": queue})
        if rows[0][1] != "read committed":
            raise QueueError(
                f"max_in_flight needs a READ COMMITTED transaction: at {rows[0][1]} the count would be stale"
            )
    existing = yield from _existing(given, first, todo)
    for queue in queues:
        new = sum(given[index].queue == queue for index in todo if index not in existing)
        if new > limit:
            raise InvalidJob(
                f"{new} new jobs can never fit max_in_flight={limit} of queue {queue!r}: push fewer at once"
            )
        ((active,),) = yield Statement(sql.COUNT_ACTIVE, {"queue": queue, "limit": limit})
        if new and active + new > limit:
            raise QueueBusy(queue, limit, min(active, limit), RETRY_AFTER)
    return existing


# The parameters of PUSH and PUSH_MANY, and where a NewJob has them.
_PARAMETERS = "queue", "kind", "key", "priority", "payload", "metadata", "run_at", "delay", "expires_at", "max_attempts"
_values = attrgetter(*({"payload": "encoded", "metadata": "encoded_metadata"}.get(name, name) for name in _PARAMETERS))
_DEFAULTS = "default", None, None, 0, "null", "{}", None, 0.0, None, None


def _columns(jobs: list[NewJob]) -> dict[str, list[Any]]:
    """The jobs as arrays, one for each parameter; empty where all have the default (see PUSH_MANY)."""
    columns = zip(_PARAMETERS, zip(*map(_values, jobs), strict=True), _DEFAULTS, strict=True)
    return {name: [] if column.count(usual) == len(column) else list(column) for name, column, usual in columns}


# -- an attempt ------------------------------------------------------------------------------------------------


def claim(wants: Sequence[Want], *, worker: str, lease: Seconds = DEFAULT_LEASE) -> Operation[list[Job]]:
    """Take due jobs, at most `slots` of each want, for `lease`; each spends an attempt.

    Order within a kind: priority descending, run_at, id. Paused queues are skipped, and nobody is waited for.
    `Want.after` starts the look behind a position: cheap while a long transaction pins dead index entries, but it does
    not see what comes before, so look without it every now and then.
    """
    if not wants:
        return []
    rows = yield Statement(
        sql.CLAIM,
        {
            "queues": [want.queue for want in wants],
            "kinds": [want.kind for want in wants],
            "slots": [want.slots for want in wants],
            "max_attempts": [want.max_attempts for want in wants],
            "after_priority": [want.after and want.after.priority for want in wants],
            "after_run_at": [want.after and want.after.run_at for want in wants],
            "after_id": [want.after and want.after.id for want in wants],
            "worker": text(worker, "worker"),
            "lease": seconds(lease, "lease"),
        },
    )
    try:
        jobs = [Job._make((*row[:-2], _loads(row[-2]), _loads(row[-1]))) for row in rows]
    except (ValueError, RecursionError):
        jobs = yield from _readable(rows)
    jobs.sort(key=lambda job: (-job.priority, job.run_at, job.id))  # RETURNING keeps no order
    return jobs


def _readable(rows: Rows) -> Operation[list[Job]]:
    """The claimed jobs that Python can read; the others fail for good, or each claim would break on them.

    jsonb takes what Python does not: nesting deeper than its stack, numbers of over 4,300 digits.
    """
    jobs, failures = [], []
    for row in rows:
        try:
            jobs.append(Job._make((*row[:-2], _loads(row[-2]), _loads(row[-1]))))
        except (ValueError, RecursionError) as error:
            reason = f"payload or metadata cannot be read: {type(error).__name__}"
            failures.append(Failure(Job._make((*row[:-2], None, {})), reason, final=True))
    yield from fail_many(failures)
    return jobs


def complete_many(jobs: Iterable[Held], *, ttl: Seconds | None = DEFAULT_TTL) -> Operation[list[Held]]:
    """End attempts well: the rows stay `succeeded` for `ttl`, go at once where it is 0, or stay until purged (None).

    Returns those no longer held, which are unchanged. Run it in the transaction of the handler's own writes and both
    commit together.
    """
    keep = _ttl(ttl)
    return (yield from _held(sql.COMPLETE_DELETE if keep == 0 else sql.COMPLETE_KEEP, jobs, {"ttl": keep}))


def complete(job: Held, *, ttl: Seconds | None = DEFAULT_TTL) -> Operation[None]:
    """`complete_many` of one job; raises `LeaseLost`."""
    _require((yield from complete_many([job], ttl=ttl)))


def fail_many(failures: Iterable[Failure], *, max_errors: int = 10) -> Operation[dict[tuple[int, int], Status]]:
    """End attempts badly: pending again after its delay, or `failed` where none is left. Keeps the newest `max_errors`.

    Returns the status each went to by `(id, lease_token)`; an attempt no longer held is missing there, and unchanged.
    """
    given = sorted({(f.job.id, f.job.lease_token): f for f in failures}.items(), key=lambda item: item[0])
    params = {
        "ids": [id_ for (id_, _), _ in given],
        "tokens": [token for (_, token), _ in given],
        # A message must never stand in the way of recording the failure: cut it, and replace what cannot be stored.
        "errors": [
            f.error[:MAX_ERROR].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
            for _, f in given
        ],
        "delays": [seconds(f.delay, "delay") for _, f in given],
        "ends": ["cancelled" if f.cancel else "failed" if f.final else None for _, f in given],
        "ttl": DEFAULT_TTL,
        "max_errors": whole(max_errors, "max_errors"),
    }
    rows = (yield Statement(sql.FAIL, params)) if given else []
    return {(id_, token): status for id_, token, status in rows}


def fail(
    job: Held, error: str, *, delay: Seconds = 0.0, final: bool = False, max_errors: int = 10
) -> Operation[Status]:
    """`fail_many` of one job: the status it went to; raises `LeaseLost`. `backoff` has the delays."""
    ended = yield from fail_many([Failure(job, error, delay, final)], max_errors=max_errors)
    if not ended:
        raise LeaseLost(job.id, job.lease_token)
    return ended[job.id, job.lease_token]


def snooze_many(jobs: Iterable[Held], delay: Seconds) -> Operation[list[Held]]:
    """Put claimed jobs back for later without spending the attempts; returns the stale."""
    return (yield from _held(sql.PUT_BACK, jobs, {"delay": seconds(delay, "delay")}))


def snooze(job: Held, delay: Seconds) -> Operation[None]:
    """`snooze_many` of one job; raises `LeaseLost`."""
    _require((yield from snooze_many([job], delay)))


def release_many(jobs: Iterable[Held]) -> Operation[list[Held]]:
    """Put claimed jobs back at once, attempts unspent, places kept (graceful shutdown); returns the stale."""
    return (yield from _held(sql.PUT_BACK, jobs, {"delay": None}))


def release(job: Held) -> Operation[None]:
    """`release_many` of one job; raises `LeaseLost`."""
    _require((yield from release_many([job])))


def heartbeat_many(jobs: Iterable[Held], *, lease: Seconds = DEFAULT_LEASE) -> Operation[list[Held]]:
    """Extend leases to `lease` from now. Returns those no longer held: rescued, cancelled or finished elsewhere."""
    return (yield from _held(sql.HEARTBEAT, jobs, {"lease": seconds(lease, "lease")}))


def heartbeat(job: Held, *, lease: Seconds = DEFAULT_LEASE) -> Operation[None]:
    """`heartbeat_many` of one job; raises `LeaseLost`."""
    _require((yield from heartbeat_many([job], lease=lease)))


def _held(statement: str, jobs: Iterable[Held], params: dict[str, Any]) -> Operation[list[Held]]:
    """Run a fenced batch, ids ascending (the lock order), and return the attempts that did not match."""
    held = sorted({(job.id, job.lease_token): job for job in jobs}.items(), key=lambda item: item[0])
    if not held:
        return []
    pairs = {"ids": [id_ for (id_, _), _ in held], "tokens": [token for (_, token), _ in held]}
    rows = yield Statement(statement, params | pairs)
    if len(rows) == len(held):
        return []
    matched = set(rows)
    return [job for pair, job in held if pair not in matched]


def _require(stale: list[Held]) -> None:
    if stale:
        raise LeaseLost(stale[0].id, stale[0].lease_token)


# -- operators -------------------------------------------------------------------------------------------------


def cancel(job_id: int, *, ttl: Seconds | None = DEFAULT_TTL) -> Operation[bool]:
    """Cancel a pending, blocked or running job; False if it is terminal already. Raises `JobNotFound`.

    A running attempt learns of it at its next heartbeat; whatever it reports is refused.
    """
    params = {"id": _id(job_id), "kind": None, "key": None, "ttl": _ttl(ttl)}
    return (yield from _change(sql.CANCEL, params, f"job {job_id}"))


def cancel_key(kind: str, key: str, *, ttl: Seconds | None = DEFAULT_TTL) -> Operation[bool]:
    """`cancel` by `(kind, external_key)`."""
    params = {"id": None, "kind": text(kind, "kind"), "key": text(key, "key", MAX_KEY), "ttl": _ttl(ttl)}
    return (yield from _change(sql.CANCEL, params, f"{kind} job with key {ellipsis(key)}"))


def retry(job_id: int) -> Operation[bool]:
    """Give a failed or cancelled job fresh attempts, due now; False in any other status. Raises `JobNotFound`."""
    return (yield from _change(sql.RETRY, {"id": _id(job_id)}, f"job {job_id}"))


def _id(job_id: int) -> int:
    return whole(job_id, "job_id", most=2**63 - 1)


def _ttl(ttl: Seconds | None) -> float | None:
    return None if ttl is None else seconds(ttl, "ttl")


def _change(statement: str, params: dict[str, Any], name: str) -> Operation[bool]:
    ((found, changed),) = yield Statement(statement, params)
    if not found:
        raise JobNotFound(f"{name} does not exist (any more)")
    return bool(changed)


def retry_many(
    *, queue: str | None = None, kind: str | None = None, error_like: str | None = None, limit: int = 1000
) -> Operation[list[int]]:
    """Give failed jobs fresh attempts, oldest first, at most `limit`; returns their ids, ascending.

    `error_like` is an ILIKE pattern for the newest message.
    """
    params = {"queue": _filter(queue, "queue"), "kind": _filter(kind, "kind"), "limit": whole(limit, "limit")}
    rows = yield Statement(sql.RETRY_MANY, params | {"error_like": _filter(error_like, "error_like", MAX_KEY)})
    return sorted(id_ for (id_,) in rows)


def purge(
    age: Seconds, *, statuses: Sequence[Status] = ("succeeded", "cancelled"), limit: int = 5_000
) -> Operation[int]:
    """Delete terminal jobs that finished longer ago than `age`, `failed` only when asked; returns how many.

    Reads the table in pages of `limit` rows, on an autocommit connection each its own transaction.
    """
    if not set(statuses) <= set(TERMINAL):
        raise InvalidJob(f"only terminal jobs can be purged: {', '.join(TERMINAL)}")
    params = {"age": seconds(age, "age"), "statuses": list(statuses), "limit": whole(limit, "limit")}
    gone, after = 0, -1
    while after is not None:
        ((count, after),) = yield Statement(sql.PURGE, params | {"after": after})
        gone += count
    return gone


def pause(queue: str) -> Operation[bool]:
    """Stop claims from a queue, for every worker; False if it was paused. Running attempts go on."""
    return bool((yield Statement(sql.PAUSE, {"queue": text(queue, "queue")})))


def resume(queue: str) -> Operation[bool]:
    """Undo `pause`; False if it was not paused."""
    return bool((yield Statement(sql.RESUME, {"queue": text(queue, "queue")})))


def paused() -> Operation[list[str]]:
    """The names of the paused queues."""
    return [queue for (queue,) in (yield Statement(sql.PAUSED))]


def stats() -> Operation[list[Stat]]:
    """Jobs by queue, kind and status. Reads the whole table."""
    return [Stat(*row) for row in (yield Statement(sql.STATS))]


def get(job_id: int) -> Operation[JobRow]:
    """One job, every column; raises `JobNotFound`."""
    rows = yield Statement(sql.GET, {"id": _id(job_id)})
    if not rows:
        raise JobNotFound(f"job {job_id} does not exist (any more)")
    return _row(rows[0])


def list_jobs(
    *,
    queue: str | None = None,
    kind: str | None = None,
    status: Status | None = None,
    key: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> Operation[list[JobRow]]:
    """Jobs in the order of ids, from the one after `after`; pass the last id of a page to get the next."""
    if status not in (None, *ACTIVE, *TERMINAL):
        raise InvalidJob(f"status must be one of {', '.join(ACTIVE + TERMINAL)}, not {ellipsis(status)}")
    params = {"queue": _filter(queue, "queue"), "kind": _filter(kind, "kind"), "key": _filter(key, "key", MAX_KEY)}
    page = {"status": status, "after": whole(after, "after", 0, 2**63 - 1), "limit": whole(limit, "limit")}
    return [_row(row) for row in (yield Statement(sql.LIST, params | page))]


def _filter(value: str | None, name: str, limit: int = MAX_NAME) -> str | None:
    return None if value is None else text(value, name, limit)


def _row(row: tuple[Any, ...]) -> JobRow:
    try:
        return JobRow._make((*row[:-2], _loads(row[-2]), _loads(row[-1])))
    except (ValueError, RecursionError):  # see `_readable`: people get the text
        return JobRow._make(row)


_decode = json.JSONDecoder().raw_decode  # jsonb's text has no blanks around it: half the cost of loads


def _loads(encoded: str) -> Any:
    return _decode(encoded)[0]


# -- maintenance -----------------------------------------------------------------------------------------------


def rescue(limit: int = 500, *, max_errors: int = 10) -> Operation[Rescued]:
    """Take back running jobs whose lease ran out: pending again, or failed where no attempt is left.

    Goes through all of them in batches of `limit`. A batch that the server refuses (a constraint or trigger of the
    user's) is halved until the rows to blame are found, so that a poisonous one cannot stall the rest; in an open
    transaction the error is raised.
    """
    result, queue, last = Rescued([], [], []), "", 0
    bound = {"max_errors": whole(max_errors, "max_errors")}
    while True:
        lost = yield Statement(sql.LOST, {"queue": queue, "id": last, "limit": whole(limit, "limit")})
        batches = [[id_ for _, id_ in lost]] if lost else []
        while batches:
            ids = batches.pop()
            try:
                rows = yield Statement(sql.RESCUE, {"ids": ids} | bound)
            except QueueError:
                if not (yield from _intact()):
                    raise
                if len(ids) == 1:
                    result.refused.extend(ids)
                else:
                    batches += [ids[: len(ids) // 2], ids[len(ids) // 2 :]]
            else:
                for id_, status in rows:
                    (result.failed if status == "failed" else result.retried).append(id_)
        if len(lost) < limit:
            return result
        queue, last = lost[-1]


def _intact() -> Operation[bool]:
    """Whether the connection takes more statements: an error spoils a transaction that the caller has open."""
    try:
        yield Statement("SELECT 1")
    except QueueError:
        return False
    return True


def chores() -> Operation[Chores]:
    """Whether `rescue`, `expire` and `cleanup` would find anything: one cheap statement."""
    return Chores._make((yield Statement(sql.CHORES))[0])


def expire(limit: int = 1000) -> Operation[int]:
    """Cancel up to `limit` jobs that were not started by their `expires_at`; returns how many."""
    params = {"limit": whole(limit, "limit"), "ttl": DEFAULT_TTL}
    return len((yield Statement(sql.EXPIRE, params)))


def cleanup(limit: int = 1000) -> Operation[int]:
    """Delete up to `limit` terminal jobs that are past their TTL; returns how many."""
    return len((yield Statement(sql.CLEANUP, {"limit": whole(limit, "limit")})))
