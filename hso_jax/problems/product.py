"""Products of 1-D Gaussian mixtures: a problem with a spectrum, whose exact denoiser is elementwise.

Every coordinate is independent of the others and has a scale of its own, so one problem holds many scales, as real
data do along their principal components. A spectrum is the standard deviations along these; a coordinate stands for
many of its directions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax.compiling import normal, under_jax_defaults, uniform
from hso_jax.noise import Array, alpha_sigma


class Product(NamedTuple):
    """`prod_j sum_c w_cj N(mu_cj, v_cj)` and a class, a part of each coordinate's components. A pytree."""

    log_weights: Array  # [C, D] log w_cj
    class_log_weights: Array  # [C, D] of the class, -inf outside; where the class is everything, `log_weights`
    means: Array  # [C, D]
    variances: Array  # [C, D] positive
    counts: Array  # [D] how many directions of the data each coordinate stands for (not whole numbers)


def product(weights: Any, means: Any, variances: Any, *, counts: Any = None, members: Any = None) -> Product:
    """A problem from its numbers.

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
    for name, values in {"weights": w, "means": mu, "variances": v, "counts": m}.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has NaN or infinite entries")
        if name in ("variances", "counts") and (values <= 0).any():
            raise ValueError(f"{name} must be positive; the smallest is {values.min():.6g}")
    if (w < 0).any() or ((w * inside).sum(0) <= 0).any():
        j = int(np.argmin((w * inside).sum(0)))
        raise ValueError(f"weights of coordinate {j} are {w[:, j].tolist()}: negative, or none is left for the class")
    return _product(w, mu, v, m, inside)


def _product(w: np.ndarray, mu: np.ndarray, v: np.ndarray, m: np.ndarray, inside: np.ndarray) -> Product:
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
        rows = [normal[c] + (logs[c] + prior[c]) for c in each]
        # The peak is a shift that cancels: no gradient flows through it, which spares the ties of its derivative.
        peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, rows))
        logits += [row - peak for row in rows]
    powers = jnp.exp(jnp.stack(logits))
    shares = []
    for first in (0, len(each)):
        branch = [powers[first + c] for c in each]
        scale = 1.0 / sum(branch)
        shares.append([power * scale for power in branch])
    return residuals, shares


def _mean(shares: Iterable[Array], values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, [s * v for s, v in zip(shares, values, strict=True)])


class Spectrum(NamedTuple):
    """[n] standard deviations along principal components, falling, and how many directions have each. NumPy float64."""

    deviations: np.ndarray
    counts: np.ndarray

    @property
    def dimension(self) -> float:
        """Number of directions."""
        return float(self.counts.sum())

    @property
    def total(self) -> float:
        """Total variance."""
        return float((self.counts * self.deviations**2).sum())


def spectrum(deviations: Any, counts: Any = None) -> Spectrum:
    """A spectrum from its numbers, sorted. Raises ValueError for none, NaN, or values that are not positive."""
    s = np.atleast_1d(np.array(deviations, np.float64))
    m = np.ones(s.shape) if counts is None else np.atleast_1d(np.array(counts, np.float64))
    if s.ndim != 1 or not s.size or m.shape != s.shape:
        raise ValueError(f"deviations {s.shape} and counts {m.shape}; need one axis of the same length, at least 1")
    for name, values in (("deviations", s), ("counts", m)):
        if not ((values > 0) & (values < np.inf)).all():
            raise ValueError(f"{name} must be positive and finite; the worst is {values[np.argmin(values > 0)]}")
    order = np.argsort(-s, kind="stable")
    return Spectrum(s[order], m[order])


def _power(first: float, last: float, entries: int) -> tuple[np.ndarray, np.ndarray]:
    # Geometric means and counts of the directions first..last in at most so many neighbourhoods.
    edges = np.unique(np.round(np.geomspace(first, last + 1.0, entries + 1)).astype(np.int64))
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), np.diff(edges).astype(np.float64)


def power_law(dimension: int, exponent: float, *, deviation: float = 1.0) -> Spectrum:
    """Variances `k^-exponent` along direction k = 1..dimension, scaled to a mean of `deviation`^2.

    Neighbours far down are one entry with a count.

    Args:
        dimension: number of directions.
        exponent: 0 is white.
        deviation: root of the mean variance a direction.

    Raises:
        ValueError: for a dimension below 1, an exponent that is negative or not finite, or a deviation that is not
            positive.
    """
    if dimension < 1 or not 0.0 <= exponent < math.inf or not 0.0 < deviation < math.inf:
        raise ValueError(
            f"dimension {dimension}, exponent {exponent}, deviation {deviation}: need at least 1, 0 or more, a "
            "positive number"
        )
    centres, counts = _power(1.0, dimension, min(400, dimension))
    variances = centres**-exponent
    return spectrum(deviation * np.sqrt(variances * dimension / (counts * variances).sum()), counts)


SPECTRA: Mapping[str, Mapping[str, Any]] = {
    "latents-4": {"dimension": 4 * 64 * 64, "exponent": 0.9},  # Stable Diffusion's, scaled to about 1
    "latents-16": {"dimension": 16 * 128 * 128, "exponent": 0.8},  # SD3's and FLUX's
    "video": {"dimension": 16 * 21 * 60 * 104, "exponent": 0.9},  # Wan's, 480p
    "pixels": {"dimension": 3 * 64 * 64, "exponent": 1.1, "deviation": 0.5},  # 64 x 64, colour, in [-1, 1]
}
"""Arguments of `power_law` by kind of data. Natural images' power falls with the square of frequency (Field 1987), so
`k^-1` over the principal components of a plane; learned latents are flatter. The leading standard deviation is then .2
to .35 times the root of the dimension, as in the data sets that it was measured on (.1 to .3)."""


def named(name: str) -> Spectrum:
    """The spectrum of `SPECTRA` with that name. Raises ValueError for an unknown name, and lists the known ones."""
    if name not in SPECTRA:
        raise ValueError(f"spectrum {name!r} is not known; use one of {', '.join(SPECTRA)}")
    return power_law(**SPECTRA[name])


def from_components(deviations: Any, total: float, dimension: int) -> Spectrum:
    """The spectrum of data of which the leading standard deviations and the total variance are known.

    The directions that were not measured go on from the last one as a power law `(k/K)^-a` with the a that gives the
    total; where even a flat continuation (a = 0) has less variance than is left, what is left lies flat, at its mean.

    Args:
        deviations: [K] leading standard deviations, falling.
        total: variance of all directions.
        dimension: number of all directions, at least K.

    Raises:
        ValueError: for values that are not positive, a dimension below K, or a total below the leading ones' variance.
    """
    head = spectrum(deviations)
    known, rest = len(head.deviations), float(total) - head.total
    if dimension < known or not math.isfinite(rest) or rest < -1e-6 * head.total:
        raise ValueError(
            f"total is {total}, dimension {dimension}; the {known} leading directions alone have variance "
            f"{head.total:.6g}"
        )
    if dimension == known or rest <= 1e-9 * head.total:
        return head
    centres, counts = _power(known + 1.0, dimension, 200)
    centres /= known
    last = head.deviations[-1] ** 2
    low, high = 0.0, 50.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if last * (counts * centres**-middle).sum() > rest else (low, middle)
    tail = centres**-low
    tail *= rest / (counts * tail).sum()
    return spectrum(np.concatenate([head.deviations, np.sqrt(tail)]), np.concatenate([head.counts, counts]))


def directions(of: Spectrum, count: int, *, left_out: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """[count] standard deviations, evenly spaced in their logarithm over a spectrum, and how many each stands for.

    Each direction's variance is spread over log s half-way to its neighbours, so that no interval between two leading
    ones is empty. An interval's coordinate has its middle as s and stands for `variance in it / s^2` directions. Small
    directions that hold `left_out` of the variance together do not stretch the range; they count with the last one.
    """
    logs, variance = np.log(of.deviations), of.counts * of.deviations**2
    if logs[0] - logs[-1] < 1e-9:  # white: every coordinate is alike
        return np.full(count, of.deviations[0]), np.full(count, of.dimension / count)
    between = 0.5 * (logs[1:] + logs[:-1])
    # A direction with a neighbour on one side only reaches as far on the other.
    edges = np.concatenate([[2.0 * logs[0] - between[0]], between, [2.0 * logs[-1] - between[-1]]])
    below = np.concatenate([[0.0], np.cumsum(variance[::-1])]) / variance.sum()  # of what is smaller than an edge
    edges = edges[::-1] + 1e-12 * np.arange(len(edges))  # rising, also where directions repeat
    bottom = np.interp(left_out, below, edges)
    cuts = np.linspace(edges[-1], bottom, count + 1)
    held = -np.diff(np.interp(cuts, edges, below))
    held[-1] += np.interp(bottom, edges, below)
    s = np.exp(0.5 * (cuts[1:] + cuts[:-1]))
    return s, np.maximum(held, 1e-12) * of.total / s**2


COMPONENTS, WITHIN = 3, 0.3
"""Of a coordinate of `spectral`: its components, the first of which is the class, and the share of variance inside."""


def spectral(
    key: Array, of: Spectrum, *, dimension: int = 32, leading: float = 0.25, left_out: float = 1e-3
) -> Product:
    """A random product of 1-D mixtures with the standard deviations of a spectrum.

    A coordinate's component means are normal, its weights uniform in [.5, 1.5] before they are normalised, and its
    components' standard deviations vary by a factor of up to 2; then it is centred and scaled to its place in the
    spectrum. The class is the first component (of random order) in those leading coordinates that hold the share
    `leading` of the variance.

    Args:
        key: a typed PRNG key.
        of: the spectrum.
        dimension: D, coordinates, see `directions`.
        leading: share of the variance whose coordinates know the class.
        left_out: share of the variance in the smallest directions, which do not stretch the range.

    Raises:
        ValueError: for less than 1 dimension, or shares outside [0, 1].
    """
    if dimension < 1 or not 0.0 <= leading <= 1.0 or not 0.0 <= left_out < 1.0:
        raise ValueError(
            f"dimension {dimension}, leading {leading}, left_out {left_out}: need at least 1 and two shares"
        )
    s, counts = directions(of, dimension, left_out=left_out)
    default = jax.dtypes.canonicalize_dtype(float)  # of the default family float64
    draws = np.asarray(normal(key, (COMPONENTS, dimension), default), np.float64)
    even = np.asarray(uniform(jax.random.fold_in(key, 1), (2, COMPONENTS, dimension), default), np.float64)
    weights = 0.5 + even[0]
    weights /= weights.sum(0)
    means = draws - (weights * draws).sum(0)
    means *= np.sqrt((1.0 - WITHIN) / (weights * means**2).sum(0))
    inner = 2.0 ** (2.0 * even[1] - 1.0)
    inner *= WITHIN / (weights * inner).sum(0)
    held = np.cumsum(counts * s**2) / (counts * s**2).sum()
    of_class = np.concatenate([[0.0], held[:-1]]) < leading
    inside = (np.arange(COMPONENTS) < 1)[:, None] | ~of_class
    return _product(weights, means * s, inner * s**2, counts, inside)
