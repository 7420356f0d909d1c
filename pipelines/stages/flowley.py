"""Stage `flowley`: training of the video-to-audio model on the features of the train split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from flowley.network.presets import preset
from flowley.training.settings import Callback, StepReport, TrainExecution, TrainSettings, ValidationSound
from pipelines.engine.fingerprint import digest, file_sha256
from pipelines.engine.node_cache import on_this_node
from pipelines.engine.ray_train import StepClock, Trained, TrainingRun, fitted, train_under_ray
from pipelines.engine.recipe import Recipe, unhashed
from pipelines.engine.stage import Context, Result, Stage, WholeWork
from pipelines.engine.storage import Storage
from pipelines.engine.store import RUNS
from pipelines.engine.usage import Steps
from pipelines.errors import UserError
from pipelines.progress import human_time
from pipelines.run_config import Config
from pipelines.scratch import scratch
from pipelines.stages.features import (
    FEATURE_COLUMNS,
    NULL_TEXT,
    FeatureRow,
    FeaturesStage,
    feature_files,
    open_features,
)
from pipelines.stages.model_refs import Codec, Weights, take_over, weights_of

if TYPE_CHECKING:
    from flowley.features.dataset import FeatureDataset

MODEL_FOLDER, SNAPSHOTS_FOLDER = "model", "ema"
"""Snapshots lie beside the model, whose readers do not need them."""
CHECKPOINT_FILES = ("config.json", "model.safetensors")
MODEL_FILES = (*CHECKPOINT_FILES, "README.md")
SOUNDS_FOLDER = "sounds"
"""Folder for sounds of a few test clips over training: `{step}-{number}.flac`, and SOUND_CLIPS."""
SOUND_CLIPS = "clips.json"
"""Clip ids in the order of the sounds' numbers."""


@dataclass(frozen=True)
class FlowleyRecipe(Recipe):
    """Recipe of trained weights: all that determines them except the features. `features`: their spec."""

    code_version = 2
    network: NetworkConfig
    training: TrainSettings
    features: FeatureSpec = unhashed()
    codec: Codec = unhashed()


@dataclass(frozen=True)
class CheckpointRecipe(Recipe):
    """Recipe of an existing checkpoint, used instead of training."""

    checkpoint: Weights


class FlowleyStage(Stage):
    """Training stage. The test split is never trained on; its loss on fixed noise is the validation loss."""

    name = "flowley"
    is_model = True
    split = "train"
    config_keys: ClassVar[Mapping[str, str]] = {"network": "flowley.preset"}

    def inputs(self, config: Config) -> tuple[str, ...]:
        return ("features",) if config.flowley.checkpoint is None else ()

    def recipe(self, config: Config, storage: Storage) -> FlowleyRecipe | CheckpointRecipe:
        section = config.flowley
        if section.checkpoint is not None:
            return CheckpointRecipe(weights_of(section.checkpoint, CHECKPOINT_FILES, "flowley.checkpoint"))
        if section.training.duration_s > config.clips.duration_s:
            raise UserError(
                f"flowley.training.duration_s: got {section.training.duration_s:g}, wanted at most clips.duration_s = "
                f"{config.clips.duration_s:g}"
            )
        features = FeaturesStage().recipe(config, storage)
        return FlowleyRecipe(
            network=preset(section.preset, **section.overrides),
            training=section.training,
            features=features.spec(section.training.duration_s),
            codec=features.av.codec,
        )

    def steps(self, config: Config, storage: Storage, rows: int) -> Steps | None:
        recipe = self.recipe(config, storage)
        if isinstance(recipe, CheckpointRecipe):
            return None
        return Steps(recipe.training.steps, _step_kind(recipe, config.flowley.execution.settings))

    def work(self, context: Context) -> WholeWork:
        if isinstance(context.recipe, CheckpointRecipe):
            checkpoint = context.recipe.checkpoint
            return WholeWork(1, lambda: take_over(context, checkpoint, MODEL_FOLDER, digest(checkpoint.files)))
        rows = context.inputs["features"].rows("clip_id", "split", *FEATURE_COLUMNS).to_pylist()
        total = sum(row["split"] == "train" for row in rows)
        return WholeWork(total, lambda: _train_network(context, rows))


def _train_network(context: Context, rows: list[dict[str, Any]]) -> Result:
    output, storage = context.output, context.storage
    execution = context.config.flowley.execution
    features = Features(
        storage,
        train=[row for row in rows if row["split"] == "train"],
        validation=[row for row in rows if row["split"] == "test"],
        null_text=json.loads(context.inputs["features"].read_bytes(NULL_TEXT)),
    )
    run = TrainingRun.of(output, execution)
    with scratch("flowley") as folder:
        history, trained, run = train_flowley(
            context.recipe, execution.settings, features, output.folder, run, output_dir=folder, say=context.say
        )
        weights = file_sha256(folder / "model.safetensors")
        for file in MODEL_FILES:
            output.upload(folder / file, f"{MODEL_FOLDER}/{file}")
    curve = [asdict(report) for report in history]
    output.write_json("loss.json", curve)
    figures = {
        "steps": curve[-1]["step"],
        "first_loss": round(curve[0]["loss"], 4),
        "last_loss": round(curve[-1]["loss"], 4),
    }
    validated = [report["validation_loss"] for report in curve if report["validation_loss"] is not None]
    if validated:
        figures["validation_loss"] = round(validated[-1], 4)
    total = len(features.train)
    usage = [trained.usage(output, _step_kind(context.recipe, execution.settings), run)]
    return Result(total, total, digest([output.fingerprint, weights]), figures=figures, usage=usage)


