"""Shared parts of both command lines: options, option checks and output."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flowley.network.feature_spec import FeatureSpec
from pipelines.config_file import parse_assignment
from pipelines.errors import UserError, printable

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, like configs/demo.yaml")]
Canary = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="only N of the videos, each label with its share, up to curation"),
]
Visual = Annotated[str | None, typer.Option(metavar="MODEL", help="visual encoder: a folder, or a hub id[@revision]")]
Text = Annotated[str | None, typer.Option(metavar="MODEL", help="text encoder: a folder, or a hub id[@revision]")]
Codec = Annotated[str | None, typer.Option(metavar="NAME[:MODEL]", help="audio codec, and where its weights are")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="overrides one key; repeatable")]
CheckpointPath = Annotated[
    str, typer.Option(metavar="PATH", help="folder of a trained network, a hub id, or a published .pth file")
]

USUAL_DURATION_S = 8.0
"""Clip duration that published networks were trained on."""


def user_path(text: str) -> Path:
    """Path of an option or argument. `~` is the user's home, also where no shell has seen to it."""
    return Path(text).expanduser()


def new_app(purpose: str) -> typer.Typer:
    """Typer application without commands."""
    return typer.Typer(help=purpose, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def say(message: str) -> None:
    """Prints a line unbuffered, also if standard output is a file."""
    print(printable(message), flush=True)


def cells(*values: object) -> tuple[str, ...]:
    """Cells of a table's row, as printable text."""
    return tuple(printable(str(value)) for value in values)


def show(table: Table | None, data: Any = None, *, as_json: bool = False) -> None:
    """Prints `data` as JSON, or a table of the terminal's width; wider in a log. Cells are folded, never cut."""
    if as_json:
        print(json.dumps(data, indent=2))
    elif table is not None:
        table.box, table.pad_edge, table.padding = SIMPLE_HEAD, False, (0, 1, 0, 0)
        for column in table.columns:
            column.overflow = "fold"
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def model_and_revision(named: str) -> tuple[str, str | None]:
    """Model and revision in `owner/name[@revision]`; for a folder its absolute path and None."""
    folder = user_path(named)
    if folder.exists():
        return str(folder.resolve()), None
    model, at, revision = named.rpartition("@")
    return (model, revision) if at else (named, None)


def chosen_features(
    recorded: FeatureSpec | None, *, visual: str | None, text: str | None, codec: str | None, whose: str
) -> FeatureSpec:
    """Feature spec of `whose`: the recorded one, overridden by the options that are set.

    Raises UserError for an encoder or codec that neither names.
    """
    chosen: dict[str, Any] = {}
    for name, named in (("visual", visual), ("text", text)):
        if named is not None:
            chosen[name], chosen[f"{name}_revision"] = model_and_revision(named)
    if codec is not None:
        chosen["codec"], _, weights = codec.partition(":")
        chosen["codec_path"], chosen["codec_revision"] = model_and_revision(weights) if weights else (None, None)
    if recorded is not None:
        return replace(recorded, **chosen)
    missing = [f"--{name}" for name in ("visual", "text", "codec") if name not in chosen]
    if missing:
        raise UserError(f"{whose} does not say what its features are made with; give {', '.join(missing)}")
    return FeatureSpec(**chosen, duration_s=USUAL_DURATION_S)


def quiet_libraries() -> None:
    """Turns off transformers' progress bars and reports; what a checkpoint lacks is checked where it is loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def require_gradio() -> None:
    """Raises UserError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("flowley demo needs Gradio, which is not installed; run: pip install 'soundcap-flowley[demo]'")


def require_device(device: str) -> None:
    """Raises UserError for a device that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "cpu" + ", cuda" * torch.cuda.is_available()
        message = f"--device {device}: not on this machine, which has {there}"
        raise UserError(message) from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Parsed `--set key=value` options: values by key. Raises UserError."""
    return dict(parse_assignment(one, "learning_rate=1.0e-4") for one in assignments)
