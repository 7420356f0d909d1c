"""Frechet distance between two sets of embeddings."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from flowley.metrics.checks import Floats, checked_embeddings


def frechet_distance(evaluated: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Frechet distance of the Gaussians fitted to two embedding sets, (n, d) and (m, d).

        |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

    with unbiased covariances, as in FAD (Kilgour et al. 2019, arXiv:1812.08466). In [0, inf), 0 for sets of
    equal moments, in squared units of the embedding. With fewer rows than dimensions it is defined but biased
    upwards: compare only figures of the same n.

    No matrix root is taken. With S_k = R_k^T R_k from a QR of the centred rows, the eigenvalues of S_1 S_2 are
    the squared singular values of R_1 R_2^T, so the trace of the root is their sum. Covariances are never
    formed or squared, and rank deficiency (n <= d) needs no epsilon.

    Raises:
        ValueError: see `checks.checked_embeddings`.
    """
    x, y = checked_embeddings(evaluated, reference)
    R1, R2 = _covariance_factor(x), _covariance_factor(y)
    shift = x.mean(axis=0) - y.mean(axis=0)
    trace_of_root = np.linalg.svd(R1 @ R2.T, compute_uv=False).sum()
    distance = shift @ shift + (R1**2).sum() + (R2**2).sum() - 2 * trace_of_root
    return max(0.0, float(distance))  # rounding alone takes equal sets below zero


def _covariance_factor(x: Floats) -> Floats:
    """R (min(n, d), d) with R^T R = the unbiased covariance of the rows of x (n, d)."""
    R: Floats = scipy.linalg.qr(x - x.mean(axis=0), mode="r", check_finite=False)[0][: min(x.shape)]
    return R / float(np.sqrt(len(x) - 1))
