"""The family that a measured search looks through: from points of a box to schedules, on the host.

It is that of the search on the solver's error, psi = (p, t_eps, t_max): the nodes between t_max and t_eps that the
lower level finds for MEP, or DM-NonUni's bound, with exponent p. One coordinate more says where the first node is,
from the model's noise end (0) to t_max (1): the reference search places it by its lower level, and neither end is the
better one for all solvers and guidance weights. A model that ends in pure noise starts there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.methods.hso.search import compiler_options
from hso_jax.methods.solver_error.lanes import LaneArrays, ReferenceLane, lam_of_s, s_of_lam
from hso_jax.methods.solver_error.schedules import times
from hso_jax.methods.solver_error.search import ISLANDS, P_RANGE, proposal
from hso_jax.schedule import Schedule, versions

COORDINATES = 4
_STEPS = 40  # of the lower level, from uniform lam


def box(lane: ReferenceLane) -> np.ndarray:
    """[2, 4] lowest and highest p, lam_eps, lam_max and share (of the first node); equal where one moves no node.

    t_max from the model's end to s = 0.75, t_eps from s = 0.6 to the model's end, as for the reference error; a model
    with little room in lam has them further out, so that they never meet.
    """
    noisiest = float(lam_of_s(min(s_of_lam(lane.noise_end), 0.999)))
    cleanest = min(lane.data_end, float(lane.noise.lam(float(lane.noise.t_min))))
    room = cleanest - noisiest
    high = min(max(noisiest + 0.5, -1.1), noisiest + 0.4 * room)
    low = max(min(ISLANDS[0][0], cleanest - 0.3 * room), high + 0.02 * room)
    ends = np.array([[P_RANGE[0], low, noisiest, 0.0], [P_RANGE[1], cleanest, high, 1.0]])
    if lane.nodes == 1:
        ends[1, :2], ends[0, 3] = ends[0, :2], 1.0
    if lane.first == "end":
        ends[1, 3] = 0.0
        if lane.nodes == 1:
            ends[:, 2:] = noisiest, 0.0
    return ends


def members(lane: ReferenceLane, points: np.ndarray, ends: np.ndarray) -> list[Schedule]:
    """The schedules that points [P, 4] of the box stand for, in float64."""
    count = -(-lane.nodes // 10) * 10  # padded, so that one compilation serves many N
    nodes = np.asarray(_program(jax.default_backend(), lane.objective, count)(_arrays(lane), jnp.asarray(points)))
    low, high = ends.astype(points.dtype)
    # What lies on the box's edge is the edge itself, without the rounding to float32.
    exact = np.where(points <= low, ends[0], np.where(points >= high, ends[1], points))
    return [_schedule(lane, row[: lane.nodes], psi) for row, psi in zip(nodes, exact, strict=True)]


@functools.cache
def _program(platform: str, objective: str, count: int) -> Callable[[LaneArrays, Array], Array]:
    """(lane, points [P, 4]) -> nodes [P, count] in s, the first at lam_max."""

    def nodes(lane: LaneArrays, points: Array) -> Array:
        blank = jnp.full(count, jnp.nan, points.dtype)
        one = functools.partial(proposal, lane, before=blank, count=count, objective=objective, steps=_STEPS)
        return jax.vmap(one)(points[:, :3])

    return jax.jit(nodes, compiler_options=compiler_options(platform))


def _arrays(lane: ReferenceLane) -> LaneArrays:
    """What a proposal needs of the lane; no reference data."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    columns = {
        "reference": np.int32(0),
        "solver": np.int32(0),
        "nfe": np.int32(lane.nfe),
        "nodes": np.int32(lane.nodes),
        "seed": np.int32(lane.seed),
        "clean": np.bool_(lane.layout == "node"),
        "free": np.bool_(True),
        "top": np.asarray(s_of_lam(lane.noise_end), dtype),
        "floor": np.asarray(s_of_lam(lane.data_end), dtype),
        "starts": np.zeros((0, 0), dtype),
    }
    return LaneArrays(**columns)  # type: ignore[arg-type]


def _schedule(lane: ReferenceLane, nodes: np.ndarray, point: np.ndarray) -> Schedule:
    """The schedule of nodes [K] in s, with the ends that the point (p, lam_eps, lam_max, share) has."""
    p, last, first, share = (float(x) for x in point)
    lams = lam_of_s(nodes)
    lams[-1] = last
    lams[0] = lane.noise_end if lane.first == "end" else lane.noise_end + share * (first - lane.noise_end)
    t = times(lane.noise, np.append(lams, first))
    psi = None
    if lane.nodes > 1:
        ends = {"t_eps": float(t[-2]), "t_max": float(t[-1])}
        psi = {"p": p, **ends, "ksigma_min": math.exp(-last), "ksigma_max": math.exp(-first)}
    return Schedule.from_t(
        lane.noise,
        t[:-1],
        layout=lane.layout,
        method=f"{lane.objective}/measured",
        psi=psi,
        p=2.0 if psi is None else p,
        result="converged",
        seed=int(lane.seed),
        versions=versions(),
    )
