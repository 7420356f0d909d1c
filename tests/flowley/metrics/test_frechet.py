"""Frechet distance against the textbook formula and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from flowley.metrics.frechet import frechet_distance


def exact_gaussian(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n rows whose sample mean and unbiased covariance are exactly the given ones."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 16), (40, 60, 1), (2000, 1000, 64)])
def test_agrees_with_the_formula_by_sqrtm(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(d)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 0.5
    y = rng.standard_normal((m, d)) @ rng.standard_normal((d, d))
    S1, S2 = np.cov(x, rowvar=False).reshape(d, d), np.cov(y, rowvar=False).reshape(d, d)
    root = scipy.linalg.sqrtm(S1 @ S2).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(S1 + S2 - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)


def test_closed_form_of_commuting_gaussians() -> None:
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 0.25, 1.0])
    shift = np.array([3.0, 0.0, -4.0])
    x = exact_gaussian(shift, np.diag(a), 50, seed=0)
    y = exact_gaussian(np.zeros(3), np.diag(b), 70, seed=1)
    expected = 25 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_fewer_rows_than_dimensions() -> None:
    """Rank-1 covariances u u^T and v v^T: the trace of the root of their product is |u . v|."""
    rng = np.random.default_rng(3)
    u, v = rng.standard_normal(300), rng.standard_normal(300)
    x, y = np.stack([u, -u]) / np.sqrt(2), np.stack([v, -v]) / np.sqrt(2)
    assert frechet_distance(x, y) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-10)


def test_zero_for_equal_sets_symmetric_and_blind_to_order_and_offset() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((30, 50)), rng.standard_normal((20, 50)) * 2
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-10
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert frechet_distance(np.ones((3, 2)), np.zeros((4, 2))) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((1, 3)), np.ones((4, 3)), "evaluated embeddings have shape"),
        (np.ones((4, 3)), np.ones(3), "reference embeddings have shape"),
        (np.ones((4, 3)), np.ones((4, 2)), "same backbone"),
        (np.array([[0.0], [1.0], [np.nan]]), np.ones((4, 1)), "row 2 is not finite"),
    ],
)
def test_refuses(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
