"""The family psi = (p, lam_eps, lam_max): the nodes between two ends that minimise a bound with exponent p, in s."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.lower import trust_region
from hso_jax.lower.gaps import SPACING
from hso_jax.lower.trust_region import Feasible, Solution
from hso_jax.noise import NoiseSchedule, flow
from hso_jax.objectives.expansion import NodeObjective, Terms, expansion

P_RANGE = (0.5, 4.0)

ISLANDS = ((-0.5, 1.25), (1.25, 2.25), (2.25, 20.0))
"""Ranges of lam_eps in which an upper level looks for one start each: local minima differ most in the last node."""

FIRST_HIGH, LAST_LOW = -1.1, ISLANDS[0][0]
"""t_max is looked for from the model's end to s = 0.75, t_eps from s = 0.6 to the model's end: further in, neither is
of use."""


def member(psi: Array, nodes: Array, before: Array, *, objective: str | NodeObjective, steps: int) -> Solution:
    """The member psi of the family: `t` is its nodes in s, from lam_max to lam_eps.

    Args:
        psi: [3] p, lam_eps, lam_max.
        nodes: how many nodes are real; the others repeat the last.
        before: [K] nodes in s to start from; uniform lam where they are NaN.
        objective: of the family, see `hso_jax.objectives`.
        steps: of the trust region, static.

    Returns:
        The solution; uniform lam where the minimisation fails, and its result then says so.
    """
    p, last, first = psi
    intervals = nodes - 1
    i = jnp.minimum(jnp.arange(before.shape[0]), intervals)
    even = jax.nn.sigmoid(-(first + (last - first) * i / jnp.maximum(intervals, 1)))
    ends = jax.nn.sigmoid(-first), jax.nn.sigmoid(-last)
    room = jnp.minimum(SPACING, (ends[0] - ends[1]) / jnp.maximum(intervals, 1))
    feasible = Feasible(*ends, room, intervals)
    start = jnp.where(jnp.isfinite(before[0]), before, even)
    function = expansion(objective, Terms(p, intervals))
    found, _ = trust_region.minimise(function, _coordinate(start.dtype), start, feasible, max_steps=steps)
    usable = (intervals > 0) & jnp.all(jnp.isfinite(found.t))
    return found._replace(t=jnp.where(usable, found.t, even))


@functools.cache
def _coordinate(dtype: np.dtype) -> NoiseSchedule:
    # Of the traced dtype: JAX may reuse in float64 what it once made in float32 of a closed-over float64 array.
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), flow(1.0))
