"""`fit`: a known mixture is found again, whatever its rotation; bad samples are refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from hso_jax import problems

RNG_WEIGHTS = np.array([0.5, 0.3, 0.2])


def drawn(count: int = 3000, dimension: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Samples of a mixture with a full within-covariance, its means and covariance, and the components drawn."""
    rng = np.random.default_rng(2)
    means = 2.0 * rng.standard_normal((3, dimension))
    factor = 0.3 * rng.standard_normal((dimension, dimension))
    chosen = rng.choice(3, count, p=RNG_WEIGHTS)
    data = means[chosen] + rng.standard_normal((count, dimension)) @ factor.T
    return data, means, factor @ factor.T, chosen


def test_finds_the_mixture_again() -> None:
    data, means, within, chosen = drawn()
    found = problems.fit(data, components=3, dimension=5)
    order = np.argsort(-np.exp(found.log_weights))
    np.testing.assert_allclose(np.exp(found.log_weights)[order], np.bincount(chosen) / len(data), atol=5e-3)
    np.testing.assert_allclose(found.variances, np.linalg.eigvalsh(within)[::-1], rtol=0.1)
    products = [m @ m.T for m in (np.asarray(found.means)[order], means)]  # what a rotation leaves
    np.testing.assert_allclose(*products, rtol=0.03, atol=0.1)


def test_likelihood_is_as_good_as_the_truth() -> None:
    data, means, within, _ = drawn()
    truth = np.log(sum(w * multivariate_normal.pdf(data, m, within) for w, m in zip(RNG_WEIGHTS, means, strict=True)))
    found = problems.fit(data, components=3, dimension=5)
    # The entropy of a mixture does not depend on its rotation: compare mean log densities of samples of each own.
    rng = np.random.default_rng(3)
    shares = np.exp(np.float64(found.log_weights))
    chosen = rng.choice(3, 20000, p=shares / shares.sum())
    own = np.asarray(found.means)[chosen] + rng.standard_normal((20000, 5)) * np.sqrt(found.variances)
    assert float(problems.log_density(found, np.float32(own), np.inf).mean()) == pytest.approx(truth.mean(), abs=0.05)


def test_keeps_the_leading_components_of_flattened_samples() -> None:
    data = np.random.default_rng(0).standard_normal((400, 2, 3, 4)) * np.linspace(2.0, 0.1, 24).reshape(2, 3, 4)
    found = problems.fit(data, components=2, dimension=6)
    again = problems.fit(data, components=2, dimension=6)
    assert found.means.shape == (2, 6)
    np.testing.assert_array_equal(found.means, again.means)
    total = np.cov(data.reshape(400, -1).T)
    between = np.exp(found.log_weights) @ (found.means - np.exp(found.log_weights) @ found.means) ** 2
    kept = np.sort(np.linalg.eigvalsh(total))[::-1][:6].sum()
    assert float(np.sum(found.variances) + np.sum(between)) == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.full((100, 4), np.nan), {}, "100 of 100 have NaN"),
        (np.zeros(100), {}, "need"),
        (np.random.default_rng(0).standard_normal((15, 4)), {}, "15 samples are too few.*need 16"),
        (np.random.default_rng(0).standard_normal((99, 3)), {}, "the samples have 3"),
        (np.random.default_rng(0).standard_normal((99, 4)) * [1, 1, 1, 0], {}, "singular; use dimension=3"),
        (np.repeat(np.eye(4), 25, axis=0), {"components": 4, "dimension": 3}, "repeated samples"),
        (np.random.default_rng(0).standard_normal((99, 4)), {"members": [7]}, "members"),
    ],
    ids=["nan", "axis", "few", "dimension", "singular", "repeated", "members"],
)
def test_refuses(data: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems.fit(data, **{"components": 3, "dimension": 4, **options})
