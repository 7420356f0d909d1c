"""The log-mel front end against a float64 reference written from the definitions, and against MMAudio's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flowley.codecs.log_mel import LogMel

HZ, N_FFT = 16_000, 1024


def slaney_filters(n_mels: int) -> np.ndarray:
    """Triangles between points equally spaced on Slaney's scale, divided by half their width in Hz."""
    step = np.log(6.4) / 27

    def to_hz(mel: float) -> float:
        return 200 / 3 * mel if mel < 15 else 1000 * np.exp(step * (mel - 15))

    top = 15 + np.log(HZ / 2 / 1000) / step
    points = [to_hz(top * i / (n_mels + 1)) for i in range(n_mels + 2)]
    filters = np.zeros((n_mels, N_FFT // 2 + 1))
    for m in range(n_mels):
        low, middle, high = points[m : m + 3]
        for k in range(N_FFT // 2 + 1):
            f = k * HZ / N_FFT
            rise, fall = (f - low) / (middle - low), (high - f) / (high - middle)
            filters[m, k] = max(0.0, min(rise, fall)) * 2 / (high - low)
    return filters


def reference(wave: np.ndarray, hop: int, n_mels: int, eps: float) -> np.ndarray:
    padded = np.pad(wave, (N_FFT - hop) // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    frames = [padded[i * hop : i * hop + N_FFT] * window for i in range(len(wave) // hop)]
    magnitude = np.sqrt(np.abs(np.fft.rfft(np.stack(frames))) ** 2 + eps)
    return np.maximum(slaney_filters(n_mels) @ magnitude.T, 1e-5)


@pytest.mark.parametrize(("hop", "n_mels", "log", "eps"), [(256, 80, "log10", 1e-9), (160, 64, "log", 0.0)])
def test_front_end_follows_the_definition(hop: int, n_mels: int, log: str, eps: float) -> None:
    wave = 0.2 * np.random.default_rng(0).standard_normal(4 * 1280)
    wave[2000:4000] = 0  # the floor
    front_end = LogMel(audio_hz=HZ, n_fft=N_FFT, hop=hop, n_mels=n_mels, log=getattr(torch, log), eps=eps)
    found = front_end(torch.from_numpy(wave).float()[None])[0].double().numpy()
    wanted = getattr(np, log)(reference(wave, hop, n_mels, eps))
    assert found.shape == wanted.shape == (n_mels, len(wave) // hop)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_front_end_is_mmaudios(recorded: dict[str, Tensor]) -> None:
    front_end = LogMel(audio_hz=HZ, n_fft=N_FFT, hop=256, n_mels=80, log=torch.log10, eps=1e-9)
    found = front_end(recorded["wave"].clamp(-1, 1))
    torch.testing.assert_close(found, recorded["mel"], atol=1e-4, rtol=0)
