"""Training of Flowley under Ray Train: processes, features on each node, checkpoints in storage, resumption."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowley.settings import StepReport, TrainExecution, TrainSettings
from pipelines.errors import RunError, UserError
from pipelines.progress import human_time
from pipelines.storage import Storage
from pipelines.training.run import TrainingRun, cause_of, torch_trainer
from pipelines.training.worker_lines import lines_from_workers

if TYPE_CHECKING:
    from flowley.config import FlowleyConfig
    from flowley.dataset import FeatureDataset

FeatureRow = Mapping[str, Any]
"""A row of the stage `features`: clip_id, av_file, av_row, text_file, text_row."""


def train_flowley(
    *,
    config: FlowleyConfig,
    settings: TrainSettings,
    execution: TrainExecution,
    storage: Storage,
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

    Returns every report of the loss. Raises UserError for features and settings that do not fit together and
    for a loss that is not finite, RunError when training failed more often than `run.max_failures`.
    """
    from ray.train import TrainingFailedError

    from flowley.checkpoint import read_history

    name = f"{run.name}-{run.num_workers}"
    try:
        with lines_from_workers(say) as say_from_worker:
            data = _Data(storage, list(train), list(validation), null_text)
            work = partial(_work, config, settings, execution, data, use_gpu, run.cpus_per_worker, say_from_worker)
            result = torch_trainer(work, name, run, use_gpu).fit()
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
    config: FlowleyConfig,
    settings: TrainSettings,
    execution: TrainExecution,
    data: _Data,
    use_gpu: bool,
    threads: int,
    say: Callable[[str], None],
) -> str | None:
    """One worker's whole life. Returns what the user must mend: an exception would only be tried again."""
    import ray.train
    import ray.train.torch
    import torch

    from flowley.train import NonFiniteLossError, train

    context = ray.train.get_context()
    rank = context.get_world_rank()
    if not use_gpu:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="soundcap-features-") as name:
        checkpoint = ray.train.get_checkpoint()
        start = None
        if checkpoint is not None:
            start = Path(checkpoint.to_directory(str(Path(name) / "start")))
        try:
            dataset, validation = data.load(Path(name))
            train(
                config,
                settings,
                execution,
                dataset,
                validation=validation,
                checkpoint_in=start,
                on_step=partial(_say_step, say) if rank == 0 else _ignore,
                on_checkpoint=_keep,
                rank=rank,
                world_size=context.get_world_size(),
                device=ray.train.torch.get_device(),
            )
        except (ValueError, NonFiniteLossError) as error:
            if context.get_world_size() > 1:
                raise  # the others may wait for this one: only a failure ends them too
            return str(error)
    return None


def _keep(folder: Path | None, step: int) -> None:
    """Reports a checkpoint to Ray Train's storage; every rank must, rank 0 with the folder."""
    import ray.train

    checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
    ray.train.report({"step": step}, checkpoint=checkpoint)


def _say_step(say: Callable[[str], None], report: StepReport) -> None:
    line = (
        f"  flowley: {report.step}/{report.steps} steps, {report.clips_per_s:.2g} clips/s, loss {report.loss:.4f}"
        f", {human_time(report.seconds_left)} left"
    )
    say(line if report.validation_loss is None else f"{line}, validation loss {report.validation_loss:.4f}")


def _ignore(report: StepReport) -> None:
    """Only the first process tells how it goes."""
