"""The console script `pgqueue-ref`, also `python -m pgqueue_ref`. The commands are in `ops.commands`."""

from __future__ import annotations

import sys


def main() -> int:
    """Exit code: 0 done, 1 refused, 2 wrong usage; a worker's own otherwise."""
    try:
        import rich  # noqa: F401 - asked for here, so that its absence is told like typer's
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"pgqueue-ref: the command line needs {error.name}: pip install 'pgqueue-ref[ops]'", file=sys.stderr)
        return 2
    from .ops.app import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
