"""Both levels on the reference error, of many lanes in one compiled program.

The coordinate is s = sigma/(alpha + sigma), in which every model starts at s <= 1 and ends near 0. Nodes run from the
model's noise end, or below a wall beside it where the first node is free, to a wall at the model's data end,

    top >= node_0 > node_1 > ... > wall,    neighbours at least `SPACING` apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from hso_jax import solvers, trust_region
from hso_jax.batch import Progress, quick_options
from hso_jax.curvature import dense_objective, interval_objective
from hso_jax.dm_nonuni import bound
from hso_jax.evolution import evolve
from hso_jax.noise import NoiseSchedule, flow
from hso_jax.objectives import mep_interval_derivatives
from hso_jax.reference.data import Chunks, error_gradient, mean_error, squared_errors
from hso_jax.reference.descent import descend
from hso_jax.reference.lanes import OF_A_REFERENCE, SPACING, LaneArrays, ReferenceLane, pack

P_RANGE = (0.5, 4.0)

ISLANDS = ((-0.5, 1.25), (1.25, 2.25), (2.25, 20.0))
"""Ranges of lam_eps in which the upper level looks for one start each: local minima differ most in the last node."""

_DM_WIDTH = 1e-2  # as in hso_jax.batch


class ReferenceEffort(NamedTuple):
    """How hard each lane is searched; all static (a change compiles again).

    Attributes:
        population, generations: of the upper level, on each island of lam_eps.
        polish: evaluations more of each island's best with a converged proposal.
        chunk: samples taken through the solver at once.
        few: chunks that the upper level sees.
        more: chunks that its starts are refined on, of which the best on all samples is refined further.
        steps: at most, of each refinement of a start.
        final_steps: at most, of the last one on all samples.
        lanes: taken at once on each device: 1 on a CPU, whose caches hold one; more fill a GPU.
    """

    population: int = 8
    generations: int = 6
    polish: int = 2
    chunk: int = 32
    few: int = 12
    more: int = 36
    steps: int = 20
    final_steps: int = 60
    lanes: int = 1


class FoundReference(NamedTuple):
    """Result of each lane, with a leading axis [L].

    Attributes:
        nodes: [K] in s; the real ones first.
        psi: [3] p, s_eps and s_max of the start that led there.
        error: root mean square over all samples and dimensions.
        result: code, an index into `trust_region.RESULTS`.
        steps: of the last refinement.
        stationarity: largest derivative of the log of the squared error in the log of a gap.
    """

    nodes: Array
    psi: Array
    error: Array
    result: Array
    steps: Array
    stationarity: Array


def weigh(names: Sequence[str], lane: LaneArrays, lams: Array) -> solvers.Weights:
    """The weights of the lane's solver on nodes lams [K], one of `names`; of one shape for all of them."""
    count = lams.shape[0]
    end = jnp.where(lane.clean, jnp.inf, lams[jnp.minimum(lane.nfe, count - 1)])

    def of(name: str) -> Callable[[], solvers.Weights]:
        return lambda: solvers.weights(name, lams, end=end, nfe=lane.nfe)

    if len(names) == 1:
        return of(names[0])()
    return jax.lax.switch(lane.solver, solvers.alike([of(name) for name in names]))


def lams_of(lane: LaneArrays, nodes: Array) -> Array:
    """Lam [K] of nodes [K] in s, a pinned first one at the model's end; 0 where there is none."""
    index = jnp.arange(nodes.shape[0])
    moves = (index < lane.nodes) & (lane.free | (index > 0))
    safe = jnp.where(moves, nodes, 0.5)
    lams = jnp.log1p(-safe) - jnp.log(safe)
    pinned = jnp.where(lane.top < 1.0, jnp.log1p(-jnp.minimum(lane.top, 0.999999)) - jnp.log(lane.top), -jnp.inf)
    return jnp.where(moves, lams, jnp.where(index < lane.nodes, pinned, 0.0))


def walls(lane: LaneArrays) -> tuple[Array, Array]:
    """Where the gaps begin, in s, and how much of s they share beyond their least length."""
    upper = jnp.where(lane.free, jnp.minimum(lane.top + SPACING, 1.0), lane.top)
    lower = jnp.maximum(lane.floor - SPACING, 0.0)
    return upper, upper - lower - SPACING * (lane.nodes + lane.free)


