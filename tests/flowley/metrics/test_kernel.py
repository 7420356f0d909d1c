"""Kernel audio distance against naive loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from flowley.metrics.kernel import kernel_distance, median_pairwise_distance


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
def test_agrees_with_loops_whatever_the_chunks(sets: tuple[np.ndarray, np.ndarray], chunk_rows: int) -> None:
    x, y = sets
    by_reference = kernel_distance(x, y, chunk_rows=chunk_rows)
    by_evaluated = kernel_distance(x, y, bandwidth_of="evaluated", chunk_rows=chunk_rows)
    assert by_reference == pytest.approx(naive(x, y, naive_median(y)), rel=1e-5)
    assert by_evaluated == pytest.approx(naive(x, y, naive_median(x)), rel=1e-5)
    assert abs(by_reference - by_evaluated) > 0.1, "the two bandwidths should matter for sets of unequal spread"


@pytest.mark.parametrize("n", [2, 3, 4, 60, 61])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_median_is_exact_in_float32(n: int, scale: float) -> None:
    x = np.random.default_rng(n).standard_normal((n, 3)) * scale
    assert median_pairwise_distance(x, chunk_rows=7) == pytest.approx(naive_median(x), rel=1e-6)


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


def test_refuses(sets: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sets
    with pytest.raises(ValueError, match="wanted 'reference' or 'evaluated'"):
        kernel_distance(x, y, bandwidth_of="y")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_rows 0"):
        kernel_distance(x, y, chunk_rows=0)
    with pytest.raises(ValueError, match="same backbone"):
        kernel_distance(x, y[:, :2])
    with pytest.raises(ValueError, match="n >= 2"):
        kernel_distance(x[:1], y)
