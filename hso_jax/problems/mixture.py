"""Gaussian mixtures whose denoiser and score are known exactly, with a class for guidance.

With one within-covariance shared by all components, coordinates exist in which it is diagonal. In them, and in
VP-equivalent scaling `x = alpha x_0 + sigma eps`, each component stays a Gaussian of diagonal covariance
`T = alpha^2 v + sigma^2`, so one evaluation is two matrix products, [B, D] x [D, C] and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.checks import brief, numbers
from hso_jax.compiling import under_jax_defaults
from hso_jax.noise import alpha_sigma

LARGEST = 1e9
"""Of a mean: squares of it are taken in float32."""


class Problem(NamedTuple):
    """A mixture `sum_c w_c N(mu_c, diag(v))` and a class, a part of its components. A pytree; stack to batch.

    Attributes:
        log_weights: [C] log w_c.
        class_log_weights: [C] of the class: log w_c/(sum over its members), -inf outside.
        means: [C, D].
        variances: [D] within each component, positive.
    """

    log_weights: Array
    class_log_weights: Array
    means: Array
    variances: Array


def mixture(weights: Any, means: Any, variances: Any, *, members: Sequence[int] | None = None) -> Problem:
    """A checked problem.

    Args:
        weights: [C] not negative, positive for at least one member of the class; normalised to a sum of 1.
        means: [C, D].
        variances: [D] positive: the within-covariance's diagonal.
        members: indices of the class's components; all by default (guidance then changes nothing).

    Raises:
        ValueError: for NaN, negative or all-zero weights, variances that are not positive, wrong shapes or members.
    """
    w, mu, v = (_numbers(n, x) for n, x in (("weights", weights), ("means", means), ("variances", variances)))
    if mu.ndim != 2 or w.shape != mu.shape[:1] or v.shape != mu.shape[1:] or not mu.size:
        raise ValueError(f"shapes {w.shape}, {mu.shape} and {v.shape}; need weights [C], means [C, D], variances [D]")
    if (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"weights must not be negative and not all 0; the smallest is {w.min():.6g}")
    if not np.abs(mu).max() < LARGEST or v.max() >= LARGEST**2:
        raise ValueError(f"means or variances reach {max(np.abs(mu).max(), v.max()):.3g}; scale them to a size near 1")
    if (v <= 0).any():
        raise ValueError(
            f"variances[{int(v.argmin())}] is {v.min():.6g}: the within-covariance is singular; use fewer dimensions"
        )
    inside = _members(range(len(w)) if members is None else members, len(w))
    if w[inside].sum() <= 0:
        raise ValueError("members: the class has no weight")
    with np.errstate(divide="ignore"):
        log_weights = np.log(w / w.sum())
        class_log_weights = np.log(np.where(inside, w, 0.0) / w[inside].sum())
    return Problem(*(jnp.asarray(x) for x in (log_weights, class_log_weights, mu, v)))


def with_class(problem: Problem, members: Sequence[int]) -> Problem:
    """The same mixture with another class.

    Raises:
        ValueError: for indices that are repeated, out of range or none.
    """
    return mixture(np.exp(problem.log_weights), problem.means, problem.variances, members=members)


def denoise(problem: Problem, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """E[x_0 | x] of the class, guided: `D_u + guidance (D_c - D_u)`; 1 is the class itself, 0 the whole mixture.

    Args:
        problem: the mixture.
        x: [..., D] in VP-equivalent scaling.
        lam: half log-SNR, scalar; -inf and inf are allowed.
        guidance: w of classifier-free guidance (arXiv 2207.12598, where it is called 1 + w).
    """
    return predict(problem, x, *alpha_sigma(lam, "vp"), guidance)[0]


def denoiser(problem: Problem, guidance: Array | float = 1.0) -> Callable[[Array, Array], Array]:
    """`denoise` as `hso_jax.solvers` wants it, (x, lam) -> x0."""
    return lambda x, lam: denoise(problem, x, lam, guidance)


def score(problem: Problem, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """Gradient of the (guided) log density at x [..., D], `(alpha D - x)/sigma^2` without its cancellation."""
    return -predict(problem, x, *alpha_sigma(lam, "vp"), guidance)[1]


@under_jax_defaults
def predict(
    problem: Problem, x: Array, alpha: Array, sigma: Array, guidance: Array | float = 1.0
) -> tuple[Array, Array]:
    """`denoise` and the negative score, which is E[eps | x]/sigma, from alpha and sigma; both finite at either end."""
    total = alpha * alpha * problem.variances + sigma * sigma
    # Guidance combines the posteriors before they meet the means: its cost is one more softmax.
    mean = _posterior(problem, x, alpha, total, guidance) @ problem.means
    residual = (x - alpha * mean) / total
    return mean + alpha * problem.variances * residual, residual


@under_jax_defaults
def variance(problem: Problem) -> Array:
    """[] variance of the data a dimension, in the mean."""
    weights = jax.nn.softmax(problem.log_weights)
    mean = weights @ problem.means
    return jnp.mean(weights @ (problem.means - mean) ** 2 + problem.variances)


def leading_deviation(problem: Problem) -> np.ndarray:
    """[] standard deviation of the data along their first principal component; [P] of stacked problems."""
    weights, means = np.exp(np.asarray(problem.log_weights, np.float64)), np.asarray(problem.means, np.float64)
    apart = means - weights[..., None, :] @ means
    within = np.asarray(problem.variances, np.float64)[..., None] * np.eye(means.shape[-1])
    covariance = np.swapaxes(weights[..., None] * apart, -1, -2) @ apart + within
    return np.sqrt(np.linalg.eigvalsh(covariance)[..., -1])


@under_jax_defaults
def shrunk(problem: Problem, deviation: float) -> Problem:
    """The problem (each of stacked ones) in a unit in which its leading standard deviation is at most `deviation`."""
    factor = jnp.minimum(1.0, deviation / leading_deviation(problem))
    return problem._replace(
        means=factor[..., None, None] * problem.means, variances=factor[..., None] ** 2 * problem.variances
    )


@under_jax_defaults
def log_density(problem: Problem, x: Array, lam: Array, *, of_class: bool = False) -> Array:
    """[...] log density of the mixture (or its class) at noise level lam."""
    alpha, sigma = alpha_sigma(lam, "vp")
    total = alpha * alpha * problem.variances + sigma * sigma
    log_weights = problem.class_log_weights if of_class else problem.log_weights
    square = ((x[..., None, :] - alpha * problem.means) ** 2 / total).sum(-1)
    normal = -0.5 * (square + jnp.log(2.0 * jnp.pi * total).sum())
    return jax.scipy.special.logsumexp(log_weights + normal, axis=-1)


def _posterior(problem: Problem, x: Array, alpha: Array, total: Array, guidance: Array | float) -> Array:
    """[..., C] probabilities of the components given x, guided (they sum to 1, but may be negative)."""
    scaled = alpha * problem.means / total
    logits = x @ scaled.T - 0.5 * alpha * (scaled * problem.means).sum(-1)
    whole = jax.nn.softmax(logits + problem.log_weights, axis=-1)
    part = jax.nn.softmax(logits + problem.class_log_weights, axis=-1)
    return whole + guidance * (part - whole)


def _numbers(name: str, values: Any) -> np.ndarray:
    array = numbers(name, values).copy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return array


def _members(members: Sequence[int], components: int) -> np.ndarray:
    if isinstance(members, (str, bytes, Mapping)) or not isinstance(members, Iterable):
        raise ValueError(f"members is {brief(members)}; need a list of indices of components")
    index = np.asarray(list(members))
    inside = np.zeros(components, bool)
    if not index.size or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= components:
        raise ValueError(f"members is {brief(list(members))}; need indices of components in 0..{components - 1}")
    inside[index] = True
    if inside.sum() != index.size:
        raise ValueError(f"members is {brief(list(members))}, which has repeated indices")
    return inside
