"""A schedule for other programs: as text to paste, and the weights of its steps as a plain table."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from hso_jax.noise import alpha_sigma
from hso_jax.solvers import NONSTATIONARY, PURE_NOISE, SOLVERS, coefficients_of
from hso_jax.solvers.nonstationary import MOST
from hso_jax.solvers.weights import grid

if TYPE_CHECKING:
    from hso_jax.schedule import Schedule

_FORM = """\
# Step i, for samples x = {scaling} and predictions m[0], m[1], ... of x0, the newest first:
# r = sigmas[i + 1] / sigmas[i]; c = coefficients[i]; x = r x + (1 - r) ((1 - sum(c)) m[0] + c[0] m[1] + c[1] m[2] ...)
"""


def weights_table(schedule: Schedule) -> np.ndarray:
    """See `Schedule.weights_table`."""
    if schedule.coefficients is None:
        raise ValueError(
            f"the schedule is for solver {schedule.solver!r} and holds no coefficients; {NONSTATIONARY!r} ones have a "
            "table of weights (hso_jax.solvers.weights computes those of a named solver)"
        )
    last = math.inf if schedule.end == "clean" else schedule.lams[-1]
    start = schedule.lams[: schedule.nfe]
    stop = np.append(start[1:], last)
    with np.errstate(over="ignore"):
        before, (alpha, sigma) = alpha_sigma(start, schedule.kind)[1], alpha_sigma(stop, schedule.kind)
    gain = alpha * -np.expm1(start - stop)  # alpha' - alpha sigma'/sigma, without its cancellation
    older = schedule.coefficients
    bracket = np.column_stack([1.0 - older.sum(axis=1), older])
    return np.column_stack([sigma / before, gain[:, None] * bracket])


def python_literal(schedule: Schedule) -> str:
    """See `Schedule.python_literal`."""
    # The names come from a file: nothing in them may end the comment.
    about = f"{schedule.model}: N = {schedule.nfe}, {schedule.method} for {schedule.solver}, {schedule.kind} noise"
    lines = [f"# {about!a}", _line("sigmas", schedule.sampler_sigmas()), _line("timesteps", schedule.timesteps)]
    if schedule.coefficients is not None:
        scaling = "(1 - sigma) x0 + sigma eps" if schedule.kind == "flow" else "x0 + sigma eps"
        rows = "".join(f"    {_list(row)},\n" for row in schedule.coefficients)
        lines.append(f"{_FORM.format(scaling=scaling)}coefficients = [\n{rows}]")
    return "\n".join(lines) + "\n"


def known_coefficients(schedule: Schedule) -> np.ndarray:
    """[N, 3] a known solver's coefficients on the schedule's nodes; that solver has one evaluation a step.

    At pure noise they are those of a finite lam that is as good, as `bridge.sample` takes it.
    """
    last = math.inf if schedule.end == "clean" else float(schedule.lams[-1])
    evaluated = schedule.lams[: schedule.nfe].copy()
    if np.isinf(evaluated[0]):  # pure noise has the finite lam that `bridge.sample` takes there
        evaluated[0] = PURE_NOISE[schedule.kind]
    with np.errstate(all="ignore"):  # infinite ends are computed, and then not used
        steps = grid(evaluated, np.asarray(last), np.asarray(schedule.nfe))
        return np.asarray(coefficients_of(SOLVERS[schedule.solver].weights(steps), steps, MOST))


def in_coefficients(schedule: Schedule) -> Schedule:
    """The same steps of the same solver as coefficients of their own; a schedule that has some is returned as it is."""
    if schedule.coefficients is not None:
        return schedule
    origin = dataclasses.replace(schedule.origin, solver=NONSTATIONARY)
    return dataclasses.replace(schedule, origin=origin, coefficients=known_coefficients(schedule))


def _line(name: str, values: np.ndarray) -> str:
    return f"{name} = {_list(values)}"


def _list(values: np.ndarray) -> str:
    return "[" + ", ".join(repr(x) if math.isfinite(x) else 'float("inf")' for x in values.tolist()) + "]"
