"""Gaussian mixtures with a class, whose denoiser and score are known exactly; random ones, and families of them.

With one within-covariance shared by all components, coordinates exist in which it is diagonal. In them, and in
VP-equivalent scaling `x = alpha x_0 + sigma eps`, each component stays a Gaussian of diagonal covariance
`T = alpha^2 v + sigma^2`, so one evaluation is two matrix products, [B, D] x [D, C] and back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax.checks import brief, number, numbers, whole
from hso_jax.compiling import normal, random_key, under_jax_defaults
from hso_jax.noise import Array, alpha_sigma

MAX_MEAN = 1e9
"""Squares of a mean are taken in float32."""

MAX_SIZE = 100_000
"""Most dimensions, and most components, of a generic problem."""


class Problem(NamedTuple):
    """A mixture `sum_c w_c N(mu_c, diag(v))` and a class, a part of its components. A pytree; stack to batch."""

    log_weights: Array  # [C] log w_c
    class_log_weights: Array  # [C] of the class: log w_c/(sum over its members), -inf outside
    means: Array  # [C, D]
    variances: Array  # [D] within each component, positive


def mixture(weights: Any, means: Any, variances: Any, *, members: Sequence[int] | None = None) -> Problem:
    """A problem from its numbers.

    Args:
        weights: [C] not negative, positive for at least one member of the class; normalised to a sum of 1.
        means: [C, D].
        variances: [D] positive: the within-covariance's diagonal.
        members: indices of the class's components; all by default (guidance then changes nothing).

    Raises:
        ValueError: for NaN, negative or all-zero weights, variances that are not positive, wrong shapes or members.
    """
    w, mu, v = (_finite(n, x) for n, x in (("weights", weights), ("means", means), ("variances", variances)))
    if mu.ndim != 2 or w.shape != mu.shape[:1] or v.shape != mu.shape[1:] or not mu.size:
        raise ValueError(f"shapes {w.shape}, {mu.shape} and {v.shape}; need weights [C], means [C, D], variances [D]")
    if (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"weights must not be negative and not all 0; the smallest is {w.min():.6g}")
    if not np.abs(mu).max() < MAX_MEAN or v.max() >= MAX_MEAN**2:
        raise ValueError(f"means or variances reach {max(np.abs(mu).max(), v.max()):.3g}; scale them to a size near 1")
    if (v <= 0).any():
        raise ValueError(
            f"variances[{int(v.argmin())}] is {v.min():.6g}: the within-covariance is singular; use fewer dimensions"
        )
    inside = _members(range(len(w)) if members is None else members, len(w))
    if w[inside].sum() <= 0:
        raise ValueError("members: the class has no weight")
    return _problem(w, mu, v, inside)


def _problem(w: np.ndarray, mu: np.ndarray, v: np.ndarray, inside: np.ndarray) -> Problem:
    with np.errstate(divide="ignore"):
        logs = np.log(w / w.sum()), np.log(np.where(inside, w, 0.0) / w[inside].sum())
    return Problem(*(jnp.asarray(x) for x in (*logs, mu, v)))


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


def _posterior(problem: Problem, x: Array, alpha: Array, total: Array, guidance: Array | float) -> Array:
    # [..., C] probabilities of the components given x, guided: they sum to 1, but may be negative.
    scaled = alpha * problem.means / total
    logits = x @ scaled.T - 0.5 * alpha * (scaled * problem.means).sum(-1)
    whole = jax.nn.softmax(logits + problem.log_weights, axis=-1)
    part = jax.nn.softmax(logits + problem.class_log_weights, axis=-1)
    return whole + guidance * (part - whole)


def _finite(name: str, values: Any) -> np.ndarray:
    array = numbers(name, values).copy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return array


def _members(members: Any, components: int) -> np.ndarray:
    if isinstance(members, (str, bytes, Mapping)) or not isinstance(members, Iterable):
        raise ValueError(f"members is {brief(members)}; need a list of indices of components")
    index = np.asarray(members := list(members))
    if not index.size or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= components:
        raise ValueError(f"members is {brief(members)}; need indices of components in 0..{components - 1}")
    if np.unique(index).size < index.size:
        raise ValueError(f"members is {brief(members)}, which has repeated indices")
    return np.isin(np.arange(components), index)


def generic(
    key: Array,
    *,
    dimension: int = 32,
    components: int = 32,
    spectrum: float = 1.5,
    within: float = 0.3,
    scale: float = 1.0,
    members: int = 4,
    apart: float = 1.5,
) -> Problem:
    """A random mixture that stands for latents nothing is known of.

    Means are normal, with variances proportional to `k^-spectrum` along coordinate k (natural images' power law), and
    so is the within-covariance. Centred and scaled so that the variance is `scale^2` a dimension in the mean, of which
    the share `within` is inside components. Equal weights; the first `members` components are the class. A class drawn
    like the others would lie near the centre, and guidance would have little to do. So it is moved until its centre's
    squared distance from the centre of the others is `apart` times the variance that the means had: by default the
    class's centre then holds about six tenths of the data's variance (a class of Fashion-MNIST four, and a prompt says
    more). Without guidance its place hardly matters, because the flow moves along with it. Raises ValueError for fewer
    than 2 components or 1 dimension, a share outside (0, 1), a spectrum outside (-10, 10), a scale or `apart` outside
    (0, 1e6), or members not in 1..components.
    """
    dimension, components = whole("dimension", dimension, 1, MAX_SIZE), whole("components", components, 2, MAX_SIZE)
    members = whole("members", members, 1, components)
    within = number("within", within, low=0.0, high=1.0)
    spectrum = number("spectrum", spectrum, low=-10.0, high=10.0)
    scale, apart = number("scale", scale, low=0.0, high=1e6), number("apart", apart, low=0.0, high=1e6)
    power = np.arange(1, dimension + 1) ** -spectrum
    power *= scale**2 * dimension / power.sum()
    means = np.asarray(normal(key, (components, dimension)), np.float64) * np.sqrt(power)
    means -= means.mean(0)
    if members < components:
        away = means[:members].mean(0) - means[members:].mean(0)
        means[:members] += (math.sqrt(apart * (means**2).mean(0).sum() / (away**2).sum()) - 1.0) * away
        means -= means.mean(0)
    means *= scale * math.sqrt((1.0 - within) * dimension / (means**2).mean(0).sum())
    return _problem(np.ones(components), means, within * power, np.arange(components) < members)


class Kind(NamedTuple):
    """What a generic problem is like, see `generic`.

    Attributes:
        spectrum: exponent of the variances. Natural images and their latents lie between 1 and 2 (Field 1987).
        within: share of the variance inside components: how non-linear the denoiser is, and when.
        scale: standard deviation of the data. Latents are scaled to about 1, pixels in [-1, 1] have about a half.
    """

    spectrum: float = 1.5
    within: float = 0.3
    scale: float = 1.0


SPECTRA, WITHIN, SCALES = (1.0, 1.5, 2.0), (0.1, 0.3, 0.5, 0.7), (0.5, 1.0, 2.0)

KINDS = tuple(Kind(SPECTRA[(i + i // 12) % 3], WITHIN[i % 4], SCALES[i % 3]) for i in range(36))
"""Every combination once, so ordered that any few neighbours are mixed."""


def family(seeds: Sequence[int] = range(len(KINDS)), kinds: Sequence[Kind] = KINDS, **options: Any) -> Problem:
    """Generic problems of different seeds and kinds, stacked on a leading axis [P].

    Args:
        seeds: one a problem.
        kinds: taken in turn.
        options: further arguments of `generic`, the same for all.

    Raises:
        ValueError: without seeds or kinds, and as `generic`.
    """
    if not len(seeds) or not len(kinds):
        raise ValueError(f"{len(seeds)} seeds and {len(kinds)} kinds; need at least one of each")
    pairs = zip(seeds, itertools.cycle(kinds), strict=False)
    return stack_problems([generic(random_key(seed), **kind._asdict(), **options) for seed, kind in pairs])


def stack_problems(problems: Sequence[Problem]) -> Problem:
    """Problems of one shape, stacked on a leading axis [P].

    Raises ValueError if there are none, or if their numbers of components or dimensions differ.
    """
    shapes = {problem.means.shape for problem in problems}
    if len(shapes) != 1:
        raise ValueError(f"problems have means of shapes {sorted(shapes)}; need one shape [components, dimension]")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
