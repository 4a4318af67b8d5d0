"""The queue's SQL: one text for each statement, used by `operations` through every runner.

Above each: the index that serves it, the order in which it locks rows, why sending it again is safe, and what was
tried instead. Figures are medians on PostgreSQL 18 (16 within 10 %), 2 cores; docs/performance.md repeats them.

Rules that hold throughout. Time is now(), the start of the transaction on the server. Batches lock rows in the order
of ids, or skip locked ones, so that two of them cannot deadlock. An UPDATE finds its rows by
`id = ANY (ARRAY(SELECT ...))`: joined with FROM, the planner cannot see how few they are and hashes a large table
(626 ms against 1.5 ms on 2,000,000 rows). The fence is `(id, lease_token)` and status = 'running', re-read after
any wait for the row. Intervals go through make_interval: a placeholder inside a quoted literal is read as text.
"""

# ruff: noqa: E501 - SQL reads better in its own lines than in Python's

# -- push ------------------------------------------------------------------------------------------------------

# One job. pgqueue_jobs_key decides whether it is new; the loser of a race waits for the winner's transaction and then
# inserts nothing. Sending it again inserts nothing either where there is a key; without one it is a second job.
# DO NOTHING rather than DO UPDATE SET id = id: that would return the old id in one trip, but write and lock the old
# row each time. As unnest of one-element arrays it took 1.28 times as long.
PUSH = """
INSERT INTO pgqueue_jobs (queue, kind, external_key, priority, payload, metadata, run_at, expires_at, max_attempts, created_at)
VALUES (%(queue)s, %(kind)s, %(key)s, %(priority)s, %(payload)s, %(metadata)s,
        coalesce(%(run_at)s, now() + make_interval(secs => %(delay)s)), %(expires_at)s, %(max_attempts)s, now())
ON CONFLICT (kind, external_key) WHERE external_key IS NOT NULL DO NOTHING
RETURNING id, kind, external_key
"""

# A chunk of jobs in one statement. The caller sorts by key across all chunks, so that two overlapping batches wait for
# each other's keys in one order. A column in which all jobs have the default is sent as an empty array, which unnest pads with
# NULL: full arrays of defaults cost half as much again (12.2 against 8.1 us a job, bare INSERT 7.5). Arrays travel in the
# binary format (%b), because psycopg quotes the elements of a text array in Python (7.0 against 10.1 us a job).
PUSH_MANY = """
INSERT INTO pgqueue_jobs (queue, kind, external_key, priority, payload, metadata, run_at, expires_at, max_attempts, created_at)
SELECT coalesce(queue, 'default'), kind, key, coalesce(priority, 0), coalesce(payload, 'null')::jsonb,
       coalesce(metadata, '{}')::jsonb, coalesce(run_at, now() + make_interval(secs => delay), now()), expires_at,
       max_attempts, now()
FROM unnest(%(queue)b::text[], %(kind)b::text[], %(key)b::text[], %(priority)b::int[], %(payload)b::text[],
            %(metadata)b::text[], %(run_at)b::timestamptz[], %(delay)b::float8[], %(expires_at)b::timestamptz[],
            %(max_attempts)b::int[])
     AS new (queue, kind, key, priority, payload, metadata, run_at, delay, expires_at, max_attempts)
ON CONFLICT (kind, external_key) WHERE external_key IS NOT NULL DO NOTHING
RETURNING id, CASE WHEN external_key IS NOT NULL THEN kind END, external_key
"""

# Ids of jobs that exist, by key: a second statement, because the snapshot of the INSERT that met a conflict is older
# than the row it conflicted with. LIMIT 1 keeps it one probe of pgqueue_jobs_key for each key; as a join it hashed.
FIND_KEYS = """
SELECT found.id, wanted.kind, wanted.key
FROM unnest(%(kind)s::text[], %(key)s::text[]) AS wanted (kind, key)
CROSS JOIN LATERAL (SELECT id FROM pgqueue_jobs WHERE kind = wanted.kind AND external_key = wanted.key LIMIT 1) AS found
"""

# -- back-pressure ---------------------------------------------------------------------------------------------

