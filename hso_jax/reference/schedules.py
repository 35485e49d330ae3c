"""From lanes to `Schedule`s, and the reference error of any schedule."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax import solvers, trust_region
from hso_jax.batch import Progress, compiler_options
from hso_jax.noise import NoiseSchedule
from hso_jax.problems.bank import Problems
from hso_jax.reference import search
from hso_jax.reference.data import Chunks, in_chunks, mean_error, squared_errors
from hso_jax.reference.lanes import ReferenceLane, check, lam_of_s, reference_of
from hso_jax.reference.search import ReferenceEffort
from hso_jax.schedule import Schedule, versions

COMPARED = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3")
"""Solvers whose error a result tells beside its own: one evaluation a step, usable in every pipeline."""


def reference_schedules(
    many: Sequence[ReferenceLane],
    *,
    effort: ReferenceEffort | None = None,
    starts: np.ndarray | None = None,
    compare: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> list[Schedule]:
    """Search every lane on the reference error; one compiled program for all lanes of one objective.

    Args:
        many: checked or unchecked lanes.
        effort: how hard to search.
        starts: [L, S, K] nodes in s to refine instead of the upper level's proposals.
        compare: also measure the solvers `COMPARED` on the nodes found (`Schedule.others`).
        progress: called with (lanes done, lanes in all).
        options: of `reference`: problems, samples, model_error, detail, power, seed, steps.

    Raises:
        ValueError: as `reference.lanes.check`, before any work.
    """
    lanes = [check(lane) for lane in many]
    found: dict[int, Schedule] = {}
    # Solvers of one and of two evaluations a step have programs of their own, and so has each objective.
    for kind in dict.fromkeys(_kind(lane) for lane in lanes):
        index = [i for i, lane in enumerate(lanes) if _kind(lane) == kind]
        before = len(found)
        report = None if progress is None else lambda done, _, b=before: progress(b + done, len(lanes))
        rows, inaccuracy = search.run(
            [lanes[i] for i in index],
            effort or ReferenceEffort(),
            starts=None if starts is None else starts[index],
            progress=report,
            **options,
        )
        for row, i in enumerate(index):
            found[i] = _schedule(lanes[i], jax.tree.map(lambda x: x[row], rows), float(inaccuracy[row]))  # noqa: B023
    schedules = [found[i] for i in range(len(lanes))]
    return [_compared(s, lane, **options) for s, lane in zip(schedules, lanes, strict=True)] if compare else schedules


def reference_error(
    schedule: Schedule,
    noise: NoiseSchedule,
    *,
    solver: str | None = None,
    guidance: float | None = None,
    problems: Problems | None = None,
    **options: Any,
) -> float:
    """Root-mean-square error of a solver's samples on the reference problems, with any schedule.

    Per dimension, relative to the standard deviation of each problem's data. Infinite where the solver fails.

    Args:
        schedule: of any method.
        noise: the noise schedule it is for: its noise end is where the exact solution starts.
        solver: a key of `SOLVERS`; by default the schedule's own.
        guidance: w; by default the schedule's own, or 1.
        problems: as `reference`; the family that schedules are optimised on by default.
        options: further arguments of `reference`: samples, model_error, detail, power, seed, steps.

    Raises:
        ValueError: for an unknown solver, a schedule of another noise schedule, or as `reference`.
    """
    if schedule.noise != noise.fingerprint():
        raise ValueError(f"the schedule was made for {schedule.model}, whose noise differs from {noise.name}'s")
    name = schedule.solver if solver is None else solver
    if name == "any":
        raise ValueError("the schedule was made for any solver; say solver='ddim', 'dpmpp-2m', 'unipc-3', ...")
    name = solvers.canonical(name)
    weight = guidance if guidance is not None else (schedule.guidance if schedule.guidance is not None else 1.0)
    data = reference_of(ReferenceLane(noise, schedule.nfe, guidance=weight), problems=problems, **options)
    return _error(schedule, name, in_chunks(data, data.noise.shape[1]))


def _error(schedule: Schedule, solver: str, data: Chunks) -> float:
    dtype = data.noise.dtype
    evaluated = np.asarray(schedule.lams[: schedule.nfe], dtype)
    # Padded, so that one compilation serves many N.
    lams = np.pad(evaluated, (0, -len(evaluated) % 10), mode="edge")
    end = np.inf if schedule.end == "clean" else schedule.lams[-1]
    value = float(_measure(data, jnp.asarray(lams), jnp.asarray(end, dtype), jnp.asarray(schedule.nfe), solver))
    return value if np.isfinite(value) else float("inf")


@functools.cache
def _measured(solver: str, platform: str) -> Any:
    def measure(data: Chunks, lams: jax.Array, end: jax.Array, nfe: jax.Array) -> jax.Array:
        weights = solvers.weights(solver, lams, end=end, nfe=nfe)
        chunks = data.problem.shape[0]
        return jnp.sqrt(mean_error(data, squared_errors(data, weights, chunks), chunks))

    return jax.jit(measure, compiler_options=compiler_options(platform))


def _measure(data: Chunks, lams: jax.Array, end: jax.Array, nfe: jax.Array, solver: str) -> jax.Array:
    return _measured(solver, jax.default_backend())(data, lams, end, nfe)


def _compared(schedule: Schedule, lane: ReferenceLane, **options: Any) -> Schedule:
    """With `others`: each solver's error on these nodes, which is at least what its own would be."""
    if solvers.SOLVERS[lane.solver].calls != 1:
        return schedule
    data = reference_of(lane, **options)
    chunks = in_chunks(data, data.noise.shape[1])
    errors = {name: _error(schedule, name, chunks) for name in COMPARED if name != lane.solver}
    return Schedule(**{**vars(schedule), "others": {name: e for name, e in errors.items() if np.isfinite(e)}})


