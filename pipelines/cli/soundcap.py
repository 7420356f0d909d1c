"""Command-line interface `soundcap`. What loads models or Ray is imported by its command."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipelines.cli.options import (
    AsJson,
    Canary,
    ConfigPath,
    Overrides,
    cells,
    new_app,
    quiet_libraries,
    say,
    show,
    user_path,
)
from pipelines.cli.prompt_commands import app as prompts
from pipelines.cli.prompt_commands import compare
from pipelines.cli.publication_commands import export, forget, publish, release
from pipelines.cli.running import MaxGpuHours, MaxUsd, Yes, execute, within
from pipelines.commands.forecast import Budget, forecast, projected, total_words
from pipelines.commands.keys import all_keys, markdown
from pipelines.commands.models import fetch_models as fetch
from pipelines.commands.models import model_states
from pipelines.commands.survey import Models, write_config
from pipelines.config_file import load_config
from pipelines.engine.fsck import fsck as check_store
from pipelines.engine.fsck import repair as repair_store
from pipelines.engine.lease import lease, read_holder
from pipelines.engine.ledger import DAMAGED
from pipelines.engine.model_pins import ask_new, pinned
from pipelines.engine.plan import make_plan, read_status
from pipelines.engine.store import open_store
from pipelines.errors import UserError, run_command
from pipelines.publication.publish import published
from pipelines.report.build import build_report
from pipelines.report.compare import captions_of, figure, score
from pipelines.stages import STAGES, wanted_stages
from pipelines.stages.clips import source_changes
from pipelines.stages.listing import SourceListing

app = new_app("From video clips to sound-aware captions, a captioner that hears what it only sees, and sound.")

app.add_typer(prompts, name="prompts")
app.command()(compare)
app.command()(publish)
app.command()(release)
app.command()(export)
app.command()(forget)

Rescan = Annotated[bool, typer.Option("--rescan", help="list a large source again instead of remembering it")]
Until = Annotated[
    str | None, typer.Option(metavar="STAGE", help=f"stop after one of {', '.join(stage.name for stage in STAGES)}")
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="try quarantined rows again")]


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="of your videos, or an s3:// address")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", parser=user_path, help="configuration to write")
    ] = Path("mine.yaml"),
    root: Annotated[
        str | None, typer.Option(help="where a run keeps its state; by default named after the configuration")
    ] = None,
    models: Annotated[
        Models | None, typer.Option(help="real ones, or the demo's toys; by default real if there is a GPU")
    ] = None,
) -> None:
    """Look at a folder of videos and write a commented configuration that suits it."""
    write_config(folder, out, root=f"{out.stem}-store" if root is None else root, models=models, say=say)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
    retry_failed: RetryFailed = False,
    rescan: Rescan = False,
) -> None:
    """Say what a run would do, and why; compute nothing."""
    loaded = load_config(config, overrides)
    listing = SourceListing(loaded.source.folder, rescan=rescan)
    stages, storage = wanted_stages(loaded, listing=listing), open_store(loaded.root)
    pins, fault = ask_new(loaded, storage)
    models, loaded = model_states(loaded, storage, pins), pinned(loaded, pins)
    plans = make_plan(stages, loaded, storage, retry_failed)
    forecasts = forecast(stages, plans, loaded, storage)
    changes = source_changes(loaded, storage, listing)
    table = Table("stage", "state", "rows to run", "of", "takes", "why", "fingerprint")
    for one in plans:
        table.add_row(
            *cells(
                one.name,
                one.state,
                f"up to {one.rows_at_most}" if one.rows_to_run is None else one.rows_to_run,
                _number(one.rows_total),
                forecasts[one.name].words(loaded.prices) if one.name in forecasts else "-",
                one.reason,
                one.fingerprint or "-",
            )
        )
    data = {
        "stages": [asdict(plan) for plan in plans],
        "forecast": [one.as_json(loaded.prices) for one in forecasts.values()],
        "models": [asdict(model) for model in models],
        "source": [asdict(change) for change in changes],
        "source_listing_age_s": round(listing.age_s, 1),
    }
    show(table, data, as_json=as_json)
    if as_json:
        return
    if total := total_words(forecasts, loaded.prices):
        print(total)
    if any(one.state != "done" for one in plans):
        print("why: against what ran last in this root. What is unknown is made again unless its inputs are equal.")
    for model in models:
        print(model.words())
    if fault:
        print(fault)
    for change in changes:
        say(str(change))
    if all(one.state == "done" for one in plans):
        print("Nothing to do.")
    elif all(one.rows_to_run == 0 for one in plans):
        print("Nothing follows: a run records it, and computes no row and trains nothing.")
    _say_age(listing)


@app.command()
def run(
    config: ConfigPath,
    until: Until = None,
    canary: Canary = None,
    overrides: Overrides = [],  # noqa: B006
    retry_failed: RetryFailed = False,
    max_gpu_hours: MaxGpuHours = None,
    max_usd: MaxUsd = None,
    yes: Yes = False,
) -> None:
    """Make what is missing. The same command goes on after an interruption."""
    sample = [] if canary is None else [f"source.sample={canary}"]
    loaded = load_config(config, [*overrides, *sample])
    until = until or (None if canary is None else "curation")
    expected = within(Budget(max_gpu_hours, max_usd), loaded, until, retry_failed=retry_failed, yes=yes)
    execute(loaded, until=until, retry_failed=retry_failed, expected=expected)
    if canary is None:
        return
    captions = captions_of(loaded)
    if captions is None:
        return
    measures, distinct_2 = score(loaded, captions)
    table = Table("measure", "clips", "value")
    for one in measures:
        table.add_row(*cells(one.name, one.clips, figure(one.name, one.mean)))
    table.add_row(*cells("distinct-2", captions.committed().rows_out, figure("distinct-2", distinct_2)))
    show(table)
    say(projected(load_config(config, overrides), captions))


@app.command()
def status(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
    rescan: Rescan = False,
) -> None:
    """Show what is there for this configuration: outputs, rows in the ledgers, what was quarantined and why."""
    loaded = load_config(config, overrides)
    storage = open_store(loaded.root)
    listing = SourceListing(loaded.source.folder, rescan=rescan)
    stages, holder = read_status(wanted_stages(loaded, listing=listing), loaded, storage), read_holder(storage)
    table = Table("stage", "state", "rows out", "quarantined", "in ledger", "s", "fingerprint")
    for one in stages:
        values = (one[key] for key in _STATUS_COLUMNS)
        table.add_row(*cells(*("-" if v is None else round(v) if isinstance(v, float) else v for v in values)))
    age_s = round(listing.age_s, 1)
    publications = published(storage)
    data = {
        "stages": stages,
        "held_by": holder and str(holder),
        "source_listing_age_s": age_s,
        "publications": [asdict(publication) for publication in publications],
    }
    show(table, data, as_json=as_json)
    if as_json:
        return
    _say_age(listing)
    if holder is not None:
        print(f"held by {holder}")
    current = {one["name"]: one["fingerprint"] for one in stages}
    for publication in publications:
        say(f"published {publication.place}: {publication.state(current)}")
    for one in stages:
        for row in one["quarantine"]:
            say(f"{one['name']}: quarantined {row['row_id']}: {row['error_class']}: {row['message']}")


_STATUS_COLUMNS = ("name", "state", "rows_out", "rows_quarantined", "rows_in_ledger", "seconds", "fingerprint")


@app.command()
def fsck(
    config: ConfigPath,
    repair: Annotated[
        bool, typer.Option("--repair", help="set damaged files aside; the next run makes what they cost")
    ] = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Read the whole store and name what is damaged or gone; exit code 1 if anything is. Changes nothing by itself."""
    root = load_config(config, overrides).root
    storage = open_store(root)
    if storage.is_empty():
        raise UserError(f"root {root!r} holds no store; is it the right one?")
    with lease(storage, say) if repair else nullcontext():
        findings = list(check_store(storage))
        if repair:
            repair_store(storage, findings)
    if not findings and not as_json:
        print("Nothing is damaged or gone.")
        return
    table = Table("file", "problem", "cost")
    for one in findings:
        table.add_row(*cells(one.name, one.problem, one.cost))
    show(table, {"findings": [asdict(one) for one in findings], "repaired": repair}, as_json=as_json)
    if findings:
        if repair and not as_json:
            print(f"set aside in {storage.address(DAMAGED)}; `soundcap run` makes the rest again")
        raise typer.Exit(1)


