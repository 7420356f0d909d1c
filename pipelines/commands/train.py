"""Single-process training on a folder of feature files: implementation of `flowley train`.

Output folder:

config.json, model.safetensors, README.md    the averaged weights of the last checkpoint
training/                                    the last checkpoint, complete, for resuming
ema/                                         snapshots of the averages (see flowley.training.ema)
log/                                         TensorBoard files
sounds/                                      generated sound of validation clips, if requested
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from flowley.features.encode import Encoders
from flowley.network.config import NetworkConfig
from flowley.network.presets import PRESETS, preset
from flowley.training.loop import train_network
from flowley.training.settings import RECIPES, Callback, StepReport, TrainExecution, TrainSettings, ValidationSound
from flowley.training.tensorboard import TensorBoard
from flowley.training.trainer import NonFiniteLossError
from pipelines.commands.feature_folder import open_dataset, require_spec
from pipelines.errors import RunError, UserError, hint, one_line, require_place, user_input
from pipelines.progress import human_time

T = TypeVar("T")
MODEL_FILES = ("config.json", "README.md", "model.safetensors")
TRAINING, SNAPSHOTS, LOG, SOUNDS = "training", "ema", "log", "sounds"


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """Network, training settings and execution settings of a run."""

    network: NetworkConfig
    settings: TrainSettings
    execution: TrainExecution


def make_recipe(preset_name: str, changes: Mapping[str, Any]) -> TrainRecipe:
    """Recipe of a preset, with changed fields of the network, `TrainSettings` or `TrainExecution`.

    Raises UserError for an unknown field or a value that does not fit.
    """
    with user_input():
        kinds = {
            "settings": {f.name for f in fields(TrainSettings)},
            "execution": {f.name for f in fields(TrainExecution)},
            "network": set(PRESETS[preset_name].to_dict()) if preset_name in PRESETS else set(),
        }
        chosen: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
        for name, value in changes.items():
            kind = next((kind for kind, known in kinds.items() if name in known), None)
            if kind is None:
                raise UserError(f"--set {name}: unknown key; {hint(name, sorted(set().union(*kinds.values())))}")
            chosen[kind][name] = value
        return TrainRecipe(
            preset(preset_name, **chosen["network"]),
            _validated(TrainSettings, RECIPES[preset_name] | chosen["settings"]),
            _validated(TrainExecution, chosen["execution"]),
        )


def _validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """Validated dataclass instance of field values. Raises ValueError that names each invalid field."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = [(".".join(map(str, e["loc"])), e["input"], e["msg"]) for e in error.errors()]
        raise ValueError(
            "; ".join(f"{n}: got {x!r}, {m}" if n else m.removeprefix("Value error, ") for n, x, m in wrong)
        ) from error


def train(
    features: Path,
    out: Path,
    recipe: TrainRecipe,
    *,
    validation: Path | None,
    resume: bool,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Trains to the last step. Raises UserError for inputs that do not fit, RunError for a non-finite loss."""
    require_place(out, f"-o {out}")
    dataset, without_caption = open_dataset(features)
    held_out = None if validation is None else open_dataset(validation)[0]
    spec = require_spec(features)
    if validation is not None and require_spec(validation) != spec:
        raise UserError(f"--validation {validation}: its features are made with something else; extract them alike")
    spec = replace(spec, duration_s=recipe.settings.duration_s)
    keeper = _Keeper(out, say)
    checkpoint = keeper.start(resume)
    say(f"train: {len(dataset)} clips" + (f" ({without_caption} more have no caption)" * bool(without_caption)))
    try:
        with user_input():
            sampled = held_out is not None and recipe.execution.sample_every_steps > 0
            reports = train_network(
                recipe.network, recipe.settings, recipe.execution, dataset, validation=held_out, features=spec,
                codec=Encoders(spec, recipe.network, device=device).codec if sampled else None,
                checkpoint_in=checkpoint, callbacks=[TensorBoard(out / LOG), keeper], device=device,
            )  # fmt: skip
    except NonFiniteLossError as error:
        raise RunError(one_line(error)) from error
    say(f"{out}: {reports[-1].step} steps; flowley generate VIDEO --checkpoint {out} -o OUT.mp4")


class _Keeper(Callback):
    """Training callback that writes checkpoints, snapshots and sounds. An interruption leaves a whole checkpoint."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.out, self.say = out, say
        self.training, self.before = out / TRAINING, out / f".{TRAINING}.before"

    def start(self, resume: bool) -> Path | None:
        """Checkpoint to resume from, if any. Raises UserError for a folder in use without `resume`."""
        if not self.training.is_dir() and self.before.is_dir():  # interrupted between two renames
            self.before.rename(self.training)
        if self.training.is_dir():
            if not resume:
                raise UserError(f"-o {self.out}: holds a training; go on with --resume, or give another folder")
            return self.training
        if resume:
            self.say(f"--resume: nothing to go on from in {self.out} yet; from the first step")
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"-o {self.out}: holds something else; give a new folder")
        self.out.mkdir(parents=True, exist_ok=True)
        return None

    def on_report(self, report: StepReport) -> None:
        loss = f"loss {report.loss:.4f}"
        if report.validation_loss is not None:
            loss += f", validation {report.validation_loss:.4f}"
        left = f"{report.clips_per_s:.3g} clips/s, {human_time(report.seconds_left)} left"
        self.say(f"  step {report.step}/{report.steps}: {loss}, {left}")

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        assert folder is not None, "a single process is rank 0"
        partial = self.out / f".{TRAINING}.partial"
        for leftover in (partial, self.before):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(folder, partial)
        if self.training.is_dir():
            self.training.rename(self.before)
        partial.rename(self.training)
        shutil.rmtree(self.before, ignore_errors=True)
        for name in MODEL_FILES:  # config and card never change; weights are replaced atomically
            _place(self.training / name, self.out / name)

    def on_snapshot(self, file: Path) -> None:
        (self.out / SNAPSHOTS).mkdir(exist_ok=True)
        _place(file, self.out / SNAPSHOTS / file.name)

    def on_sounds(self, sounds: list[ValidationSound]) -> None:
        import soundfile

        (self.out / SOUNDS).mkdir(exist_ok=True)
        for sound in sounds:
            soundfile.write(self.out / SOUNDS / f"{sound.step:07d}-{sound.number}.flac", sound.wave, sound.audio_hz)


def _place(file: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(file, partial)
    partial.replace(target)
