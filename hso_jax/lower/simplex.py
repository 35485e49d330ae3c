"""Projection onto the feasible schedules: fixed ends, neighbouring nodes at least d apart in t."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array


def project_gaps(gaps: Array, lower: Array, total: Array, free: Array) -> Array:
    """Euclidean projection of gaps [M] onto {g >= lower, sum g = total} (a shifted simplex).

    Args:
        gaps: [M] any finite numbers. (Test `isfinite` first: XLA's min and max may drop a NaN.)
        lower: scalar lower bound, with `lower * (number of free gaps) <= total`.
        total: scalar sum.
        free: [M] bool, which gaps exist; the others are returned as 0.
    """
    from optax.projections import projection_simplex  # takes as long to import as the rest of the package

    chex.assert_rank(gaps, 1)
    chex.assert_equal_shape([gaps, free])
    room = total - lower * jnp.sum(free)
    above = gaps - lower
    # The projection does not see a common shift; with the largest at 0, what lies 2 room below it is never in it.
    scale = jnp.where(room > 0, room, 1.0)
    below = jnp.maximum(above - jnp.max(jnp.where(free, above, -jnp.inf)), -2.0 * scale)
    kept = free & (projection_simplex(jnp.where(free, below, -2.0 * scale), scale) > 0)
    # Again from what it keeps: its own sums round to eps times the room, these to eps times the gaps. Twice, so that
    # a gap which rounding kept or dropped at the very edge is put right.
    for _ in range(2):
        theta = (jnp.sum(jnp.where(kept, above, 0.0)) - room) / jnp.maximum(jnp.sum(kept), 1)
        kept = free & (above > theta)
    shares = jnp.where(room > 0, jnp.maximum(above - theta, 0.0), 0.0)
    return jnp.where(free, shares + lower, 0.0)


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


def spread(t: np.ndarray, spacing: float) -> np.ndarray:
    """Falling nodes moved, by no more than they must, until neighbours are `spacing` apart; the ends stay.

    What float32 leaves of the lower level's constraint is rounding; this makes it exact in float64 (NumPy).
    """
    steps = spacing * np.arange(len(t))
    below = np.minimum.accumulate(t + steps) - steps  # at least the spacing below the node before
    below[-1] = t[-1]
    above = np.maximum.accumulate((below + steps)[::-1])[::-1] - steps  # and above the node after
    return np.concatenate([t[:1], above[1:-1], t[-1:]])