@app.command()
def fetch_models(
    config: ConfigPath,
    to: Annotated[
        str | None, typer.Option(metavar="URL", help="root of the store that gets them; by default the configuration's")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="ask again which commits branches and tags stand for")
    ] = False,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Bring the hub models of a configuration into its store, for machines that do not reach the hub."""
    found = fetch(load_config(config, overrides), to, update=update, say=say)
    if not found and not as_json:
        print("Nothing to fetch: no model is named by a hub id.")
        return
    table = Table("model", "commit", "licence", "GiB", "of which new")
    for one in found:
        sizes = (f"{size / 2**30:.2f}" for size in (one.bytes, one.new_bytes))
        table.add_row(*cells(one.model, one.commit[:12], one.licence or "not said", *sizes))
    show(table, {"models": [asdict(one) for one in found]}, as_json=as_json)


@app.command()
def report(config: ConfigPath, overrides: Overrides = [], rescan: Rescan = False) -> None:  # noqa: B006
    """Write the HTML report of what is there and say where it is."""
    loaded = load_config(config, overrides)
    listing = SourceListing(loaded.source.folder, rescan=rescan)
    print(build_report(loaded, wanted_stages(loaded, listing=listing)))
    _say_age(listing)


@app.command()
def submit(
    config: ConfigPath,
    address: Annotated[str, typer.Option(metavar="URL", help="the cluster's dashboard, like http://127.0.0.1:8265")],
    until: Until = None,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
    credentials: Annotated[
        str | None, typer.Option(metavar="FILE", help="on the nodes, like ~/.aws/credentials, if they have no role")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    retry_failed: RetryFailed = False,
    max_gpu_hours: MaxGpuHours = None,
    max_usd: MaxUsd = None,
    yes: Yes = False,
) -> None:
    """Submit the run to a Ray cluster as a job; the same run under way there is not doubled."""
    from pipelines.submit import submit as submit_job

    loaded = load_config(config, overrides)
    within(Budget(max_gpu_hours, max_usd), loaded, until, retry_failed=retry_failed, yes=yes)
    job_id = submit_job(
        loaded, address=address, wait=wait, say=say, until=until, retry_failed=retry_failed, credentials=credentials
    )
    print(job_id)


@app.command()
def generate(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", parser=user_path)],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", parser=user_path, help="an .mp4 file, or a folder")
    ],
    config: Annotated[str, typer.Option(metavar="CONFIG", help="whose trained models to use")] = "configs/demo.yaml",
    caption: Annotated[str | None, typer.Option(metavar="TEXT", help="instead of the captioner's words")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Caption a silent video with the trained captioner, then make its sound."""
    from pipelines.commands.generate import generate_from_run

    loaded = load_config(config, overrides)
    quiet_libraries()
    generate_from_run(loaded, videos, out, caption=caption, say=say)


