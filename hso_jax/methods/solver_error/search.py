"""Two levels on the solver's error: members of the family of HSO's bound, and the best of them refined on the error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hso_jax import solvers
from hso_jax.bilevel import bilevel
from hso_jax.lower import quasi_newton, trust_region
from hso_jax.lower.gaps import SPACING, lams_of, logits_of, nodes_of
from hso_jax.lower.results import MAX_STEPS, NOT_FINITE
from hso_jax.lower.trust_region import Solution
from hso_jax.methods.family import FIRST_HIGH, ISLANDS, LAST_LOW, P_RANGE, member
from hso_jax.methods.solver_error.lanes import LaneArrays
from hso_jax.objectives.expansion import NodeObjective
from hso_jax.objectives.solver_error import OF_A_MODEL, Chunks, error_gradient, mean_error, squared_errors
from hso_jax.upper.evolution import Evolution


class Refinement(NamedTuple):
    """How hard the starts are refined on the error; all static.

    Attributes:
        more: chunks of samples that the starts are refined on, of which the best on all samples is refined further.
        steps: at most, of each refinement of a start.
        final_steps: at most, of the last one on all samples.
    """

    more: int = 36
    steps: int = 20
    final_steps: int = 60


class Found(NamedTuple):
    """Result of a lane.

    Attributes:
        nodes: [K] in s; the real ones first.
        psi: [3] p, lam_eps and lam_max of the start that led there; NaN if that was none of the family.
        error: root mean square over all samples and dimensions.
        result: code, an index into `results.RESULTS`, of what placed the nodes.
        steps: of the last refinement.
        stationarity: see the lower level that placed the nodes.
    """

    nodes: Array
    psi: Array
    error: Array
    result: Array
    steps: Array
    stationarity: Array


class Levels(NamedTuple):
    """What the method gives to `bilevel`. Its psi is (p, lam_eps, lam_max); a lane is one row of `LaneArrays`.

    Attributes:
        names: of the solvers; static, as all but `bank`.
        family: objective of the lower level.
        steps: of the lower level.
        few: chunks that the fitness sees.
        refinement: of the starts; None takes the best as it is.
        axis: of the devices that share the samples, if any.
        bank: chunks of samples, with the exact solutions on a leading axis.
    """

    names: tuple[str, ...]
    family: str | NodeObjective
    steps: int
    few: int
    refinement: Refinement | None
    axis: str | None
    bank: Chunks

    def boxes(self, lane: LaneArrays) -> tuple[Array, Array]:
        """One box for each island of lam_eps."""
        dtype = lane.top.dtype
        top = jnp.minimum(lane.top, 1.0 - SPACING)
        noisiest, cleanest = (jnp.log1p(-s) - jnp.log(s) for s in (top, lane.floor))
        high = jnp.maximum(noisiest + 0.5, FIRST_HIGH)
        # A pinned first node is psi's own, unless it is pure noise: there MEP starts at a node of its own.
        high = jnp.where(lane.free | (lane.top >= 1.0), high, noisiest)
        least, most = (jnp.asarray(column, dtype) for column in zip(*ISLANDS, strict=True))
        least = jnp.maximum(jnp.minimum(least, cleanest - 0.5), jnp.asarray(LAST_LOW, dtype))
        most = jnp.minimum(most, cleanest)
        p_low, p_high = (jnp.full_like(least, p) for p in P_RANGE)
        first_low, first_high = (jnp.full_like(least, x) for x in (noisiest, high))
        return jnp.stack([p_low, least, first_low], 1), jnp.stack([p_high, most, first_high], 1)

    def blank(self, lane: LaneArrays) -> Solution:
        """No nodes yet."""
        return trust_region.blank(lane.starts.shape[-1], lane.top.dtype)

    def lower(self, lane: LaneArrays, psi: Array, before: Solution) -> Solution:
        """The family's member psi, a pinned first node at the model's end."""
        found = member(psi, lane.nodes, before.t, objective=self.family, steps=self.steps)
        return found._replace(t=pinned(lane, found.t))

    def fitness(self, lane: LaneArrays, found: Solution) -> Array:
        """The (power) mean of the solver's squared errors on the first few chunks."""
        return self.error(lane, found.t, jnp.minimum(self.few, self.chunks))

    def refine(self, lane: LaneArrays, starts: Evolution) -> Found:
        """The best of the starts and of one rule on all samples, refined on the error if that was asked for."""
        psi = jnp.concatenate([starts.best, jnp.full_like(starts.best[:1], jnp.nan)])
        rule = trust_region.blank(lane.starts.shape[-1], lane.top.dtype)._replace(t=shifted(lane))
        found = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), starts.memo, rule)
        return self.best(lane, psi, found) if self.refinement is None else self.descend(lane, psi, found.t)

    @property
    def chunks(self) -> int:
        """How many chunks the samples are."""
        return self.bank.problem.shape[0]

    def error(self, lane: LaneArrays, nodes: Array, chunks: Array | int) -> Array:
        """The (power) mean of squared errors on so many chunks; +inf where it is not finite."""
        weights = weigh(self.names, lane, lams_of(lane.range, nodes))
        data = data_of(self.bank, lane)
        value = mean_error(data, squared_errors(data, weights, chunks), chunks, self.axis)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def best(self, lane: LaneArrays, psi: Array, found: Solution) -> Found:
        """The start with the smallest error on all samples."""
        values = jax.lax.map(lambda nodes: self.error(lane, nodes, self.chunks), found.t)
        i = jnp.argmin(values)
        result = jnp.where(jnp.isfinite(values[i]), found.result[i], NOT_FINITE)
        steps, stationarity = found.steps[i], found.stationarity[i]
        return Found(found.t[i], psi[i], jnp.sqrt(values[i]), result, steps, stationarity)

    def descend(self, lane: LaneArrays, psi: Array, starts: Array) -> Found:
        """Each start [S, K] refined on a part of the samples and judged on all, then the best of them refined on all.

        A judgement is a refinement of no steps: the error is then compiled once in this loop.
        """
        assert self.refinement is not None
        more, steps, final_steps = self.refinement

        def job(before: tuple[Array, Found], row: tuple[Array, ...]) -> tuple[tuple[Array, Found], None]:
            y, best = before
            start, psi, role, chunks, limit = row
            begin = jnp.where(role == refining, start, jnp.where(role == judging, y, logits_of(lane.range, best.nodes)))
            psi = jnp.where(role == last, best.psi, psi)
            found = quasi_newton.solve(log_error(self, lane, chunks), begin, limit)
            value = jnp.exp(found.value)
            better = (role == last) | ((role == judging) & (value < best.error))
            placed = nodes_of(lane.range, found.y)
            new = Found(placed, psi, value, found.result, found.steps, found.stationarity)
            return (found.y, jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)), None

        many, every = len(starts), self.chunks
        refining, judging, last = range(3)
        roles = jnp.array([refining, judging] * many + [last])
        chunks = jnp.array([min(more, every), every] * many + [every])
        limits = jnp.array([steps, 0] * many + [final_steps])
        begins = jax.vmap(lambda nodes: logits_of(lane.range, nodes))(starts)
        rows = (jnp.concatenate([jnp.repeat(x, 2, 0), x[:1]]) for x in (begins, psi))
        inf = jnp.full((), jnp.inf, lane.top.dtype)
        none = Found(starts[0], psi[0], inf, jnp.asarray(MAX_STEPS), jnp.asarray(0), inf)
        (_, found), _ = jax.lax.scan(job, (begins[0], none), (*rows, roles, chunks, limits))
        result = jnp.where(jnp.isfinite(found.error), found.result, NOT_FINITE)
        return found._replace(error=jnp.sqrt(found.error), result=result)


