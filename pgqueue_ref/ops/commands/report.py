"""`report`: what load runs left, for whoever decides by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..app import LOOK, AsJson, WrongUsage, app, print_json, print_table, printable

report = typer.Typer(help="Load runs: set them beside each other.")
app.add_typer(report, name="report", rich_help_panel=LOOK)


@report.callback()
def _group() -> None:
    """A group also while it has one command."""


@report.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; the first is the yardstick.")],
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also a page with the plots of all runs.")] = None,
) -> None:
    """Set load runs side by side, with intervals; says so when they are not comparable, and then calls none better."""
    try:
        from pgqueue_ref.harness import compare as comparing
    except ModuleNotFoundError as error:
        raise WrongUsage(f"reading load runs needs {error.name}: pip install 'pgqueue-ref[load]'") from None
    if html is not None and not html.absolute().parent.is_dir():
        raise WrongUsage(f"--html {html}: there is no such directory; make it first")
    try:
        loaded = comparing.load(runs)
        document = comparing.compare(loaded)
    except comparing.CompareError as error:
        raise WrongUsage(str(error)) from error
    if html is not None:
        try:
            html.write_text(comparing.render(loaded, document), encoding="utf-8")
        except OSError as error:
            raise WrongUsage(f"--html {html}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json(document)
    else:
        _show(document)
        if html is not None:
            typer.echo(f"\npage: {html}")


def _show(document: Mapping[str, Any]) -> None:
    from pgqueue_ref.harness import compare as comparing

    names = ("run", "scenario", "outcome", "server", "revision")
    runs = [(run["label"], *(run[name] for name in names)) for run in document["runs"]]
    print_table(("", "run", "scenario", "verdict", "server", "revision"), runs)
    for label, found in document["against"].items():
        for title in ("hindrances", "differences"):
            for line in found[title]:
                word = "not comparable" if title == "hindrances" else "differs"
                typer.echo(printable(f"{word}, {document['runs'][0]['label']} against {label}: {line}"))
    typer.echo(f"\nfigures with {document['confidence']:.0%} intervals")
    columns, rows = comparing.rows(document)
    print_table(columns, rows, right=columns[1 : 1 + len(runs)])
    typer.echo("\nfigures of which a run has one")
    columns, rows = comparing.single_rows(document)
    print_table(columns, rows, right=columns[1:])
    typer.echo("")
    for found in document["against"].values():
        typer.echo(printable(found["conclusion"]))
    typer.echo(document["note"])