# The bound is exact because its pushers take turns: one lock for each bounded queue and table, held to the end of the
# transaction. The count is a statement of its own, because in the lock's statement it would see the snapshot taken
# before the wait; above READ COMMITTED every statement would, hence the isolation level in the answer. Rejected: a
# counter row (each claim and completion would update it too), SERIALIZABLE (retries for every caller).
LOCK_QUEUE = """
SELECT pg_advisory_xact_lock(hashtextextended('pgqueue:' || 'pgqueue_jobs'::regclass::oid || ':' || %(queue)s::text, 0)),
       current_setting('transaction_isolation')
"""

# Reads at most `limit` entries of pgqueue_jobs_claim and twice that of pgqueue_jobs_active. The ORDER BYs only say so
# to the planner: with the LIMIT alone it may read the table from its start, past every terminal row.
COUNT_ACTIVE = """
SELECT (SELECT count(*) FROM (SELECT FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'pending'
                              ORDER BY kind, priority DESC, run_at, id LIMIT %(limit)s) AS pending)
     + (SELECT count(*) FROM (SELECT FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'running'
                              ORDER BY id LIMIT %(limit)s) AS running)
     + (SELECT count(*) FROM (SELECT FROM pgqueue_jobs WHERE queue = %(queue)s AND status = 'blocked'
                              ORDER BY id LIMIT %(limit)s) AS blocked)
"""

# -- claim -----------------------------------------------------------------------------------------------------

# For each wanted (queue, kind) the levels of priority in use, highest first, and within each the due jobs by run_at, id;
# the outer LIMIT stops the walk at the first full hand. All of it is served by pgqueue_jobs_claim: one descent for each
# level, then only entries that are due. A plain ORDER BY priority DESC, run_at walks every future job of a high
# priority first (119 ms behind 1,000,000 of them on PostgreSQL 16; this: 1.5 ms for 100 jobs).
# The order survives without a sort because LATERAL forces the level to be the outer side of the loop.
# Locks: SKIP LOCKED, so it waits for nobody. MATERIALIZED: or the planner may run the pick twice and lock twice as many.
# `after` starts the walk behind a position instead of at the head, where entries of finished jobs pile up as long as a
# long transaction keeps vacuum from removing them. Sent again after a lost answer it claims other jobs; the first
# ones come back when their lease runs out. run_at is lifted into what Python can read: another hand may have written
# -infinity, and a claim that is committed and cannot be read spends the attempts of all that it took.
CLAIM = """
WITH picked AS MATERIALIZED (
    SELECT ready.id
    FROM unnest(%(queues)s::text[], %(kinds)s::text[], %(slots)s::int[],
                %(after_priority)s::int[], %(after_run_at)s::timestamptz[], %(after_id)s::bigint[])
         AS want (queue, kind, slots, priority, run_at, id)
    CROSS JOIN LATERAL (
        WITH RECURSIVE level (priority, run_at, id) AS (
            SELECT coalesce(want.priority, (
                       SELECT priority FROM pgqueue_jobs
                       WHERE queue = want.queue AND kind = want.kind AND status = 'pending'
                       ORDER BY priority DESC LIMIT 1)),
                   coalesce(want.run_at, '-infinity'), coalesce(want.id, 0)
            UNION ALL
            SELECT (SELECT priority FROM pgqueue_jobs
                    WHERE queue = want.queue AND kind = want.kind AND status = 'pending' AND priority < level.priority
                    ORDER BY priority DESC LIMIT 1),
                   '-infinity', 0
            FROM level WHERE level.priority IS NOT NULL
        )
        SELECT due.id
        FROM level CROSS JOIN LATERAL (
            SELECT job.id FROM pgqueue_jobs AS job
            WHERE job.queue = want.queue AND job.kind = want.kind AND job.status = 'pending'
              AND job.priority = level.priority AND (job.run_at, job.id) > (level.run_at, level.id)
              AND job.run_at <= now() AND (job.expires_at IS NULL OR job.expires_at > now())
            ORDER BY job.run_at, job.id LIMIT want.slots
            FOR UPDATE SKIP LOCKED
        ) AS due
        LIMIT want.slots
    ) AS ready
    WHERE NOT EXISTS (SELECT FROM pgqueue_queues WHERE pgqueue_queues.queue = want.queue)
)
UPDATE pgqueue_jobs
SET status = 'running', attempt = attempt + 1, lease_token = lease_token + 1, worker = %(worker)s, started_at = now(),
    lease_expires_at = now() + make_interval(secs => %(lease)s),
    max_attempts = coalesce(max_attempts, (
        SELECT want.most FROM unnest(%(queues)s::text[], %(kinds)s::text[], %(max_attempts)s::int[]) AS want (queue, kind, most)
        WHERE want.queue = pgqueue_jobs.queue AND want.kind = pgqueue_jobs.kind LIMIT 1))
WHERE id = ANY (ARRAY(SELECT id FROM picked))
RETURNING id, queue, kind, external_key, priority, attempt, max_attempts, greatest(run_at, '0002-01-01Z'), created_at,
          lease_token, payload::text, metadata::text
"""

