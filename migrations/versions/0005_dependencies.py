"""Dependencies: jobs that wait for other jobs.

The table and functions of pgqueue_ref/extensions/dependencies.py as they were released first. The triggers need the lock of
pgqueue_jobs for a moment; behind somebody's long transaction the revision gives up after lock_timeout, to be tried again.

Frozen: it never imports the package, and is not edited once released.
"""

# ruff: noqa: E501 - SQL reads better in its own lines than in Python's

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE IF NOT EXISTS pgqueue_dependencies (
    job_id    bigint  NOT NULL,
    parent_id bigint  NOT NULL,
    needs     text    NOT NULL DEFAULT 'success',
    callback  boolean NOT NULL DEFAULT false,
    outcome   text,
    PRIMARY KEY (job_id, parent_id),
    CONSTRAINT pgqueue_dependencies_order CHECK (parent_id < job_id),
    CONSTRAINT pgqueue_dependencies_words CHECK (
        needs IN ('success', 'failure', 'end') AND outcome IN ('succeeded', 'failed', 'cancelled'))
) WITH (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
)""")
    op.execute("""
CREATE INDEX IF NOT EXISTS pgqueue_dependencies_parent ON pgqueue_dependencies (parent_id)""")
    op.execute("""
CREATE OR REPLACE FUNCTION pgqueue_dependencies_reach(parents bigint[], outcomes text[], untils timestamptz[])
RETURNS TABLE (job_id bigint, parent_id bigint, outcome text, cancels boolean, until timestamptz) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE reached (job_id, parent_id, outcome, cancels, until) AS (
        SELECT edge.job_id, edge.parent_id, ended.outcome,
               edge.needs = CASE ended.outcome WHEN 'succeeded' THEN 'failure' ELSE 'success' END,
               CASE ended.outcome WHEN 'succeeded' THEN now() ELSE ended.until END
        FROM unnest(parents, outcomes, untils) AS ended (id, outcome, until)
        JOIN pgqueue_dependencies AS edge ON edge.parent_id = ended.id AND edge.outcome IS NULL
        UNION
        SELECT edge.job_id, edge.parent_id, 'cancelled', edge.needs = 'success', reached.until
        FROM reached
        JOIN pgqueue_jobs AS child ON child.id = reached.job_id AND child.status || '' = 'blocked'
        JOIN pgqueue_dependencies AS edge ON edge.parent_id = child.id AND edge.outcome IS NULL
        WHERE reached.cancels
    )
    SELECT * FROM reached
$$""")
    op.execute("""
CREATE OR REPLACE FUNCTION pgqueue_dependencies_settle(parents bigint[], outcomes text[], untils timestamptz[])
RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    reached bigint[];
    held bigint[];
    cascades boolean;
    waiting bigint[];
    due text;
    namespace text;
    sleepers bigint;
