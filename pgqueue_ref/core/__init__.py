"""A PostgreSQL job queue, small enough to read in one sitting: copy this directory, it needs psycopg 3 alone.

    with Queue.connect("postgresql://localhost/app") as queue:
        queue.push("thumbnail", {"photo": 7}, key="photo-7")
        for job in queue.claim([Want("thumbnail", slots=10)], worker="me"):
            queue.complete(job)

Delivery is at least once, and fenced: whoever lost its lease changes nothing. Read on in this order: `schema.sql` (the
data), `states` (the moves), `sql` (the heart), `operations` (the promises).
"""

from .backoff import Backoff, Jitter, constant, exponential, linear
from .connect import SCHEMA_SQL, connect, connect_async, conninfo, install
from .errors import (
    ConnectionLimit,
    DatabaseUnavailable,
    InvalidJob,
    JobNotFound,
    LeaseLost,
    LockTimeout,
    QueueBusy,
    QueueError,
    SchemaMissing,
    StatementTimeout,
    UnknownKind,
    translate,
)
from .jobs import Chores, Job, JobRow, Json, NewJob, Position, Pushed, Rescued, Seconds, Stat, Want, seconds
from .operations import ATOMIC, Failure, Held, Operation, Statement
from .queue import AsyncQueue, Queue
from .runners import run, run_async
from .states import ACTIVE, TERMINAL, TRANSITIONS, Status, Transition

__all__ = [
    "ACTIVE", "ATOMIC", "SCHEMA_SQL", "TERMINAL", "TRANSITIONS", "AsyncQueue", "Backoff", "Chores", "ConnectionLimit",
    "DatabaseUnavailable", "Failure", "Held", "InvalidJob", "Jitter", "Job", "JobNotFound", "JobRow", "Json",
    "LeaseLost", "LockTimeout", "NewJob", "Operation", "Position", "Pushed", "Queue", "QueueBusy", "QueueError",
    "Rescued", "SchemaMissing", "Seconds", "Stat", "Statement", "StatementTimeout", "Status", "Transition",
    "UnknownKind", "Want", "connect", "connect_async", "conninfo", "constant", "exponential", "install", "linear",
    "run", "run_async", "seconds", "translate",
]  # fmt: skip
