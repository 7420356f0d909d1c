"""Commands around prompts: `soundcap prompts show | lint | diff`, and `soundcap compare` of the captions they gave."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
import yaml
from rich.table import Table

from flowley.network.presets import preset
from pipelines.cli.options import AsJson, Canary, ConfigPath, Overrides, cells, new_app, say, show, user_path
from pipelines.config_file import load_config
from pipelines.errors import UserError, user_input
from pipelines.report.compare import Side, compare_sides, figure, verdict_words, write_page
from pipelines.run_config import CaptionsConfig, Config
from pipelines.stages.captions import read_prompts
from pipelines.stages.listing import SourceListing
from pipelines.stages.source import list_source
from soundcap.caption_scores import LEVEL, Run
from soundcap.prompt_lint import PromptChange, changed_clips, changed_violations, lint, prompt_changes
from soundcap.prompts import PromptSet, load_prompts

app = new_app("Prompts: show one, find what is wrong with them, and what an edit reaches.")

MAX_LABELS = 6


@app.command(name="show")
def show_prompt(
    config: ConfigPath,
    whose: Annotated[
        str | None,
        typer.Argument(metavar="[LABEL|CLIP]", help="a label, a video's file or its id; without one labels are listed"),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show the prompt of a label or of a video, word by word, and the warnings that do not reach it."""
    loaded = load_config(config, overrides)
    prompts, files = prompts_of(loaded), _files(loaded)
    if whose is None:
        for label, count in sorted(_labels(files).items()):
            say(f"{label or 'clips without a label'}: {count} clips")
        return
    label = _label_of(whose, files)
    clips = _labels(files)[label]
    spared = [warning.name for warning in prompts.warnings if not warning.reaches(label)]
    reaching = [warning.name for warning in prompts.warnings if warning.reaches(label)]
    prompt = prompts.render(label)
    found = {"label": label, "clips": clips, "prompt": prompt, "warnings": reaching, "not_reaching": spared}
    if as_json:
        show(None, found, as_json=True)
        return
    for line in (*prompt.splitlines(), ""):
        say(line)
    say(f"label {label!r}, {clips} clips; warnings: {', '.join(reaching) or 'none'}")
    say(f"not for this label: {', '.join(spared) or 'none'}")