BEGIN
    -- Nobody adds an edge to a parent that we hold. Below it somebody may have while we waited: then look and lock again.
    LOOP
        SELECT array_agg(DISTINCT job_id ORDER BY job_id), bool_or(cancels) INTO reached, cascades
        FROM pgqueue_dependencies_reach(parents, outcomes, untils);
        EXIT WHEN reached IS NULL OR reached = held;
        PERFORM FROM pgqueue_jobs WHERE id = ANY (reached) ORDER BY id FOR UPDATE;
        EXIT WHEN NOT cascades;
        held := reached;
    END LOOP;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM pgqueue_dependencies AS edge
        WHERE edge.job_id = ANY (ARRAY(SELECT job_id FROM pgqueue_dependencies_reach(parents, outcomes, untils)))
          AND edge.outcome IS NULL
        ORDER BY edge.job_id, edge.parent_id FOR UPDATE;
    END IF;
    WITH reached AS MATERIALIZED (
        SELECT * FROM pgqueue_dependencies_reach(parents, outcomes, untils)
    ), closed AS (
        UPDATE pgqueue_dependencies AS edge SET outcome = reached.outcome
        FROM reached WHERE edge.job_id = reached.job_id AND edge.parent_id = reached.parent_id AND edge.outcome IS NULL
    ), cancelled AS (
        UPDATE pgqueue_jobs
        SET status = 'cancelled', finished_at = now(), delete_after = nullif(reason.until, 'infinity'),
            errors = (errors || CASE reason.outcome
                WHEN 'succeeded' THEN format('not needed: job %s succeeded', reason.parent_id)
                WHEN 'failed' THEN format('cancelled because job %s failed', reason.parent_id)
                ELSE format('cancelled because job %s was cancelled', reason.parent_id) END
            )[greatest(1, cardinality(errors) - 8):]
        FROM (SELECT DISTINCT ON (job_id) * FROM reached WHERE cancels ORDER BY job_id, until DESC, parent_id) AS reason
        WHERE id = reason.job_id AND status || '' = 'blocked'
    )
    SELECT array_agg(DISTINCT job_id) INTO waiting FROM reached WHERE NOT cancels;
    IF waiting IS NULL THEN
        RETURN;
    END IF;
    -- Whether any edge is open: from the parent with the highest id on, which mostly ends last. From the lowest on, each
    -- of n parents that end one by one would read all those before it. A job that was freed has its place in the
    -- order from now on: workers claim behind the last position (docs/adr/0003).
    FOR due IN
        WITH freed AS (
            UPDATE pgqueue_jobs AS job
            SET status = 'pending', run_at = greatest(run_at, now()),
                metadata = metadata || coalesce((
                    SELECT jsonb_build_object('parent', coalesce(job.metadata -> 'parent', '{}') || jsonb_build_object(
                        'id', edge.parent_id, 'status', edge.outcome, 'error', parent.errors[cardinality(parent.errors)]))
                    FROM pgqueue_dependencies AS edge LEFT JOIN pgqueue_jobs AS parent ON parent.id = edge.parent_id
                    WHERE edge.job_id = job.id AND edge.callback), '{}')
            WHERE job.id = ANY (waiting) AND job.status || '' = 'blocked' AND (
                SELECT edge.parent_id FROM pgqueue_dependencies AS edge
                WHERE edge.job_id = job.id AND edge.outcome IS NULL ORDER BY edge.job_id DESC, edge.parent_id DESC LIMIT 1) IS NULL
            RETURNING queue, run_at
        )
        SELECT DISTINCT queue FROM freed WHERE run_at <= now()
    LOOP
        -- Wake a worker that sleeps, as the core's pgqueue_notify() does for what is inserted.
        namespace := (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                      WHERE pg_class.oid = 'pgqueue_jobs'::regclass);
        sleepers := hashtextextended('pgqueue:asleep:' || namespace || ':' || due, 0);
        IF pg_try_advisory_lock(sleepers) THEN
            PERFORM pg_advisory_unlock(sleepers);
        ELSE
            PERFORM pg_notify('pgqueue:' || namespace, due);
        END IF;
    END LOOP;
END $$""")
    op.execute("""
CREATE OR REPLACE FUNCTION pgqueue_dependencies_revive(retried bigint[]) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
DECLARE
    level bigint[] := retried;
BEGIN
    DELETE FROM pgqueue_dependencies
    WHERE job_id = ANY (retried) AND (outcome IS NULL OR needs = CASE outcome WHEN 'succeeded' THEN 'failure' ELSE 'success' END);
    WHILE level IS NOT NULL LOOP
        PERFORM FROM pgqueue_jobs WHERE id = ANY (ARRAY(
            SELECT job_id FROM pgqueue_dependencies WHERE parent_id = ANY (level) AND needs <> 'failure' AND outcome <> 'succeeded'))
        ORDER BY id FOR UPDATE;
        WITH opened AS (
            UPDATE pgqueue_dependencies AS edge SET outcome = NULL
            WHERE parent_id = ANY (level) AND outcome <> 'succeeded' AND (needs = 'success' OR needs = 'end' AND (
                SELECT status FROM pgqueue_jobs WHERE id = edge.job_id) = 'blocked')
            RETURNING job_id
        )
        SELECT array_agg(DISTINCT job_id) INTO level FROM opened;
        WITH back AS (
            UPDATE pgqueue_jobs AS job
            SET status = 'blocked', finished_at = NULL, delete_after = NULL, errors = trim_array(errors, 1)
            WHERE id = ANY (level) AND status = 'cancelled' AND starts_with(errors[cardinality(errors)], 'cancelled because job ')
              AND NOT EXISTS (SELECT FROM pgqueue_dependencies AS edge
                              WHERE edge.job_id = job.id AND edge.needs = 'success' AND edge.outcome <> 'succeeded')
            RETURNING id
        )
        SELECT array_agg(id) INTO level FROM back;
    END LOOP;
