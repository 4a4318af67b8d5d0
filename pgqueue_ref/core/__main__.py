"""`python -m pgqueue_ref.core` prints the schema's SQL; with a DSN it applies it."""

from __future__ import annotations

import os
import sys

from . import SCHEMA_SQL, QueueError, connect, install


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 the database refused, 2 wrong usage."""
    if not arguments:
        print(SCHEMA_SQL, end="")
        return 0
    if len(arguments) > 1 or arguments[0].startswith("-"):
        print("usage: python -m pgqueue_ref.core [DSN]   (PGQUEUE_SCHEMA names the schema)", file=sys.stderr)
        return 2
    try:
        with connect(arguments[0]) as connection:
            install(connection, os.environ.get("PGQUEUE_SCHEMA", ""))
    except QueueError as error:
        print(error, file=sys.stderr)
        return 1
    print("queue schema is in place")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
