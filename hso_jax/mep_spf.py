"""What a schedule costs: the Midpoint Error Proxy (MEP) and the Spacing-Penalized Fitness (SPF).

Pure functions of one schedule, traceable and differentiable; callers `vmap` and `jit`. NumPy in, NumPy
(float64) out; JAX in, JAX out. Nodes beyond a schedule's last one (padding) repeat it: their intervals have
length zero and cost nothing.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from hso_jax.checks import brief, whole
from hso_jax.noise import Array, namespace

PAPER_GAMMA = 1e9


def mep_interval(lam: Array, lam_next: Array, p: Array | float = 2.0) -> Array:
    """One interval's share of the MEP, `2 sinh(h/2) sigma(m)^(p-1)` with h the length and m the midpoint in lam.

    `sigma(m) = (1 + exp(2 m))^(-1/2)` is the VP-equivalent sigma: the bound does not depend on x's scaling.
    This is `eps(m) (exp(lam_next) - exp(lam))`, eps = sigma^p/alpha, without its cancellation and overflow.
    """
    xp = namespace(lam, lam_next, p)
    middle = 0.5 * (lam + lam_next)
    log_sigma = -0.5 * xp.logaddexp(0.0, 2.0 * middle)
    return 2.0 * xp.sinh(0.5 * (lam_next - lam)) * xp.exp((p - 1.0) * log_sigma)


def mep_interval_derivatives(lam: Array, lam_next: Array, p: Array | float = 2.0) -> tuple[Array, ...]:
    """`mep_interval` with its first and second derivatives in (lam, lam_next), elementwise.

    Returns:
        value, d/dlam, d/dlam_next, d2/dlam2, d2/dlam dlam_next, d2/dlam_next2. Written out, because the search
        spends its time here: four exponentials instead of the dozens of automatic differentiation.
    """
    xp = namespace(lam, lam_next, p)
    power = p - 1.0
    grown = xp.expm1(0.5 * (lam_next - lam))  # sinh and cosh of h/2 without cancellation at short steps
    sinh2 = grown * (grown + 2.0) / (grown + 1.0)
    cosh = 1.0 + 0.5 * grown * grown / (grown + 1.0)
    twice = lam + lam_next  # of the midpoint m; its exponential without overflow, and without |2 m|: it has no slope
    noisy = xp.exp(xp.where(twice > 0, -twice, twice))
    signal = xp.where(twice > 0, 1.0, noisy) / (1.0 + noisy)  # alpha(m)^2
    log_sigma2 = -(xp.where(twice > 0, twice, 0.0) + xp.log1p(noisy))
    weight = xp.exp(0.5 * power * log_sigma2)
    d_weight = -power * signal * weight
    d2_weight = (power * signal - 2.0 * (1.0 - signal)) * power * signal * weight
    by_h, by_hh = cosh * weight, 0.25 * sinh2 * weight
    by_m, by_mm, by_hm = 0.5 * sinh2 * d_weight, 0.25 * sinh2 * d2_weight, cosh * d_weight
    return sinh2 * weight, by_m - by_h, by_m + by_h, by_hh - by_hm + by_mm, by_mm - by_hh, by_hh + by_hm + by_mm


def mep(lams: Array, p: Array | float = 2.0) -> Array:
    """Midpoint Error Proxy of a schedule (HSO, arXiv 2511.11688, Theorem 1).

    Args:
        lams: [K] half log-SNR of the nodes from noise to data (rising), K >= 1.
        p: exponent of the model-error bound eps = sigma^p/alpha: 2 for latent, 1 for pixel models, any real.

    Returns:
        A scalar, dimensionless. For p = 1 uniform steps in lam minimise it.
    """
    _check_axes(lams=lams)
    return mep_interval(lams[:-1], lams[1:], p).sum()


def paper_d_min(nfe: int) -> float:
    """The paper's minimum spacing in t: 0.15 at N = 4 falling linearly to 0.01 at N = 20 (arXiv 2511.11688, SPF).

    Raises:
        ValueError: unless N is a whole number of at least 1.
    """
    nfe = whole("nfe", nfe, 1, 10**9)
    return min(max(0.15 - 0.14 / 16.0 * (nfe - 4), 0.01), 0.15)


def spacing_penalty(t: Array, d_min: Array | float, intervals: Array | int | None = None) -> Array:
    """`sum_i max(0, d_min - |t_{i+1} - t_i|)^2` over the first `intervals` gaps of t [K] (default: all K - 1)."""
    _check_axes(t=t)
    xp = namespace(t, d_min)
    short = xp.maximum(0.0, d_min - xp.abs(t[1:] - t[:-1]))
    if intervals is not None:
        short = xp.where(xp.arange(t.shape[0] - 1) < intervals, short, 0.0)
    return (short * short).sum()


def spf(
    lams: Array,
    t: Array,
    d_min: Array | float,
    *,
    p: Array | float = 2.0,
    gamma: Array | float = PAPER_GAMMA,
    intervals: Array | int | None = None,
) -> Array:
    """Spacing-Penalized Fitness, `mep + gamma * spacing_penalty` (arXiv 2511.11688, the upper level's objective).

    Args:
        lams: [K] half log-SNR of the nodes.
        t: [K] the nodes' times.
        d_min: spacing asked for, in t; `paper_d_min(nfe)` is the paper's.
        p: see `mep`.
        gamma: weight of the penalty, 1e9 in the paper.
        intervals: number of real intervals when the nodes are padded.
    """
    _check_axes(lams=lams, t=t)
    return mep(lams, p) + gamma * spacing_penalty(t, d_min, intervals)


def _check_axes(**arrays: Array) -> None:
    """Raises ValueError unless each has one axis, all of one length."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{told}; need one axis of the same length (use vmap for more)")


Spacing = float | Callable[[int], float]
"""What a caller may ask for as d_min: a number, or a function of N such as `paper_d_min`."""


def resolve_spacing(spacing: Spacing, nfe: int) -> float:
    """d_min for one N as a float.

    Raises:
        ValueError: unless it is a finite number in [0, 1).
    """
    value = spacing(nfe) if callable(spacing) else spacing
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0.0 <= value < 1.0:
        raise ValueError(f"spacing is {brief(value)} at nfe {nfe}; need a number in [0, 1)")
    return float(value)


def score(lams: np.ndarray, t: np.ndarray, *, p: float, d_min: float, gamma: float) -> dict[str, Any]:
    """Mep and spf of nodes in float64; None where they are undefined (one node, or lam = -inf)."""
    if len(lams) < 2 or not np.isfinite(lams).all():
        return {"mep": None, "spf": None}
    value = mep(lams, p)
    return {"mep": float(value), "spf": float(value + gamma * spacing_penalty(t, d_min))}
