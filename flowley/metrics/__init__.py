"""Metrics of generated sound: `score` compares a set of generated clips with their originals.

`distances` compares sets of embeddings, `spectral` and `onsets` each clip with its original; `backbones` embed clips,
`clap` sounds and texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowley.metrics.distances import EMBEDDING_NAME, frechet_distance, kernel_distance, log_mel_statistics
from flowley.metrics.onsets import detect_onsets, onset_f1
from flowley.metrics.spectral import (
    checked_wave,
    log_mel_correlation,
    log_mel_distance_db,
    loudness_difference_db,
    multi_resolution_stft_distance,
)

__all__ = ["CLIP_METRICS", "Scores", "score", "score_pair", "summarise"]

CLIP_METRICS = (
    "onset_f1",
    "log_mel_correlation",
    "log_mel_distance_db",
    "multi_resolution_stft_distance",
    "loudness_difference_db",
    "loudness_error_db",
)
"""Metrics of one clip against its original."""
MAX_LENGTH_GAP_S = 0.25
"""Generated and original may differ by a codec's or container's last frame; more is another clip."""
BANDWIDTH_OF: Final = "reference"
ONSET_TOLERANCE_S = 0.1


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one evaluation, with every setting that they depend on."""

    n_clips: int
    hz: int
    embedding: str
    """Embedding that `frechet_distance` and `kernel_distance` are computed on."""
    kernel_bandwidth_of: str
    onset_tolerance_s: float
    set_metrics: dict[str, float | None]
    """Distances between the sets, and the mean of each clip metric; None: see `missing`."""
    clip_metrics: dict[str, list[float]]
    """Values of each metric of `score_pair`, in the order of the clips."""
    missing: dict[str, str]
    """Reason for each set metric that is None."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without NaN or infinity."""
        return asdict(self)


def score(generated: Iterable[NDArray[np.floating]], original: Iterable[NDArray[np.floating]], hz: int) -> Scores:
    """Scores of generated clips against their originals: mono waveforms (N_i,) at hz, pair by pair, one in memory.

    The set metrics are `frechet_distance` and `kernel_distance` of the clips' log-mel statistics (None for fewer
    than 2 clips) and the mean of every clip metric.

    Raises:
        ValueError: no clips, not as many of both, or a clip that `score_pair` refuses (the message has its index).
    """
    rows, embedded_g, embedded_o = [], [], []
    for i, (g, o) in enumerate(zip_longest(generated, original)):
        if g is None or o is None:
            what = "generated clips" if o is None else "originals"
            raise ValueError(f"more than {i} {what}, {i} of the others: wanted one for each")
        try:
            rows.append(score_pair(g, o, hz))
        except ValueError as error:
            raise ValueError(f"clip {i}: {error}") from error
        embedded_g.append(log_mel_statistics(g, hz))
        embedded_o.append(log_mel_statistics(o, hz))
    clip_metrics = {name: [row[name] for row in rows] for name in CLIP_METRICS}
    return summarise(clip_metrics, np.array(embedded_g), np.array(embedded_o), hz)


def summarise(
    clip_metrics: Mapping[str, list[float]], generated: NDArray[np.floating], original: NDArray[np.floating], hz: int
) -> Scores:
    """Scores of n clips from their clip metrics, n values each, and the `log_mel_statistics` (n, 129) of both sets.

    Raises:
        ValueError: no clips.
    """
    if not len(generated):
        raise ValueError("no clips to score: wanted at least one pair")
    set_metrics: dict[str, float | None] = {"frechet_distance": None, "kernel_distance": None}
    missing: dict[str, str] = {}
    if len(generated) < 2:
        missing = dict.fromkeys(set_metrics, f"{len(generated)} clip: a distance between sets needs at least 2")
    else:
        set_metrics["frechet_distance"] = frechet_distance(generated, original)
        set_metrics["kernel_distance"] = kernel_distance(generated, original, bandwidth_of=BANDWIDTH_OF)
    set_metrics |= {name: float(np.mean(values)) for name, values in clip_metrics.items()}
    return Scores(
        len(generated), hz, EMBEDDING_NAME, BANDWIDTH_OF, ONSET_TOLERANCE_S, set_metrics, dict(clip_metrics), missing
    )


def score_pair(generated: NDArray[np.floating], original: NDArray[np.floating], hz: int) -> dict[str, float]:
    """The clip metrics of one pair of mono waveforms (N,) at hz, compared over the length of the shorter.

    Raises:
        ValueError: see `spectral.checked_wave`; lengths more than `MAX_LENGTH_GAP_S` apart.
    """
    g, o = checked_wave(generated, hz, "generated"), checked_wave(original, hz, "original")
    if abs(g.size - o.size) > MAX_LENGTH_GAP_S * hz:
        raise ValueError(
            f"generated lasts {g.size / hz:.2f} s, original {o.size / hz:.2f} s: wanted the same "
            f"to {MAX_LENGTH_GAP_S} s; pair them by clip id"
        )
    g, o = g[: o.size], o[: g.size]
    loudness_db = loudness_difference_db(g, o, hz)
    return {
        "onset_f1": onset_f1(detect_onsets(g, hz), detect_onsets(o, hz), tolerance_s=ONSET_TOLERANCE_S),
        "log_mel_correlation": log_mel_correlation(g, o, hz),
        "log_mel_distance_db": log_mel_distance_db(g, o, hz),
        "multi_resolution_stft_distance": multi_resolution_stft_distance(g, o, hz),
        "loudness_difference_db": loudness_db,
        "loudness_error_db": abs(loudness_db),
    }
