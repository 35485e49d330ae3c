"""The family that a measured search looks through: from points of a box to schedules, on the host.

It is that of the search on the solver's error, psi = (p, t_eps, t_max): the nodes between t_max and t_eps that the
lower level finds for MEP, or another bound, with exponent p. One coordinate more says where the first node is, from the
model's noise end (0) to t_max (1): the search on the solver's error places it by its lower level, and neither end is
the better one for all solvers and guidance weights. A model that ends in pure noise starts there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.compiling import jit
from hso_jax.lane import Lane
from hso_jax.lower.results import RESULTS
from hso_jax.lower.trust_region import Solution
from hso_jax.methods.family import FIRST_HIGH, LAST_LOW, P_RANGE, member
from hso_jax.noise import lam_of_s, s_of_lam
from hso_jax.objectives.expansion import NodeObjective, objective_name
from hso_jax.schedule import Origin, Schedule, versions

_STEPS = 40  # of the lower level, from uniform lam


def box(lane: Lane) -> np.ndarray:
    """[2, 4] lowest and highest p, lam_eps, lam_max and share (of the first node); equal where one moves no node.

    As for the solver's error; a model with little room in lam has its ends further out, so that they never meet.
    """
    end = lane.noise.noise_end
    noisiest = float(lam_of_s(min(s_of_lam(end), 0.999)))
    cleanest = min(lane.noise.data_end, float(lane.noise.lam(float(lane.noise.t_min))))
    room = cleanest - noisiest
    high = min(max(noisiest + 0.5, FIRST_HIGH), noisiest + 0.4 * room)
    low = max(min(LAST_LOW, cleanest - 0.3 * room), high + 0.02 * room)
    ends = np.array([[P_RANGE[0], low, noisiest, 0.0], [P_RANGE[1], cleanest, high, 1.0]])
    if lane.nodes == 1:
        ends[1, :2], ends[0, 3] = ends[0, :2], 1.0
    if end == -math.inf:
        ends[1, 3] = 0.0
        if lane.nodes == 1:
            ends[:, 2:] = noisiest, 0.0
    return ends


def schedules_at(lane: Lane, points: np.ndarray, ends: np.ndarray) -> list[Schedule]:
    """The schedules that points [P, 4] of the box stand for, in float64."""
    count = -(-lane.nodes // 10) * 10  # padded, so that one compilation serves many N
    method: Any = lane.method
    program = _program(method.family, count)
    found = jax.tree.map(np.asarray, program(jnp.asarray(points[:, :3]), jnp.asarray(lane.nodes)))
    low, high = ends.astype(points.dtype)
    # What lies on the box's edge is the edge itself, without the rounding to float32.
    exact = np.where(points <= low, ends[0], np.where(points >= high, ends[1], points))
    rows = (jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(points)))
    return [_schedule(lane, row, psi) for row, psi in zip(rows, exact, strict=True)]


@functools.lru_cache(maxsize=64)
def _program(family: str | NodeObjective, count: int) -> Callable[[Array, Array], Solution]:
    """(psi [P, 3], how many nodes are real) -> nodes [P, count] in s, the first at lam_max."""

    def nodes(psi: Array, real: Array) -> Solution:
        blank = jnp.full(count, jnp.nan, psi.dtype)
        return jax.vmap(lambda one: member(one, real, blank, objective=family, steps=_STEPS))(psi)

    return jit(nodes)


def _schedule(lane: Lane, found: Solution, point: np.ndarray) -> Schedule:
    """The schedule of nodes in s, with the ends that the point (p, lam_eps, lam_max, share) has."""
    p, last, first, share = (float(x) for x in point)
    end = lane.noise.noise_end
    lams = lam_of_s(found.t[: lane.nodes])
    lams[-1] = last
    lams[0] = end if end == -math.inf else end + share * (first - end)
    psi, result = None, "fixed"
    if lane.nodes > 1:
        ends = {"t_eps": float(lane.noise.t_of_lam(last)), "t_max": float(lane.noise.t_of_lam(first))}
        psi = {"p": p, **ends, "ksigma_min": math.exp(-last), "ksigma_max": math.exp(-first)}
        result = RESULTS[int(found.result)]
    method: Any = lane.method
    origin = Origin(
        method=f"{objective_name(method.family)}/measured",
        psi=psi,
        p=2.0 if psi is None else p,
        result=result,
        seed=int(lane.seed),
        versions=versions(),
    )
    return Schedule.from_lams(lane.noise, lams, layout=lane.layout, origin=origin)
