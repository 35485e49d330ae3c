"""Bounds on a schedule's error by their names: MEP, DM-NonUni (Xue et al., CVPR 2024, arXiv 2402.17376), your own.

DM-NonUni is the baseline that HSO improves on. The lower level takes each as its second-order expansion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.checks import choice
from hso_jax.lower import trust_region
from hso_jax.lower.trust_region import Objective, dense_objective, interval_objective
from hso_jax.mep_spf import mep_interval_derivatives
from hso_jax.noise import NoiseSchedule

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_POINTS, _WEIGHTS = 0.5 * (_POINTS + 1.0), 0.5 * _WEIGHTS
_ROOT_SUM_STEPS = 3
SMOOTHING = (1e-1, 1e-2, 1e-3, 1e-4)
"""Widths of the rounding of |c|, from coarse to fine, that a minimisation goes through."""

SEARCH_WIDTH = 1e-2
"""Of the rounding inside a search: coarse enough for Newton steps from any start."""


def step_weights(lams: Array, intervals: Array | int) -> tuple[Array, Array, Array]:
    """Data-prediction multistep weights of UniPC up to order 3, times exp(-lam_s).

    Step s integrates `exp(x)` from 0 to h_s times the Lagrange polynomials through nodes s, s - 1, s - 2 (at
    x = 0, -a, -a - b); the order is min(s + 1, M - s, 3). By Gauss-Legendre: the closed forms in H0, H1, H2 cancel
    at short steps.

    Returns:
        [K - 1] weights of node s, s - 1 and s - 2 for each step s; 0 where the order does not reach, and in padding.
    """
    h = lams[1:] - lams[:-1]
    s = jnp.arange(h.shape[0])
    order = jnp.minimum(jnp.minimum(s + 1, intervals - s), 3)
    zero = jnp.zeros_like(h[:1])
    a = jnp.where(order >= 2, jnp.concatenate([zero, h[:-1]]), 1.0)
    b = jnp.where(order >= 3, jnp.concatenate([zero, zero, h[:-2]])[: h.shape[0]], 1.0)
    x = h[:, None] * jnp.asarray(_POINTS, h.dtype)
    density = h[:, None] * jnp.asarray(_WEIGHTS, h.dtype) * jnp.exp(x)
    a, b, order = a[:, None], b[:, None], order[:, None]
    at_s = jnp.where(order == 3, (x + a) * (x + a + b) / (a * (a + b)), jnp.where(order == 2, (x + a) / a, 1.0))
    at_1 = jnp.where(order == 3, -x * (x + a + b) / (a * b), jnp.where(order == 2, -x / a, 0.0))
    at_2 = jnp.where(order == 3, x * (x + a) / (b * (a + b)), 0.0)
    real = s < intervals
    at = [jnp.where(real, jnp.sum(density * basis, axis=1), 0.0) for basis in (at_s, at_1, at_2)]
    return at[0], at[1], at[2]


def bound(lams: Array, intervals: Array | int, p: Array | float = 2.0, width: Array | float = SMOOTHING[-1]) -> Array:
    """Error bound of order-3 UniPC with weights pooled by node (arXiv 2402.17376, section 3).

    The first and the last step, both of order one, count `w eps`; steps 1 and 2 the root of their squares' sum;
    the weights of all others are added up by node, with their signs, and count in absolute value. This is what
    the authors' released code computes (its `truncNum` = 3 for every N). The absolute value is rounded,
    `sqrt(c^2 + width^2) - width`, because the minimisers sit on its kinks from N = 6 on.

    Args:
        lams: [K] nodes, padded ones repeat the last.
        intervals: M >= 1, number of steps.
        p: exponent of `eps = sigma^p/alpha`.
        width: of the rounding; 1e-4 leaves the minimum within about 1e-4.
    """
    s = jnp.arange(lams.shape[0] - 1)
    weights = step_weights(lams, intervals)
    log_sigma = -0.5 * jnp.logaddexp(0.0, 2.0 * lams)
    terms = []
    for back, weight in enumerate(weights):  # exp(lam_s) w eps_j, in logarithms of the levels
        level = (p - 1.0) * log_sigma - lams
        shifted = jnp.concatenate([jnp.repeat(level[:1], back), level])[: s.shape[0]]
        terms.append(weight * jnp.exp(lams[:-1] + shifted))
    end = (s == 0) | (s == intervals - 1)
    rooted = ~end & (s < _ROOT_SUM_STEPS)
    squares = jnp.where(rooted, sum(x * x for x in terms), 1.0)
    pooled = jnp.zeros_like(lams)
    for back, term in enumerate(terms):
        kept = jnp.where(end | rooted, 0.0, term)
        pooled = pooled + jnp.concatenate([kept[back:], jnp.zeros(back + 1, lams.dtype)])
    total = jnp.sum(jnp.where(end, terms[0], 0.0)) + jnp.sum(jnp.where(rooted, jnp.sqrt(squares), 0.0))
    return total + jnp.sum(jnp.sqrt(pooled * pooled + width * width) - width)


def minimise(
    noise: NoiseSchedule, start: Array, feasible: trust_region.Feasible, p: Array | float = 2.0, steps: int = 60
) -> trust_region.Solution:
    """The bound's minimiser from `start` [K], through the sequence of roundings."""

    def narrow(t: Array, width: Array) -> tuple[Array, trust_region.Solution]:
        objective = dense_objective(lambda lams: bound(lams, feasible.intervals, p, width))
        found, _ = trust_region.minimise(objective, noise, t, feasible, max_steps=steps)
        return found.t, found

    _, stages = jax.lax.scan(narrow, start, jnp.asarray(SMOOTHING, start.dtype))
    return jax.tree.map(lambda x: x[-1], stages)


class Terms(NamedTuple):
    """What an objective is told of its lane.

    Attributes:
        p: exponent of the model-error bound.
        intervals: M, how many steps are real.
    """

    p: Array
    intervals: Array


NodeObjective = Callable[[Array, Terms], Array]
"""(lams [K], terms) -> a scalar to be small: any JAX function with two derivatives. Nodes after the first
`terms.intervals + 1` are padding, which repeats the last node and must cost nothing."""

_NAMED: dict[str, Callable[[Terms], Objective]] = {
    "mep": lambda terms: interval_objective(functools.partial(mep_interval_derivatives, p=terms.p)),
    "dm-nonuni": lambda terms: dense_objective(lambda lams: bound(lams, terms.intervals, terms.p, SEARCH_WIDTH)),
}

OBJECTIVES = tuple(_NAMED)


def expansion(objective: str | NodeObjective, terms: Terms) -> Objective:
    """The expansion of a named objective (`OBJECTIVES`), or of a function, whose Hessian is dense: K gradients."""
    if callable(objective):
        return dense_objective(lambda lams: objective(lams, terms))
    return _NAMED[objective](terms)


def check_objective(name: str, objective: object) -> None:
    """Raises ValueError unless it is a known name or a function; `name` is what the caller called it."""
    if not callable(objective):
        choice(name, objective, OBJECTIVES)


def objective_name(objective: str | NodeObjective) -> str:
    """What it is called in a schedule's `method`."""
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "custom")
