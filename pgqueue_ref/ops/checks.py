"""What the doctor looks at, one operation for each question; `ops.doctor` asks them.

Every check reads, is bounded in cost (partial indexes, the statistics views, `overview`) and works for any role that
may read the tables. What a role may not see is said in the finding, never taken for health.
"""

from __future__ import annotations

from shlex import quote
from typing import Final, Literal, NamedTuple

from pgqueue_ref.core import Operation, Statement
from pgqueue_ref.extensions import installed
from pgqueue_ref.extensions.events import EVENTS, enabled

from .overview import Flow, Overview

Level = Literal["OK", "WARN", "FAIL"]
LEVELS: Final[tuple[Level, ...]] = ("OK", "WARN", "FAIL")

OLDEST, NEWEST = 14, 18  # major versions of PostgreSQL that the suites run on
NEARLY_FULL = 0.9  # of the connections that there are
PINNED_WARN, PINNED_FAIL = 300.0, 3_600.0  # seconds that a transaction may be open
PINNED_XIDS = 1_000_000  # transactions that a standby or slot may hold the horizon back
DEAD_ROWS = 50_000  # more than that and than the live ones: vacuum does not keep up
UNVACUUMED = 3_600.0  # seconds since the last vacuum, with dead rows above the table's threshold
BLOAT, BLOAT_BYTES = 4.0, 256 * 2**20  # times the size that the rows need, where it costs at least so much
LONG_RUN = 300.0  # seconds
RESCUE_PATIENCE = 30.0  # seconds: workers look for ended leases every five
FAILED_BURST = 10  # failed jobs in ten minutes, and twice as many as in an average ten minutes of the hour before
WAITING_WARN, WAITING_FAIL = 60.0, 300.0  # seconds that a due job waits where nothing runs, or more come than go
LOOK = 10_000  # rows that a check counts at most
KINDS = 5  # that a finding names

_RUNBOOK = "docs/runbook.md#"


class Finding(NamedTuple):
    """The answer to one question: `value` is the number, `fix` the command or setting that mends it (empty when OK)."""

    check: str
    level: Level
    value: str
    reason: str
    fix: str = ""


class Plan(NamedTuple):
    """What is to run against the server: worker processes and connections of all pools, None being those that run now;
    how many times over while a deployment has old and new side by side; `lease` in seconds as the workers have it."""

    workers: int | None = None
    pool: int | None = None
    surge: float = 2.0
    listen: bool = True
    lease: float = 60.0


def span(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("days", 172_800.0), ("hours", 7_200.0), ("min", 120.0)):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'hours': 3_600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- the server ------------------------------------------------------------------------------------------------

