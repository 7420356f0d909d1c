"""What every codec asks of waves and latents, and how lengths are made whole.

Shapes: B batch, N samples, L latent frames, C latent channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


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