END $$""")
    op.execute("""
CREATE OR REPLACE FUNCTION pgqueue_dependencies_follow() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    ids bigint[];
    is_open boolean;
    orphans bigint[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM pgqueue_dependencies;
    ELSIF TG_OP = 'UPDATE' THEN
        ids := ARRAY(SELECT id FROM became WHERE status IN ('succeeded', 'failed', 'cancelled'));
        IF EXISTS (SELECT FROM pgqueue_dependencies WHERE parent_id = ANY (ids) AND outcome IS NULL) THEN
            PERFORM pgqueue_dependencies_settle(array_agg(id), array_agg(status), array_agg(coalesce(delete_after, 'infinity')))
            FROM became WHERE status IN ('succeeded', 'failed', 'cancelled');
        END IF;
        -- IS TRUE keeps the IN a hashed subplan: as a join of two small estimates it would compare all pairs.
        ids := ARRAY(SELECT id FROM became
                     WHERE status = 'pending' AND (id IN (SELECT id FROM was WHERE status IN ('failed', 'cancelled'))) IS TRUE);
        IF ids <> '{}' THEN
            PERFORM pgqueue_dependencies_revive(ids);
        END IF;
    ELSE
        -- A running row that goes was completed with TTL 0. One that never ran will not.
        ids := ARRAY(SELECT id FROM was);
        SELECT bool_or(outcome IS NULL), array_agg(job_id) FILTER (WHERE needs = 'success' AND outcome <> 'succeeded')
        INTO is_open, orphans FROM pgqueue_dependencies WHERE parent_id = ANY (ids);
        IF is_open THEN
            PERFORM pgqueue_dependencies_settle(array_agg(id), array_agg(CASE
                WHEN status = 'running' THEN 'succeeded' WHEN status IN ('pending', 'blocked') THEN 'cancelled' ELSE status END),
                array_agg(now()))
            FROM was;
        END IF;
        IF orphans IS NOT NULL THEN
            -- Nobody can take them back any more: cleanup may have them.
            UPDATE pgqueue_jobs SET delete_after = now() WHERE id = ANY (ARRAY(
                SELECT id FROM pgqueue_jobs
                WHERE id = ANY (orphans) AND status = 'cancelled' AND delete_after IS NULL
                  AND starts_with(errors[cardinality(errors)], 'cancelled because job ')
                ORDER BY id FOR UPDATE));
        END IF;
        DELETE FROM pgqueue_dependencies WHERE job_id = ANY (ids);
    END IF;
    RETURN NULL;
END $$""")
    op.execute("""
CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_update AFTER UPDATE ON pgqueue_jobs
    REFERENCING OLD TABLE AS was NEW TABLE AS became FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow()""")
    op.execute("""
CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_delete AFTER DELETE ON pgqueue_jobs
    REFERENCING OLD TABLE AS was FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow()""")
    op.execute("""
CREATE OR REPLACE TRIGGER pgqueue_jobs_dependencies_truncate AFTER TRUNCATE ON pgqueue_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION pgqueue_dependencies_follow()""")


def downgrade() -> None:
    op.execute("DROP TRIGGER IF EXISTS pgqueue_jobs_dependencies_update ON pgqueue_jobs")
    op.execute("DROP TRIGGER IF EXISTS pgqueue_jobs_dependencies_delete ON pgqueue_jobs")
    op.execute("DROP TRIGGER IF EXISTS pgqueue_jobs_dependencies_truncate ON pgqueue_jobs")
    op.execute("DROP FUNCTION IF EXISTS pgqueue_dependencies_follow(), pgqueue_dependencies_revive(bigint[])")
    op.execute("DROP FUNCTION IF EXISTS pgqueue_dependencies_settle(bigint[], text[], timestamptz[])")
    op.execute("DROP FUNCTION IF EXISTS pgqueue_dependencies_reach(bigint[], text[], timestamptz[])")
    op.execute("DROP TABLE IF EXISTS pgqueue_dependencies")