def nodes_of(lane: LaneArrays, y: Array) -> Array:
    """Nodes [K] in s from the logits y [K + 1] of their gaps: `SPACING + room softmax(y)`, see `walls`."""
    upper, room = walls(lane)
    real = jnp.arange(y.shape[0]) < lane.nodes + lane.free
    gaps = jnp.where(real, SPACING + room * jax.nn.softmax(jnp.where(real, y, -jnp.inf)), 0.0)
    below = jnp.cumsum(gaps)
    return upper - jnp.where(lane.free, below, below - gaps)[:-1]


def logits_of(lane: LaneArrays, nodes: Array) -> Array:
    """The inverse of `nodes_of`; nodes closer than `SPACING` are moved apart a little more than that."""
    upper, room = walls(lane)
    count = lane.nodes + lane.free
    ends = upper[None], (upper - room - SPACING * count)[None]
    real = jnp.where(jnp.arange(nodes.shape[0]) < lane.nodes, nodes, ends[1])
    free, pinned = jnp.concatenate([ends[0], real, ends[1]]), jnp.concatenate([ends[0], real[1:], ends[1], ends[1]])
    row = jnp.where(lane.free, free, pinned)
    spare = jnp.maximum(row[:-1] - row[1:] - SPACING, 1e-3 * room / count)
    return jnp.where(jnp.arange(row.shape[0] - 1) < count, jnp.log(spare), 0.0)


def log_error(
    names: Sequence[str], lane: LaneArrays, data: Chunks, chunks: Array, axis: str | None
) -> Callable[[Array], tuple[Array, Array]]:
    """The logarithm of the mean squared error and its gradient in logits y [K + 1]; over all devices along `axis`."""

    def function(y: Array) -> tuple[Array, Array]:
        lams, pull = jax.vjp(lambda y: lams_of(lane, nodes_of(lane, y)), y)
        value, gradient = error_gradient(data, functools.partial(weigh, names, lane), lams, chunks, axis)
        return value, pull(gradient)[0]

    return function


def proposal(lane: LaneArrays, psi: Array, before: Array, count: int, *, objective: str, steps: int) -> Array:
    """The member psi = (p, lam_eps, lam_max) of the family: nodes [count] in s, between these ends.

    They minimise MEP (or DM-NonUni's bound) with exponent p, from uniform lam, or from `before` where that is finite.
    """
    p, last, first = psi
    intervals = lane.nodes - 1
    i = jnp.minimum(jnp.arange(count), intervals)
    even = jax.nn.sigmoid(-(first + (last - first) * i / jnp.maximum(intervals, 1)))
    ends = jax.nn.sigmoid(-first), jax.nn.sigmoid(-last)
    room = jnp.minimum(SPACING, (ends[0] - ends[1]) / jnp.maximum(intervals, 1))
    feasible = trust_region.Feasible(*ends, room, intervals)
    expansion = (
        interval_objective(functools.partial(mep_interval_derivatives, p=p))
        if objective == "mep"
        else dense_objective(lambda lams: bound(lams, intervals, p, _DM_WIDTH))
    )
    start = jnp.where(jnp.isfinite(before[0]), before, even)
    found, _ = trust_region.minimise(expansion, _coordinate(start.dtype), start, feasible, max_steps=steps)
    nodes = jnp.where((intervals > 0) & jnp.all(jnp.isfinite(found.t)), found.t, even)
    return jnp.where(lane.free | (jnp.arange(count) > 0), nodes, lane.top)