SERVER = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool
"""


def server() -> Operation[Finding]:
    """Version, and whether it can be written to."""
    ((version, major, read_only),) = yield Statement(SERVER)
    value = f"PostgreSQL {version.split()[0]}"
    if major < OLDEST:
        reason = f"versions before {OLDEST} lack what the queue's SQL uses"
        return Finding("server", "FAIL", value, reason, f"upgrade to PostgreSQL {OLDEST} to {NEWEST}")
    if read_only:
        reason = "it only reads: a standby, or default_transaction_read_only is on"
        fix = "point PGQUEUE_DATABASE_URL at the primary (target_session_attrs=read-write finds it)"
        return Finding("server", "FAIL", value, reason, fix)
    if major > NEWEST:
        reason = f"newer than {NEWEST}, the newest that this version is tested on"
        return Finding("server", "WARN", value, reason, "run the suites against it, or update pgqueue-ref")
    return Finding("server", "OK", value, "reachable, takes writes, supported")


TABLES = "SELECT to_regclass('pgqueue_jobs'), to_regclass('pgqueue_queues'), to_regclass('pgqueue_alembic_version')"
REVISION = "SELECT version_num FROM pgqueue_alembic_version"
# An index that is missing or invalid lets every claim read the table.
INDEXES = """
SELECT name FROM unnest(%(names)s::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(name) AND indisvalid)
"""
_INDEXES: Final = [f"pgqueue_jobs_{name}" for name in ("pkey", "key", "claim", "active", "expiry", "cleanup", "failed")]


def schema(heads: set[str], known: set[str]) -> Operation[Finding]:
    """Tables, indexes, and the revision: `heads` are this version's newest, `known` all it has."""
    ((jobs, queues, versions),) = yield Statement(TABLES)
    migrate = "pgqueue-ref migrate"
    if not (jobs and queues):
        reason = "no tables in the search_path (PGQUEUE_SCHEMA, PGQUEUE_DATABASE_URL), or no USAGE on their schema"
        return Finding("schema", "FAIL", "missing", reason, f"{migrate}; {_RUNBOOK}schema-missing")
    if missing := [name for (name,) in (yield Statement(INDEXES, {"names": _INDEXES}))]:
        reason = f"claims or maintenance read the whole table without {', '.join(missing)}"
        fix = "drop what is invalid, then run the CREATE INDEX of `pgqueue-ref schema`"
        return Finding("schema", "FAIL", f"{len(missing)} indexes missing or invalid", reason, fix)
    if not versions:
        reason = "made without migrations, so that its version is not recorded"
        return Finding("schema", "WARN", "no revision", reason, f"{migrate} (creates only what is missing)")
    have = {revision for (revision,) in (yield Statement(REVISION))}
    value = f"revision {', '.join(sorted(have)) or 'none'}"
    if newer := have - known:
        reason = f"this version does not know {', '.join(sorted(newer))}: a newer one has migrated the database"
        return Finding("schema", "WARN", value, reason, "finish the deployment: update pgqueue-ref here")
    if lacking := heads - have:
        reason = f"older than this version, which needs {', '.join(sorted(lacking))}"
        return Finding("schema", "FAIL", value, reason, f"{migrate}; {_RUNBOOK}schema-missing")
    return Finding("schema", "OK", value, "present, all indexes valid, at this version's revision")


