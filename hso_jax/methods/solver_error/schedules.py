"""From what the program found to `Schedule`s, and the solver's error of any schedule."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax import solvers
from hso_jax.checks import brief
from hso_jax.compiling import jit, platform
from hso_jax.lane import Lane
from hso_jax.lower.gaps import SPACING
from hso_jax.lower.results import NOT_FINITE, RESULTS
from hso_jax.methods.solver_error.coefficients import FreeFound
from hso_jax.methods.solver_error.lanes import begin, data_of_lane
from hso_jax.methods.solver_error.search import Found
from hso_jax.noise import NoiseSchedule, check_noise, lam_of_s, s_of_lam
from hso_jax.objectives.expansion import objective_name
from hso_jax.objectives.solver_error import Chunks, error_data, in_chunks, mean_error, squared_errors
from hso_jax.problems.bank import Problems
from hso_jax.schedule import Origin, Schedule, Scores, versions


def schedule_of(lane: Lane, found: Found, inaccuracy: float) -> Schedule:
    """The result in float64, in the model's own t.

    Where the error is nowhere finite the nodes are equal gaps in s; `result` says so.

    Args:
        lane: checked.
        found: its row of the program's results.
        inaccuracy: of the exact solution: no error is told below it.
    """
    method: Any = lane.method
    nodes, error, code = np.asarray(found.nodes[: lane.nodes], np.float64), float(found.error), int(found.result)
    top, floor = (float(s_of_lam(lam)) for lam in (begin(lane), lane.noise.data_end))
    failed = not np.isfinite(error)
    if failed and not (np.isfinite(nodes).all() and (np.diff(nodes) < 0).all() and nodes[-1] > 0):
        nodes = np.linspace(min(top, 1.0 - SPACING), floor, lane.nodes + 1)[: lane.nodes]
    lams = lam_of_s(nodes)
    if method.first != "free":
        lams[0] = begin(lane)
    p, last, first = (float(x) for x in found.psi)
    psi = None
    if np.isfinite(p):  # else the start was not the family's
        ends = {"t_eps": float(lane.noise.t_of_lam(last)), "t_max": float(lane.noise.t_of_lam(first))}
        psi = {"p": p, **ends, "ksigma_min": float(np.exp(-last)), "ksigma_max": float(np.exp(-first))}
    # A rule that is taken as it is has not been optimised.
    result = "fixed" if psi is None and method.refinement is None else RESULTS[code]
    origin = Origin(
        method="solver-error" if method.refinement else f"{objective_name(method.family)}/solver-error",
        solver=method.solver,
        guidance=method.guidance,
        psi=psi,
        p=2.0 if psi is None else p,
        result=RESULTS[NOT_FINITE] if failed else result,
        iterations=int(found.steps),
        stationarity=float(found.stationarity) if np.isfinite(found.stationarity) else None,
        seed=int(lane.seed),
        versions=versions(),
    )
    scores = Scores(error=None if failed else max(error, inaccuracy))
    return Schedule.from_lams(lane.noise, lams, layout=lane.layout, origin=origin, scores=scores)


def free_schedule_of(lane: Lane, found: FreeFound, known: Schedule, inaccuracy: float) -> Schedule:
    """The non-stationary solver's result, or the known solver's where that is about as good.

    Args:
        lane: checked.
        found: its row of the program's results.
        known: the best known solver on its own best nodes, or what `on_start` says of a start that was given.
        inaccuracy: as in `schedule_of`.
    """
    method: Any = lane.method
    error = max(float(found.error), inaccuracy)
    reached = known.error if known.error is not None else float("inf")
    if not np.isfinite(error) or error > (1.0 - method.coefficients.gain) * reached:
        return known
    lams = lam_of_s(np.asarray(found.nodes[: lane.nodes], np.float64))
    if method.first != "free":
        lams[0] = begin(lane)
    coefficients = np.asarray(found.coefficients[: lane.nfe], np.float64)
    origin = Origin(
        method="solver-error",
        solver=solvers.NONSTATIONARY,
        guidance=method.guidance,
        result=RESULTS[int(found.result)],
        iterations=int(found.steps),
        stationarity=float(found.stationarity),
        seed=int(lane.seed),
        versions=versions(),
    )
    others = {known.solver: reached} if np.isfinite(reached) else {}
    scores = Scores(error=error, others_own_nodes=others, amplification=float(found.amplification))
    return Schedule.from_lams(
        lane.noise, lams, layout=lane.layout, origin=origin, scores=scores, coefficients=coefficients
    )


def on_start(lane: Lane, start: Schedule, solver: str) -> Schedule:
    """The nodes of a start that was given, for a known solver and with its error on the lane's problems.

    What the start says of itself is of another solver, or of other problems.
    """
    method: Any = lane.method
    data = data_of_lane(lane)
    error = measure(start, solver, in_chunks(data, data.noise.shape[1]))
    origin = dataclasses.replace(start.origin, solver=solver, guidance=method.guidance)
    scores = Scores(error=max(error, float(data.inaccuracy)) if np.isfinite(error) else None)
    return Schedule.from_t(lane.noise, start.t, layout=start.layout, end=start.end, origin=origin, scores=scores)


def compared(schedule: Schedule, lane: Lane) -> Schedule:
    """With `others_same_nodes`: each other solver's error on these nodes, which is at least what its own would be."""
    method: Any = lane.method
    names = [name for name in method.compare if name != method.solver]
    if not names or solvers.SOLVERS[method.solver].calls != 1:
        return schedule
    data = data_of_lane(lane)
    chunks = in_chunks(data, data.noise.shape[1])
    errors = {name: measure(schedule, name, chunks) for name in names}
    return schedule.with_scores(others_same_nodes={name: e for name, e in errors.items() if np.isfinite(e)})


