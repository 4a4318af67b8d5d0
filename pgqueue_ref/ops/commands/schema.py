"""`schema` and `migrate`: the tables, for whoever deploys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
import typer

from pgqueue_ref.core import SCHEMA_SQL, QueueError, SchemaMissing, translate

from ..app import DEPLOY, DatabaseUrl, Schema, app


@app.command(rich_help_panel=DEPLOY)
def schema() -> None:
    """Print the SQL that makes the tables, for psql or a review."""
    typer.echo(SCHEMA_SQL, nl=False)


@app.command(rich_help_panel=DEPLOY)
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead; needs no database.")] = False,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
) -> None:
    """Bring the tables to this version.

    Safe to run from every deployment at once.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    try:
        command.upgrade(config, "head", sql=sql)
    except CommandError as error:
        refused = translate(error.__cause__) if isinstance(error.__cause__, psycopg.Error) else None
        if refused is None or isinstance(refused, SchemaMissing):  # whose advice is to do what was just tried
            refused = QueueError(str(error))
        raise refused from error
    if not sql:
        typer.echo(f"queue schema is at revision {ScriptDirectory.from_config(config).get_current_head()}")


def migrations() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for place in (package / "migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise QueueError("the migrations are not installed: reinstall pgqueue-ref from its wheel")
