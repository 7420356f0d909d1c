"""`python -m miniature`: tests the paper's claims on a small world and renders the page of results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import RunError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

RESULTS = Path(".miniature/results")


@app.command()
def study(
    cells: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="only cells that match, like 'alignment/*'; repeatable")
    ] = [],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Where features, captions and networks are kept.")] = Path(".miniature"),
    results: Annotated[Path, typer.Option(help="Where each cell's result is kept.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page; its pictures go beside it.")] = Path(".miniature/miniature.md"),
    notes: Annotated[Path, typer.Option(help="Notes on the claims.")] = Path("docs/miniature/notes"),
    processes: Annotated[int, typer.Option(help="Cells at once, one core each.", min=1)] = os.cpu_count() or 1,
    again: Annotated[bool, typer.Option("--again", help="also cells that have a result")] = False,
) -> None:
    """Run the cells that have no result yet, and render the page. Goes on after an interruption."""
    from miniature.study.page import render
    from miniature.study.run import require_writable, run_study

    failed = None
    require_writable(page.parent, "--page")
    try:
        run_study(cells, work=work, results=results, processes=processes, again=again)
    except RunError as error:
        failed = error  # the page shows what the others found
    render(results, page, notes)
    print(page)
    if failed is not None:
        raise failed


if __name__ == "__main__":
    run_command("miniature", app, interrupted="the same command goes on where it stopped")
