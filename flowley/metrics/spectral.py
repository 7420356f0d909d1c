"""Spectral metrics between a generated waveform and its original.

Magnitudes are scaled so that a full-scale sine peaks at 1. Every function raises ValueError for waveforms that
`checked_wave` or `checked_pair` refuses.

Shapes: N samples, T frames, F frequency bins, M bands.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float64]

N_BANDS = 64
WINDOW_S, HOP_S = 0.064, 0.016
FLOOR_DB = -80.0
"""Band level below which everything is silence."""
HANN_BANDWIDTH_BINS = 1.5
"""A sine's power under a Hann window, summed over bins, against that of its peak."""
STFT_WINDOWS_S = (0.016, 0.064, 0.128)
MAGNITUDE_FLOOR = 1e-4
SILENCE_RMS = 1e-5
MIN_HZ = 8_000
"""Below this the mel bands have no room."""


def log_mel_db(wave: NDArray[np.floating], hz: int, *, window_s: float = WINDOW_S, hop_s: float = HOP_S) -> Floats:
    """Log-mel spectrogram (T, M) in dB of full scale, T = 1 + N // hop; frame k is centred on k hop_s seconds.

    Slaney bands from 0 to hz / 2, not below `FLOOR_DB`.
    """
    power = _magnitude(checked_wave(wave, hz), hz, window_s, hop_s) ** 2 / HANN_BANDWIDTH_BINS
    bands = power @ _mel_filters(power.shape[1], hz)
    decibels: Floats = 10 * np.log10(np.maximum(bands, 10 ** (FLOOR_DB / 10)))
    return decibels


def log_mel_correlation(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> float:
    """Pearson correlation over all frames and bands of the log-mel spectrograms of two (N,); in [-1, 1].

    Two silences correlate by 1, silence with sound by 0. Blind to loudness as long as nothing meets the floor.
    """
    g, o = (log_mel_db(wave, hz) for wave in checked_pair(generated, original, hz))
    g, o = g - g.mean(), o - o.mean()
    norms = float(np.sqrt((g**2).sum() * (o**2).sum()))
    if norms == 0.0:
        return float(not g.any() and not o.any())
    return float(np.clip((g * o).sum() / norms, -1.0, 1.0))


def log_mel_distance_db(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> float:
    """Mean absolute difference of the log-mel spectrograms of two (N,), in dB; >= 0, 0 for equal ones."""
    g, o = checked_pair(generated, original, hz)
    return float(np.abs(log_mel_db(g, hz) - log_mel_db(o, hz)).mean())


def multi_resolution_stft_distance(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> float:
    """Mean |G - O| + |ln G - ln O| of STFT magnitudes, averaged over `STFT_WINDOWS_S`; >= 0, 0 for equal (N,).

    The multi-scale spectral loss of DDSP (Engel et al. 2020, arXiv:2001.04643, eq. 4) with means for sums, so that
    the length does not matter, and quarter-window hops. It has no denominator: a silent original is no special
    case, as it would be for spectral convergence. Magnitudes are floored at `MAGNITUDE_FLOOR` (-80 dB).
    """
    pair = checked_pair(generated, original, hz)
    distances = []
    for window_s in STFT_WINDOWS_S:
        g, o = (np.maximum(_magnitude(w, hz, window_s, window_s / 4), MAGNITUDE_FLOOR) for w in pair)
        distances.append(np.abs(g - o).mean() + np.abs(np.log(g / o)).mean())
    return float(np.mean(distances))


def loudness_difference_db(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> float:
    """RMS level of generated over that of original, in dB; positive: too loud. RMS below 1e-5 counts as 1e-5."""
    g, o = (max(float(np.sqrt(np.mean(w**2))), SILENCE_RMS) for w in checked_pair(generated, original, hz))
    return float(20 * np.log10(g / o))


def _magnitude(wave: Floats, hz: int, window_s: float, hop_s: float) -> Floats:
    """(N,) -> (T, F): Hann windows centred on multiples of the hop, zeros beyond both ends."""
    window_samples, hop = round(window_s * hz), round(hop_s * hz)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
    half = window_samples // 2
    frames = sliding_window_view(np.pad(wave, (half, window_samples - half)), window_samples)[::hop]
    spectrum = np.fft.rfft(frames[: 1 + wave.size // hop] * window, axis=1)
    magnitude: Floats = np.abs(spectrum) * (2 / window.sum())
    return magnitude


@cache
def _mel_filters(n_bins: int, hz: int) -> Floats:
    """(F, M) triangles of height 1."""
    from torchaudio.functional import melscale_fbanks

    filters: Floats = melscale_fbanks(n_bins, 0.0, hz / 2, N_BANDS, hz, None, "slaney").double().numpy()
    return filters


def checked_wave(wave: NDArray[np.floating], hz: int, name: str = "wave") -> Floats:
    """Mono waveform (N,), checked and in float64.

    Raises:
        ValueError: not (N >= 1,), a sample that is not finite, or hz below `MIN_HZ`.
    """
    if hz < MIN_HZ:
        raise ValueError(f"{hz} Hz: the metrics need at least {MIN_HZ} Hz; resample first")
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"{name} has shape {wave.shape}, wanted mono (N >= 1,); mix down or drop it")
    bad = np.flatnonzero(~np.isfinite(wave))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {wave.size} samples are not finite, first at {bad[0]}; generate it anew"
        )
    return wave.astype(np.float64)


def checked_pair(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> tuple[Floats, Floats]:
    """Both waveforms, each (N,), checked to cover the same time.

    Raises:
        ValueError: as `checked_wave`, or unequal lengths.
    """
    g, o = checked_wave(generated, hz, "generated"), checked_wave(original, hz, "original")
    if g.size != o.size:
        raise ValueError(f"generated has {g.size} samples, original {o.size}: cut or pad them to one length")
    return g, o
