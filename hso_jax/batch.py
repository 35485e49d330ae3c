"""The batched search: many lanes in one compiled program, in chunks, over all devices of all hosts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hso_jax import trust_region
from hso_jax.curvature import Objective, dense_objective, interval_objective
from hso_jax.dm_nonuni import bound
from hso_jax.evolution import evolve
from hso_jax.lanes import Lane, LaneArrays, pack
from hso_jax.noise import NoiseSchedule
from hso_jax.objectives import mep_interval_derivatives, spacing_penalty

_DM_WIDTH = 1e-2  # of DM-NonUni's rounded kinks inside the search: coarse enough for Newton steps from any start

Progress = Callable[[int, int], None]
"""Called with (lanes done, lanes in all)."""


class Effort(NamedTuple):
    """How hard each lane is searched; all static (a change compiles again).

    Attributes:
        population: of the upper level.
        generations: of the upper level.
        steps: of the lower level inside the fitness; 0 scores the initial EDM schedules themselves.
        polish: rounds of as many steps more for the winner. From EDM's start three steps usually do already.
        chunk: lanes per device and call; bounds the memory.
    """

    population: int = 16
    generations: int = 20
    steps: int = 3
    polish: int = 3
    chunk: int = 128


class Refined(NamedTuple):
    """What the lower level made of one psi.

    Attributes:
        t: [K] nodes, padded with t_eps.
        result: code, an index into `trust_region.RESULTS`.
        steps: taken.
        stationarity: see `trust_region.State`.
    """

    t: Array
    result: Array
    steps: Array
    stationarity: Array


class Found(NamedTuple):
    """Result of each lane, with a leading axis [L].

    Attributes:
        psi: [3] rho, t_eps, t_max.
        refined: nodes and how the lower level ended.
        history: [rounds] best fitness.
    """

    psi: Array
    refined: Refined
    history: Array


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


def search_lane(lane: LaneArrays, bank: NoiseSchedule, *, objective: str, nodes: int, effort: Effort) -> Found:
    """The bilevel search of one lane (HSO, arXiv 2511.11688, algorithm 1). Pure; `vmap` it over lanes."""
    noise = jax.tree.map(lambda leaf: leaf[lane.noise], bank)
    expand = _objective(objective, lane)

    def fitness(psi: Array, before: Refined) -> tuple[Array, Refined]:
        start = jnp.where(jnp.isfinite(before.t[0]), before.t, edm_nodes(noise, psi, nodes, lane.intervals))
        found, _ = trust_region.minimise(expand, noise, start, _feasible(lane, psi), max_steps=effort.steps)
        penalty = spacing_penalty(found.t, lane.d_min, lane.intervals)
        refined = Refined(found.t, found.result, before.steps + found.steps, found.stationarity)
        return found.value + lane.gamma * penalty, refined

    blank = Refined(
        jnp.full(nodes, jnp.nan, lane.lower.dtype), jnp.asarray(0), jnp.asarray(0), jnp.zeros((), lane.lower.dtype)
    )
    evolution = evolve(
        fitness,
        blank,
        jax.random.key(lane.seed),
        lane.lower,
        lane.upper,
        population=effort.population,
        generations=effort.generations,
        polish=effort.polish if effort.steps else 0,
    )
    return Found(evolution.best, evolution.memo, evolution.history)


def _objective(name: str, lane: LaneArrays) -> Objective:
    if name == "mep":
        return interval_objective(functools.partial(mep_interval_derivatives, p=lane.p))
    return dense_objective(lambda lams: bound(lams, lane.intervals, lane.p, _DM_WIDTH))


def _feasible(lane: LaneArrays, psi: Array) -> trust_region.Feasible:
    _, t_eps, t_max = psi
    least = jnp.minimum(_with_margin(lane.least_gap), (t_max - t_eps) / lane.intervals)
    return trust_region.Feasible(t_max, t_eps, least, lane.intervals)


def _with_margin(gap: Array) -> Array:
    """A gap that is still kept after the rounding of up to 64 summed gaps."""
    return jnp.where(gap > 0, gap + 16.0 * jnp.finfo(gap.dtype).eps, gap)


@functools.lru_cache(maxsize=64)
def program(devices: tuple[jax.Device, ...], objective: str, nodes: int, effort: Effort) -> Callable[..., Found]:
    """The compiled search of one chunk: (LaneArrays [C, ...], bank) -> Found [C, ...], split over the devices."""
    mesh = Mesh(np.array(devices), ("lanes",))
    split, whole = PartitionSpec("lanes"), PartitionSpec()

    def chunk(lanes: LaneArrays, bank: NoiseSchedule) -> Found:
        one = functools.partial(search_lane, bank=bank, objective=objective, nodes=nodes, effort=effort)
        return jax.vmap(one)(lanes)

    # No lane talks to another: each device runs its own lanes, and nothing is exchanged.
    sharded = jax.shard_map(chunk, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)
    return jax.jit(sharded, compiler_options=compiler_options(devices[0].platform))


def compiler_options(platform: str) -> dict[str, int] | None:
    """On the CPU LLVM's full optimisation doubles the compilation and gains nothing in the run (measured)."""
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


