"""The lower level: projected-gradient trust-region refinement of one schedule.

Each step finds, by a projected-gradient step, which gaps are held at their least length; takes a Newton step
on that face, damped by the multiplier of the trust region (Levenberg-Marquardt form; Conn, Gould and Toint,
Trust-Region Methods, 2000, ch. 7 and 12); projects it; and keeps it if the objective falls. NaN means reject.

First the projection onto the feasible schedules, then the second-order expansion of an objective and its Newton step.
An objective is either a sum over intervals (MEP), whose Hessian is tridiagonal and costs O(K), or any function of the
nodes, whose Hessian is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lazy_loader
import numpy as np
from jax import Array

from hso_jax.noise import NoiseSchedule

chex = lazy_loader.load("chex")  # a program that an earlier process left is not traced, and needs none of it

CONVERGED, MAX_STEPS, NOT_FINITE = 0, 1, 2
RESULTS = ("converged", "max_steps", "not_finite")


def project_gaps(gaps: Array, lower: Array, total: Array, free: Array) -> Array:
    """Euclidean projection of gaps [M] onto {g >= lower, sum g = total} (a shifted simplex).

    Args:
        gaps: [M] any finite numbers. (Test `isfinite` first: XLA's min and max may drop a NaN.)
        lower: scalar lower bound, with `lower * (number of free gaps) <= total`.
        total: scalar sum.
        free: [M] bool, which gaps exist; the others are returned as 0.
    """
    from optax.projections import projection_simplex  # takes as long to import as the rest of the package

    chex.assert_rank(gaps, 1)
    chex.assert_equal_shape([gaps, free])
    room = total - lower * jnp.sum(free)
    above = gaps - lower
    # The projection does not see a common shift; with the largest at 0, what lies 2 room below it is never in it.
    scale = jnp.where(room > 0, room, 1.0)
    below = jnp.maximum(above - jnp.max(jnp.where(free, above, -jnp.inf)), -2.0 * scale)
    kept = free & (projection_simplex(jnp.where(free, below, -2.0 * scale), scale) > 0)
    return _shared_out(above, kept, room, free, lower)


def project_gaps_in_rounds(gaps: Array, lower: Array, total: Array, free: Array) -> Array:
    """`project_gaps` for the inside of a search, where optax's sort would take a third of the time.

    Each round drops the gaps that the mean excess of those kept would bring below `lower` (Michelot, J. Optim. Theory
    Appl. 50, 1986). After a step few gaps are to be dropped, so a few rounds do.
    """
    room, above = total - lower * jnp.sum(free), gaps - lower
    # No gap keeps more than the room, so the excess is at least what the largest has beyond it.
    below = above - jnp.max(jnp.where(free, above, -jnp.inf))

    def drop(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = state
        left = kept & (below > _excess(below, kept, room))
        return left, jnp.any(left != kept)

    kept, _ = jax.lax.while_loop(lambda state: state[1], drop, (free & (below > -room), jnp.asarray(True)))
    return _shared_out(above, kept, room, free, lower)


def _shared_out(above: Array, kept: Array, room: Array, free: Array, lower: Array) -> Array:
    """The projection that keeps these gaps above `lower`; optax's sums round to eps times the room, these to the gaps'.

    Twice, so that a gap which rounding kept or dropped at the very edge is put right.
    """
    for _ in range(2):
        theta = _excess(above, kept, room)
        kept = free & (above > theta)
    shares = jnp.where(room > 0, jnp.maximum(above - theta, 0.0), 0.0)
    return jnp.where(free, shares + lower, 0.0)


def _excess(above: Array, kept: Array, room: Array) -> Array:
    """What each of these gaps has too much."""
    return (jnp.sum(jnp.where(kept, above, 0.0)) - room) / jnp.maximum(jnp.sum(kept), 1)


def nodes_of_gaps(t_max: Array, t_eps: Array, gaps: Array) -> Array:
    """Nodes [M + 1] that fall from t_max by the gaps [M]; from the last real one on they are t_eps exactly."""
    t = t_max - jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
    index = jnp.arange(t.shape[0])
    last = jnp.max(jnp.where(gaps <= 0.0, 0, index[1:]))  # a gap of NaN is one: its nodes are NaN
    return jnp.where(index < last, t, t_eps)


def project(
    t: Array,
    t_max: Array,
    t_eps: Array,
    spacing: Array | float,
    intervals: Array | int,
    by: Callable[..., Array] = project_gaps,
) -> Array:
    """The nearest feasible schedule, in the Euclidean metric of its gaps.

    Args:
        t: [K] finite nodes; only the first `intervals + 1` count.
        t_max: the first node.
        t_eps: the last node, below t_max.
        spacing: least gap; `spacing * intervals <= t_max - t_eps`.
        intervals: number of real intervals, 1..K - 1; later nodes come back as t_eps.
        by: the projection of the gaps.
    """
    free = jnp.arange(t.shape[0] - 1) < intervals
    return nodes_of_gaps(t_max, t_eps, by(t[:-1] - t[1:], jnp.asarray(spacing), t_max - t_eps, free))


def spread(t: np.ndarray, spacing: float) -> np.ndarray:
    """Falling nodes moved, by no more than they must, until neighbours are `spacing` apart; the ends stay.

    What float32 leaves of the lower level's constraint is rounding; this makes it exact in float64 (NumPy).
    """
    steps = spacing * np.arange(len(t))
    below = np.minimum.accumulate(t + steps) - steps  # at least the spacing below the node before
    below[-1] = t[-1]
    above = np.maximum.accumulate((below + steps)[::-1])[::-1] - steps  # and above the node after
    return np.concatenate([t[:1], above[1:-1], t[-1:]])


Interval = Callable[[Array, Array], tuple[Array, ...]]
"""(lam_i, lam_{i+1}) -> value, two first and three second derivatives, elementwise (`mep_interval_derivatives`)."""


class Tridiagonal(NamedTuple):
    """A symmetric tridiagonal matrix: diagonal [K], neighbours [K - 1]."""

    diagonal: Array
    neighbours: Array


class Expansion(NamedTuple):
    """Second-order expansion of an objective at nodes t [K]: scalar value, gradient [K] and Hessian."""

    value: Array
    gradient: Array
    hessian: Tridiagonal | Array


Objective = Callable[[NoiseSchedule, Array], Expansion]
"""(noise, t) -> expansion in t; padded nodes repeat the last one and cost nothing."""


def interval_objective(interval: Interval) -> Objective:
    """The expansion of `sum_i interval(lam(t_i), lam(t_{i+1}))`, with its tridiagonal Hessian."""

    def expand(noise: NoiseSchedule, t: Array) -> Expansion:
        lam, rate, bend = noise.lam_derivatives(t)
        value, da, db, daa, dab, dbb = interval(lam[:-1], lam[1:])
        zero = jnp.zeros_like(lam[:1])
        slope = jnp.concatenate([da, zero]) + jnp.concatenate([zero, db])
        curve = jnp.concatenate([daa, zero]) + jnp.concatenate([zero, dbb])
        hessian = Tridiagonal(curve * rate * rate + slope * bend, dab * rate[:-1] * rate[1:])
        return Expansion(jnp.sum(value), slope * rate, hessian)

    return expand


def dense_objective(function: Callable[[Array], Array]) -> Objective:
    """The expansion of any scalar function of lams [K], with its dense Hessian (K gradients)."""

    def expand(noise: NoiseSchedule, t: Array) -> Expansion:
        def of_t(t: Array) -> Array:
            return function(noise.lam(t))

        value, gradient = jax.value_and_grad(of_t)(t)
        return Expansion(value, gradient, jax.hessian(of_t)(t))

    return expand


def unevaluated(objective: Objective, noise: NoiseSchedule, t: Array) -> Expansion:
    """An expansion of the objective's kind that any value improves on and whose Newton step is zero."""
    kind = type(jax.eval_shape(objective, noise, t).hessian)
    ones = jnp.ones_like(t)
    hessian = Tridiagonal(ones, jnp.zeros_like(t[1:])) if kind is Tridiagonal else jnp.diag(ones)
    return Expansion(jnp.full((), jnp.inf, t.dtype), jnp.zeros_like(t), hessian)


def predicted_change(expansion: Expansion, move: Array) -> Array:
    """What the expansion says the objective changes by, `g s + s H s / 2`."""
    hessian = expansion.hessian
    if isinstance(hessian, Tridiagonal):
        curved = hessian.diagonal * move
        curved = curved.at[1:].add(hessian.neighbours * move[:-1]).at[:-1].add(hessian.neighbours * move[1:])
    else:
        curved = hessian @ move
    return jnp.sum(move * (expansion.gradient + 0.5 * curved))


def face_step(expansion: Expansion, active: Array, change: Array, first: Array, last: Array, damping: Array) -> Array:
    """The Newton step that keeps the active gaps as prescribed.

    Minimises `g s + s H s / 2 + damping s |diag H| s / 2` over steps s [K] with s_0 = first, s_K-1 = last and
    `s_i - s_{i+1} = change_i` wherever gap i is active.

    Args:
        expansion: at the current nodes.
        active: [K - 1] bool, gaps that are held (padded gaps are, with change 0).
        change: [K - 1] prescribed change of each active gap.
        first: step of the fixed first node.
        last: step of the fixed last node.
        damping: multiplier of the trust region, >= 0, in the metric of the Hessian's diagonal (Marquardt).

    Returns:
        [K] the step. Where the Hessian is not positive definite on the face it is modified so that the step descends.
    """
    if isinstance(expansion.hessian, Tridiagonal):
        return _tridiagonal_step(expansion, active, change, first, last, damping)
    return _dense_step(expansion, active, change, first, last, damping)


def _tridiagonal_step(
    expansion: Expansion, active: Array, change: Array, first: Array, last: Array, damping: Array
) -> Array:
    """Elimination from noise to data: s_i = ratio_i s_{i+1} + shift_i, and back. O(K).

    The part of the quadratic that has been eliminated is a parabola a s^2/2 + b s in the current node; a node
    is pinned while held gaps tie it to the fixed first one.
    """
    assert isinstance(expansion.hessian, Tridiagonal)
    diagonal, neighbours = expansion.hessian
    diagonal = diagonal + damping * jnp.abs(diagonal)
    # Where the objective is concave along a pivot its sign is turned (a modified Cholesky).
    least = 1e-2 * jnp.max(jnp.abs(diagonal))

    def eliminate(carry: Any, node: Any) -> Any:
        a, b, pinned, place = carry
        held, gap, off, next_diagonal, next_gradient = node
        free = ~(pinned | held)
        a = jnp.where(free & (a <= 0), jnp.maximum(-a, least), a)
        pivot = jnp.where(free, a, 1.0)
        ratio = jnp.where(pinned, 0.0, jnp.where(held, 1.0, -off / pivot))
        shift = jnp.where(pinned, place, jnp.where(held, gap, -b / pivot))
        b = next_gradient + (a * shift + b) * ratio + off * shift
        a = next_diagonal + (a * ratio + 2.0 * off) * ratio
        return (a, b, pinned & held, place - gap), (ratio, shift)

    zero = jnp.zeros_like(first + diagonal[0])
    nodes = (active, change, neighbours, diagonal[1:], expansion.gradient[1:])
    start = (zero, zero, jnp.asarray(True), first + zero)
    _, (ratio, shift) = jax.lax.scan(eliminate, start, nodes)

    def substitute(s: Array, node: tuple[Array, Array]) -> tuple[Array, Array]:
        s = node[0] * s + node[1]
        return s, s

    _, steps = jax.lax.scan(substitute, last + zero, (ratio, shift), reverse=True)
    return jnp.concatenate([steps, (last + zero)[None]])


def _dense_step(expansion: Expansion, active: Array, change: Array, first: Array, last: Array, damping: Array) -> Array:
    """Nodes tied by held gaps move as one cluster; the Hessian of the clusters is made positive by |eigenvalues|."""
    count = expansion.gradient.shape[0]
    hessian = expansion.hessian
    assert not isinstance(hessian, Tridiagonal)
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(~active)])
    member = (cluster[:, None] == jnp.arange(count)).astype(expansion.gradient.dtype)
    fall = jnp.concatenate([jnp.zeros_like(change[:1]), jnp.cumsum(jnp.where(active, change, 0.0))])
    # Within a cluster nodes differ by what its gaps prescribe; the clusters of the two ends are given.
    base = jnp.where(cluster == cluster[-1], last + fall[-1] - fall, first - fall)
    base = jnp.where(cluster == 0, first - fall, base)
    moving = (jnp.arange(count) > 0) & (jnp.arange(count) < cluster[-1])
    member = member * moving
    size = jnp.abs(jnp.diagonal(hessian))
    target = member.T @ (expansion.gradient + hessian @ base + damping * size * base)
    # Scaled by the diagonal: damping is then Marquardt's, and the eigenvalues of all nodes are comparable.
    metric = member.T @ size
    scale = jnp.where(metric > 0, jax.lax.rsqrt(jnp.where(metric > 0, metric, 1.0)), 1.0)
    scaled = scale[:, None] * (member.T @ hessian @ member) * scale
    finite = jnp.all(jnp.isfinite(scaled))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, scaled, jnp.eye(count, dtype=scaled.dtype)))
    least = 8.0 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    values = jnp.maximum(jnp.abs(values), least) + damping
    step = scale * (vectors @ ((vectors.T @ (scale * target)) / values))
    return jnp.where(finite, base - member @ step, jnp.nan)


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
    share = jnp.minimum(jnp.arange(start.shape[0]) / feasible.intervals, 1.0).astype(start.dtype)
    even = feasible.t_max + share * (feasible.t_eps - feasible.t_max)
    start = jnp.where(jnp.all(jnp.isfinite(start)), start, even)
    blank = unevaluated(objective, noise, start)
    far, none = jnp.full_like(blank.value, jnp.inf), jnp.zeros_like(blank.value)
    # Nothing is held before the gradient is known, gaps shorter than the spacing neither.
    return State(start, blank, jnp.full_like(start[1:], jnp.inf), far, none, jnp.asarray(-1))