@app.command(name="lint")
def lint_prompts(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with the prompts of the captions, beside the source's labels; exit code 1 if anything is."""
    loaded = load_config(config, overrides)
    text_tokens = preset(loaded.flowley.preset, **loaded.flowley.overrides).max_text_tokens
    findings = lint(
        prompts_of(loaded),
        _labels(_files(loaded)),
        text_tokens=text_tokens,
        max_new_tokens=loaded.captions.sampling.max_new_tokens,
    )
    is_wrong = any(one.is_fault for one in findings)
    if as_json:
        show(None, {"findings": [asdict(one) for one in findings]}, as_json=True)
    else:
        for one in findings:
            say(("" if one.is_fault else "note: ") + one.text)
        if not is_wrong:
            say("Nothing is wrong with the prompts.")
    if is_wrong:
        raise typer.Exit(1)


@app.command(name="diff")
def diff_prompts(
    config: ConfigPath,
    one: Annotated[
        str, typer.Argument(metavar="EDITED|OLD", help="a prompt file or configuration that is new, or a git revision")
    ],
    new: Annotated[str | None, typer.Argument(metavar="[NEW]", help="what is new, where the first is old")] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show what changes between two prompts, word by word, and how many clips each change reaches.

    Alone, a file is new against CONFIG's prompts, and a git revision is old against them. Of two the first is old.
    """
    loaded = load_config(config, overrides)
    labels = _labels(_files(loaded))
    is_new = new is None and os.path.isfile(Path(one).expanduser())  # noqa: PTH113 (Path's raises for a long name)
    before, after = (prompts_of(loaded, named) for named in ((None, one) if is_new else (one, new)))
    changes = prompt_changes(before, after, labels)
    clips, total = changed_clips(before, after, labels), sum(labels.values())
    if as_json:
        found = {"changes": [asdict(change) for change in changes], "clips": clips, "of": total}
        show(None, found | {"violations": changed_violations(before, after)}, as_json=True)
        return
    for change in changes:
        for line in _told(change):
            say(line)
    judged = changed_violations(before, after)
    for name in judged:
        say(f"{name}: other `violations`, by which curation judges the captions that are there")
    nothing = "; nothing is captioned again" + ", and nothing follows" * (not judged)
    say(f"{clips} of {total} clips get another prompt" + nothing * (not clips))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="CONFIG, or CONFIG@FINGERPRINT of earlier captions")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    canary: Canary = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=user_path, help="page to write, for a browser")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Compare two sets of captions of the same clips: what changed, and whether it is better."""
    if page is not None and (page.is_dir() or not page.parent.is_dir() or not os.access(page.parent, os.W_OK)):
        what = "is a folder" if page.is_dir() else f"{page.parent} is no folder, or cannot be written to"
        raise UserError(f"--page {page}: {what}; give a file in a folder that is there")
    of_a, of_b = (Side.of(named, overrides, canary) for named in (a, b))
    card = compare_sides(of_a, of_b)
    table = Table("measure", "clips", "A", "B", "B - A", f"{LEVEL:.0%} between", "verdict")
    for one in card.comparisons:
        difference, low, high = (figure(one.name, v, signed=True) for v in (one.b - one.a, one.low, one.high))
        values = (one.clips, figure(one.name, one.a), figure(one.name, one.b), difference, f"{low} to {high}")
        table.add_row(*cells(one.name, *values, verdict_words(one)))
        if one.name == "kept":
            own = (figure("kept", share) for share in card.own_kept)
            table.add_row(*cells("kept by its own rules", one.clips, *own))
    table.add_row(*cells("distinct-2", card.common, *(figure("distinct-2", value) for value in card.distinct)))
    show(table, card.as_json(), as_json=as_json)
    if page is not None:
        write_page(card, of_a, page)
    if not as_json:
        if card.without_agreement:
            say(f"agreement with the sound is not compared: {card.without_agreement}")
        if card.without_judgements:
            say(f"a judge's verdicts are not compared: {card.without_judgements}")
        say(
            f"{card.summary}; judged by the rules of B and the warnings of both" + ("" if page is None else f"; {page}")
        )


def prompts_of(config: Config, named: str | None = None) -> PromptSet:
    """Prompts of the captions: of `config`, or with what `named` names: one of its files, a configuration, a revision.

    Raises UserError.
    """
    section = config.captions
    if named is None:
        return read_prompts(section.instruction, section.warnings)
    if not named:
        raise UserError("got an empty name; give a prompt file, a configuration or a git revision")
    file = Path(named).expanduser()
    if not os.path.isfile(file):  # noqa: PTH113 (Path's raises for a name that is too long)
        return _at_revision(section, named)
    with user_input():
        try:
            keys = set(yaml.safe_load(file.read_text(encoding="utf-8")) or ())
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            keys = {"warnings"}  # read_prompts says what is wrong with it
    if "captions" in keys:
        other = load_config(named).captions
        return read_prompts(other.instruction, other.warnings)
    if "warnings" in keys:
        return read_prompts(section.instruction, named)
    return read_prompts(named, section.warnings)


def _at_revision(section: CaptionsConfig, revision: str) -> PromptSet:
    """Prompts of a configuration's files as a git revision has them."""
    with TemporaryDirectory() as folder:
        files = [
            None if name is None else _of_git(name, revision, Path(folder) / str(place))
            for place, name in enumerate((section.instruction, section.warnings))
        ]
        assert files[0] is not None
        with user_input():
            return load_prompts(files[0], files[1])


def _of_git(name: str, revision: str, into: Path) -> Path:
    path = Path(name).resolve()
    command = ["git", "-C", str(path.parent), "show", "--end-of-options", f"{revision}:./{path.name}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UserError(f"{revision}: no such file, and git, which could know a revision, is not installed") from error
    if done.returncode:
        why = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason told"])[-1]
        raise UserError(f"{revision}: no such file, and no git revision with {name}: {why}")
    into.mkdir()
    file = into / path.name
    file.write_bytes(done.stdout)
    return file


def _files(config: Config) -> pa.Table:
    return list_source(config, SourceListing(config.source.folder, rescan=False)).files


def _labels(files: pa.Table) -> Counter[str]:
    """Videos of each label."""
    return Counter(files["label"].to_pylist())


def _label_of(whose: str, files: pa.Table) -> str:
    """Label that is meant: itself, or that of a video's name or id. Raises UserError if none is."""
    if pc.any(pc.equal(files["label"], whose)).as_py():
        return whose
    is_meant = pc.or_(pc.equal(files["name"], whose), pc.equal(files["video_id"], whose))
    found: list[str] = files.filter(is_meant)["label"].unique().to_pylist()
    if len(found) == 1:
        return found[0]
    labels = sorted(_labels(files))
    known = ", ".join(labels[:MAX_LABELS]) + ", ..." * (len(labels) > MAX_LABELS)
    raise UserError(f"{whose!r}: no label, video file or id of the source; labels are {known}")


def _told(change: PromptChange) -> list[str]:
    lines = [f"{change.what}: {change.kind}, reaches {change.clips} clips"]
    for word, labels in zip(("now also for", "no longer for"), change.reach, strict=True):
        if labels:
            more = len(labels) - MAX_LABELS
            lines.append(f"  {word} {', '.join(sorted(labels)[:MAX_LABELS])}" + f" and {more} more" * (more > 0))
    return [*lines, f"  {_marked(change.words)}"]


def _marked(runs: Sequence[Run]) -> str:
    marks: dict[str, Any] = {"same": "{}", "out": "[-{}-]", "in": "{{+{}+}}"}
    return " ".join(marks[kind].format(words) for kind, words in runs)
