"""The lower level: projected-gradient trust-region refinement of one schedule.

Each step finds, by a projected-gradient step, which gaps are held at their least length; takes a Newton step
on that face, damped by the multiplier of the trust region (Levenberg-Marquardt form; Conn, Gould and Toint,
Trust-Region Methods, 2000, ch. 7 and 12); projects it; and keeps it if the objective falls. NaN means reject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from hso_jax.lower.newton import Expansion, Objective, Tridiagonal, face_step, predicted_change, unevaluated
from hso_jax.lower.results import CONVERGED, MAX_STEPS, NOT_FINITE
from hso_jax.lower.simplex import nodes_of_gaps, project, project_gaps
from hso_jax.noise import NoiseSchedule

MAX_STEPS_DEFAULT = 40


class Feasible(NamedTuple):
    """Schedules with fixed ends and least gaps.

    Attributes:
        t_max, t_eps: the ends.
        spacing: least gap in t, `spacing * intervals <= t_max - t_eps`.
        intervals: number of real intervals; nodes after them are padding and stay at t_eps.
    """

    t_max: Array
    t_eps: Array
    spacing: Array
    intervals: Array


class State(NamedTuple):
    """Carried from step to step.

    Attributes:
        t: [K] feasible nodes; before the objective has been evaluated any.
        expansion: of the objective at t.
        target: [K - 1] gaps that a projected-gradient step leads to; what it brings to the bound is held.
        stationarity: largest change of a gap by that step, in t: 0 at a minimiser.
        damping: multiplier of the trust region, relative to the Hessian's diagonal.
        steps: taken so far; -1 before the objective has been evaluated.
    """

    t: Array
    expansion: Expansion
    target: Array
    stationarity: Array
    damping: Array
    steps: Array


class Info(NamedTuple):
    """Of one step: whether it was accepted, and the objective before and after."""

    accepted: Array
    before: Array
    after: Array


class Solution(NamedTuple):
    """A refined schedule.

    Attributes:
        t: [K] nodes.
        value: objective there.
        result: code, an index into `results.RESULTS`.
        steps: taken until it converged.
        stationarity: see `State`.
    """

    t: Array
    value: Array
    result: Array
    steps: Array
    stationarity: Array


def blank(nodes: int, dtype: Any) -> Solution:
    """The solution before there is one: t [nodes] NaN, no steps."""
    zero, none = jnp.zeros((), dtype), jnp.asarray(0)
    return Solution(jnp.full(nodes, jnp.nan, dtype), zero, none, none, zero)


def init(objective: Objective, noise: NoiseSchedule, start: Array, feasible: Feasible) -> State:
    """The state at `start` [K]; a start with NaN becomes equal gaps.

    The objective is not evaluated yet: the first `step` projects the start onto the feasible set and does that.
    """
    chex.assert_rank([start, feasible.t_max, feasible.t_eps, feasible.spacing], [1, 0, 0, 0])
    free = jnp.arange(start.shape[0] - 1) < feasible.intervals
    even = jnp.where(free, (feasible.t_max - feasible.t_eps) / feasible.intervals, 0.0)
    start = jnp.where(jnp.all(jnp.isfinite(start)), start, nodes_of_gaps(feasible.t_max, feasible.t_eps, even))
    blank = unevaluated(objective, noise, start)
    far, none = jnp.full_like(blank.value, jnp.inf), jnp.zeros_like(blank.value)
    # Nothing is held before the gradient is known, gaps shorter than the spacing neither.
    return State(start, blank, jnp.full_like(start[1:], jnp.inf), far, none, jnp.asarray(-1))


def step(objective: Objective, noise: NoiseSchedule, state: State, feasible: Feasible) -> tuple[State, Info]:
    """One trust-region step from a feasible state to a feasible state."""
    t, expansion = state.t, state.expansion
    gaps = t[:-1] - t[1:]
    eps = jnp.finfo(t.dtype).eps
    # A shorter trust region also shortens the step that says what is held, down to the gaps at their bound already.
    active = _held(gaps + (state.target - gaps) / (1.0 + state.damping), feasible)
    lower = jnp.where(jnp.arange(gaps.shape[0]) < feasible.intervals, feasible.spacing, 0.0)
    zero = jnp.zeros_like(feasible.t_max)
    move = face_step(expansion, active, lower - gaps, zero, zero, state.damping)
    usable = jnp.all(jnp.isfinite(move))
    trial = project(jnp.where(usable, t + move, t), *feasible)
    new = objective(noise, trial)
    # A sum is known to a few eps: what looks like a rise of that size is not one.
    accepted = usable & (new.value <= expansion.value + 4.0 * eps * jnp.abs(expansion.value))
    accepted &= jnp.all(jnp.isfinite(new.gradient))
    target, stationarity = _projected_gradient(new, trial, feasible)
    # The trust region grows where the model predicted the gain, and shrinks where it was far off (no division).
    promised = -predicted_change(expansion, trial - t)
    gained = expansion.value - new.value
    good, poor = gained >= 0.75 * promised, gained < 0.25 * promised
    relaxed = jnp.where(state.damping > 1e-3, 0.1 * state.damping, 0.0)
    kept = jnp.where(good, relaxed, jnp.where(poor, 2.0 * state.damping, state.damping))
    tightened = jnp.maximum(5.0 * state.damping, 1e-2)
    moved = State(trial, new, target, stationarity, kept, state.steps + 1)
    stayed = state._replace(damping=tightened, steps=state.steps + 1)
    return _choose(accepted, moved, stayed), Info(accepted, expansion.value, new.value)


def solve(
    objective: Objective,
    noise: NoiseSchedule,
    start: Array,
    feasible: Feasible,
    *,
    max_steps: int = MAX_STEPS_DEFAULT,
    tolerance: float | None = None,
) -> Solution:
    """Refine a start until it is stationary, in at most `max_steps` steps (always as many, for batches).

    Args:
        objective: see `hso_jax.lower.newton`.
        noise: the noise schedule.
        start: [K] nodes, in any order and place; NaN is replaced by equal gaps.
        feasible: the ends, spacing and number of intervals.
        max_steps: static.
        tolerance: on `stationarity`, default 4 eps of the dtype.

    Returns:
        A `Solution` whose nodes are differentiable, any number of times, in the noise schedule, the ends, the spacing
        and what the objective closes over: the minimiser's optimality condition on its face is differentiated.
    """
    frozen = jax.tree.map(jax.lax.stop_gradient, (noise, start, feasible))
    found, state = minimise(objective, *frozen, max_steps=max_steps, tolerance=tolerance)
    t = _implicit(objective, noise, jax.tree.map(jax.lax.stop_gradient, state), feasible)
    return found._replace(t=t, value=objective(noise, t).value)


def minimise(
    objective: Objective,
    noise: NoiseSchedule,
    start: Array,
    feasible: Feasible,
    *,
    max_steps: int = MAX_STEPS_DEFAULT,
    tolerance: float | None = None,
) -> tuple[Solution, State]:
    """`solve` without the derivative, for use inside a search; also returns the last state."""
    tol = 4.0 * jnp.finfo(start.dtype).eps if tolerance is None else tolerance

    def body(state: State, _: None) -> tuple[State, None]:
        # Skipped where lanes are taken one by one; under `vmap` both sides are computed and one is chosen.
        done = state.stationarity <= tol
        return jax.lax.cond(done, lambda: state, lambda: step(objective, noise, state, feasible)[0]), None

    state, _ = jax.lax.scan(body, init(objective, noise, start, feasible), None, length=max_steps + 1)
    finite = jnp.isfinite(state.expansion.value) & jnp.isfinite(state.stationarity)
    result = jnp.where(state.stationarity <= 8.0 * tol, CONVERGED, jnp.where(finite, MAX_STEPS, NOT_FINITE))
    return Solution(state.t, state.expansion.value, result, state.steps, state.stationarity), state


def _implicit(objective: Objective, noise: NoiseSchedule, state: State, feasible: Feasible) -> Array:
    """The minimiser, differentiable as often as the objective: the implicit function theorem on its face.

    On the face the nodes are `places[cluster] - fall`: nodes that held gaps tie together move as one cluster, the first
    and the last cluster with the ends. The places of the others are where the objective's gradient along them is zero.
    Valid where no gap is at its bound without a force.
    """
    active = _held(state.target, jax.tree.map(jax.lax.stop_gradient, feasible))
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(~active)])
    index = jnp.arange(cluster.shape[0])
    moving = (index > 0) & (index < cluster[-1])
    real = index[1:] <= feasible.intervals
    fall = jnp.cumsum(jnp.concatenate([jnp.zeros_like(state.t[:1]), jnp.where(active & real, feasible.spacing, 0.0)]))

    def nodes(places: Array) -> Array:
        ends = jnp.where(index == 0, feasible.t_max, feasible.t_eps + fall[-1])
        return jnp.where(moving, places, ends)[cluster] - fall

    def residual(places: Array) -> Array:
        slopes = jnp.zeros_like(places).at[cluster].add(objective(noise, nodes(places)).gradient)
        return jnp.where(moving, slopes, places)

    def solve_linear(linear: Callable[[Array], Array], right: Array) -> Array:
        return jnp.linalg.solve(jax.jacobian(linear)(right), right)

    first = jnp.zeros_like(state.t).at[cluster].max(state.t + jax.lax.stop_gradient(fall))
    places = jax.lax.custom_root(residual, first, lambda _, found: found, solve_linear)
    moved = nodes(places)
    return state.t + (moved - jax.lax.stop_gradient(moved))


def _projected_gradient(expansion: Expansion, t: Array, feasible: Feasible) -> tuple[Array, Array]:
    """Where a gradient step in the gaps, of length 1/curvature, lands after projection, and how far that is."""
    gaps = t[:-1] - t[1:]
    free = jnp.arange(gaps.shape[0]) < feasible.intervals
    # d/d gap_i moves every later node down; the ends are fixed, so their gradient does not count.
    interior = jnp.arange(t.shape[0]) < feasible.intervals
    by_gap = -jnp.cumsum(jnp.where(interior, expansion.gradient, 0.0)[::-1])[::-1][1:]
    trial = gaps - by_gap / _curvature(expansion)
    finite = jnp.all(jnp.isfinite(trial))
    target = project_gaps(jnp.where(finite, trial, gaps), feasible.spacing, feasible.t_max - feasible.t_eps, free)
    far = jnp.max(jnp.where(free, jnp.abs(target - gaps), 0.0))
    return target, jnp.where(finite, far, jnp.inf)


def _held(target: Array, feasible: Feasible) -> Array:
    padded = jnp.arange(target.shape[0]) >= feasible.intervals
    return padded | (target <= feasible.spacing)


def _curvature(expansion: Expansion) -> Array:
    """Largest second derivative in a gap: half of that in a node, which has two."""
    hessian = expansion.hessian
    diagonal = hessian.diagonal if isinstance(hessian, Tridiagonal) else jnp.diagonal(hessian)
    return 0.5 * jnp.max(jnp.abs(diagonal)) + jnp.finfo(diagonal.dtype).tiny


def _choose(condition: Array, yes: State, no: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
