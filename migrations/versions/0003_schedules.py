"""Schedules: jobs that are pushed by the clock.

The table of pgqueue_ref/extensions/schedules.py as it was released first. It takes no lock on the queue's tables.

Frozen: it never imports the package, and is not edited once released.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE IF NOT EXISTS pgqueue_schedules (
    name         text        PRIMARY KEY,
    kind         text        NOT NULL,
    queue        text        NOT NULL DEFAULT 'default',
    priority     integer     NOT NULL DEFAULT 0,
    max_attempts integer,
    payload      jsonb       NOT NULL DEFAULT 'null',
    metadata     jsonb       NOT NULL DEFAULT '{}',
    cron         text,
    every        double precision,
    at           timestamptz,
    timezone     text        NOT NULL DEFAULT 'UTC',
    next_at      timestamptz,
    last_at      timestamptz,
    runs         integer     NOT NULL DEFAULT 0,
    max_runs     integer,
    expires_at   timestamptz,
    paused_at    timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pgqueue_schedules_names CHECK (
        octet_length(name) BETWEEN 1 AND 255 AND octet_length(kind) BETWEEN 1 AND 255
        AND octet_length(queue) BETWEEN 1 AND 255),
    CONSTRAINT pgqueue_schedules_times CHECK (
        CASE WHEN cron IS NULL THEN num_nonnulls(every, at) > 0 ELSE num_nonnulls(every, at) = 0 END),
    CONSTRAINT pgqueue_schedules_bounds CHECK (every >= 1 AND max_runs >= 1 AND max_attempts >= 1)
)""")
    op.execute("""
CREATE INDEX IF NOT EXISTS pgqueue_schedules_due ON pgqueue_schedules (next_at, name)
    WHERE next_at IS NOT NULL AND paused_at IS NULL""")


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS pgqueue_schedules")
