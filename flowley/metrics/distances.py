"""Distances between two sets of embeddings (Frechet, kernel) or classes (KL, IS), and an embedding without weights.

Both raise ValueError for sets that `checked_embeddings` refuses, the embedding for a waveform that
`spectral.checked_wave` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flowley.metrics.onsets import detect_onsets
from flowley.metrics.spectral import Floats, checked_wave, log_mel_db

EMBEDDING_NAME = "log-mel statistics"
CHUNK_ROWS = 512
"""Rows of pairwise distances in memory at once."""


def log_mel_statistics(wave: NDArray[np.floating], hz: int) -> Floats:
    """Embedding (129,) of a waveform (N,) without any weights.

    Mean and standard deviation over time of each of 64 log-mel bands, in units of 10 dB, and onsets a second: all
    of the order of 1. It measures timbre, level and density of events, not meaning: Frechet and kernel distances
    on it are not comparable with published ones on PANNs, VGGish or PaSST, only with each other at the same hz.
    """
    wave = checked_wave(wave, hz)
    tens_of_db = log_mel_db(wave, hz) / 10
    rate_hz = len(detect_onsets(wave, hz)) * hz / wave.size
    return np.concatenate([tens_of_db.mean(axis=0), tens_of_db.std(axis=0), [rate_hz]])


def frechet_distance(evaluated: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Frechet distance of the Gaussians fitted to two embedding sets, (n, d) and (m, d).

        |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

    with unbiased covariances, as in FAD (Kilgour et al. 2019, arXiv:1812.08466). In [0, inf), 0 for sets of
    equal moments, in squared units of the embedding. With fewer rows than dimensions it is defined but biased
    upwards: compare only figures of the same n.

    No matrix root is taken. With S_k = R_k^T R_k from a QR of the centred rows, the eigenvalues of S_1 S_2 are
    the squared singular values of R_1 R_2^T, so the trace of the root is their sum. Covariances are never
    formed or squared, and rank deficiency (n <= d) needs no epsilon.
    """
    x, y = checked_embeddings(evaluated, reference)
    R1, R2 = _covariance_factor(x), _covariance_factor(y)
    shift = x.mean(axis=0) - y.mean(axis=0)
    trace_of_root = np.linalg.svd(R1 @ R2.T, compute_uv=False).sum()
    distance = shift @ shift + (R1**2).sum() + (R2**2).sum() - 2 * trace_of_root
    return max(0.0, float(distance))  # rounding alone takes equal sets below zero


def _covariance_factor(x: Floats) -> Floats:
    """Factor R (min(n, d), d) with R^T R = the unbiased covariance of the rows of x (n, d)."""
    import scipy.linalg  # takes a second, which `plan` saves

    R: Floats = scipy.linalg.qr(x - x.mean(axis=0), mode="r", check_finite=False)[0][: min(x.shape)]
    return R / float(np.sqrt(len(x) - 1))


def kernel_distance(
    evaluated: NDArray[np.floating],
    reference: NDArray[np.floating],
    *,
    bandwidth_of: Literal["reference", "evaluated"] = "reference",
) -> float:
    """KAD of two embedding sets, (n, d) and (m, d): 100 times the unbiased MMD^2 with a Gaussian kernel.

        100 [ mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x, y) ]
        k(a, b) = exp(-|a - b|^2 / (2 s^2 + 1e-8)),  s = median pairwise distance of one set

    Chung et al. 2025, arXiv:2502.15602. In (-200, 200]; around 0, also below, for sets of one distribution.
    The authors describe s as the reference's; their code (kadtk) has not taken it from the same set in every
    version, so `bandwidth_of` says which, and belongs beside the figure. Memory is O(`CHUNK_ROWS` (n + m)) beyond
    the inputs.

    Raises:
        ValueError: an unknown `bandwidth_of`.
    """
    x, y = checked_embeddings(evaluated, reference)
    if bandwidth_of not in ("reference", "evaluated"):
        raise ValueError(f"bandwidth_of {bandwidth_of!r}: wanted 'reference' or 'evaluated'")
    centre = y.mean(axis=0)  # distances from inner products cancel less around the origin
    x, y = x - centre, y - centre
    s = median_pairwise_distance(y if bandwidth_of == "reference" else x)
    scale = 2 * s**2 + 1e-8
    within_x = _mean_kernel(x, x, scale, skip_diagonal=True)
    within_y = _mean_kernel(y, y, scale, skip_diagonal=True)
    across = _mean_kernel(x, y, scale, skip_diagonal=False)
    return 100 * (within_x + within_y - 2 * across)


