"""${message}

What changes and why; what a live queue notices while it runs.

Frozen SQL: it never imports the package, and is not edited once released. A colon before a letter would be taken for a
parameter: put a backslash before it. Give every statement an IF [NOT] EXISTS where PostgreSQL has one: the tables
may have been made by the core's schema.sql.
"""

${"import sqlalchemy as sa" if "sa." in f"{upgrades}{downgrades}" else ""}
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
