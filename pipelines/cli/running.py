"""Runs from the command line: within a budget, with a table of what was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.cli.options import cells, say, show
from pipelines.commands.forecast import Budget, Forecast, forecast
from pipelines.engine.plan import make_plan
from pipelines.engine.runner import run_stages
from pipelines.engine.store import open_store
from pipelines.progress import human_time
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.listing import SourceListing

MaxGpuHours = Annotated[float | None, typer.Option(min=0, help="ask before a run that may take more")]
MaxUsd = Annotated[float | None, typer.Option(min=0, help="ask before a run that may cost more, by the key prices")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


def within(budget: Budget, config: Config, until: str | None, *, retry_failed: bool, yes: bool) -> dict[str, Forecast]:
    """Forecast of a run within its budget; without a budget nothing is foreseen. Raises UserError beyond it."""
    listing = SourceListing(config.source.folder, rescan=False)
    stages = wanted_stages(config, until, listing=listing)
    if budget == Budget():
        return {}
    storage = open_store(config.root)
    found = forecast(stages, make_plan(stages, config, storage, retry_failed), config, storage)
    for one in found.values():
        say(f"{one.stage}: takes {one.words(config.prices)}")
    budget.check(found, config.prices, yes=yes)
    return found


def execute(
    config: Config,
    *,
    until: str | None = None,
    retry_failed: bool = False,
    expected: Mapping[str, Forecast] | None = None,
) -> bool:
    """Runs the stages and prints a summary table, with what was `expected` of them beside what they took.

    Returns False if every stage was already done.
    """
    runs = run_stages(wanted_stages(config, until), config, retry_failed=retry_failed, say=say)
    nothing_to_do = not any(one.is_new for one in runs)
    table = Table("stage", "rows in", "computed now", "out", "quarantined", "fingerprint", "figures")
    for one in runs:
        manifest = one.manifest
        counts = (manifest.rows_in, one.rows_computed, manifest.rows_out, manifest.rows_quarantined)
        table.add_row(*cells(manifest.stage, *counts, manifest.fingerprint, _figures(manifest.figures)))
    show(table)
    for one in runs:
        if one.is_new and (foreseen := (expected or {}).get(one.manifest.stage)) is not None:
            words = foreseen.words(config.prices)
            say(f"{one.manifest.stage}: {words} expected, {human_time(one.manifest.seconds)} taken")
    if nothing_to_do:
        print("Nothing to do: every stage that was asked for is done.")
    return not nothing_to_do


def _figures(figures: dict[str, Any]) -> str:
    flat = {k: v for k, v in figures.items() if isinstance(v, int | float | str) and v != ""}
    return ", ".join(f"{key} {value}" for key, value in flat.items())
