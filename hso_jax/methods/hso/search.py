"""HSO's two levels on one lane: EDM's schedule of each psi, refined by Newton steps on the nodes, judged by SPF."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import batch
from hso_jax.bilevel import Effort, bilevel
from hso_jax.compiling import under_jax_defaults
from hso_jax.lane import Lane
from hso_jax.lower import trust_region
from hso_jax.lower.results import CONVERGED
from hso_jax.lower.trust_region import Feasible, Solution
from hso_jax.methods.hso.lanes import LaneArrays, pack
from hso_jax.noise import NoiseSchedule
from hso_jax.objectives.expansion import NodeObjective, Terms, expansion
from hso_jax.objectives.mep_spf import spacing_penalty
from hso_jax.upper.checkpoint import Records
from hso_jax.upper.evolution import Evolution

EFFORT = Effort(population=16, generations=20, steps=3, polish=3, lanes=128)
"""From EDM's start three steps usually do already."""

_AGAIN = 200  # steps for a lane that has not converged


def edm_nodes(noise: NoiseSchedule, psi: Array, count: int, intervals: Array) -> Array:
    """EDM's nodes (Karras et al. 2022, eq. 5) between ksigma(t_max) and ksigma(t_eps), as times [count].

    `ksigma_i = (ksigma_max^(1/rho) + i/M (ksigma_min^(1/rho) - ksigma_max^(1/rho)))^rho`; padding repeats t_eps.
    """
    rho, t_eps, t_max = psi
    noisy, clean = jnp.exp(-noise.lam(t_max) / rho), jnp.exp(-noise.lam(t_eps) / rho)
    i = jnp.minimum(jnp.arange(count), intervals)
    # 16 iterations: exact but for nodes within 1e-5 of an end, and this is only where the lower level starts.
    inner = noise.t_of_lam(-rho * jnp.log(noisy + i / intervals * (clean - noisy)), iterations=16)
    return jnp.where(i == 0, t_max, jnp.where(i == intervals, t_eps, inner))


class Levels(NamedTuple):
    """What HSO gives to `bilevel`. Its psi is (rho, t_eps, t_max); a lane is one row of `LaneArrays`.

    Attributes:
        bank: noise schedules on a leading axis.
        objective: of the lower level.
        nodes: K, at least the lane's number of nodes.
        steps: of the lower level.
    """

    bank: NoiseSchedule
    objective: str | NodeObjective
    nodes: int
    steps: int

    def boxes(self, lane: LaneArrays) -> tuple[Array, Array]:
        """One box."""
        return lane.lower[None], lane.upper[None]

    def blank(self, lane: LaneArrays) -> Solution:
        """No nodes yet."""
        return trust_region.blank(self.nodes, lane.lower.dtype)

    def lower(self, lane: LaneArrays, psi: Array, before: Solution) -> Solution:
        """The nodes from EDM's (or those before) that minimise the objective between psi's ends."""
        noise = self.noise(lane)
        start = jnp.where(jnp.isfinite(before.t[0]), before.t, edm_nodes(noise, psi, self.nodes, lane.intervals))
        found = refined(self, lane, psi, start, self.steps)
        return found._replace(steps=before.steps + found.steps)

    def fitness(self, lane: LaneArrays, found: Solution) -> Array:
        """SPF: the lower level's objective and the spacing penalty."""
        return found.value + lane.gamma * spacing_penalty(found.t, lane.d_min, lane.intervals)

    def refine(self, lane: LaneArrays, starts: Evolution) -> Evolution:
        """The one start as it is."""
        return jax.tree.map(lambda x: x[0], starts)

    def noise(self, lane: LaneArrays) -> NoiseSchedule:
        """The lane's noise schedule."""
        return jax.tree.map(lambda leaf: leaf[lane.noise], self.bank)


def refined(levels: Levels, lane: LaneArrays, psi: Array, start: Array, steps: int) -> Solution:
    """The lower level from `start` [K], in so many steps."""
    _, t_eps, t_max = psi
    least = jnp.minimum(_with_margin(lane.least_gap), (t_max - t_eps) / lane.intervals)
    objective = expansion(levels.objective, Terms(lane.p, lane.intervals))
    feasible = Feasible(t_max, t_eps, least, lane.intervals)
    return trust_region.minimise(objective, levels.noise(lane), start, feasible, max_steps=steps)[0]


def _with_margin(gap: Array) -> Array:
    """A gap that is still kept after the rounding of up to 64 summed gaps."""
    return jnp.where(gap > 0, gap + 16.0 * jnp.finfo(gap.dtype).eps, gap)


@functools.lru_cache(maxsize=64)
def search_lane(
    objective: str | NodeObjective, nodes: int, effort: Any
) -> Callable[[LaneArrays, NoiseSchedule], Evolution]:
    """The bilevel search of one lane, (lane, bank of noise schedules) -> result. Pure; map it over lanes."""
    effort = effort._replace(polish=effort.polish if effort.steps else 0)

    def search(lane: LaneArrays, bank: NoiseSchedule) -> Evolution:
        return bilevel(Levels(bank, objective, nodes, effort.steps), lane, effort)

    return search


def run(
    lanes: Sequence[Lane],
    effort: Any,
    *,
    nodes: int | None = None,
    progress: batch.Progress | None = None,
    records: Records | None = None,
) -> Evolution:
    """Search checked lanes of one objective, each with at least one interval; NumPy results in the lanes' order."""
    effort = effort.over(EFFORT)
    arrays, bank = pack(lanes, np.dtype(jax.dtypes.canonicalize_dtype(float)))
    count = nodes or 1 + max(lane.intervals for lane in lanes)
    objective = lanes[0].method.objective  # type: ignore[union-attr]
    search = search_lane(objective, count, effort)
    found = batch.run(search, arrays, bank, chunk=effort.lanes, progress=progress, records=records)
    return found if effort.steps == 0 else _finish(lanes, found, objective)


def _finish(lanes: Sequence[Lane], found: Evolution, objective: str | NodeObjective) -> Evolution:
    """Refine the few lanes that have not converged again, one by one in float64 and with many more steps.

    They are those whose objective is concave at the start (EDM's noise with p = 2 at large N) or whose curvature
    spans more than float32 resolves (flow models with many held gaps).
    """
    hard = np.flatnonzero(found.memo.result != CONVERGED)
    if not hard.size:
        return found
    columns = [np.array(x, np.float64 if x.dtype.kind == "f" else x.dtype) for x in found.memo]
    with jax.enable_x64(True):
        arrays, bank = pack(lanes, np.dtype(np.float64))
        for i in hard:
            lane = jax.tree.map(lambda column: column[i], arrays)  # noqa: B023
            again = _refine_again(lane, bank, found.best[i].astype(np.float64), columns[0][i], objective)
            again = again._replace(steps=again.steps + found.memo.steps[i])
            for column, value in zip(columns, again, strict=True):
                column[i] = value
    return found._replace(memo=Solution(*columns))  # type: ignore[arg-type]


@under_jax_defaults
@functools.partial(jax.jit, static_argnames="objective")
def _refine_again(
    lane: LaneArrays, bank: NoiseSchedule, psi: Array, t: Array, objective: str | NodeObjective
) -> Solution:
    return refined(Levels(bank, objective, len(t), _AGAIN), lane, psi, t, _AGAIN)