def _schedule(lane: ReferenceLane, found: search.FoundReference, inaccuracy: float) -> Schedule:
    """The result in float64, in the model's own t."""
    lams = lam_of_s(found.nodes[: lane.nodes])
    if lane.first == "end":
        lams[0] = lane.noise_end
    error = float(found.error)
    code = int(found.result)
    if not np.isfinite(error):
        code, error = trust_region.NOT_FINITE, float("nan")
    p, last, first = (float(x) for x in found.psi)
    psi = None
    if np.isfinite(p):  # else the start was not the family's
        ends = {"t_eps": float(lane.noise.t_of_lam(last)), "t_max": float(lane.noise.t_of_lam(first))}
        psi = {"p": p, **ends, "ksigma_min": float(np.exp(-last)), "ksigma_max": float(np.exp(-first))}
    return Schedule.from_t(
        lane.noise,
        times(lane.noise, lams),
        layout=lane.layout,
        method="reference" if lane.objective == "reference" else f"{lane.objective}/reference",
        solver=lane.solver,
        guidance=lane.guidance,
        error=max(error, inaccuracy) if np.isfinite(error) else None,
        psi=psi,
        p=p if np.isfinite(p) else 2.0,
        result=trust_region.RESULTS[code],
        iterations=int(found.steps),
        stationarity=float(found.stationarity) if np.isfinite(found.stationarity) else None,
        seed=int(lane.seed),
        versions=versions(),
    )


def times(noise: NoiseSchedule, lams: np.ndarray) -> np.ndarray:
    """The model's t of nodes lams; t = 1 where lam is -inf, and no smaller than the model's first level."""
    pure = np.isneginf(lams)
    t = np.asarray(noise.t_of_lam(np.where(pure, 0.0, lams)), np.float64)
    return np.where(pure, 1.0, np.clip(t, float(noise.t_min), 1.0))


def _kind(lane: ReferenceLane) -> tuple[str, int]:
    return lane.objective, solvers.SOLVERS[lane.solver].calls
