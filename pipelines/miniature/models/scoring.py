"""How much is to be read from frozen features, and how well a classifier ranks."""

from __future__ import annotations

import numpy as np


def ridge(features: np.ndarray, targets: np.ndarray, evaluated: np.ndarray, *, penalty: float = 1e-2) -> np.ndarray:
    """Fit targets (N, K) from features (N, D), linearly and with an offset; the values (M, K) at `evaluated` (M, D).

    The penalty is in units of the features' variance per sample, so that encoders of any scale are probed alike.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    x, y = (features - mean) / scale, targets - targets.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ y)
    return np.asarray((evaluated - mean) / scale @ weights + targets.mean(axis=0))


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float:
    """Chance that a positive (truth (N,) bool) scores above a negative: 0.5 for a guess."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    ranks = rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * (len(truth) - positives)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the precision at each positive (truth (N,) bool), from the highest score down."""
    hits = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