def median_pairwise_distance(x: Floats) -> float:
    """Median Euclidean distance over the pairs i < j of x (n >= 2, d); of an even number, the lower middle one.

    Exact for distances in float32, in bounded memory: the bits of non-negative floats sort as integers, so one
    pass counts the upper 16 bits, which fixes those of the median, and a second its lower 16.
    """
    rank = (len(x) * (len(x) - 1) // 2 - 1) // 2
    upper = np.zeros(1 << 16, dtype=np.int64)
    for bits in _pair_distance_bits(x):
        upper += np.bincount(bits >> 16, minlength=1 << 16)
    high = int(np.searchsorted(np.cumsum(upper), rank, side="right"))
    rank -= int(upper[:high].sum())
    lower = np.zeros(1 << 16, dtype=np.int64)
    for bits in _pair_distance_bits(x):
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int(np.searchsorted(np.cumsum(lower), rank, side="right"))
    return float(np.array(high << 16 | low, dtype=np.uint32).view(np.float32))


def _pair_distance_bits(x: Floats) -> Iterator[NDArray[np.uint32]]:
    for start in range(0, len(x), CHUNK_ROWS):
        block = _squared_distances(x[start : start + CHUNK_ROWS], x[start:])
        above_diagonal = np.triu(np.ones(block.shape, dtype=bool), k=1)
        yield np.sqrt(block[above_diagonal]).astype(np.float32).view(np.uint32)


def _mean_kernel(x: Floats, y: Floats, scale: float, *, skip_diagonal: bool) -> float:
    total = 0.0
    for start in range(0, len(x), CHUNK_ROWS):
        kernel = np.exp(-_squared_distances(x[start : start + CHUNK_ROWS], y) / scale)
        if skip_diagonal:
            np.fill_diagonal(kernel[:, start:], 0.0)
        total += float(kernel.sum())
    return total / (len(x) * (len(y) - skip_diagonal))


def _squared_distances(x: Floats, y: Floats) -> Floats:
    squared: Floats = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.maximum(squared, 0.0)


def checked_embeddings(evaluated: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Both embedding sets, (n, d) and (m, d), checked and in float64.

    Raises:
        ValueError: not two-dimensional, fewer than two rows, other widths, or values that are not finite.
    """
    for name, x in (("evaluated", evaluated), ("reference", reference)):
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise ValueError(f"{name} embeddings have shape {x.shape}, wanted (n >= 2, d >= 1)")
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise ValueError(f"{name} embeddings: row {row} is not finite; drop that clip")
    if evaluated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"evaluated embeddings are {evaluated.shape[1]} wide, reference {reference.shape[1]}: "
            "embed both with the same backbone"
        )
    return evaluated.astype(np.float64), reference.astype(np.float64)


def kl_divergence(original: NDArray[np.floating], generated: NDArray[np.floating]) -> float:
    """Mean KL(original || generated) of class probabilities (N, K), pair by pair, in nats."""
    p, q = (np.clip(classes, 1e-9, None) for classes in (original, generated))
    return float((p * np.log(p / q)).sum(1).mean())


def inception_score(classes: NDArray[np.floating]) -> float:
    """Exponential of the mean KL(p(y | x) || p(y)) of class probabilities (N, K), 1 to K; more is better."""
    p = np.clip(classes, 1e-9, None)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
