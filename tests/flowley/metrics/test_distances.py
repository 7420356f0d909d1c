"""Frechet distance against the textbook formula and closed forms, kernel distance against naive loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from flowley.metrics import distances
from flowley.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    kl_divergence,
    median_pairwise_distance,
)


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
def test_frechet_refuses(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)


def naive(x: np.ndarray, y: np.ndarray, s: float) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-(((a - b) ** 2).sum()) / (2 * s**2 + 1e-8)))

    def within(z: np.ndarray) -> float:
        return float(np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]))

    return 100 * (within(x) + within(y) - 2 * float(np.mean([k(a, b) for a in x for b in y])))


def naive_median(x: np.ndarray) -> float:
    distances = sorted(float(np.linalg.norm(a - b)) for a, b in combinations(x, 2))
    return distances[(len(distances) - 1) // 2]


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((17, 5)) * 1.7 + 100.3, rng.standard_normal((23, 5)) + 100


@pytest.mark.parametrize("chunk_rows", [1, 4, 23, 512])
def test_agrees_with_loops_whatever_the_chunks(
    sets: tuple[np.ndarray, np.ndarray], chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = sets
    monkeypatch.setattr(distances, "CHUNK_ROWS", chunk_rows)
    by_reference = kernel_distance(x, y)
    by_evaluated = kernel_distance(x, y, bandwidth_of="evaluated")
    assert by_reference == pytest.approx(naive(x, y, naive_median(y)), rel=1e-5)
    assert by_evaluated == pytest.approx(naive(x, y, naive_median(x)), rel=1e-5)
    assert abs(by_reference - by_evaluated) > 0.1, "the two bandwidths should matter for sets of unequal spread"


@pytest.mark.parametrize("n", [2, 3, 4, 60, 61])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_median_is_exact_in_float32(n: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "CHUNK_ROWS", 7)
    x = np.random.default_rng(n).standard_normal((n, 3)) * scale
    assert median_pairwise_distance(x) == pytest.approx(naive_median(x), rel=1e-6)


def test_median_of_many_equal_distances() -> None:
    points = np.repeat([[0.0], [1.0]], [3, 5], axis=0)  # 13 pairs at distance 0, 15 at 1
    assert median_pairwise_distance(points) == 1.0
    assert median_pairwise_distance(np.zeros((6, 2))) == 0.0


def test_far_and_tight_sets_come_to_200_and_one_distribution_to_about_0() -> None:
    rng = np.random.default_rng(1)
    tight = rng.standard_normal((30, 4)) * 1e-3
    far = kernel_distance(np.full((30, 4), 50.0), tight)
    assert 100 < far <= 200
    draws = [kernel_distance(*rng.standard_normal((2, 60, 4))) for _ in range(40)]
    assert min(draws) < 0 < max(draws), "an unbiased estimate is negative about half of the time"
    assert abs(np.mean(draws)) < 0.3


def test_kernel_refuses(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sets
    with pytest.raises(ValueError, match="wanted 'reference' or 'evaluated'"):
        kernel_distance(x, y, bandwidth_of="y")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same backbone"):
        kernel_distance(x, y[:, :2])
    with pytest.raises(ValueError, match="n >= 2"):
        kernel_distance(x[:1], y)


def test_scores_of_classes_in_closed_form() -> None:
    sure = np.eye(4)
    assert inception_score(sure) == pytest.approx(4, rel=1e-5)
    assert inception_score(np.full((7, 4), 0.25)) == pytest.approx(1)
    assert kl_divergence(sure, sure) == pytest.approx(0, abs=1e-7)
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.2, 0.3, 0.5]])
    assert kl_divergence(p, q) == pytest.approx(scipy.stats.entropy(p[0], q[0]))
