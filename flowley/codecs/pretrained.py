"""What the codecs with published weights share.

Shapes: B batch, N samples, L latent frames, C latent channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from flowley.codecs.waves import check_latent, check_wave, exact_length, whole_frames


class PretrainedCodec(nn.Module, ABC):
    """An `AudioCodec` around a frozen network, whose latent frame covers a whole number of samples.

    Waves and latents of any floating type on any device are taken; results are float32 on the codec's device.
    """

    files: ClassVar[tuple[str, ...]]
    """What is downloaded of a hub repository."""
    contents: ClassVar[str]
    """What a folder must contain, for error messages."""

    audio_hz: int
    latent_dim: int
    frame_samples: int
    """Samples per latent frame."""
    _device: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_device", torch.empty(0), persistent=False)  # follows `.to()`

    @property
    def latent_hz(self) -> Fraction:
        return Fraction(self.audio_hz, self.frame_samples)

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path) -> Self:
        """The codec with the weights of a local folder.

        Raises:
            ValueError: a file is missing, unreadable or of another model.
        """

    @torch.no_grad()
    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """See `AudioCodec.encode`. A last frame that the sound does not fill is filled with silence.

        Raises:
            ValueError: not a batch of mono waves with at least one sample, or not finite.
        """
        check_wave(wave, self.audio_hz)
        return self._encode(whole_frames(wave.to(self._device), self.frame_samples))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `AudioCodec.decode`.

        Raises:
            ValueError: not (B, L >= 1, C), or not finite.
        """
        check_latent(latent, self.latent_dim)
        wave = self._decode(latent.to(self._device))
        return exact_length(wave, latent.shape[1] * self.frame_samples).clamp(-1, 1)

    @abstractmethod
    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L frame_samples) -> mean and std, each (B, L, C)."""

    @abstractmethod
    def _decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, about L frame_samples)."""