# -- the end of an attempt -------------------------------------------------------------------------------------

# Which of a batch of attempts are still their holders'. The primary key serves it, in the order of ids. ANY keeps a large
# table from being hashed, IN pairs ids with tokens: array_position did too, but 500 of them took 5.4 ms, not 1.2.
# `status || ''` hides the status from the planner, which would rather walk pgqueue_jobs_active and with it an entry for each
# attempt that vacuum has not removed yet (18 us a job in the middle of a drain, not 3). IS TRUE keeps the IN a hashed
# subplan: as a join the generic plan takes the arrays for ten elements and loops over them (14 ms for 500, not 0.7).
# Sent again after a lost answer, rows already finished no longer match and are reported stale: true, and harmless.
_MATCH = """
    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running'
      AND ((id, lease_token) IN (SELECT * FROM unnest(%(ids)b::bigint[], %(tokens)b::bigint[]))) IS TRUE
"""

# Rows are locked first, by id: the UPDATE alone locks as it scans, a large batch in the order of pages and a small one in
# that of ids, and a worker's heartbeat and completion could deadlock. It costs 5 % with 20 jobs, nothing seen with 500.
_HELD = f"WHERE id = ANY (ARRAY(SELECT id FROM pgqueue_jobs {_MATCH} ORDER BY id FOR UPDATE))"

COMPLETE_DELETE = f"DELETE FROM pgqueue_jobs {_HELD} RETURNING id, lease_token"

COMPLETE_KEEP = f"""
UPDATE pgqueue_jobs
SET status = 'succeeded', finished_at = now(), lease_expires_at = NULL,
    delete_after = now() + make_interval(secs => %(ttl)s::float8)
{_HELD} RETURNING id, lease_token
"""

# Attempts that failed, each with its message and delay. The row decides whether attempts are left, unless the end is given.
FAIL = f"""
UPDATE pgqueue_jobs
SET (status, run_at, finished_at, delete_after, errors) = (
        SELECT coalesce(ends, 'pending'),
               CASE WHEN ends IS NULL THEN now() + make_interval(secs => given.delay) ELSE run_at END,
               CASE WHEN ends IS NOT NULL THEN now() END,
               CASE WHEN ends = 'cancelled' THEN now() + make_interval(secs => %(ttl)s) END,
               (errors || given.error)[greatest(1, cardinality(errors) + 2 - %(max_errors)s):]
        FROM unnest(%(ids)b::bigint[], %(tokens)b::bigint[], %(errors)s::text[], %(delays)s::float8[], %(ends)s::text[])
             AS given (id, token, error, delay, forced)
        CROSS JOIN LATERAL (SELECT coalesce(given.forced, CASE WHEN attempt >= max_attempts THEN 'failed' END) AS ends) AS decision
        WHERE given.id = pgqueue_jobs.id AND given.token = lease_token),
    lease_expires_at = NULL
{_HELD} RETURNING id, lease_token, status
"""

# Snooze (with a delay) and release (NULL: its place in the order is kept). Both give the attempt back; the token stays
# spent, so that the fence holds.
PUT_BACK = f"""
UPDATE pgqueue_jobs
SET status = 'pending', attempt = attempt - 1, lease_expires_at = NULL, worker = NULL,
    run_at = coalesce(now() + make_interval(secs => %(delay)s::float8), run_at)
{_HELD} RETURNING id, lease_token
"""

