"""What training shows while it runs: curves and sounds in TensorBoard files, sounds of a few fixed clips.

Shapes: B clips, L latent frames, C latent channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from flowley.dataset import FeatureDataset, collate
from flowley.metrics.spectral import FLOOR_DB, log_mel_db
from flowley.network import VelocityNetwork
from flowley.sample import SampleSettings, sample
from flowley.settings import DrawnSound, StepReport, TrainExecution, TrainSettings

QUICK = SampleSettings(steps=10, guidance=4.5)
"""How sounds are drawn while training: to be heard, not to be scored."""


class Decoder(Protocol):
    """The half of an `AudioCodec` that makes latents audible."""

    @property
    def audio_hz(self) -> int: ...

    @property
    def latent_dim(self) -> int: ...

    def decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, N) in [-1, 1]."""
        ...


def draw_sounds(
    network: VelocityNetwork, dataset: FeatureDataset, codec: Decoder, settings: TrainSettings,
    execution: TrainExecution, *, step: int,
) -> list[DrawnSound]:  # fmt: skip
    """Sounds for `execution.sample_clips` clips, evenly over the dataset: the same clips and noise at every step.

    Args:
        network: in eval mode.
        dataset: of validation clips.
        codec: of the network's latents.
        settings, execution: of the training.
        step: steps done.
    """
    picked = np.unique(np.linspace(0, len(dataset) - 1, execution.sample_clips).round().astype(int)).tolist()
    L_aud, L_vis = network.config.lengths(settings.duration_s)
    L_sync = network.config.sync_length(settings.duration_s)
    batch = collate([dataset[k] for k in picked], L_aud=L_aud, L_vis=L_vis, L_txt=None, L_sync=L_sync)
    batch = batch.to(network.latent_mean.device)
    latent = sample(network, batch.conditions, L_aud=L_aud, seeds=picked, settings=QUICK)
    with torch.no_grad():
        waves = codec.decode(latent)[:, : round(settings.duration_s * codec.audio_hz)].clamp(-1, 1)
    return [
        DrawnSound(step=step, number=k, clip_id=clip_id, wave=wave.float().cpu().numpy(), audio_hz=codec.audio_hz)
        for k, (clip_id, wave) in enumerate(zip(batch.clip_ids, waves, strict=True))
    ]


class Board:
    """TensorBoard files in a folder; a context manager that closes them.

    Args:
        folder: of the files.
        first_step: steps done before; what an interrupted run showed of later ones is hidden.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]

    def report(self, report: StepReport) -> None:
        """The curves."""
        curves = {
            "loss/train": report.loss, "loss/mse": report.mse, "loss/cosine": report.cosine,
            "loss/validation": report.validation_loss, "gradient_norm": report.grad_norm,
            "learning_rate": report.learning_rate, "clips_per_s": report.clips_per_s,
        }  # fmt: skip
        for tag, value in curves.items():
            if value is not None:
                self._writer.add_scalar(tag, value, report.step)  # type: ignore[no-untyped-call]

    def sounds(self, sounds: Sequence[DrawnSound]) -> None:
        """Each sound, and its log-mel spectrogram as a picture, under the clip's name."""
        for sound in sounds:
            tag = f"{sound.number}/{sound.clip_id}"
            wave = torch.from_numpy(sound.wave)[None]
            self._writer.add_audio(f"sound/{tag}", wave, sound.step, sound.audio_hz)  # type: ignore[no-untyped-call]
            picture = log_mel_picture(sound.wave, sound.audio_hz)
            self._writer.add_image(f"log_mel/{tag}", picture, sound.step, dataformats="HW")  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Everything shown so far is in the files after this."""
        self._writer.flush()  # type: ignore[no-untyped-call]


def log_mel_picture(wave: np.ndarray, audio_hz: int) -> np.ndarray:
    """Log-mel spectrogram as (bands, frames) in [0, 1], low bands at the bottom; 0 is `FLOOR_DB`, 1 is full scale."""
    picture: np.ndarray = np.clip(1 - log_mel_db(wave, audio_hz) / FLOOR_DB, 0, 1).T[::-1]
    return picture