def propose(
    names: Sequence[str],
    lane: LaneArrays,
    data: Chunks,
    few: Array,
    count: int,
    objective: str,
    effort: ReferenceEffort,
    axis: str | None,
) -> tuple[Array, Array]:
    """The upper level: the best psi [S, 3] of each island and one rule (psi NaN), with their nodes [S, count]."""
    dtype = lane.top.dtype
    top = jnp.minimum(lane.top, 1.0 - SPACING)
    noisiest, cleanest = (jnp.log1p(-s) - jnp.log(s) for s in (top, lane.floor))
    # t_max from the model's end to s = 0.75, t_eps from s = 0.6 to the model's end: further in, neither is of use.
    span = [(noisiest, jnp.maximum(noisiest + 0.5, -1.1)), (jnp.asarray(ISLANDS[0][0], dtype), cleanest)]
    (max_low, max_high), (eps_low, eps_high) = span
    # A pinned first node is psi's own, unless it is pure noise: there MEP starts at a node of its own.
    max_high = jnp.where(lane.free | (lane.top >= 1.0), max_high, max_low)

    def fitness(psi: Array, before: Array) -> tuple[Array, Array]:
        nodes = proposal(lane, psi, before, count, objective=objective, steps=5)
        lams = lams_of(lane, nodes)
        return mean_error(data, squared_errors(data, weigh(names, lane, lams), few), few, axis), nodes

    def island(row: tuple[Array, Array]) -> tuple[Array, Array]:
        (low, high), key = row
        least, most = jnp.minimum(low, eps_high - 0.5), jnp.minimum(high, eps_high)
        lower = jnp.stack([P_RANGE[0], jnp.maximum(least, eps_low), max_low]).astype(dtype)
        upper = jnp.stack([P_RANGE[1], most, max_high]).astype(dtype)
        blank = jnp.full(count, jnp.nan, dtype)
        found = evolve(
            fitness, blank, key, lower, upper,
            population=effort.population, generations=effort.generations, polish=effort.polish,
        )  # fmt: skip
        return found.best, found.memo

    keys = jax.random.split(jax.random.key(lane.seed), len(ISLANDS))
    psi, nodes = jax.lax.map(island, (jnp.asarray(ISLANDS, dtype), keys))
    # One start that owes nothing to MEP: equal steps of a rectified flow's time with shift 2, which is also what
    # trailing timesteps of Stable Diffusion come close to. Strong guidance may have its best minimum there.
    u = 1.0 - jnp.arange(count) / lane.nodes
    even = jnp.clip(2.0 * u / (1.0 + u) * top, lane.floor, top)
    even = jnp.where(lane.free | (jnp.arange(count) > 0), even, lane.top)
    return jnp.concatenate([psi, jnp.full((1, 3), jnp.nan, dtype)]), jnp.concatenate([nodes, even[None]])


def search_lane(
    lane: LaneArrays,
    bank: Chunks,
    *,
    names: Sequence[str],
    objective: str,
    effort: ReferenceEffort,
    axis: str | None = None,
) -> FoundReference:
    """Both levels for one lane. Pure; map it over lanes."""
    data = bank._replace(**{name: getattr(bank, name)[lane.reference] for name in OF_A_REFERENCE})
    count, whole = lane.starts.shape[-1], data.problem.shape[0]
    few = jnp.minimum(effort.few, whole)
    if lane.starts.shape[0]:
        starts, psi = lane.starts, jnp.full((lane.starts.shape[0], 3), jnp.nan, lane.starts.dtype)
    else:
        family = "mep" if objective == "reference" else objective
        psi, starts = propose(names, lane, data, few, count, family, effort, axis)

    def error(nodes: Array) -> Array:
        lams = lams_of(lane, nodes)
        value = mean_error(data, squared_errors(data, weigh(names, lane, lams), whole), whole, axis)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    if objective != "reference":
        values = jax.lax.map(error, starts)
        winner = jnp.argmin(values)
        result = jnp.where(jnp.isfinite(values[winner]), trust_region.CONVERGED, trust_region.NOT_FINITE)
        nothing = jnp.zeros((), values.dtype)
        return FoundReference(starts[winner], psi[winner], jnp.sqrt(values[winner]), result, jnp.asarray(0), nothing)

    def job(best: Any, start: tuple[Array, ...]) -> tuple[Any, None]:
        """Refine one start on a part of the samples, or the best so far on all of them."""
        nodes, psi, on, chunks, limit = start
        nodes, psi = jnp.where(on, best[1], nodes), jnp.where(on, best[2], psi)
        function = log_error(names, lane, data, chunks, axis)
        state, settled = descend(function, logits_of(lane, nodes), limit)
        found = nodes_of(lane, state.y)
        value = jnp.where(on, jnp.exp(state.value), error(found))
        better = on | (value < best[0])
        new = (value, found, psi, state.steps, jnp.max(jnp.abs(state.gradient)), settled)
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best), None

    many = starts.shape[0]
    on = jnp.arange(many + 1) == many
    chunks = jnp.minimum(jnp.array([effort.more] * many + [whole]), whole)
    limits = jnp.array([effort.steps] * many + [effort.final_steps])
    jobs = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), (starts, psi))
    inf = jnp.full((), jnp.inf, lane.top.dtype)
    none = (inf, starts[0], psi[0], jnp.asarray(0), inf, jnp.asarray(False))
    best, _ = jax.lax.scan(job, none, (*jobs, on, chunks, limits))
    value, found, reached, steps, stationarity, settled = best
    result = jnp.where(settled, trust_region.CONVERGED, trust_region.MAX_STEPS)
    result = jnp.where(jnp.isfinite(value), result, trust_region.NOT_FINITE)
    return FoundReference(found, reached, jnp.sqrt(value), result, steps, stationarity)


