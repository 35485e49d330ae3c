"""Distances of samples: closed forms, SciPy's square root of a matrix, and what the intervals promise."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from benchmarks import metrics

DRAW = np.random.default_rng(0)
MIX = DRAW.normal(size=(12, 12))


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def rmse(a, b, seed: int = 0) -> metrics.Estimate:
    return metrics.root_mean_square(metrics.mean_squares(a, b), seed)


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


def test_rmse_is_over_all_pixels_and_images():
    a = pictures(5)
    found = rmse(a, a + 0.5)
    assert found == pytest.approx((0.5, 0.5, 0.5), rel=1e-6)
    b = a.clone()
    b[0] += 2.0  # one image of five: sqrt(4/5), and between none of them and many of them when resampled
    found = rmse(a, b)
    assert found.value == pytest.approx(0.8**0.5, rel=1e-6)
    assert found.low == 0.0 and found.high > 1.2


def test_feature_distance_is_euclidean():
    a = np.zeros((4, 2))
    assert metrics.feature_distance(a, a + np.array([3.0, 4.0])) == pytest.approx((5.0, 5.0, 5.0))


@pytest.mark.parametrize("n, m", [(200, 150), (30, 30), (8, 40)])  # the last: fewer images than features
def test_frechet_is_that_of_scipy(n, m):
    a, b = DRAW.normal(size=(n, 12)) @ MIX, 0.5 + DRAW.normal(size=(m, 12))
    assert metrics.frechet(a, b, paired=False).value == pytest.approx(by_sqrtm(a, b), rel=1e-5)


def test_frechet_of_close_features_keeps_its_digits():
    a = 3.0 + DRAW.normal(size=(100, 12)) @ MIX
    b = a + 1e-3 * DRAW.normal(size=a.shape)
    assert metrics.frechet(a, b).value == pytest.approx(by_sqrtm(a, b), rel=1e-3)
    assert metrics.frechet(a, a).value < 1e-9
    assert metrics.frechet(a, a + 2.0).value == pytest.approx(12 * 4.0)


def test_only_unpaired_frechet_is_biased_upwards():
    """As the docstring says: two sets of one distribution are apart, two that approach each other in pairs are not."""
    a, other = DRAW.normal(size=(2, 100, 12))
    assert metrics.frechet(a, other, paired=False).low > 0.3
    assert metrics.frechet(a, a + 0.01 * other).high < 1e-3


@pytest.mark.parametrize("metric", [rmse, metrics.feature_distance, metrics.frechet])
def test_intervals_hold_the_value_and_shrink_with_images(metric):
    a, noise = DRAW.normal(size=(2, 800, 6))
    b = a + noise * DRAW.gamma(1.0, size=(800, 1))
    few, many = metric(a[:50], b[:50]), metric(a, b)
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert metric(a, b) == many != metric(a, b, seed=1)
    assert all(type(x) is float for x in many)


def test_95_percent_of_the_intervals_hold_the_truth():
    a = np.zeros((120, 4))
    held = 0
    for _ in range(200):
        found = rmse(a, DRAW.normal(size=a.shape))
        held += found.low < 1.0 < found.high
    assert 180 <= held <= 199  # 190 expected; within three standard deviations


def test_what_cannot_be_compared_is_refused():
    a = np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\)"):
        rmse(a, a[:3])
    with pytest.raises(ValueError, match="use paired=False"):
        metrics.frechet(a, a[:3])
    with pytest.raises(ValueError, match="two images or more"):
        metrics.frechet(a[:1], a[:1])
    with pytest.raises(ValueError, match="two images or more"):
        metrics.frechet(a, a[:, :2])
    with pytest.raises(ValueError, match=r"shapes \(4,\)"):
        metrics.frechet(a[:, 0], a)
    for metric in (rmse, metrics.feature_distance, metrics.frechet):
        with pytest.raises(ValueError, match="1 values are not finite"):
            metric(a, np.where(np.arange(12).reshape(4, 3) == 5, np.inf, a))
