"""A reference problem from a user's own samples or latents: principal components and a mixture, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hso_jax.checks import numbers, whole
from hso_jax.problems.mixture import LARGEST, Problem, mixture

SINGULAR = 1e-6
"""A direction is taken for degenerate if its standard deviation is this share of the largest one's."""

STARTS = 4
"""Sets of centres to start from; the likeliest fit is kept (a single one may merge two clusters and split another)."""


def fit(
    samples: Any,
    *,
    components: int = 32,
    dimension: int = 32,
    members: Sequence[int] | None = None,
    seed: int = 0,
    iterations: int = 100,
) -> Problem:
    """A mixture with one shared within-covariance, fitted to the samples' leading principal components.

    Expectation-maximisation from k-means++ centres, the best of four. The fitted covariance is full; the result is in
    the coordinates of its own eigenvectors, where it is diagonal (a rotation changes nothing about the probability
    flow). Nothing is centred or scaled: pass latents as the model sees them.

    Args:
        samples: [n, ...] data; each sample is flattened.
        components: C.
        dimension: D, the number of principal components kept.
        members: the class, see `mixture`.
        seed: of the centres.
        iterations: at most; it stops when the mean log likelihood grows by less than 1e-6.

    Raises:
        ValueError: for NaN, fewer than D + 4 C samples, or samples or a fit that leave a direction without variance.
    """
    data = numbers("samples", samples)
    components, dimension = whole("components", components, 1), whole("dimension", dimension, 1)
    seed, iterations = whole("seed", seed, 0, 2**31 - 1), whole("iterations", iterations, 1, 10**6)
    if data.ndim < 2 or not data.size:
        raise ValueError(f"samples has shape {data.shape}; need [n, ...]")
    data = data.reshape(len(data), -1)
    if not np.isfinite(data).all():
        raise ValueError(
            f"samples: {int((~np.isfinite(data).all(1)).sum())} of {len(data)} have NaN or infinite entries"
        )
    if (largest := np.abs(data).max()) >= LARGEST:
        raise ValueError(f"samples reach {largest:.3g}; scale them to a size near 1, as the model sees them")
    if dimension > data.shape[1]:
        raise ValueError(f"dimension is {dimension}; the samples have {data.shape[1]}")
    if len(data) < dimension + 4 * components:
        raise ValueError(
            f"{len(data)} samples are too few; {components} components in {dimension} dimensions need "
            f"{dimension + 4 * components}"
        )
    _, spread, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
    if spread[0] <= 1e-12 * max(largest, 1e-30):
        raise ValueError("samples are all the same; need some that differ")
    if spread[dimension - 1] <= SINGULAR * spread[0]:
        rank = int((spread > SINGULAR * spread[0]).sum())
        raise ValueError(f"the samples' covariance is singular; use dimension={rank} or less, not {dimension}")
    data = data @ axes[:dimension].T
    rng = np.random.default_rng(seed)
    fits = [_maximise(data, _centres(data, components, rng), iterations) for _ in range(STARTS)]
    _, weights, means, within = max(fits, key=lambda found: found[0])
    variances, rotation = np.linalg.eigh(within)
    if variances[0] <= SINGULAR**2 * np.trace(data.T @ data) / len(data):
        raise ValueError(
            "the fitted within-covariance is singular (repeated samples?); use fewer components or dimensions"
        )
    return mixture(weights, means @ rotation[:, ::-1], variances[::-1], members=members)


def _centres(data: np.ndarray, components: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): each centre a sample, drawn by its squared distance to the others."""
    centres = data[rng.integers(len(data))][None]
    distance = ((data - centres[0]) ** 2).sum(1)
    for _ in range(components - 1):
        total = distance.sum()
        chosen = data[rng.choice(len(data), p=distance / total if total > 0 else None)]
        centres = np.concatenate([centres, chosen[None]])
        distance = np.minimum(distance, ((data - chosen) ** 2).sum(1))
    return centres


def _maximise(data: np.ndarray, means: np.ndarray, iterations: int) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Expectation-maximisation with a tied covariance.

    Returns:
        Mean log likelihood (but for a constant), weights [C], means [C, D] and the within-covariance [D, D].
    """
    count, dimension = data.shape
    second = data.T @ data / count
    # The spread about the nearest centre: from the whole spread, all components would begin as one.
    nearest = data - means[((data[:, None] - means) ** 2).sum(-1).argmin(1)]
    weights, within = np.full(len(means), 1.0 / len(means)), nearest.T @ nearest / count
    before = -np.inf
    for _ in range(iterations):
        # A ridge keeps the factor defined on the way; whether the result is singular is asked of the result.
        ridge = SINGULAR**2 * np.trace(second) * np.eye(dimension)
        lower = np.linalg.inv(np.linalg.cholesky(within + ridge))
        points, centres = data @ lower.T, means @ lower.T
        with np.errstate(divide="ignore"):
            logits = points @ centres.T - 0.5 * (centres**2).sum(1) + np.log(weights)
        peak = logits.max(1, keepdims=True)
        evidence = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
        share = np.exp(logits - evidence)
        likelihood = float(np.mean(evidence[:, 0] - 0.5 * (points**2).sum(1)) + np.log(np.diag(lower)).sum())
        weights = share.mean(0)
        means = (share.T @ data) / np.maximum(count * weights, 1e-300)[:, None]
        within = second - (means.T * weights) @ means
        grown, before = likelihood - before, likelihood
        if grown < 1e-6:
            break
    return before, weights, means, within