# Changes no indexed column: heap-only where the page has room. Skips locked rows: a handler that completes its job within
# its own transaction must not hold up the other heartbeats of its worker, and rescue skips such a row as well. What is
# answered is what is held, locked or not.
HEARTBEAT = f"""
WITH held AS MATERIALIZED (SELECT id, lease_token FROM pgqueue_jobs {_MATCH}),
free AS MATERIALIZED (SELECT id FROM pgqueue_jobs {_MATCH} ORDER BY id FOR UPDATE SKIP LOCKED),
beat AS (
    UPDATE pgqueue_jobs SET lease_expires_at = now() + make_interval(secs => %(lease)s)
    WHERE id = ANY (ARRAY(SELECT id FROM free))
)
SELECT id, lease_token FROM held
"""

# -- cancel and retry ------------------------------------------------------------------------------------------

# By id (primary key) or by key (pgqueue_jobs_key). Waits for a claim or completion under way and then re-reads the status.
CANCEL = """
WITH target AS (
    SELECT id FROM pgqueue_jobs WHERE id = %(id)s::bigint
    UNION ALL
    SELECT id FROM pgqueue_jobs WHERE kind = %(kind)s::text AND external_key = %(key)s::text
), changed AS (
    UPDATE pgqueue_jobs
    SET status = 'cancelled', finished_at = now(), lease_expires_at = NULL,
        delete_after = now() + make_interval(secs => %(ttl)s::float8)
    WHERE id = ANY (ARRAY(SELECT id FROM target)) AND status IN ('pending', 'blocked', 'running')
    RETURNING id
)
SELECT EXISTS (SELECT FROM target), EXISTS (SELECT FROM changed)
"""

_FRESH = """
UPDATE pgqueue_jobs
SET status = 'pending', attempt = 0, run_at = now(), finished_at = NULL, delete_after = NULL, worker = NULL,
    expires_at = CASE WHEN expires_at > now() THEN expires_at END
"""

# By id. The lock is taken by the UPDATE itself, which re-reads the status: a second retry finds nothing to do, and a row
# that cleanup deletes first is gone.
RETRY = f"""
WITH target AS (SELECT id FROM pgqueue_jobs WHERE id = %(id)s),
changed AS ({_FRESH} WHERE id = ANY (ARRAY(SELECT id FROM target)) AND status IN ('failed', 'cancelled') RETURNING id)
SELECT EXISTS (SELECT FROM target), EXISTS (SELECT FROM changed)
"""

# Walks pgqueue_jobs_failed from the oldest, filtering, until `limit` are found.
RETRY_MANY = f"""
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs
    WHERE status = 'failed' AND (%(queue)s::text IS NULL OR queue = %(queue)s)
      AND (%(kind)s::text IS NULL OR kind = %(kind)s)
      AND (%(error_like)s::text IS NULL OR errors[cardinality(errors)] ILIKE %(error_like)s)
    ORDER BY finished_at, id LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
{_FRESH} WHERE id = ANY (ARRAY(SELECT id FROM picked)) RETURNING id
"""

# -- maintenance: safe from every worker at once, no leader -----------------------------------------------------

# Candidates: every running row is read through pgqueue_jobs_active (there are as many as job slots), none is locked.
# The order is the index's; by id alone the planner may walk the primary key, past every terminal row.
LOST = """
SELECT queue, id FROM pgqueue_jobs
WHERE status = 'running' AND lease_expires_at < now() AND (queue, id) > (%(queue)s, %(id)s)
ORDER BY queue, id LIMIT %(limit)s
"""

# Locks what nobody else holds, and looks again: a heartbeat or completion that came in between wins. A row
# keeps its place in the order. Sent again it finds nothing left to do.
RESCUE = """
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs
    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running' AND lease_expires_at < now()
    FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue_jobs
SET status = CASE WHEN attempt >= max_attempts THEN 'failed' ELSE 'pending' END,
    finished_at = CASE WHEN attempt >= max_attempts THEN now() END,
    errors = (errors || ('lease ran out, worker ' || coalesce(worker, 'unknown')))[greatest(1, cardinality(errors) + 2 - %(max_errors)s):],
    lease_expires_at = NULL
WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND status || '' = 'running' AND lease_expires_at < now()
RETURNING id, status
"""