def _step_kind(recipe: FlowleyRecipe, execution: TrainExecution) -> str:
    """Digest of what decides the time of a step."""
    settings, how = recipe.training, [execution.precision, execution.sharding, execution.compile]
    return digest([recipe.network.to_dict(), settings.batch_size, settings.duration_s, *how])


# --- under Ray Train ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Features of both splits, as rows of files in the storage. `null_text`: file and row of the empty caption."""

    storage: Storage
    train: Sequence[FeatureRow]
    validation: Sequence[FeatureRow]
    null_text: Mapping[str, Any]

    def load(self, stack: ExitStack, say: Callable[[str], None]) -> tuple[FeatureDataset, FeatureDataset | None]:
        """Train and validation datasets, until `stack` closes. Of a bucket's files the node keeps one copy."""
        names = feature_files([*self.train, *self.validation]) | {self.null_text["file"]}
        files = stack.enter_context(on_this_node(self.storage, sorted(names), say))
        train, validation = (open_features(rows, files, self.null_text) for rows in (self.train, self.validation))
        return train, validation if self.validation else None


def train_flowley(
    recipe: FlowleyRecipe,
    execution: TrainExecution,
    features: Features,
    storage_folder: str,
    run: TrainingRun,
    *,
    output_dir: Path,
    say: Callable[[str], None],
) -> tuple[list[StepReport], Trained, TrainingRun]:
    """Starts or resumes training and puts the last checkpoint into `output_dir`.

    A run resumes with any number of processes. Returns every report of the loss, what was done now, and the run as it
    fitted the cluster. During training every file is written
    once to `storage_folder` of the features' storage, so that a crash costs nothing: EMA snapshots to SNAPSHOTS_FOLDER
    and sounds to SOUNDS_FOLDER. TensorBoard's files are under the run's name in RUNS.

    Raises:
        UserError: features and settings do not fit together, or the loss is not finite.
        RunError: training failed more often than `run.max_failures`.
    """
    from flowley.training.checkpoint import read_history

    run = fitted(run, "flowley.execution", say)
    board = f"{RUNS}/tensorboard/{run.name}"
    work = partial(_work, recipe, execution, features, storage_folder, board)
    trained = train_under_ray("flowley", work, run, output_dir, say)
    return read_history(output_dir), trained, run


def _work(
    recipe: FlowleyRecipe,
    execution: TrainExecution,
    features: Features,
    storage_folder: str,
    board: str,
    say: Callable[[str], None],
) -> str | Trained:
    """Body of one training process."""
    import ray.train
    import ray.train.torch

    from flowley.codecs import load_codec
    from flowley.training.loop import train_network
    from flowley.training.tensorboard import TensorBoard
    from flowley.training.trainer import NonFiniteLossError

    clock, context = StepClock(), ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch("flowley"))
        checkpoint = ray.train.get_checkpoint()
        start = None if checkpoint is None else Path(checkpoint.to_directory(str(folder / "start")))
        keeper = _Keeper(features.storage, storage_folder, board, folder / "tensorboard", say, clock)
        codec = None
        if rank == 0 and execution.sample_every_steps > 0:
            given = recipe.codec.on_node(features.storage)
            codec = load_codec(given.name, path=given.path, revision=given.revision, device=str(device))
        try:
            dataset, validation = features.load(stack, say)
            train_network(
                recipe.network,
                recipe.training,
                execution,
                dataset,
                validation=validation,
                features=recipe.features,
                codec=codec,
                checkpoint_in=start,
                callbacks=[TensorBoard(keeper.log_dir), keeper],
                scratch=folder,
                rank=rank,
                world_size=context.get_world_size(),
                device=device,
            )
        except (ValueError, NonFiniteLossError) as error:
            if context.get_world_size() > 1:
                raise  # other ranks may wait for this one: only a failure ends them too
            return str(error)
    return clock.end(recipe.training.steps)


@dataclass(frozen=True, slots=True)
class _Keeper(Callback):
    """Training callback that passes on reports to the driver, and checkpoints, snapshots and sounds to the storage."""

    storage: Storage
    folder: str
    board: str
    log_dir: Path
    say: Callable[[str], None]
    clock: StepClock

    def on_start(self, step: int) -> None:
        self.clock.begin(step)

    def on_report(self, report: StepReport) -> None:
        line = (
            f"  flowley: {report.step}/{report.steps} steps, {report.clips_per_s:.2g} clips/s, loss {report.loss:.4f}"
            f", {human_time(report.seconds_left)} left"
        )
        validated = report.validation_loss is not None
        self.say(f"{line}, validation loss {report.validation_loss:.4f}" if validated else line)

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        """Reports a checkpoint to Ray Train's storage; every rank must, rank 0 with the folder."""
        import ray.train

        checkpoint = None
        if folder is not None:
            for file in self.log_dir.iterdir():  # TensorBoard still writes to it, so it is copied
                self.storage.write_bytes(f"{self.board}/{file.name}", file.read_bytes())
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": step}, checkpoint=checkpoint)

    def on_snapshot(self, file: Path) -> None:
        self.storage.upload(file, f"{self.folder}/{SNAPSHOTS_FOLDER}/{file.name}")

    def on_sounds(self, sounds: list[ValidationSound]) -> None:
        import soundfile

        with scratch("sound") as folder:
            for sound in sounds:
                file = folder / f"{sound.step:08d}-{sound.number}.flac"
                soundfile.write(file, sound.wave, sound.audio_hz)
                self.storage.upload(file, f"{self.folder}/{SOUNDS_FOLDER}/{file.name}")
        self.storage.write_json(f"{self.folder}/{SOUNDS_FOLDER}/{SOUND_CLIPS}", [sound.clip_id for sound in sounds])
