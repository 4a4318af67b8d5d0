"""Results: what handlers returned.

The table of pgqueue_ref/extensions/results.py as it was released first; locks nothing that exists.

Frozen: it never imports the package, and is not edited once released.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE IF NOT EXISTS pgqueue_results (
    job_id       bigint      PRIMARY KEY,
    stored_at    timestamptz NOT NULL DEFAULT now(),
    delete_after timestamptz,
    duration     double precision,
    attempt      integer     NOT NULL,
    queue        text        NOT NULL,
    kind         text        NOT NULL,
    worker       text,
    value        jsonb       NOT NULL DEFAULT 'null',
    error        text
)""")
    op.execute("""
CREATE INDEX IF NOT EXISTS pgqueue_results_cleanup ON pgqueue_results (delete_after) WHERE delete_after IS NOT NULL""")


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS pgqueue_results")