def solver_error(
    schedule: Schedule,
    noise: NoiseSchedule,
    *,
    solver: str | None = None,
    guidance: float | None = None,
    problems: Problems | None = None,
    **options: Any,
) -> float:
    """Root-mean-square error of a solver's samples on problems with a known solution, with any schedule.

    Per dimension, relative to the standard deviation of each problem's data. Infinite where the solver fails.

    Args:
        schedule: of any method.
        noise: the noise schedule it is for: its noise end is where the exact solution starts.
        solver: a name that `hso_jax.solvers.canonical` knows; by default the schedule's own.
        guidance: w; by default the schedule's own, or 1.
        problems: of either kind, stacked or a sequence; the family that schedules are optimised on by default.
        options: further arguments of `objectives.solver_error.error_data`: model_error, detail, power, samples, seed,
            steps.

    Raises:
        ValueError: for an unknown solver, a schedule of another noise schedule, or as `error_data`.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule is {brief(schedule)}; need a Schedule")
    if schedule.noise != check_noise(noise).fingerprint():
        raise ValueError(f"the schedule was made for {schedule.model}, whose noise differs from {noise.name}'s")
    name = schedule.solver if solver is None else solver
    if name == "any":
        raise ValueError("the schedule was made for any solver; say solver='ddim', 'dpmpp-2m', 'unipc-3', ...")
    name = solvers.canonical(name, solvers.EVERY)
    if name == solvers.NONSTATIONARY and schedule.coefficients is None:
        raise ValueError("solver is 'nonstationary'; the schedule has no coefficients: it was made for a known solver")
    weight = guidance if guidance is not None else (schedule.guidance if schedule.guidance is not None else 1.0)
    platform()
    data = error_data(noise.noise_end, weight, prediction=noise.prediction, problems=problems, **options)
    return measure(schedule, name, in_chunks(data, data.noise.shape[1]))


def measure(schedule: Schedule, solver: str, data: Chunks) -> float:
    """The error of a solver, by its full name, on all samples; infinite where it fails."""
    dtype = data.noise.dtype
    evaluated = np.asarray(schedule.lams[: schedule.nfe], dtype)
    # Padded, so that one compilation serves many N.
    lams = np.pad(evaluated, (0, -len(evaluated) % 10), mode="edge")
    end = np.inf if schedule.end == "clean" else schedule.lams[-1]
    program = _program(solver)
    coefficients = None
    if solver == solvers.NONSTATIONARY:
        assert schedule.coefficients is not None
        coefficients = jnp.asarray(np.pad(schedule.coefficients, ((0, len(lams) - schedule.nfe), (0, 0))), dtype)
    value = float(program(data, jnp.asarray(lams), jnp.asarray(end, dtype), jnp.asarray(schedule.nfe), coefficients))
    return value if np.isfinite(value) else float("inf")


@functools.cache
def _program(solver: str) -> Any:
    def error(
        data: Chunks, lams: jax.Array, end: jax.Array, nfe: jax.Array, coefficients: jax.Array | None
    ) -> jax.Array:
        if coefficients is None:
            weights = solvers.weights(solver, lams, end=end, nfe=nfe)
        else:
            weights = solvers.nonstationary(lams, coefficients, end=end, nfe=nfe)
        chunks = data.problem.shape[0]
        return jnp.sqrt(mean_error(data, squared_errors(data, weights, chunks), chunks))

    return jit(error)
