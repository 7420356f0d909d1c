"""Training: feature files in, a checkpoint out.

Every random draw is a function of (seed, step, rank), so a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from flowley.config import NetworkConfig
from flowley.dataset import FeatureDataset
from flowley.feature_spec import FeatureSpec
from flowley.memory import keep_freed_memory
from flowley.monitor import Board, Decoder, draw_sounds
from flowley.settings import DrawnSound, StepReport, TrainExecution, TrainResult, TrainSettings
from flowley.trainer import NonFiniteLossError, Trainer, initial_network

__all__ = ["NonFiniteLossError", "train"]


def train(
    config: NetworkConfig,
    settings: TrainSettings,
    execution: TrainExecution,
    dataset: FeatureDataset,
    *,
    validation: FeatureDataset | None = None,
    features: FeatureSpec | None = None,
    codec: Decoder | None = None,
    checkpoint_in: Path | None = None,
    log_dir: Path | None = None,
    on_step: Callable[[StepReport], None],
    on_checkpoint: Callable[[Path | None, int], None],
    on_snapshot: Callable[[Path], None] | None = None,
    on_sounds: Callable[[list[DrawnSound]], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Trains, or goes on from `checkpoint_in`, to `settings.steps`. Every process gives the same arguments.

    Args:
        config: the network.
        settings: the recipe.
        execution: how to carry it out.
        dataset: training clips; with `null_text` where the network's null condition is the empty caption.
        validation: clips whose loss is measured on fixed noise, and whose sounds are drawn.
        features: what the features are made with, kept in the checkpoints.
        codec: makes drawn sounds audible; needed on rank 0 where `execution.sample_every_steps` is not 0.
        checkpoint_in: folder of an earlier checkpoint of the same network and settings.
        log_dir: folder that rank 0 writes TensorBoard files to.
        on_step: called on every rank with each report.
        on_checkpoint: called on every rank with the steps done; rank 0 gets the checkpoint's folder, which is
            removed when the call returns, the others None. TensorBoard's files are flushed by then.
        on_snapshot: called on rank 0 with each file that belongs into `ema/` beside a checkpoint's files (see
            `flowley.ema`), once each and before the checkpoint; it is removed when the call returns.
            None: no snapshots are made.
        on_sounds: called on rank 0 with the sounds drawn after a step.
        rank, world_size: of this process; with more than one, torch's process group is ready.
        device: of this process.

    Raises:
        ValueError: features, settings and checkpoint do not fit together.
        NonFiniteLossError: see there.
    """
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    _check(config, settings, execution, dataset, validation, features, world_size)
    _check_sounds(config, execution, validation, codec, rank)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        network = initial_network(config, settings.seed, dataset).to(device)
        network.features = features
        trainer = Trainer(network, settings, execution, dataset, rank, world_size)
        if checkpoint_in is not None:
            trainer.state.restore(checkpoint_in)
        board = None
        if log_dir is not None and rank == 0:
            board = stack.enter_context(Board(log_dir, first_step=trainer.state.step))
        outlets = _Outlets(trainer, validation, codec, board, on_step, on_checkpoint, on_snapshot, on_sounds)
        for batch in trainer.batches():
            trainer.step(batch)
            outlets.tell()
            outlets.draw()
            outlets.keep()
        return TrainResult(step=trainer.state.step, history=trainer.state.history)


@dataclass
class _Outlets:
    """What comes out of a training after a step, where it is due; the last step has everything due."""

    trainer: Trainer
    validation: FeatureDataset | None
    codec: Decoder | None
    board: Board | None
    on_step: Callable[[StepReport], None]
    on_checkpoint: Callable[[Path | None, int], None]
    on_snapshot: Callable[[Path], None] | None
    on_sounds: Callable[[list[DrawnSound]], None] | None

    def _due(self, every_steps: int) -> bool:
        step, steps = self.trainer.state.step, self.trainer.settings.steps
        return every_steps > 0 and (step == steps or step % every_steps == 0)

    def tell(self) -> None:
        """Validation and report."""
        execution, loss = self.trainer.execution, None
        if self.validation is not None and self._due(execution.validate_every_steps):
            loss = self.trainer.validate(self.validation)
        if loss is None and not self._due(execution.log_every_steps):
            return
        report = self.trainer.report(loss)
        self.on_step(report)
        if self.board is not None:
            self.board.report(report)

    def draw(self) -> None:
        """Sounds of validation clips, on rank 0; the others only help to gather the weights."""
        trainer = self.trainer
        if self.validation is None or not self._due(trainer.execution.sample_every_steps):
            return
        trainer.require_finite()
        averaged = trainer.state.averages.whole_network()
        if averaged is None or self.codec is None or trainer.rank != 0:
            return
        sounds = draw_sounds(
            averaged, self.validation, self.codec, trainer.settings, trainer.execution, step=trainer.state.step
        )
        if self.on_sounds is not None:
            self.on_sounds(sounds)
        if self.board is not None:
            self.board.sounds(sounds)

    def keep(self) -> None:
        """Snapshots, then the checkpoint, which must not be there before what belongs to it."""
        trainer = self.trainer
        snapshot = self._due(math.ceil(trainer.settings.steps / trainer.execution.ema_snapshots))
        checkpoint = self._due(trainer.execution.checkpoint_every_steps)
        if not (snapshot or checkpoint):
            return
        trainer.require_finite()
        with tempfile.TemporaryDirectory(prefix="flowley-checkpoint-") as name:
            folder = Path(name) if trainer.rank == 0 else None
            if snapshot and self.on_snapshot is not None:
                for file in trainer.state.averages.snapshot(folder):
                    self.on_snapshot(file)
                    file.unlink(missing_ok=True)
            if checkpoint:
                trainer.state.save(folder)
                if self.board is not None:
                    self.board.flush()
                self.on_checkpoint(folder, trainer.state.step)


def _check(
    config: NetworkConfig, settings: TrainSettings, execution: TrainExecution,
    dataset: FeatureDataset, validation: FeatureDataset | None, features: FeatureSpec | None, world_size: int,
) -> None:  # fmt: skip
    """Raises ValueError for what would only fail later, or on one process of several."""
    if settings.batch_size % world_size:
        raise ValueError(
            f"batch_size = {settings.batch_size} over {world_size} workers, wanted a multiple of the workers"
        )
    if execution.sharding == "fsdp" and world_size == 1:
        raise ValueError('sharding = "fsdp" with one process has no one to share with: wanted "none", or more workers')
    if features is not None and features.duration_s != settings.duration_s:
        raise ValueError(
            f"features.duration_s = {features.duration_s}, settings.duration_s = {settings.duration_s}: "
            "wanted the same, the duration that is trained on"
        )
    dataset.require_fit(config, settings.duration_s)
    if validation is not None:
        validation.require_fit(config, settings.duration_s)


def _check_sounds(
    config: NetworkConfig,
    execution: TrainExecution,
    validation: FeatureDataset | None,
    codec: Decoder | None,
    rank: int,
) -> None:
    """Raises ValueError where sounds are asked for that cannot be drawn."""
    if not execution.sample_every_steps:
        return
    if validation is None:
        raise ValueError("sample_every_steps asks for sounds of validation clips, but there are none; set it to 0")
    if rank != 0:
        return
    if codec is None:
        raise ValueError("sample_every_steps asks for sounds, but there is no codec to decode them; give one")
    if codec.latent_dim != config.latent_dim:
        raise ValueError(
            f"the codec's latents have {codec.latent_dim} channels, the network's latent_dim is {config.latent_dim}: "
            "give the codec of the features"
        )
