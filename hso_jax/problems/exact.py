"""The converged probability-flow solution of a reference problem."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hso_jax.noise import alpha_sigma
from hso_jax.problems.mixture import Problem, predict

ROUNDING = 16.0
"""Rounding of the integration in eps of the dtype, relative to the solution (measured in float32: about 10)."""


class Exact(NamedTuple):
    """A converged solution.

    Attributes:
        value: [B, D] the sample at the end.
        error: estimate of its root-mean-square error: discretisation (from halving the step) and rounding.
    """

    value: Array
    error: Array


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

    With `alpha = cos(u), sigma = sin(u)` the ODE is `dx/du = cos(u) E[eps|x] - sin(u) E[x_0|x]`, which is smooth up
    to and including both ends: at u = pi/2 (lam = -inf) the prediction is the mean, at u = 0 (lam = inf)
    `E[eps|x] = -sigma score` vanishes. Pure noise and clean data are ordinary points and nothing is truncated.
    The method is the classical Runge-Kutta of order 4 on a mesh graded towards the clean end,
    `u_i = u_end + (u_start - u_end) (1 - i/n)^2`, extrapolated (Richardson) from n and 2n steps.

    On the generic problem, float64, 256 steps leave an error of 2e-10 at guidance 1 and 6e-8 at 7.5; float32
    leaves 1e-6.

    Args:
        problem: the mixture.
        noise: [B, D] the sample at `start`.
        start: the model's noise end; -inf for pure noise.
        end: where to stop; inf for clean data.
        guidance: see `denoise`.
        steps: n (static); 12 n evaluations in all.

    Returns:
        An `Exact`. It depends on no schedule: keep it.
    """
    noise = jnp.asarray(noise, jnp.result_type(noise, problem.means))
    first, last = (_angle(jnp.asarray(lam, noise.dtype)) for lam in (start, end))
    coarse, fine = (_integrate(problem, noise, first, last, guidance, n) for n in (steps, 2 * steps))
    correction = (fine - coarse) / 15.0
    rounding = ROUNDING * jnp.finfo(noise.dtype).eps
    return Exact(fine + correction, jnp.sqrt(jnp.mean(correction**2) + rounding**2 * jnp.mean(fine**2)))


def _angle(lam: Array) -> Array:
    alpha, sigma = alpha_sigma(lam, "vp")
    return jnp.arctan2(sigma, alpha)


def _integrate(problem: Problem, x: Array, first: Array, last: Array, guidance: Array | float, steps: int) -> Array:
    def slope(x: Array, u: Array) -> Array:
        alpha, sigma = jnp.cos(u), jnp.sin(u)
        data, residual = predict(problem, x, alpha, sigma, guidance)
        return sigma * (alpha * residual - data)

    def step(x: Array, i: Array) -> tuple[Array, None]:
        u, then = (last + (first - last) * (1.0 - j / steps) ** 2 for j in (i, i + 1.0))
        h = then - u
        k1 = slope(x, u)
        k2 = slope(x + 0.5 * h * k1, u + 0.5 * h)
        k3 = slope(x + 0.5 * h * k2, u + 0.5 * h)
        k4 = slope(x + h * k3, then)
        return x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4), None

    return jax.lax.scan(step, x, jnp.arange(steps, dtype=x.dtype))[0]
