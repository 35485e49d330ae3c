"""Products of 1-D Gaussian mixtures: a problem with a spectrum, whose exact denoiser is elementwise.

Every coordinate is independent of the others and has a scale of its own, so one problem holds many scales, as real
data do along their principal components. A coordinate stands for many directions of the data, see `spectrum.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Product(NamedTuple):
    """`prod_j sum_c w_cj N(mu_cj, v_cj)` and a class, a part of each coordinate's components. A pytree; stack to batch.

    Attributes:
        log_weights: [C, D] log w_cj.
        class_log_weights: [C, D] of the class, -inf outside; where the class is everything, `log_weights`.
        means: [C, D].
        variances: [C, D] positive.
        counts: [D] how many directions of the data each coordinate stands for (not whole numbers).
    """

    log_weights: Array
    class_log_weights: Array
    means: Array
    variances: Array
    counts: Array


def product(weights: Any, means: Any, variances: Any, *, counts: Any = None, members: Any = None) -> Product:
    """A checked problem.

    Args:
        weights: [C, D] not negative; each coordinate's are normalised to a sum of 1.
        means: [C, D].
        variances: [C, D] positive.
        counts: [D] positive; 1 by default.
        members: [C, D] bool, the class's components; all by default (guidance then changes nothing).

    Raises:
        ValueError: for NaN, wrong shapes, negative weights, variances or counts that are not positive, or a
            coordinate or class without weight.
    """
    w, mu, v = (np.array(x, np.float64) for x in (weights, means, variances))
    if mu.ndim != 2 or w.shape != mu.shape or v.shape != mu.shape or not mu.size:
        raise ValueError(f"shapes {w.shape}, {mu.shape} and {v.shape}; need weights, means and variances [C, D]")
    m = np.ones(mu.shape[1]) if counts is None else np.array(counts, np.float64)
    inside = np.ones(mu.shape, bool) if members is None else np.array(members)
    if m.shape != mu.shape[1:] or inside.shape != mu.shape or inside.dtype != bool:
        raise ValueError(
            f"counts {m.shape}, members {inside.shape} of {inside.dtype}; need {mu.shape[1:]} and bool {mu.shape}"
        )
    for name, values in (("weights", w), ("means", mu), ("variances", v), ("counts", m)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has NaN or infinite entries")
    if (v <= 0).any() or (m <= 0).any():
        raise ValueError(f"variances and counts must be positive; the smallest are {v.min():.6g} and {m.min():.6g}")
    if (w < 0).any() or ((w * inside).sum(0) <= 0).any():
        j = int(np.argmin((w * inside).sum(0)))
        raise ValueError(f"weights of coordinate {j} are {w[:, j].tolist()}: negative, or none is left for the class")
    with np.errstate(divide="ignore"):
        logs = np.log(w / w.sum(0)), np.log(np.where(inside, w, 0.0) / (w * inside).sum(0))
    return Product(*(jnp.asarray(x) for x in (*logs, mu, v, m)))


def predict(
    problem: Product, x: Array, alpha: Array, sigma: Array, guidance: Array | float = 1.0
) -> tuple[Array, Array]:
    """The guided denoiser at x [..., D] and the negative score, as `mixture.predict`."""
    total = alpha * alpha * problem.variances + sigma * sigma
    # The components are unrolled: three arrays of x's shape stay in registers, an axis of three would not.
    each = range(problem.means.shape[0])
    residuals = [(x - alpha * problem.means[c]) / total[c] for c in each]
    logits = [-0.5 * (residuals[c] * residuals[c] * total[c] + jnp.log(total[c])) for c in each]
    whole = _softmax([logits[c] + problem.log_weights[c] for c in each])
    part = _softmax([logits[c] + problem.class_log_weights[c] for c in each])
    share = [u + guidance * (p - u) for u, p in zip(whole, part, strict=True)]
    residual = sum(share[c] * residuals[c] for c in each)
    data = sum(share[c] * (problem.means[c] + alpha * problem.variances[c] * residuals[c]) for c in each)
    return data, residual


def _softmax(logits: list[Array]) -> list[Array]:
    # The peak is a shift that cancels: no gradient flows through it, which spares the ties of its derivative.
    peak = logits[0]
    for other in logits[1:]:
        peak = jnp.maximum(peak, other)
    peak = jax.lax.stop_gradient(peak)
    powers = [jnp.exp(x - peak) for x in logits]
    inverse = 1.0 / sum(powers)
    return [p * inverse for p in powers]


def variances(problem: Product) -> Array:
    """[D] variance of the data along each coordinate."""
    weights = jnp.exp(problem.log_weights)
    mean = (weights * problem.means).sum(0)
    return (weights * ((problem.means - mean) ** 2 + problem.variances)).sum(0)


def log_density(problem: Product, x: Array, alpha: Array, sigma: Array, *, of_class: bool = False) -> Array:
    """[...] log density of the whole or its class in VP-equivalent scaling; each coordinate counts once."""
    total = alpha * alpha * problem.variances + sigma * sigma
    square = (x[..., None, :] - alpha * problem.means) ** 2 / total
    normal = -0.5 * (square + jnp.log(2.0 * jnp.pi * total))
    log_weights = problem.class_log_weights if of_class else problem.log_weights
    return jax.scipy.special.logsumexp(log_weights + normal, axis=-2).sum(-1)