def data_of(bank: Chunks, lane: LaneArrays) -> Chunks:
    """The lane's samples."""
    return bank._replace(**{name: getattr(bank, name)[lane.data] for name in OF_A_MODEL})


def pinned(lane: LaneArrays, nodes: Array) -> Array:
    """Nodes [K] in s, the first at the model's end unless it is free."""
    return jnp.where(lane.free | (jnp.arange(nodes.shape[0]) > 0), nodes, lane.top)


def shifted(lane: LaneArrays) -> Array:
    """Equal steps of a rectified flow's time with shift 2, nodes in s: a start that owes nothing to any bound.

    Trailing timesteps of Stable Diffusion come close to it, and strong guidance may have its best minimum there.
    """
    top = jnp.minimum(lane.top, 1.0 - SPACING)
    u = 1.0 - jnp.arange(lane.starts.shape[-1]) / lane.nodes
    return pinned(lane, jnp.clip(2.0 * u / (1.0 + u) * top, lane.floor, top))


def weigh(names: Sequence[str], lane: LaneArrays, lams: Array) -> solvers.Weights:
    """The weights of the lane's solver on nodes lams [K], one of `names`; of one shape for all of them."""
    end = end_of(lane, lams)

    def of(name: str) -> Callable[[], solvers.Weights]:
        return lambda: solvers.weights(name, lams, end=end, nfe=lane.nfe)

    if len(names) == 1:
        return of(names[0])()
    return jax.lax.switch(lane.solver, solvers.alike([of(name) for name in names]))


def end_of(lane: LaneArrays, lams: Array) -> Array:
    """Where sampling stops: clean data, or the node after the evaluated ones."""
    return jnp.where(lane.clean, jnp.inf, lams[jnp.minimum(lane.nfe, lams.shape[0] - 1)])


def log_error(levels: Levels, lane: LaneArrays, chunks: Array) -> Callable[[Array], tuple[Array, Array]]:
    """The logarithm of the mean squared error and its gradient in logits y [K + 1]; over all devices along the axis."""
    data = data_of(levels.bank, lane)

    def function(y: Array) -> tuple[Array, Array]:
        lams, pull = jax.vjp(lambda y: lams_of(lane.range, nodes_of(lane.range, y)), y)
        weights = functools.partial(weigh, levels.names, lane)
        value, gradient = error_gradient(data, weights, lams, chunks, levels.axis)
        return value, pull(gradient)[0]

    return function


@functools.lru_cache(maxsize=64)
def search_lane(
    names: tuple[str, ...],
    family: str | NodeObjective,
    few: int,
    refinement: Refinement | None,
    effort: Any,
    axis: str | None,
) -> Callable[[LaneArrays, Chunks], Any]:
    """Both levels for one lane, (lane, bank) -> Found. Pure; map it over lanes. Starts that are given are refined."""

    def search(lane: LaneArrays, bank: Chunks) -> Found:
        levels = Levels(names, family, effort.steps, few, refinement, axis, bank)
        if not len(lane.starts):
            return bilevel(levels, lane, effort)
        return levels.descend(lane, jnp.full((len(lane.starts), 3), jnp.nan, lane.starts.dtype), lane.starts)

    return search
