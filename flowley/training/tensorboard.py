"""Training curves and validation sounds as TensorBoard files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flowley.metrics.spectral import FLOOR_DB, log_mel_db
from flowley.training.settings import Callback, StepReport, ValidationSound

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Callback):
    """Curves, sounds and their spectrograms as TensorBoard files in a folder.

    The files are complete after `on_checkpoint`: a callback that copies them then comes later in the list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def on_start(self, step: int) -> None:
        """Hides what an interrupted run wrote of later steps."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def on_report(self, report: StepReport) -> None:
        """Adds a point to every curve."""
        curves = {
            "loss/train": report.loss, "loss/mse": report.mse, "loss/cosine": report.cosine,
            "loss/validation": report.validation_loss, "gradient_norm": report.grad_norm,
            "learning_rate": report.learning_rate, "clips_per_s": report.clips_per_s,
        }  # fmt: skip
        assert self._writer is not None
        for tag, value in curves.items():
            if value is not None:
                self._writer.add_scalar(tag, value, report.step)  # type: ignore[no-untyped-call]

    def on_sounds(self, sounds: list[ValidationSound]) -> None:
        """Adds each sound and its log-mel spectrogram under the clip's name."""
        assert self._writer is not None
        for sound in sounds:
            tag = f"{sound.number}/{sound.clip_id}"
            wave = torch.from_numpy(sound.wave)[None]
            self._writer.add_audio(f"sound/{tag}", wave, sound.step, sound.audio_hz)  # type: ignore[no-untyped-call]
            levels = 1 - log_mel_db(sound.wave, sound.audio_hz) / FLOOR_DB  # 0 is the floor, 1 is full scale
            picture = np.clip(levels, 0, 1).T[::-1]  # (bands, frames), low bands at the bottom
            self._writer.add_image(f"log_mel/{tag}", picture, sound.step, dataformats="HW")  # type: ignore[no-untyped-call]

    def on_checkpoint(self, folder: Path | None, step: int) -> None:
        """Flushes the files."""
        if self._writer is not None:
            self._writer.flush()  # type: ignore[no-untyped-call]

    def on_end(self) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()  # type: ignore[no-untyped-call]
