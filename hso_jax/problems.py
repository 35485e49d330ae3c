"""Reference problems: Gaussian mixtures, whose denoiser, score and guided probability flow are known exactly.

With one within-covariance shared by all components, coordinates exist in which it is diagonal. In them, and in
VP-equivalent scaling `x = alpha x_0 + sigma eps`, each component stays a Gaussian of diagonal covariance
`T = alpha^2 v + sigma^2`, so one evaluation is two matrix products [B, D] x [D, C].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.noise import alpha_sigma


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


class Exact(NamedTuple):
    """A converged solution.

    Attributes:
        value: [B, D] the sample at the end.
        error: estimate of its root-mean-square error, from halving the step.
    """

    value: Array
    error: Array


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


def generic(
    key: Array,
    *,
    dimension: int = 32,
    components: int = 32,
    spectrum: float = 1.5,
    within: float = 0.3,
    members: int = 4,
) -> Problem:
    """A random mixture that stands for latents nothing is known of.

    Means are normal, with variances proportional to `k^-spectrum` along coordinate k (natural images' power law), and
    so is the within-covariance. Centred and scaled so that the variance is 1 a dimension in the mean, of which the
    share `within` is inside components. Equal weights; the first `members` components are the class.

    Raises:
        ValueError: for fewer than 2 components or 1 dimension, a share outside (0, 1), or members not in
            1..components.
    """
    if dimension < 1 or components < 2 or not 1 <= members <= components:
        raise ValueError(
            f"dimension {dimension}, components {components}, members {members}: need at least 1, 2 and 1..components"
        )
    if not 0.0 < within < 1.0 or not math.isfinite(spectrum):
        raise ValueError(f"within is {within}, spectrum {spectrum}; need a share in (0, 1) and a finite exponent")
    power = np.arange(1, dimension + 1) ** -float(spectrum)
    power *= dimension / power.sum()
    means = np.asarray(jax.random.normal(key, (components, dimension)), np.float64) * np.sqrt(power)
    means -= means.mean(0)
    means *= math.sqrt((1.0 - within) * dimension / (means**2).mean(0).sum())
    return mixture(np.ones(components), means, within * power, members=range(members))


def denoise(problem: Problem, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """E[x_0 | x] of the class, guided: `D_u + guidance (D_c - D_u)`; 1 is the class itself, 0 the whole mixture.

    Args:
        problem: the mixture.
        x: [..., D] in VP-equivalent scaling.
        lam: half log-SNR, scalar; -inf and inf are allowed.
        guidance: w of classifier-free guidance (arXiv 2207.12598, there 1 + w).
    """
    alpha, sigma = alpha_sigma(lam, "vp")
    total = alpha * alpha * problem.variances + sigma * sigma
    mean = _posterior(problem, x, alpha, total, guidance) @ problem.means
    return mean + alpha * problem.variances / total * (x - alpha * mean)


def denoiser(problem: Problem, guidance: Array | float = 1.0) -> Callable[[Array, Array], Array]:
    """`denoise` as `hso_jax.solvers` wants it, (x, lam) -> x0."""
    return lambda x, lam: denoise(problem, x, lam, guidance)


def score(problem: Problem, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """Gradient of the (guided) log density at x [..., D], `(alpha D - x)/sigma^2` without its cancellation."""
    alpha, sigma = alpha_sigma(lam, "vp")
    total = alpha * alpha * problem.variances + sigma * sigma
    return (alpha * _posterior(problem, x, alpha, total, guidance) @ problem.means - x) / total


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


@functools.partial(jax.jit, static_argnames="steps")
def exact(
    problem: Problem,
    noise: Array,
    *,
    start: Array | float = -math.inf,
    end: Array | float = math.inf,
    guidance: Array | float = 1.0,
    steps: int = 256,
) -> Exact:
    """The (guided) probability-flow solution from `noise` at lam = start to lam = end.

    With `alpha = cos(u), sigma = sin(u)` the ODE is `dx/du = cos(u) E[eps|x] - sin(u) E[x_0|x]`, smooth up to and
    including both ends (at u = pi/2 the prediction is the mean, at u = 0 `E[eps|x] = -sigma score` vanishes): pure
    noise and clean data are ordinary points and nothing is truncated. Classical Runge-Kutta of order 4 in a mesh
    graded to the clean end, `u = u_end + (u_start - u_end) (1 - i/n)^2`; the error is that of n and 2n steps'
    Richardson extrapolation, estimated by their difference/15.

    Args:
        problem: the mixture.
        noise: [B, D] the sample at `start`.
        start: the model's noise end, -inf for pure noise.
        end: where to stop, inf for clean data.
        guidance: see `denoise`.
        steps: n (static); 3 n steps in all.

    Returns:
        An `Exact`. Cache it: it depends on no schedule.
    """
    noise = jnp.asarray(noise, jnp.result_type(noise, problem.means))
    first, last = (_angle(jnp.asarray(lam, noise.dtype)) for lam in (start, end))
    coarse, fine = (_integrate(problem, noise, first, last, guidance, n) for n in (steps, 2 * steps))
    correction = (fine - coarse) / 15.0
    return Exact(fine + correction, jnp.sqrt(jnp.mean(correction**2)))


def _angle(lam: Array) -> Array:
    alpha, sigma = alpha_sigma(lam, "vp")
    return jnp.arctan2(sigma, alpha)


def _slope(problem: Problem, x: Array, angle: Array, guidance: Array | float) -> Array:
    """dx/du at alpha = cos(u), sigma = sin(u)."""
    alpha, sigma = jnp.cos(angle), jnp.sin(angle)
    total = alpha * alpha * problem.variances + sigma * sigma
    mean = _posterior(problem, x, alpha, total, guidance) @ problem.means
    residual = (x - alpha * mean) / total
    return alpha * sigma * residual - sigma * (mean + alpha * problem.variances * residual)


def _integrate(problem: Problem, x: Array, first: Array, last: Array, guidance: Array | float, steps: int) -> Array:
    def step(x: Array, i: Array) -> tuple[Array, None]:
        u, then = (last + (first - last) * (1.0 - j / steps) ** 2 for j in (i, i + 1.0))
        h = then - u
        k1 = _slope(problem, x, u, guidance)
        k2 = _slope(problem, x + 0.5 * h * k1, u + 0.5 * h, guidance)
        k3 = _slope(problem, x + 0.5 * h * k2, u + 0.5 * h, guidance)
        k4 = _slope(problem, x + h * k3, u + h, guidance)
        return x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4), None

    return jax.lax.scan(step, x, jnp.arange(steps, dtype=x.dtype))[0]


def _numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return array


def _members(members: Sequence[int], components: int) -> np.ndarray:
    index = np.asarray(list(members))
    inside = np.zeros(components, bool)
    if not index.size or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= components:
        raise ValueError(f"members is {list(members)!r}; need indices of components in 0..{components - 1}")
    inside[index] = True
    if inside.sum() != index.size:
        raise ValueError(f"members {list(members)!r} has repeated indices")
    return inside
