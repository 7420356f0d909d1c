"""Base class of the codecs with published weights, and the checks of waves and latents.

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


def check_wave(wave: Tensor, audio_hz: int) -> None:
    """Passes mono waves (B, N >= 1) of finite floating-point samples.

    Raises:
        ValueError: anything else.
    """
    if wave.ndim != 2 or wave.shape[1] < 1:
        raise ValueError(f"wave of shape {tuple(wave.shape)}, wanted mono (B, N >= 1) at {audio_hz} Hz")
    if not wave.is_floating_point():
        raise ValueError(f"wave of {wave.dtype}, wanted floating-point samples in [-1, 1]: divide by full scale")
    _check_finite(wave, "wave", "samples")


def check_latent(latent: Tensor, latent_dim: int) -> None:
    """Passes latents (B, L >= 1, C = latent_dim) of finite values.

    Raises:
        ValueError: anything else.
    """
    if latent.ndim != 3 or latent.shape[1] < 1 or latent.shape[2] != latent_dim:
        raise ValueError(f"latent of shape {tuple(latent.shape)}, wanted (B, L >= 1, {latent_dim})")
    _check_finite(latent, "latent", "values")


def _check_finite(x: Tensor, name: str, unit: str) -> None:
    if not bool(torch.isfinite(x).all()):
        n = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} with {n} of {x.numel()} {unit} NaN or infinite, wanted finite {unit}")


def whole_frames(wave: Tensor, frame_samples: int) -> Tensor:
    """(B, N) with zeros after it, up to the next multiple of frame_samples."""
    return pad(wave, (0, -wave.shape[1] % frame_samples))


def exact_length(wave: Tensor, N: int) -> Tensor:
    """(B, any) cut to N samples, or with zeros after it up to N."""
    return pad(wave, (0, N - wave.shape[1]))  # a negative pad cuts
