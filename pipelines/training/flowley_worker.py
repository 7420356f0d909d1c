"""Training of Flowley under Ray Train: processes, features on each node, checkpoints in storage, resumption."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowley.settings import DrawnSound, StepReport, TrainExecution, TrainSettings
from pipelines.checkpoints import open_codec
from pipelines.config import CodecConfig
from pipelines.errors import RunError, UserError
from pipelines.progress import human_time
from pipelines.storage import Storage
from pipelines.training.run import TrainingRun, cause_of, torch_trainer
from pipelines.training.worker_lines import lines_from_workers

if TYPE_CHECKING:
    from flowley.config import NetworkConfig
    from flowley.dataset import FeatureDataset
    from flowley.feature_spec import FeatureSpec

FeatureRow = Mapping[str, Any]
"""A row of the stage `features`: clip_id, av_file, av_row, text_file, text_row."""
DRAWN_CLIPS = "clips.json"
"""Beside the drawn sounds: the clip ids, in the order of the sounds' numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to train."""

    config: NetworkConfig
    settings: TrainSettings
    execution: TrainExecution
    features: FeatureSpec
    """What the features are made with, for the checkpoint."""
    codec: CodecConfig
    """Makes drawn sounds audible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders of the storage that training fills while it runs; every file once, so that a crash costs nothing."""

    snapshots: str
    """Snapshots of the averages: `ema/` beside the network's files."""
    sounds: str
    """`{step}-{number}.flac`, and DRAWN_CLIPS."""
    tensorboard: str


def train_flowley(
    *,
    task: Task,
    storage: Storage,
    places: Places,
    train: Sequence[FeatureRow],
    validation: Sequence[FeatureRow],
    null_text: Mapping[str, Any],
    run: TrainingRun,
    use_gpu: bool,
    output_dir: Path,
    say: Callable[[str], None],
) -> list[StepReport]:
    """Train, or go on with `run`, and put the last checkpoint into `output_dir`. Ray must be initialised.

    `null_text` is the file and row of the encoded empty caption. `say` gets lines of progress, in this process.
    A run goes on with any number of processes.

    Returns every report of the loss. Raises UserError for features and settings that do not fit together and
    for a loss that is not finite, RunError when training failed more often than `run.max_failures`.
    """
    from ray.train import TrainingFailedError

    from flowley.checkpoint import read_history

    try:
        with lines_from_workers(say) as say_from_worker:
            data = _Data(storage, list(train), list(validation), null_text)
            work = partial(_work, task, data, places, use_gpu, run.cpus_per_worker, say_from_worker)
            result = torch_trainer(work, run.name, run, use_gpu).fit()
    except TrainingFailedError as error:
        raise RunError(f"flowley: {cause_of(error)}") from error
    if result.return_value is not None:
        raise UserError(f"flowley: {result.return_value}")
    assert result.checkpoint is not None, "the last step always makes a checkpoint"
    result.checkpoint.to_directory(str(output_dir))
    return read_history(output_dir)


class _Data:
    """The features of both splits, as rows of files in the storage."""

    def __init__(
        self,
        storage: Storage,
        train: list[FeatureRow],
        validation: list[FeatureRow],
        null_text: Mapping[str, Any],
    ) -> None:
        self.storage, self.train, self.validation, self.null_text = storage, train, validation, null_text

    def load(self, folder: Path) -> tuple[FeatureDataset, FeatureDataset | None]:
        """Both datasets; a bucket's files are downloaded into `folder`, those of a disk are mapped as they lie."""
        from flowley.dataset import Entry, FeatureDataset, Row
        from flowley.features import FeatureFile

        rows = [*self.train, *self.validation]
        files = {row[f"{kind}_file"] for row in rows for kind in ("av", "text")} | {self.null_text["file"]}
        paths = {name: str(self._local(name, folder)) for name in files}

        def entries(rows: list[FeatureRow]) -> list[Entry]:
            return [
                Entry(
                    row["clip_id"],
                    Row(paths[row["av_file"]], row["av_row"]),
                    Row(paths[row["text_file"]], row["text_row"]),
                )
                for row in rows
            ]

        null_text = FeatureFile(paths[self.null_text["file"]]).array("text", self.null_text["row"])
        train = FeatureDataset(entries(self.train), null_text=null_text)
        if not self.validation:
            return train, None
        return train, FeatureDataset(entries(self.validation), null_text=null_text)

    def _local(self, name: str, folder: Path) -> Path:
        if self.storage.is_local:
            return Path(self.storage.path(name))
        target = folder / Path(name).name
        self.storage.download(name, target)
        return target