@functools.cache
def _coordinate(dtype: np.dtype) -> NoiseSchedule:
    # Of the traced dtype: JAX may reuse in float64 what it once made in float32 of a closed-over float64 array.
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), flow(1.0))


@functools.lru_cache(maxsize=64)
def program(
    devices: tuple[jax.Device, ...], names: tuple[str, ...], objective: str, effort: ReferenceEffort
) -> Callable[..., FoundReference]:
    """The compiled search: (LaneArrays [L, ...], bank) -> FoundReference [L, ...].

    The lanes are taken one after the other (`effort.lanes` at once) and the samples of each are spread over the
    devices, which therefore share the work evenly for a single lane too.
    """
    mesh = Mesh(np.array(devices), ("samples",))
    whole = PartitionSpec()
    split = Chunks(*[whole] * len(Chunks._fields))._replace(  # type: ignore[arg-type]
        noise=PartitionSpec(None, "samples"),  # type: ignore[arg-type]
        truth=PartitionSpec(None, None, "samples"),  # type: ignore[arg-type]
        coefficients=PartitionSpec(None, None, None, "samples"),  # type: ignore[arg-type]
    )
    axis = "samples" if len(devices) > 1 else None

    def every(lanes: LaneArrays, bank: Chunks) -> FoundReference:
        one = functools.partial(search_lane, bank=bank, names=names, objective=objective, effort=effort, axis=axis)
        return jax.lax.map(one, lanes, batch_size=effort.lanes if effort.lanes > 1 else None)

    sharded = jax.shard_map(every, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False)
    return jax.jit(sharded, compiler_options=quick_options(devices[0].platform))


def run(
    lanes: Sequence[ReferenceLane],
    effort: ReferenceEffort,
    *,
    starts: np.ndarray | None = None,
    progress: Progress | None = None,
    chunk: int = 16,
    **options: Any,
) -> tuple[FoundReference, np.ndarray]:
    """Search checked lanes of one objective: NumPy results in their order, and [L] the truth's inaccuracy.

    Args:
        lanes: checked.
        effort: see `ReferenceEffort`.
        starts: [L, S, K] nodes in s to refine instead of the upper level's proposals.
        progress: called with (lanes done, lanes in all) after each chunk.
        chunk: lanes a call: how often progress is reported.
        options: of `reference`: problems, samples, model_error, detail, power, seed, steps.
    """
    names = tuple(dict.fromkeys(lane.solver for lane in lanes))
    count = max(lane.nodes for lane in lanes)
    if starts is None:
        starts = np.zeros((len(lanes), 0, count))
    arrays, bank, inaccuracy = pack(lanes, names, starts, effort.chunk, **options)
    search = program(_even(jax.devices(), effort.chunk), names, lanes[0].objective, effort)
    size = -(-len(lanes) // -(-len(lanes) // chunk))  # as even as can be: what fills the last chunk is wasted
    parts = []
    for begin in range(0, len(lanes), size):
        # The last chunk is filled up with the last lane: one shape, one compilation.
        rows = np.minimum(np.arange(begin, begin + size), len(lanes) - 1)
        found = search(jax.tree.map(lambda column: column[rows], arrays), bank)  # noqa: B023
        kept = min(size, len(lanes) - begin)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[:kept], found))  # noqa: B023
        if progress is not None:
            progress(begin + kept, len(lanes))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts), inaccuracy


def _even(devices: Sequence[jax.Device], samples: int) -> tuple[jax.Device, ...]:
    """As many of the devices as a chunk's samples can be spread over evenly."""
    use = len(devices)
    while samples % use:
        use -= 1
    return tuple(devices[:use])