# What workers, producers and operators do with each table. FOR UPDATE, with which the maintenance of the extensions
# picks rows, needs UPDATE.
NEEDED: Final = {
    "pgqueue_jobs": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "pgqueue_queues": ("SELECT", "INSERT", "DELETE"),
    "pgqueue_events": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "pgqueue_schedules": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "pgqueue_results": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "pgqueue_dependencies": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
# NULL where the table is not there.
PRIVILEGES = """
SELECT current_user, name, verb, has_table_privilege(to_regclass(name), verb)
FROM unnest(%(names)s::text[], %(verbs)s::text[]) AS needed (name, verb)
"""


def privileges() -> Operation[Finding]:
    """Whether this role could run a worker, push and do all that operators do."""
    pairs = [(name, verb) for name, verbs in NEEDED.items() for verb in verbs]
    if not (yield from enabled()):
        pairs.remove(("pgqueue_events", "INSERT"))
    names, verbs = zip(*pairs, strict=True)
    rows = yield Statement(PRIVILEGES, {"names": list(names), "verbs": list(verbs)})
    role, lacking = rows[0][0], dict[str, list[str]]()
    for _, name, verb, granted in rows:
        if granted is False:
            lacking.setdefault(name, []).append(verb)
    if not lacking:
        return Finding("privileges", "OK", str(role), "may read and write all tables of the queue")
    words = [f"{', '.join(verbs)} ON {name}" for name, verbs in lacking.items()]
    reason = f"lacks {' and '.join(words).replace(' ON ', ' on ')}: what needs that is refused"
    return Finding("privileges", "WARN", str(role), reason, "; ".join(f'GRANT {word} TO "{role}"' for word in words))


TIMEOUT = "SELECT extract(epoch FROM current_setting('statement_timeout')::interval)::float8"


def timeout(plan: Plan) -> Operation[Finding]:
    """Heartbeats come when a third of the lease is gone, at most a sixth late: half of it is left for the statement."""
    ((seconds,),) = yield Statement(TIMEOUT)
    value = f"{seconds:g} s, leases {plan.lease:g} s"
    fix = f"PGQUEUE_STATEMENT_TIMEOUT_MS={min(5_000, int(plan.lease * 250))}; {_RUNBOOK}timeouts"
    if not seconds:
        reason = "without statement_timeout a statement that hangs holds its worker up until somebody comes"
        return Finding("statement_timeout", "WARN", "off", reason, fix)
    if seconds >= plan.lease:
        reason = "a heartbeat may hang longer than the lease lasts: its jobs run twice"
        return Finding("statement_timeout", "FAIL", value, reason, fix)
    if seconds > plan.lease / 2:
        reason = "a heartbeat may hang past the half of the lease that is left when it is sent"
        return Finding("statement_timeout", "WARN", value, reason, fix)
    if seconds < 1:
        reason = "maintenance batches and bulk pushes may need longer, and would be cancelled again and again"
        return Finding("statement_timeout", "WARN", value, reason, fix)
    return Finding("statement_timeout", "OK", value, "a hung heartbeat ends before its lease does")


# By the three limits that there may be. The queue's own sessions are known by their names, and only in this database;
# of other roles' sessions a role without pg_read_all_stats sees neither name nor type: they are others.
CONNECTIONS = """
WITH session AS (
    SELECT datname = current_database() AS here, usename = current_user AS mine,
           datname = current_database() AND starts_with(coalesce(application_name, ''), 'pgqueue_ref') AS own,
           application_name AS name
    FROM pg_stat_activity
    WHERE coalesce(backend_type, 'client backend') = 'client backend' AND usesysid IS NOT NULL AND datid IS NOT NULL
      AND pid <> pg_backend_pid()
)
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true)::int, 0),
       nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1),
       (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper),
       count(*) FILTER (WHERE NOT own), count(*) FILTER (WHERE NOT own AND here),
       count(*) FILTER (WHERE NOT own AND mine), count(*) FILTER (WHERE own),
       count(*) FILTER (WHERE own AND name = 'pgqueue_ref:claim'),
       count(*) FILTER (WHERE own AND name = 'pgqueue_ref:api')
FROM session
"""


def connections(plan: Plan) -> Operation[Finding]:
    """Whether the server has room for what is planned, or else for what runs now, during a deployment."""
    ((most, reserved, of_database, of_role, elsewhere, here, mine, held, claiming, pooled),) = yield Statement(
        CONNECTIONS
    )
    workers = max(1, claiming) if plan.workers is None else plan.workers
    pool = pooled if plan.pool is None else plan.pool
    each = 3 if plan.listen else 2
    need = round(plan.surge * (workers * each + pool))
    limits = [
        (most - reserved, elsewhere, "max_connections"),
        (of_database, here, "the database's limit"),
        (of_role, mine, "the role's limit"),
    ]
    room, others, name = min(
        ((limit, others, name) for limit, others, name in limits if limit is not None), key=lambda one: one[0] - one[1]
    )
    value = f"{need} needed of {room}, now {held} in use by the queue, {others} by others"
    seen = " (as now)" if plan.workers is None else ""
    planned = f"workers {workers} x {each}{seen}, pools {pool}, all times {plan.surge:g} during a deployment"
    fix = f"fewer workers, a smaller pool, --no-listen, PgBouncer, or raise {name}; {_RUNBOOK}too-many-connections"
    if need > room:
        reason = f"{planned}; {name} leaves {room} ({reserved} are reserved)"
        # Sessions that are counted in the midst of a deployment are counted twice over: that alone wakes nobody.
        return Finding("connections", "WARN" if plan.workers is None else "FAIL", value, reason, fix)
    if held + others >= NEARLY_FULL * room:
        reason = f"{name} leaves {room} ({reserved} are reserved): soon nobody can connect"
        return Finding("connections", "WARN", value, reason, fix)
    if need + others > room:
        reason = f"{planned}; together with those of others now that is more than {name} leaves"
        return Finding("connections", "WARN", value, reason, fix)
    return Finding("connections", "OK", value, planned)


# -- vacuum ----------------------------------------------------------------------------------------------------

# backend_xmin is hidden like the query; only this database's sessions hold its tables' dead rows.
SESSIONS = """
SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
       extract(epoch FROM now() - xact_start)::float8, query = '<insufficient privilege>'
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR query = '<insufficient privilege>')
  AND coalesce(backend_type, '') NOT IN ('autovacuum worker', 'parallel worker')
ORDER BY xact_start NULLS LAST
"""
PREPARED = """
SELECT gid, extract(epoch FROM now() - prepared)::float8 FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY prepared LIMIT 1
"""


def transactions() -> Operation[Finding]:
    """Sessions and prepared transactions that keep dead rows from being removed."""
    rows = yield Statement(SESSIONS)
    held: list[tuple[float, str, str]] = []
    for pid, role, application, state, seconds, hidden in rows:
        if not hidden and seconds is not None:
            held.append(
                (seconds, f"session {pid} ({role} {application!r}, {state})", f"SELECT pg_terminate_backend({pid})")
            )
    for gid, seconds in (yield Statement(PREPARED)):
        held.append(
            (seconds, f"prepared transaction {gid!r}", f"ROLLBACK PREPARED '{gid.replace(chr(39), chr(39) * 2)}'")
        )
    seconds, who, fix = max(held, default=(0.0, "", ""))
    hidden = sum(row[-1] for row in rows)
    value = f"oldest {span(seconds)}" if held else "none open"
    if held and seconds >= PINNED_WARN:
        reason = f"{who} keeps vacuum from removing dead rows: claims slow down, the table grows"
        level: Level = "FAIL" if seconds >= PINNED_FAIL else "WARN"
        return Finding("transactions", level, value, reason, f"{fix}; idle_in_transaction_session_timeout prevents it")
    if hidden:
        reason = f"{hidden} sessions of other roles cannot be seen by this one, and may be old"
        return Finding(
            "transactions", "WARN", value, reason, "GRANT pg_read_all_stats TO CURRENT_USER, as an administrator"
        )
    return Finding("transactions", "OK", value, "nothing keeps vacuum from removing dead rows")


SLOTS = """
SELECT slot_name, active, coalesce(age(xmin), 0)::bigint, wal_status FROM pg_replication_slots
ORDER BY age(xmin) DESC NULLS LAST, active LIMIT 100
"""
STANDBYS = "SELECT application_name, age(backend_xmin)::bigint FROM pg_stat_replication WHERE backend_xmin IS NOT NULL"


def standbys() -> Operation[Finding]:
    """Replication slots and hot_standby_feedback that hold the horizon back, or WAL."""
    slots = yield Statement(SLOTS)
    feedback = yield Statement(STANDBYS)
    for name, active, age, _ in slots:
        if age >= PINNED_XIDS:
            reason = f"slot {name!r} ({'in use' if active else 'unused'}) keeps vacuum from removing what died since"
            fix = f"SELECT pg_drop_replication_slot('{name}') if its standby is gone; else end the long query there"
            return Finding("standbys", "WARN", f"{age:,} transactions behind", reason, fix)
    for name, age in feedback:
        if age >= PINNED_XIDS:
            reason = f"standby {name!r} (hot_standby_feedback) keeps vacuum from removing what died since"
            fix = "end the long query there, or set hot_standby_feedback = off"
            return Finding("standbys", "WARN", f"{age:,} transactions behind", reason, fix)
    if unused := [name for name, active, _, status in slots if not active and status != "lost"]:
        reason = f"slot {unused[0]!r} is unused and keeps WAL until the disk is full"
        fix = f"SELECT pg_drop_replication_slot('{unused[0]}') if its reader is gone; max_slot_wal_keep_size bounds it"
        return Finding("standbys", "WARN", f"{len(unused)} unused slots", reason, fix)
    return Finding("standbys", "OK", f"{len(slots)} slots", "no slot or standby holds vacuum or WAL back")


VACUUM = """
SELECT current_setting('autovacuum')::bool AND current_setting('track_counts')::bool,
       coalesce((SELECT option_value::bool FROM pg_options_to_table(reloptions)
                 WHERE option_name = 'autovacuum_enabled'), true),
       coalesce((SELECT option_value::float8 FROM pg_options_to_table(reloptions)
                 WHERE option_name = 'autovacuum_vacuum_scale_factor'), -1),
       coalesce(n_dead_tup, 0), coalesce(n_live_tup, 0),
       extract(epoch FROM now() - greatest(last_autovacuum, last_vacuum))::float8
FROM pg_class LEFT JOIN pg_stat_user_tables ON relid = pg_class.oid
WHERE pg_class.oid = 'pgqueue_jobs'::regclass
"""


def vacuum() -> Operation[Finding]:
    """Whether dead rows are removed, and when last."""
    ((on, on_table, scale, dead, live, since),) = yield Statement(VACUUM)
    value = f"{dead:,} dead rows, {live:,} live"
    last = "never" if since is None else f"{span(since)} ago"
    fix = f"VACUUM pgqueue_jobs; see the checks of transactions and standbys; {_RUNBOOK}table-bloat"
    if not on:
        reason = "autovacuum or track_counts is off for the whole server: dead rows pile up"
        return Finding(
            "vacuum", "FAIL", value, reason, "ALTER SYSTEM SET autovacuum = on (and track_counts); then reload"
        )
    if not on_table:
        reason = "autovacuum is switched off for this table: dead rows pile up"
        return Finding("vacuum", "FAIL", value, reason, "ALTER TABLE pgqueue_jobs RESET (autovacuum_enabled)")
    if dead > DEAD_ROWS and dead > live:
        return Finding("vacuum", "WARN", value, f"vacuum does not keep up: last {last}", fix)
    if dead > DEAD_ROWS and (since is None or since > UNVACUUMED):
        return Finding("vacuum", "WARN", value, f"enough to vacuum, but last {last}", fix)
    if scale != 0:
        reason = "the schema's autovacuum settings are gone: it waits until a share of the table is dead"
        setting = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000"
        return Finding("vacuum", "WARN", value, reason, f"ALTER TABLE pgqueue_jobs SET ({setting})")
    return Finding("vacuum", "OK", value, f"autovacuum is on, with the schema's settings; last {last}")


# What the live rows need by the planner's widths (28 bytes of header and pointer, the table's fillfactor of 70 %; an
# index entry 40 bytes, four for a row), against what the files have. pg_stats shows columns that this role may read.
SIZES = """
SELECT pg_relation_size('pgqueue_jobs'::regclass), pg_indexes_size('pgqueue_jobs'::regclass),
       (SELECT n_live_tup FROM pg_stat_user_tables WHERE relid = 'pgqueue_jobs'::regclass),
       (SELECT sum(avg_width * (1 - null_frac))::float8 FROM pg_stats
        WHERE schemaname = (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'pgqueue_jobs'::regclass)
          AND tablename = 'pgqueue_jobs')
"""


def bloat() -> Operation[Finding]:
    """The size of the files against what the rows need; an estimate."""
    ((table, indexes, live, width),) = yield Statement(SIZES)
    value = f"table {table / 2**20:,.0f} MB, indexes {indexes / 2**20:,.0f} MB"
    live, ever = live or 0, "VACUUM (FULL) takes an exclusive lock: pause the queue first"
    if table > BLOAT_BYTES and width is None:
        return Finding("bloat", "WARN", value, "not known: the table was never analysed", "ANALYZE pgqueue_jobs")
    if table > BLOAT_BYTES and table > BLOAT * (need := live * (28 + (width or 0)) / 0.7):
        reason = f"{live:,} live rows need about {need / 2**20:,.0f} MB"
        fix = (
            f"find what holds vacuum back, then pg_repack or VACUUM (FULL) pgqueue_jobs ({ever}); {_RUNBOOK}table-bloat"
        )
        return Finding("bloat", "WARN", value, reason, fix)
    if indexes > BLOAT_BYTES and indexes > BLOAT * (need := live * 40 * 4):
        reason = f"the entries of {live:,} live rows need about {need / 2**20:,.0f} MB"
        fix = f"REINDEX TABLE CONCURRENTLY pgqueue_jobs; {_RUNBOOK}table-bloat"
        return Finding("bloat", "WARN", value, reason, fix)
    return Finding("bloat", "OK", value, f"in proportion to {live:,} live rows, or small")


# -- jobs ------------------------------------------------------------------------------------------------------

# pgqueue_jobs_active: as many entries as job slots.
RUNNING = """
SELECT id, extract(epoch FROM now() - started_at)::float8, extract(epoch FROM now() - lease_expires_at)::float8
FROM (SELECT id, started_at, lease_expires_at FROM pgqueue_jobs
      WHERE status = 'running' ORDER BY status, queue, id LIMIT %(look)s) AS running
"""


def leases() -> Operation[Finding]:
    """Running jobs whose workers are gone, and that nobody takes back."""
    rows = yield Statement(RUNNING, {"look": LOOK})
    if unheld := [id_ for id_, _, since in rows if since is None]:
        reason = f"job {unheld[0]} was made running by hand: no worker has it, and none takes it back"
        return Finding("leases", "FAIL", f"{len(unheld)} without a lease", reason, "pgqueue-ref reset-stuck")
    lost = sorted((since, id_) for id_, _, since in rows if since > RESCUE_PATIENCE)
    if lost:
        since, first = lost[-1]
        reason = f"the lease of job {first} ended {span(since)} ago, and no worker takes such jobs back"
        fix = f"start a worker (any queue: each rescues all), or pgqueue-ref reset-stuck; {_RUNBOOK}stuck-jobs"
        return Finding("leases", "FAIL", f"{len(lost)} expired", reason, fix)
    return Finding("leases", "OK", "none expired", "every running job has a worker, or is taken back in time")


def running() -> Operation[Finding]:
    """Jobs that run for long."""
    rows = yield Statement(RUNNING, {"look": LOOK})
    long = sorted((seconds, id_) for id_, seconds, _ in rows if seconds is not None and seconds > LONG_RUN)
    value = f"{len(long)} of {len(rows)} beyond {span(LONG_RUN)}"
    if long:
        reason = f"job {long[-1][1]} runs for {span(long[-1][0])}: its handler hangs, or is meant to take that long"
        fix = f"pgqueue-ref cancel {long[-1][1]}; give its kind an attempt_timeout; {_RUNBOOK}stuck-jobs"
        return Finding("running", "WARN", value, reason, fix)
    return Finding("running", "OK", value, "no attempt takes long")


# pgqueue_jobs_failed, from its newest end.
FAILED = """
SELECT count(*) FILTER (WHERE finished_at > now() - interval '10 min'),
       count(*) FILTER (WHERE finished_at <= now() - interval '10 min')
FROM (SELECT finished_at FROM pgqueue_jobs WHERE status = 'failed' AND finished_at > now() - interval '70 min'
      ORDER BY finished_at DESC, id DESC LIMIT %(look)s) AS failed
"""


def failed() -> Operation[Finding]:
    """Whether jobs fail for good more often than they did."""
    ((recent, before),) = yield Statement(FAILED, {"look": LOOK})
    value = f"{recent:,} in 10 min, {before:,} in the hour before"
    if _burst(recent, before):
        reason = "more jobs end failed than before: a dependency is down, or a release broke a handler"
        fix = f"read their errors (pgqueue-ref failed), mend it, pgqueue-ref retry-all; {_RUNBOOK}failures-repeating"
        return Finding("failed", "WARN", value, reason, fix)
    return Finding("failed", "OK", value, "no more than usual")


# pgqueue_events_type, from its newest end. With ten attempts and growing pauses a job fails for hours before it is one.
ATTEMPTS = """
SELECT count(*) FILTER (WHERE at > now() - interval '10 min'), count(*) FILTER (WHERE at <= now() - interval '10 min'),
       mode() WITHIN GROUP (ORDER BY kind) FILTER (WHERE at > now() - interval '10 min')
FROM (SELECT at, kind FROM pgqueue_events WHERE type = 'failed' AND at > now() - interval '70 min'
      ORDER BY at DESC, id DESC LIMIT %(look)s) AS failed
"""


def attempts() -> Operation[Finding]:
    """Whether attempts fail more often than they did, also those that are tried again; told by the events."""
    if not (yield from installed(EVENTS)):
        return Finding("attempts", "OK", "not counted", "retries are told by events, which are not installed")
    ((recent, before, kind),) = yield Statement(ATTEMPTS, {"look": LOOK})
    value = f"{recent:,} failed in 10 min, {before:,} in the hour before"
    if _burst(recent, before):
        reason = (
            f"more attempts fail than before, most of them of {kind!r}; where attempts are left they are tried again"
        )
        fix = f"read the messages (pgqueue-ref events list --type failed), mend it; {_RUNBOOK}failures-repeating"
        return Finding("attempts", "WARN", value, reason, fix)
    return Finding("attempts", "OK", value, "no more than usual")


def _burst(recent: int, before: int) -> bool:
    """Many in ten minutes, against the hour before."""
    return recent >= FAILED_BURST and recent > 2 * before / 6


def backlog(first: Overview, second: Overview) -> list[Finding]:
    """Where jobs wait: from two overviews some seconds apart, which also see what is deleted as soon as it is done. One
    finding for all kinds of a queue that wait for the same reason."""
    seconds = max(0.001, (second.at - first.at).total_seconds())
    before = {flow[:2]: flow.due for flow in first.flows}
    waiting: dict[tuple[str, str], list[tuple[Flow, int]]] = {}
    for flow in second.flows:
        more = flow.due - before.get(flow[:2], 0)
        if why := _why(flow, more, second):
            waiting.setdefault((flow.queue, why), []).append((flow, more))
    if waiting:
        return [_waiting(queue, why, flows, seconds) for (queue, why), flows in waiting.items()]
    due = sum(flow.due for flow in second.flows)
    return [Finding("backlog", "OK", f"{due:,} due", f"no kind waits and grows, looked at twice in {seconds:.0f} s")]


def _why(flow: Flow, more: int, now: Overview) -> str | None:
    """For which reason due jobs wait for long, if they do."""
    if (flow.oldest_due_seconds or 0.0) < WAITING_WARN:
        return None
    if flow.queue in now.paused:
        return "paused"
    if more < 0:
        return None
    return "idle" if flow.oldest_running_seconds is None else "slow"


def _waiting(queue: str, why: str, flows: list[tuple[Flow, int]], seconds: float) -> Finding:
    kinds = [repr(flow.kind) for flow, _ in flows]
    named = ", ".join(kinds[:KINDS]) + (f" and {len(kinds) - KINDS} other kinds" if len(kinds) > KINDS else "")
    age = max(flow.oldest_due_seconds or 0.0 for flow, _ in flows)
    value = f"{sum(flow.due for flow, _ in flows):,} due, oldest {span(age)}"
    place = f"{named} in queue {queue!r}"
    if why == "paused":
        fix = f"pgqueue-ref resume {'-- ' if queue.startswith('-') else ''}{quote(queue)}"
        return Finding("backlog", "WARN", value, f"{place}: the queue is paused", fix)
    if why == "idle":
        level: Level = "FAIL" if age >= WAITING_FAIL else "WARN"
        fix = f"start a worker with --queues {quote(queue)} whose app registers {named}; {_RUNBOOK}queue-not-moving"
        return Finding("backlog", level, value, f"{place}: due jobs wait and none is running", fix)
    more = sum(more for _, more in flows)
    reason = f"{place}: {more:,} more than {seconds:.0f} s ago: as many come as the workers do, or more"
    fix = f"more workers or concurrency, or bound the pushes (max_in_flight); {_RUNBOOK}queue-not-moving"
    return Finding("backlog", "WARN", value, reason, fix)
