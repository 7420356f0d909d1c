"""Options of the commands of `flowley`: names of models, the device, assignments."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from flowley.network.feature_spec import FeatureSpec
from pipelines.errors import UserError

Visual = Annotated[str | None, typer.Option(metavar="MODEL", help="visual encoder: a folder, or a hub id[@revision]")]
Text = Annotated[str | None, typer.Option(metavar="MODEL", help="text encoder: a folder, or a hub id[@revision]")]
Codec = Annotated[str | None, typer.Option(metavar="NAME[:MODEL]", help="audio codec, and where its weights are")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]
CheckpointPath = Annotated[
    str, typer.Option(metavar="PATH", help="folder of a trained network, a hub id, or a published .pth file")
]

USUAL_DURATION_S = 8.0
"""Of the clips that published networks were trained on."""


def model_and_revision(named: str) -> tuple[str, str | None]:
    """`owner/name@revision` apart; a folder as it is, by its absolute path."""
    if Path(named).exists():
        return str(Path(named).resolve()), None
    model, at, revision = named.rpartition("@")
    return (model, revision) if at else (named, None)


def chosen_features(
    recorded: FeatureSpec | None, *, visual: str | None, text: str | None, codec: str | None, whose: str
) -> FeatureSpec:
    """What `whose` features are made with: as recorded, but for what is given.

    Raises UserError where something is neither recorded nor given.
    """
    given: dict[str, Any] = {}
    for name, named in (("visual", visual), ("text", text)):
        if named is not None:
            given[name], given[f"{name}_revision"] = model_and_revision(named)
    if codec is not None:
        given["codec"], _, weights = codec.partition(":")
        given["codec_path"], given["codec_revision"] = model_and_revision(weights) if weights else (None, None)
    if recorded is not None:
        return replace(recorded, **given)
    missing = [f"--{name}" for name in ("visual", "text", "codec") if name not in given]
    if missing:
        raise UserError(f"{whose} does not say what its features are made with; give {', '.join(missing)}")
    return FeatureSpec(**given, duration_s=USUAL_DURATION_S)


def quiet_libraries() -> None:
    """No progress bars of transformers between the command's own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def require_gradio() -> None:
    """Raises UserError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("flowley demo needs Gradio, which is not installed; run: pip install 'soundcap-flowley[demo]'")


def require_device(device: str) -> None:
    """Raises UserError for a device that this machine has not."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        message = f"--device {device}: not on this machine ({why}); give cpu, or the name of a device it has"
        raise UserError(message) from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set key=value` with YAML values. Raises UserError for what is not that."""
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"--set {assignment}: wanted key=value, for example --set learning_rate=1.0e-4")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: the value is not valid YAML; quote it if it is text") from None
    return values
