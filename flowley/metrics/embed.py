"""A clip embedding without weights, for distances between sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowley.metrics.checks import Floats, checked_wave
from flowley.metrics.onsets import detect_onsets
from flowley.metrics.spectral import N_BANDS, log_mel_db

EMBEDDING_NAME = "log-mel statistics"
EMBEDDING_DIM = 2 * N_BANDS + 1


def log_mel_statistics(wave: NDArray[np.floating], hz: int) -> Floats:
    """Embedding (129,) of a waveform (N,): mean and standard deviation over time of each of 64 log-mel bands,
    in units of 10 dB, and onsets a second, which are then all of the order of 1.

    It knows timbre, level and busyness, not meaning: Frechet and kernel distances on it are not comparable with
    published ones on PANNs, VGGish or PaSST, only with each other at the same hz.

    Raises:
        ValueError: see `checks.checked_wave`.
    """
    wave = checked_wave(wave, hz)
    tens_of_db = log_mel_db(wave, hz) / 10
    rate_hz = len(detect_onsets(wave, hz)) * hz / wave.size
    return np.concatenate([tens_of_db.mean(axis=0), tens_of_db.std(axis=0), [rate_hz]])
