"""Onset detection in a waveform that `spectral.checked_wave` passes, and the F1 score of two sets of onsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowley.metrics.spectral import Floats, log_mel_db

WINDOW_S, HOP_S = 0.032, 0.010
PAST_FRAMES = (2, 6)
"""A band rises if it exceeds all it has been 20 to 60 ms before."""
PEAK_RADIUS_FRAMES = 3
"""An onset is the largest flux within 30 ms on either side."""
MEAN_RADIUS_FRAMES = 10
"""The flux around, 100 ms on either side, that an onset must stand out from."""
THRESHOLD_DB = 1.0
"""Mean rise over the bands, beyond the flux around, that counts as an onset."""
MIN_GAP_S = 0.05


def detect_onsets(wave: NDArray[np.floating], hz: int) -> Floats:
    """Times in seconds, ascending, at which sounds begin in a waveform (N,); empty for silence.

    Spectral flux (Boeck and Widmer 2013, "Maximum filter vibrato suppression for onset detection", with the
    maximum taken over the past instead of over neighbouring bands): by how much each log-mel band exceeds its
    maximum 20 to 60 ms before, averaged over bands. Against a single past frame the flutter of Griffin-Lim
    reconstructions passes for onsets. Local maxima that exceed the local mean by `THRESHOLD_DB` are onsets, at
    least `MIN_GAP_S` apart. Times are good to about 25 ms. A sound that already runs when the clip starts has no
    onset there; the first 76 ms and the last 16 ms are not searched.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d  # takes a second, which `plan` saves

    mel = log_mel_db(wave, hz, window_s=WINDOW_S, hop_s=HOP_S)
    hop_s = round(HOP_S * hz) / hz
    nearest, farthest = PAST_FRAMES
    past = maximum_filter1d(mel, farthest - nearest + 1, axis=0)  # centred: row c covers c - 2 to c + 2
    middle = (nearest + farthest) // 2
    flux = np.zeros(len(mel))
    flux[middle:] = np.maximum(mel[middle:] - past[:-middle], 0.0).mean(axis=1)
    centre_s = np.arange(len(mel)) * hop_s  # a window that runs over an end hears the cut itself as a click
    flux[(centre_s < farthest * hop_s + WINDOW_S / 2) | (centre_s > wave.size / hz - WINDOW_S / 2)] = 0.0
    around = uniform_filter1d(flux, 2 * MEAN_RADIUS_FRAMES + 1, mode="constant")
    peaks = flux == maximum_filter1d(flux, 2 * PEAK_RADIUS_FRAMES + 1, mode="constant")
    onsets: list[float] = []
    for time_s in centre_s[peaks & (flux > around + THRESHOLD_DB)].tolist():
        if not onsets or time_s - onsets[-1] >= MIN_GAP_S:
            onsets.append(time_s)
    return np.array(onsets)


def onset_f1(generated_s: NDArray[np.floating], original_s: NDArray[np.floating], *, tolerance_s: float = 0.1) -> float:
    """F1 of onset times, (n,) and (m,) in seconds; in [0, 1].

        2 matched / (n + m)

    `matched` is the size of a maximum bipartite matching in which a pair lies at most `tolerance_s` apart, so
    that no onset counts twice (as mir_eval does: Raffel et al. 2014). Both empty: 1. One empty: 0.

    Raises:
        ValueError: times not finite or not (n,), or a negative tolerance.
    """
    for name, times in (("generated", generated_s), ("original", original_s)):
        if times.ndim != 1 or not np.isfinite(times).all():
            raise ValueError(f"{name} onsets of shape {times.shape}: wanted finite times (n,)")
    if not tolerance_s >= 0:
        raise ValueError(f"tolerance_s {tolerance_s}: wanted 0 or more")
    n, m = len(generated_s), len(original_s)
    if n == 0 or m == 0:
        return float(n == m)
    near = np.abs(generated_s[:, None] - original_s) <= tolerance_s + 1e-9  # 1.1 - 1.0 > 0.1 in floats
    from scipy.sparse import csr_array  # takes a second, which `plan` saves
    from scipy.sparse.csgraph import maximum_bipartite_matching

    matched = int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())
    return 2 * matched / (n + m)
