"""Projection onto the feasible schedules: fixed ends, neighbouring nodes at least d apart in t."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def project_gaps(gaps: Array, lower: Array, total: Array, free: Array) -> Array:
    """Euclidean projection of gaps [M] onto {g >= lower, sum g = total} (a shifted simplex).

    Finds the shift theta of `max(gaps - theta, lower)` by Newton's method on its piecewise linear sum (Michelot,
    J. Optim. Theory Appl. 50, 1986), which ends after finitely many steps, usually two to five.

    Args:
        gaps: [M] any finite numbers. (Test `isfinite` first: XLA's min and max may drop a NaN.)
        lower: scalar lower bound, with `lower * (number of free gaps) <= total`.
        total: scalar sum.
        free: [M] bool, which gaps exist; the others are returned as 0.
    """
    room = total - lower * jnp.sum(free)
    above = jnp.where(free, gaps - lower, 0.0)

    def newton(theta: Array) -> tuple[Array, Array]:
        kept = free & (above > theta)
        count = jnp.sum(kept)
        new = (jnp.sum(jnp.where(kept, above, 0.0)) - room) / jnp.maximum(count, 1)
        return jnp.where(count > 0, jnp.maximum(new, theta), theta), count  # rounding must not let it fall back

    # Every theta is at most the root and the kept set only shrinks: it is found when its size stands still.
    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        theta, count, _ = carry
        return (*newton(theta), count)

    lowest = jnp.min(jnp.where(free, above, jnp.inf)) - 1.0
    start = (*newton(lowest), jnp.full((), -1))
    theta, _, _ = jax.lax.while_loop(lambda carry: carry[1] != carry[2], advance, start)
    return jnp.where(free, jnp.maximum(above - theta, 0.0) + lower, 0.0)


def nodes_of_gaps(t_max: Array, t_eps: Array, gaps: Array) -> Array:
    """Nodes [M + 1] that fall from t_max by the gaps [M]; from the last real one on they are t_eps exactly."""
    t = t_max - jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
    after = jnp.cumsum(gaps[::-1])[::-1]
    last = jnp.concatenate([after <= 0.0, jnp.ones_like(after[:1], dtype=bool)])
    return jnp.where(last, t_eps, t)


def project(t: Array, t_max: Array, t_eps: Array, spacing: Array | float, intervals: Array | int) -> Array:
    """The nearest feasible schedule, in the Euclidean metric of its gaps.

    Args:
        t: [K] finite nodes; only the first `intervals + 1` count.
        t_max: the first node.
        t_eps: the last node, below t_max.
        spacing: least gap; `spacing * intervals <= t_max - t_eps`.
        intervals: number of real intervals, 1..K - 1; later nodes come back as t_eps.
    """
    free = jnp.arange(t.shape[0] - 1) < intervals
    gaps = project_gaps(t[:-1] - t[1:], jnp.asarray(spacing), t_max - t_eps, free)
    return nodes_of_gaps(t_max, t_eps, gaps)