@app.command()
def keys(
    part: Annotated[str, typer.Argument(metavar="[PART]", help="of a key, like clips or fps")] = "",
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="as docs/configuration.md")] = False,
) -> None:
    """List the keys of a configuration with type, default and meaning."""
    if as_markdown:
        print(markdown(), end="")
        return
    found = [key for key in all_keys() if part in key.name]
    if not found:
        raise UserError(f"keys: none has {part!r} in it; `soundcap keys` lists them all")
    table = Table("key", "type", "default", "meaning")
    for key in found:
        table.add_row(*cells(*asdict(key).values()))
    show(table, [asdict(key) for key in found], as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: Python, ffmpeg, GPU, Ray, engines; each fault with its remedy."""
    from pipelines.cli.doctor import examine

    findings = examine()
    table = Table("check", "state", "found", "remedy")
    for finding in findings:
        table.add_row(finding.check, finding.state, finding.found, finding.remedy)
    show(table, [asdict(finding) for finding in findings], as_json=as_json)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def miniature() -> None:
    raise UserError("miniature: this command is now `python -m miniature`")


def _say_age(listing: SourceListing) -> None:
    if listing.age_s:
        print(listing)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def main() -> None:
    """Entry point."""
    run_command("soundcap", app, interrupted="the same command goes on where it stopped")


if __name__ == "__main__":
    main()