@functools.cache
def quick_options(platform: str) -> dict[str, Any] | None:
    """`compiler_options` for programs of many small steps: without XLA's fusion emitters they compile in half the time.

    The run is a tenth slower (measured on the reference search). The option may go with a version of XLA.
    """
    options = compiler_options(platform)
    if options is None:
        return None
    more = {**options, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(jnp.negative, compiler_options=more).lower(np.float32(0.0)).compile()
    except Exception:  # whatever type this version has for an option it does not know
        return options
    return more


def run(lanes: Sequence[Lane], effort: Effort, *, nodes: int | None = None, progress: Progress | None = None) -> Found:
    """Search checked lanes of one objective, each with at least one interval; NumPy results in the lanes' order.

    With several hosts (`jax.distributed`) every process calls this with the same lanes and gets all results.
    """
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    arrays, bank = pack(lanes, dtype)
    devices = tuple(jax.devices())
    count = nodes or 1 + max(lane.intervals for lane in lanes)
    size = len(devices) * min(effort.chunk, -(-len(lanes) // len(devices)))
    search = program(devices, lanes[0].objective, count, effort)
    bank = _placed(bank, devices, PartitionSpec())
    parts = []
    for begin in range(0, len(lanes), size):
        # The last chunk is filled up with the last lane: one shape, one compilation.
        rows = np.minimum(np.arange(begin, begin + size), len(lanes) - 1)
        chunk = jax.tree.map(lambda column: column[rows], arrays)  # noqa: B023
        found = search(_placed(chunk, devices, PartitionSpec("lanes")), bank)
        found = multihost_utils.process_allgather(found, tiled=True) if jax.process_count() > 1 else found
        kept = min(size, len(lanes) - begin)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[:kept], found))  # noqa: B023
        if progress is not None:
            progress(begin + kept, len(lanes))
    found = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return found if effort.steps == 0 else _finish(lanes, found)


def _finish(lanes: Sequence[Lane], found: Found) -> Found:
    """Refine the few lanes that have not converged again, one by one in float64 and with many more steps.

    They are those whose objective is concave at the start (EDM's noise with p = 2 at large N) or whose curvature
    spans more than float32 resolves (flow models with many held gaps).
    """
    hard = np.flatnonzero(found.refined.result != trust_region.CONVERGED)
    if not hard.size:
        return found
    refined = [np.array(x, np.float64 if x.dtype.kind == "f" else x.dtype) for x in found.refined]
    with jax.enable_x64(True):
        arrays, bank = pack(lanes, np.dtype(np.float64))
        for i in hard:
            lane = jax.tree.map(lambda column: column[i], arrays)  # noqa: B023
            again = _refine_again(lane, bank, found.psi[i].astype(np.float64), refined[0][i], lanes[0].objective)
            for column, value in zip(refined, again._replace(steps=again.steps + refined[2][i]), strict=True):
                column[i] = value
    return found._replace(refined=Refined(*refined))  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames="objective")
def _refine_again(lane: LaneArrays, bank: NoiseSchedule, psi: Array, t: Array, objective: str) -> Refined:
    noise = jax.tree.map(lambda leaf: leaf[lane.noise], bank)
    found, _ = trust_region.minimise(_objective(objective, lane), noise, t, _feasible(lane, psi), max_steps=200)
    return Refined(found.t, found.result, found.steps, found.stationarity)


def _placed(tree: Any, devices: tuple[jax.Device, ...], spec: PartitionSpec) -> Any:
    """Host arrays, the same in every process, as global arrays over all devices of all hosts."""
    sharding = NamedSharding(Mesh(np.array(devices), ("lanes",)), spec)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)