# pgqueue_jobs_expiry, oldest deadline first.
EXPIRE = """
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs
    WHERE expires_at <= now() AND status IN ('pending', 'blocked')
    ORDER BY expires_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE pgqueue_jobs
SET status = 'cancelled', finished_at = now(), errors = errors || 'expired before it started'::text,
    delete_after = now() + make_interval(secs => %(ttl)s::float8)
WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND status IN ('pending', 'blocked')
RETURNING id
"""

# pgqueue_jobs_cleanup, longest overdue first. A retry that commits first clears delete_after, and the lock re-reads it.
# The status is asked for as well, so that a job put back by hand, without clearing delete_after, is not deleted unrun.
CLEANUP = """
WITH picked AS MATERIALIZED (
    SELECT id FROM pgqueue_jobs WHERE delete_after <= now() AND status IN ('succeeded', 'failed', 'cancelled')
    ORDER BY delete_after LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM pgqueue_jobs
WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND delete_after <= now() AND status IN ('succeeded', 'failed', 'cancelled')
RETURNING id
"""

# A page of the primary key at a time, deleting what qualifies: bounded work for each statement however few rows match,
# and no index that every completion would have to feed.
PURGE = """
WITH page AS MATERIALIZED (
    SELECT id, status, finished_at FROM pgqueue_jobs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM pgqueue_jobs
    WHERE id = ANY (ARRAY(SELECT id FROM page WHERE status = ANY (%(statuses)s::text[])
                                                AND finished_at < now() - make_interval(secs => %(age)s)))
      AND status = ANY (%(statuses)s::text[]) AND finished_at < now() - make_interval(secs => %(age)s)
    RETURNING id
)
SELECT (SELECT count(*) FROM gone), (SELECT max(id) FROM page)
"""

# What is there to do, for one transaction of an idle worker. min() takes the head of pgqueue_jobs_expiry and _cleanup; with
# EXISTS the planner may expect a hit anywhere and read the whole table when there is none.
CHORES = """
SELECT coalesce((SELECT min(lease_expires_at) FROM pgqueue_jobs WHERE status = 'running') < now(), false),
       coalesce((SELECT min(expires_at) FROM pgqueue_jobs
                 WHERE expires_at IS NOT NULL AND status IN ('pending', 'blocked')) <= now(), false),
       coalesce((SELECT min(delete_after) FROM pgqueue_jobs WHERE delete_after IS NOT NULL) <= now(), false)
"""

# -- looking ---------------------------------------------------------------------------------------------------

# Reads the whole table: for people, not for loops.
STATS = """
SELECT queue, kind, status, count(*), count(*) FILTER (WHERE status = 'pending' AND run_at <= now()),
       min(CASE WHEN status = 'pending' THEN run_at WHEN status = 'running' THEN started_at
                ELSE coalesce(finished_at, created_at) END)
FROM pgqueue_jobs GROUP BY queue, kind, status ORDER BY queue, kind, status
"""

_ROW = """
SELECT id, queue, kind, external_key, priority, status, attempt, max_attempts, run_at, expires_at, lease_token,
       lease_expires_at, worker, errors, created_at, started_at, finished_at, delete_after, payload::text, metadata::text
FROM pgqueue_jobs
"""

GET = f"{_ROW} WHERE id = %(id)s"

# Keyset pagination on the primary key: page 1,000 costs what page 1 does.
LIST = f"""{_ROW}
WHERE id > %(after)s AND (%(queue)s::text IS NULL OR queue = %(queue)s) AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(status)s::text IS NULL OR status = %(status)s) AND (%(key)s::text IS NULL OR external_key = %(key)s)
ORDER BY id LIMIT %(limit)s
"""

# -- pause -----------------------------------------------------------------------------------------------------

# Claims whose snapshot is older than the commit of the pause still take jobs; later ones do not.
PAUSE = "INSERT INTO pgqueue_queues (queue) VALUES (%(queue)s) ON CONFLICT (queue) DO NOTHING RETURNING queue"
RESUME = "DELETE FROM pgqueue_queues WHERE queue = %(queue)s RETURNING queue"
PAUSED = "SELECT queue FROM pgqueue_queues ORDER BY queue"