def _work(
    task: Task, data: _Data, places: Places, use_gpu: bool, threads: int, say: Callable[[str], None]
) -> str | None:
    """One worker's whole life. Returns what the user must mend: an exception would only be tried again."""
    import ray.train
    import ray.train.torch
    import torch

    from flowley.train import NonFiniteLossError, train

    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    if not use_gpu:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="soundcap-flowley-") as name:
        folder = Path(name)
        checkpoint = ray.train.get_checkpoint()
        start = None if checkpoint is None else Path(checkpoint.to_directory(str(folder / "start")))
        keeper = _Keeper(data.storage, places, folder / "tensorboard")
        draws = rank == 0 and task.execution.sample_every_steps > 0
        try:
            dataset, validation = data.load(folder)
            train(
                task.config,
                task.settings,
                task.execution,
                dataset,
                validation=validation,
                features=task.features,
                codec=open_codec(task.codec, str(device)) if draws else None,
                checkpoint_in=start,
                log_dir=keeper.log_dir,
                on_step=partial(_say_step, say) if rank == 0 else _ignore,
                on_checkpoint=keeper.on_checkpoint,
                on_snapshot=keeper.on_snapshot,
                on_sounds=keeper.on_sounds,
                rank=rank,
                world_size=context.get_world_size(),
                device=device,
            )
        except (ValueError, NonFiniteLossError) as error:
            if context.get_world_size() > 1:
                raise  # the others may wait for this one: only a failure ends them too
            return str(error)
    return None


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Brings what training hands out to the storage."""

    storage: Storage
    places: Places
    log_dir: Path

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        """Reports a checkpoint to Ray Train's storage; every rank must, rank 0 with the folder."""
        import ray.train

        checkpoint = None
        if folder is not None:
            for file in self.log_dir.iterdir():  # TensorBoard still writes to it, so a copy goes
                self.storage.write_bytes(f"{self.places.tensorboard}/{file.name}", file.read_bytes())
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": step}, checkpoint=checkpoint)

    def on_snapshot(self, file: Path) -> None:
        self.storage.upload(file, f"{self.places.snapshots}/{file.name}")

    def on_sounds(self, sounds: list[DrawnSound]) -> None:
        import soundfile

        with tempfile.TemporaryDirectory(prefix="soundcap-sound-") as name:
            for sound in sounds:
                file = Path(name) / f"{sound.step:08d}-{sound.number}.flac"
                soundfile.write(file, sound.wave, sound.audio_hz)
                self.storage.upload(file, f"{self.places.sounds}/{file.name}")
        self.storage.write_json(f"{self.places.sounds}/{DRAWN_CLIPS}", [sound.clip_id for sound in sounds])


def _say_step(say: Callable[[str], None], report: StepReport) -> None:
    line = (
        f"  flowley: {report.step}/{report.steps} steps, {report.clips_per_s:.2g} clips/s, loss {report.loss:.4f}"
        f", {human_time(report.seconds_left)} left"
    )
    say(line if report.validation_loss is None else f"{line}, validation loss {report.validation_loss:.4f}")


def _ignore(report: StepReport) -> None:
    """Only the first process tells how it goes."""
