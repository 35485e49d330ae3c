"""Products of 1-D Gaussian mixtures: a problem with a spectrum, whose exact denoiser is elementwise.

Every coordinate is independent of the others and has a scale of its own, so one problem holds many scales, as real
data do along their principal components. A coordinate stands for many directions of the data, see `spectrum.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.compiling import under_jax_defaults
from hso_jax.noise import alpha_sigma


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


@under_jax_defaults
def predict(
    problem: Product, x: Array, alpha: Array, sigma: Array, guidance: Array | float = 1.0
) -> tuple[Array, Array]:
    """The guided denoiser at x [..., D] and the negative score, as `mixture.predict`."""
    residuals, (whole, part) = _posterior(problem, x, alpha, sigma)
    share = [u + guidance * (p - u) for u, p in zip(whole, part, strict=True)]
    inner = [mu + alpha * v * r for mu, v, r in zip(problem.means, problem.variances, residuals, strict=True)]
    return _mean(share, inner), _mean(share, residuals)


@jax.custom_vjp
def searched_denoise(problem: Product, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """The guided denoiser at x [..., D] and half log-SNR lam, for searches over nodes and coefficients.

    Its derivatives in x and lam are closed forms that are taken along with the value: an elementwise function needs no
    second pass, and a loop over steps keeps two arrays of it. Those in the problem and the weight are NaN: no search
    asks for them, and `predict` has them.
    """
    return predict(problem, x, *alpha_sigma(lam, "vp"), guidance)[0]


@under_jax_defaults
def _denoise_forward(
    problem: Product, x: Array, lam: Array, guidance: Array | float
) -> tuple[Array, tuple[Array, Array, Any]]:
    """The posterior mean of `m = mu + alpha v r`, r = (x - alpha mu)/t, and its slopes by covariances over components.

    `dD/dx = E[dm/dx] - Cov(m, r)` and `dD/dlam = E[dm/dlam] + Cov(m, dl/dlam)`, l the log of a component's share,
    with `dalpha/dlam = alpha sigma^2, dsigma/dlam = -sigma alpha^2`.
    """
    alpha, sigma = alpha_sigma(lam, "vp")
    mu, v = problem.means, problem.variances
    total = alpha * alpha * v + sigma * sigma
    rise = 2.0 * alpha * alpha * sigma * sigma * (v - 1.0)  # of total with lam
    step = alpha * sigma * sigma  # of alpha with lam
    r, shares = _posterior(problem, x, alpha, sigma)
    each = range(len(r))
    m = [mu[c] + alpha * v[c] * r[c] for c in each]
    m_x = alpha * v / total
    m_lam = [v[c] * (step * r[c] - alpha / total[c] * (step * mu[c] + rise[c] * r[c])) for c in each]
    l_lam = [r[c] * (step * mu[c] + 0.5 * rise[c] * r[c]) - 0.5 * rise[c] / total[c] for c in each]
    branches = []
    for share in shares:
        centre = _mean(share, m)
        slope_x = _mean(share, [m_x[c] - m[c] * r[c] for c in each]) + centre * _mean(share, r)
        slope_lam = _mean(share, [m_lam[c] + m[c] * l_lam[c] for c in each]) - centre * _mean(share, l_lam)
        branches.append((centre, slope_x, slope_lam))
    value, slope_x, slope_lam = (u + guidance * (p - u) for u, p in zip(*branches, strict=True))
    return value, (slope_x, slope_lam, (problem, guidance))


@under_jax_defaults
def _denoise_backward(kept: tuple[Array, Array, Any], change: Array) -> tuple[Any, Array, Array, Any]:
    slope_x, slope_lam, (problem, guidance) = kept
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), (problem, guidance))
    return nothing[0], change * slope_x, (change * slope_lam).sum(), nothing[1]


searched_denoise.defvjp(_denoise_forward, _denoise_backward)


def _posterior(problem: Product, x: Array, alpha: Array, sigma: Array) -> tuple[list[Array], list[list[Array]]]:
    """`(x - alpha mu)/t` of each component, and the components' shares given x: of the whole, and of the class.

    Components are unrolled, not an axis: XLA makes one loop of it all, where it would compute a reduction's operands
    again for each of its results. The exponentials are one array, so that they are computed once.
    """
    mu, v = problem.means, problem.variances
    total = alpha * alpha * v + sigma * sigma
    inverse, logs = 1.0 / total, -0.5 * jnp.log(total)
    each = range(mu.shape[0])
    residuals = [(x - alpha * mu[c]) * inverse[c] for c in each]
    normal = [-0.5 * residuals[c] * (x - alpha * mu[c]) for c in each]
    logits = []
    for prior in (problem.log_weights, problem.class_log_weights):
        own = [normal[c] + (logs[c] + prior[c]) for c in each]
        # The peak is a shift that cancels: no gradient flows through it, which spares the ties of its derivative.
        peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, own))
        logits += [row - peak for row in own]
    powers = jnp.exp(jnp.stack(logits))
    shares = []
    for begin in (0, len(each)):
        own = [powers[begin + c] for c in each]
        scale = 1.0 / sum(own)
        shares.append([power * scale for power in own])
    return residuals, shares


def _mean(shares: Iterable[Array], values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, [s * v for s, v in zip(shares, values, strict=True)])


@under_jax_defaults
def log_density(problem: Product, x: Array, alpha: Array, sigma: Array, *, of_class: bool = False) -> Array:
    """[...] log density of the whole or its class in VP-equivalent scaling; each coordinate counts once."""
    total = alpha * alpha * problem.variances + sigma * sigma
    square = (x[..., None, :] - alpha * problem.means) ** 2 / total
    normal = -0.5 * (square + jnp.log(2.0 * jnp.pi * total))
    log_weights = problem.class_log_weights if of_class else problem.log_weights
    return jax.scipy.special.logsumexp(log_weights + normal, axis=-2).sum(-1)
