"""Command line `soundcap`. Commands import what they need."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.engine.plan import make_plan, read_status
from pipelines.engine.runner import ensure_ray, run_stages
from pipelines.engine.store import open_store
from pipelines.errors import UserError, run_command
from pipelines.run_config import Config, load_config
from pipelines.stages import STAGES

app = typer.Typer(
    help="From video clips to sound-aware captions, a captioner that hears what it only sees, and sound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, like configs/demo.yaml")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="overrides one key; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="try quarantined rows again")]


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Say what a run would do, and why; compute nothing."""
    loaded = load_config(config, overrides)
    plans = make_plan(STAGES, loaded, open_store(loaded.root), retry_failed)
    if as_json:
        print(json.dumps({"stages": [asdict(plan) for plan in plans]}, indent=2))
        return
    table = Table("stage", "state", "rows to run", "of", "why", "fingerprint")
    for one in plans:
        table.add_row(
            one.name, one.state, _number(one.rows_to_run), _number(one.rows_total), one.reason, one.fingerprint or "-"
        )
    _console().print(table)
    if all(one.state == "done" for one in plans):
        print("Nothing to do.")


@app.command()
def run(
    config: ConfigPath,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage")] = None,
    overrides: Overrides = [],  # noqa: B006
    retry_failed: RetryFailed = False,
) -> None:
    """Make what is missing. The same command goes on after an interruption."""
    execute(load_config(config, overrides), until=until, retry_failed=retry_failed)


def execute(config: Config, *, until: str | None = None, retry_failed: bool = False) -> bool:
    """Runs the stages and prints the table of what each did. Returns whether there was anything to do."""
    _check_until(until)
    names = [stage.name for stage in STAGES]
    wanted = STAGES if until is None else STAGES[: names.index(until) + 1]
    plans = make_plan(wanted, config, open_store(config.root), retry_failed)
    nothing_to_do = all(one.state == "done" for one in plans)
    if not nothing_to_do:
        ensure_ray()
    manifests = run_stages(wanted, config, retry_failed=retry_failed, say=_say)
    table = Table("stage", "rows in", "computed now", "out", "quarantined", "fingerprint", "figures")
    was_done = {one.name for one in plans if one.state == "done"}
    for manifest in manifests:
        table.add_row(
            manifest.stage,
            str(manifest.rows_in),
            "0" if manifest.stage in was_done else str(manifest.rows_computed),
            str(manifest.rows_out),
            str(manifest.rows_quarantined),
            manifest.fingerprint,
            _figures(manifest.figures),
        )
    _console().print(table)
    if nothing_to_do:
        print("Nothing to do: every stage is done.")
    return not nothing_to_do


@app.command()
def status(config: ConfigPath, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Show what is there: the last output of each stage, rows under way, and what was quarantined and why."""
    loaded = load_config(config, overrides)
    stages = read_status(STAGES, loaded, open_store(loaded.root))
    if as_json:
        print(json.dumps({"stages": stages}, indent=2))
        return
    table = Table("stage", "state", "rows out", "quarantined", "rows in ledger", "seconds", "fingerprint")
    for one in stages:
        table.add_row(*(str(one[key]) for key in _STATUS_COLUMNS))
    _console().print(table)
    for one in stages:
        for row in one["quarantine"]:
            print(f"{one['name']}: quarantined {row['row_id']}: {row['error_class']}: {row['message']}")


_STATUS_COLUMNS = ("name", "state", "rows_out", "rows_quarantined", "rows_in_ledger", "seconds", "fingerprint")


@app.command()
def report(config: ConfigPath, overrides: Overrides = []) -> None:  # noqa: B006
    """Write the HTML report of what is there and say where it is."""
    from pipelines.report.build import build_report

    print(build_report(load_config(config, overrides)))


@app.command()
def publish(
    config: ConfigPath,
    to: Annotated[str, typer.Option(metavar="DIR", help="a new folder, or an earlier publication's")],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Write a Hub-ready folder: captions as Parquet and a dataset card; never media."""
    from pipelines.report.publish import publish as publish_captions

    print(publish_captions(load_config(config, overrides), Path(to)))


@app.command()
def submit(
    config: ConfigPath,
    address: Annotated[str, typer.Option(metavar="URL", help="the cluster's dashboard, like http://127.0.0.1:8265")],
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage")] = None,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
    overrides: Overrides = [],  # noqa: B006
    retry_failed: RetryFailed = False,
) -> None:
    """Submit the run to a Ray cluster as a job; the same run under way there is not doubled."""
    from pipelines.submit import submit as submit_job

    loaded = load_config(config, overrides)
    _check_until(until)
    print(submit_job(loaded, address=address, wait=wait, say=_say, until=until, retry_failed=retry_failed))


@app.command()
def generate(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT", help="an .mp4 file, or a folder")],
    config: Annotated[str, typer.Option(metavar="CONFIG", help="whose trained models to use")] = "configs/demo.yaml",
    caption: Annotated[str | None, typer.Option(metavar="TEXT", help="instead of the captioner's words")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Caption a silent video with the trained captioner, then make its sound."""
    from pipelines.commands.generate import generate_from_run

    loaded = load_config(config, overrides)
    generate_from_run(loaded, [Path(video) for video in videos], Path(out), caption=caption, say=_say)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: Python, ffmpeg, GPU, Ray, engines; each fault with its remedy."""
    from pipelines.cli.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("check", "state", "found", "remedy")
        for finding in findings:
            table.add_row(finding.check, finding.state, finding.found, finding.remedy)
        _console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _check_until(until: str | None) -> None:
    names = [stage.name for stage in STAGES]
    if until is not None and until not in names:
        raise UserError(f"--until {until}: no such stage; wanted one of {', '.join(names)}")


def _say(message: str) -> None:
    print(message, flush=True)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _figures(figures: dict[str, Any]) -> str:
    flat = {k: v for k, v in figures.items() if isinstance(v, int | float | str) and v != ""}
    return ", ".join(f"{key} {value}" for key, value in flat.items())


def _console() -> Console:
    """As wide as the terminal; in a log, wide enough that no cell is cut."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def main() -> None:
    """Entry point."""
    run_command("soundcap", app, interrupted="the same command goes on where it stopped")


if __name__ == "__main__":
    main()