def step(objective: Objective, noise: NoiseSchedule, state: State, feasible: Feasible) -> State:
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
    trial = project(jnp.where(usable, t + move, t), *feasible, by=project_gaps_in_rounds)
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
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), moved, stayed)


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
        objective: see `hso_jax.lower.trust_region`.
        noise: the noise schedule.
        start: [K] nodes, in any order and place; NaN is replaced by equal gaps.
        feasible: the ends, spacing and number of intervals.
        max_steps: static.
        tolerance: on `stationarity`, default 4 eps of the dtype.

    Returns:
        A `Solution` whose nodes are differentiable, any number of times, in the noise schedule, the ends, the spacing
        and what the objective closes over: the minimiser's optimality condition on its face is differentiated.
    """
    noise_, start, feasible_ = jax.tree.map(jax.lax.stop_gradient, (noise, start, feasible))
    start = jnp.where(jnp.all(jnp.isfinite(start)), project(start, *feasible_), jnp.nan)
    found, state = minimise(objective, noise_, start, feasible_, max_steps=max_steps, tolerance=tolerance)
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
        return jax.lax.cond(done, lambda: state, lambda: step(objective, noise, state, feasible)), None

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
    target = project_gaps_in_rounds(
        jnp.where(finite, trial, gaps), feasible.spacing, feasible.t_max - feasible.t_eps, free
    )
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
