"""Base classes of the audio codecs, and the checks of waves and latents.

A codec gives its latents on their own scale; the network standardises them per channel with the statistics of its
training corpus (`VelocityNetwork.latent_mean`, `latent_std`), so no codec needs constants of its own.

Shapes: B batch, N samples, L latent frames, C latent channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class AudioCodec(nn.Module, ABC):
    """Sound to latent frames and back. Frame i describes the sound around i / latent_hz seconds.

    A latent frame covers a whole number of samples. Waves and latents of any floating type on any device are taken;
    results are float32 on the codec's device.
    """

    audio_hz: int
    """Samples per second in and out, mono."""
    latent_dim: int
    """Channels of a latent frame."""
    frame_samples: int
    """Samples per latent frame."""
    _device: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_device", torch.empty(0), persistent=False)  # follows `.to()`

    @property
    def latent_hz(self) -> Fraction:
        """Latent frames per second: r_a of a network that uses this codec."""
        return Fraction(self.audio_hz, self.frame_samples)

    @torch.no_grad()
    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) in [-1, 1] -> mean and std of the latent, each (B, ceil(N latent_hz / audio_hz), C).

        A last frame that the sound does not fill is filled with silence.

        Raises:
            ValueError: not a batch of mono waves with at least one sample, or not finite.
        """
        if wave.ndim != 2 or wave.shape[1] < 1:
            raise ValueError(f"wave of shape {tuple(wave.shape)}, wanted mono (B, N >= 1) at {self.audio_hz} Hz")
        if not wave.is_floating_point():
            raise ValueError(f"wave of {wave.dtype}, wanted floating-point samples in [-1, 1]: divide by full scale")
        _check_finite(wave, "wave", "samples")
        return self._encode(pad(wave.to(self._device), (0, -wave.shape[1] % self.frame_samples)))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, L audio_hz / latent_hz) in [-1, 1].

        Raises:
            ValueError: not (B, L >= 1, C), or not finite.
        """
        if latent.ndim != 3 or latent.shape[1] < 1 or latent.shape[2] != self.latent_dim:
            raise ValueError(f"latent of shape {tuple(latent.shape)}, wanted (B, L >= 1, {self.latent_dim})")
        _check_finite(latent, "latent", "values")
        wave = self._decode(latent.to(self._device))
        wave = pad(wave, (0, latent.shape[1] * self.frame_samples - wave.shape[1]))  # a negative pad cuts
        return wave.clamp(-1, 1)

    @abstractmethod
    def _encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L frame_samples) -> mean and std, each (B, L, C)."""

    @abstractmethod
    def _decode(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, about L frame_samples)."""


class PretrainedCodec(AudioCodec):
    """An `AudioCodec` with published weights."""

    files: ClassVar[tuple[str, ...]]
    """Files to download of a hub repository."""
    contents: ClassVar[str]
    """Required contents of a folder, for error messages."""

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path) -> Self:
        """The codec with the weights of a local folder.

        Raises:
            ValueError: a file is missing, unreadable or of another model.
        """


def _check_finite(x: Tensor, name: str, unit: str) -> None:
    if not bool(torch.isfinite(x).all()):
        n = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} with {n} of {x.numel()} {unit} NaN or infinite, wanted finite {unit}")
