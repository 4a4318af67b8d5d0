"""`doctor`: what is wrong with the queue, its server and its tables."""

from __future__ import annotations

from typing import Annotated

import typer

from ..app import LOOK, AsJson, command, print_json


@command(LOOK)
def doctor(
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if something is a WARN.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes that are to run, on all machines; those that run now unless given."),
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Connections of all pools together, the API's and the application's; unless given, those that the API"
            " holds now.",
        ),
    ] = None,
    surge: Annotated[
        float,
        typer.Option(min=1.0, max=100.0, help="How many times over, while a deployment has old and new side by side."),
    ] = 2.0,
    listen: Annotated[bool, typer.Option("--listen/--no-listen", help="As for the workers.")] = True,
    lease: Annotated[float, typer.Option(min=1.0, max=1e9, help="Seconds, as for the workers.")] = 60.0,
) -> int:
    """Say what is wrong, why, and what mends it.

    Changes nothing. Exit code 2 with a FAIL.
    """
    from ..checks import Plan
    from ..doctor import examine, exit_code, show

    findings = examine(Plan(workers, pool, surge, listen, lease))
    code = exit_code(findings, strict=strict)
    if as_json:
        print_json({"exit_code": code, "findings": [finding._asdict() for finding in findings]})
    else:
        show(findings)
    return code
