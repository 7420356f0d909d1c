"""Training loop: feature files in, checkpoints out.

Every random number is a function of (seed, step, rank), so a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowley.codecs import AudioCodec
from flowley.features.dataset import FeatureDataset
from flowley.network.config import NetworkConfig
from flowley.network.feature_spec import FeatureSpec
from flowley.sampling.generator import sample_clips
from flowley.sampling.solvers import SampleSettings
from flowley.training.settings import (
    Callback,
    StepReport,
    TrainExecution,
    TrainSettings,
    ValidationSound,
    clips_per_rank,
)
from flowley.training.trainer import Trainer, initial_network

PREVIEW = SampleSettings(steps=10, guidance=4.5)
"""Sampling of validation sounds: fast, to be listened to and not to be scored."""


def train_network(
    config: NetworkConfig,
    settings: TrainSettings,
    execution: TrainExecution,
    dataset: FeatureDataset,
    *,
    validation: FeatureDataset | None = None,
    features: FeatureSpec | None = None,
    codec: AudioCodec | None = None,
    checkpoint_in: Path | None = None,
    callbacks: Sequence[Callback] = (),
    scratch: Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
) -> list[StepReport]:
    """Trains a network to `settings.steps`, from its initial weights or from a checkpoint.

    Every rank passes the same arguments but for `rank`, `device` and `callbacks`.

    Args:
        dataset: training clips; with `null_text` where the network's null condition is the empty caption.
        validation: clips for the validation loss and the validation sounds.
        features: encoders and codec of the features, recorded in the checkpoints.
        codec: of the features, for validation sounds; rank 0 needs it where `execution.sample_every_steps` is not 0.
        checkpoint_in: folder of a checkpoint of the same network and settings to resume from.
        callbacks: receive reports, sounds and checkpoints, in this order.
        scratch: folder for checkpoints until the callbacks have them; by default one of the system's.
        world_size: number of processes; with more than one, torch's process group is ready.

    Returns:
        Every report, those before the resumption included. The weights are in the last checkpoint.

    Raises:
        ValueError: features, settings and checkpoint do not fit together.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    device = torch.device(device)
    _check(config, settings, execution, dataset, validation, features, world_size)
    if execution.sample_every_steps:
        _check_sounds(config, validation, codec, rank)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        network = initial_network(config, settings.seed, dataset).to(device)
        network.features = features
        trainer = Trainer(network, settings, execution, dataset, rank, world_size)
        if checkpoint_in is not None:
            trainer.state.restore(checkpoint_in)
        loop = _Loop(trainer, validation, codec, callbacks, scratch)
        try:
            loop.run()
        finally:
            for callback in loop.rank_0_callbacks:
                callback.on_end()
        return trainer.state.history


@dataclass
class _Loop:
    """Steps of one rank, with reports, sounds and checkpoints where they are due; the last step has everything due."""

    trainer: Trainer
    validation: FeatureDataset | None
    codec: AudioCodec | None
    callbacks: Sequence[Callback]
    scratch: Path | None

    @property
    def rank_0_callbacks(self) -> Sequence[Callback]:
        return self.callbacks if self.trainer.rank == 0 else ()

    def run(self) -> None:
        for callback in self.rank_0_callbacks:
            callback.on_start(self.trainer.state.step)
        for batch in self.trainer.batches():
            self.trainer.step(batch)
            self._report()
            self._sample()
            self._save()

    def _due(self, every_steps: int) -> bool:
        step, steps = self.trainer.state.step, self.trainer.settings.steps
        return every_steps > 0 and (step == steps or step % every_steps == 0)

    def _report(self) -> None:
        execution, loss = self.trainer.execution, None
        if self.validation is not None and self._due(execution.validate_every_steps):
            loss = self.trainer.validate(self.validation)
        if loss is None and not self._due(execution.log_every_steps):
            return
        report = self.trainer.report(loss)
        for callback in self.rank_0_callbacks:
            callback.on_report(report)

    def _sample(self) -> None:
        """Sounds of `TrainExecution.sample_clips` validation clips, evenly over them: always the same clips and noise.

        Rank 0 makes them; the other ranks only help to gather the weights.
        """
        trainer = self.trainer
        if self.validation is None or not self._due(trainer.execution.sample_every_steps):
            return
        trainer.require_finite()
        averaged, dataset, codec = trainer.state.averages.whole_network(), self.validation, self.codec
        if averaged is None or codec is None or trainer.rank != 0:
            return
        rows = np.unique(np.linspace(0, len(dataset) - 1, trainer.execution.sample_clips).round().astype(int)).tolist()
        clips, duration_s = [dataset[row] for row in rows], trainer.settings.duration_s
        waves = sample_clips(averaged, codec, clips, duration_s=duration_s, seeds=rows, settings=PREVIEW)
        sounds = [
            ValidationSound(
                step=trainer.state.step, number=k, clip_id=clip.clip_id, wave=wave.numpy(), audio_hz=codec.audio_hz
            )
            for k, (clip, wave) in enumerate(zip(clips, waves, strict=True))
        ]
        for callback in self.callbacks:
            callback.on_sounds(sounds)

    def _save(self) -> None:
        """Snapshots, then the checkpoint, which must not exist before the snapshots that belong to it."""
        trainer = self.trainer
        snapshot = self._due(math.ceil(trainer.settings.steps / trainer.execution.ema_snapshots))
        checkpoint = self._due(trainer.execution.checkpoint_every_steps)
        if not (snapshot or checkpoint):
            return
        trainer.require_finite()
        with tempfile.TemporaryDirectory(prefix="flowley-checkpoint-", dir=self.scratch) as name:
            folder = Path(name) if trainer.rank == 0 else None
            for file in trainer.state.averages.snapshot(folder) if snapshot else ():
                for callback in self.callbacks:
                    callback.on_snapshot(file)
                file.unlink(missing_ok=True)
            if checkpoint:
                trainer.state.save(folder)
                for callback in self.callbacks:
                    callback.on_checkpoint(folder, trainer.state.step)


def _check(
    config: NetworkConfig, settings: TrainSettings, execution: TrainExecution,
    dataset: FeatureDataset, validation: FeatureDataset | None, features: FeatureSpec | None, world_size: int,
) -> None:  # fmt: skip
    """Raises ValueError for what would only fail later, or on one rank of several."""
    clips_per_rank(settings.batch_size, world_size)
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
    config: NetworkConfig, validation: FeatureDataset | None, codec: AudioCodec | None, rank: int
) -> None:
    """Raises ValueError where validation sounds are configured that cannot be made."""
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
