"""The lower level on the solver's error: a quasi-Newton trust-region method in the logarithms of the gaps.

Gaps are `least + room * softmax(y)`: in y there is no constraint left, every row of gaps is feasible, and a step of
0.1 changes any gap by a tenth, at either end of the schedule. The function has no cheap Hessian; it is built from the
gradients (BFGS with Powell's damping; Nocedal and Wright, Numerical Optimization, 2006, procedure 18.2), and each step
minimises that model within the trust radius (Conn, Gould and Toint, Trust-Region Methods, 2000, ch. 7).

In s = sigma/(alpha + sigma) every model starts at s <= 1 and ends near 0. Nodes run from the
model's noise end, or below a wall beside it where the first node is free, to a wall at the model's data end,

    top >= node_0 > node_1 > ... > wall,    neighbours at least `SPACING` apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lazy_loader
from jax import Array

from hso_jax.lower.trust_region import CONVERGED, MAX_STEPS, NOT_FINITE

chex = lazy_loader.load("chex")

SPACING = 1e-3
"""Least distance of neighbouring nodes in s: about one training level of T = 1000."""


class Range(NamedTuple):
    """Where the nodes of one schedule may be.

    Attributes:
        top, floor: largest and smallest s of a node.
        free: bool, whether the first node is placed like the others; else it stays at `top`.
        nodes: how many there are; what follows them in an array is padding.
    """

    top: Array
    floor: Array
    free: Array
    nodes: Array


def walls(range_: Range) -> tuple[Array, Array]:
    """Where the gaps begin, in s, and how much of s they share beyond their least length."""
    top, floor, free, nodes = range_
    upper = jnp.where(free, jnp.minimum(top + SPACING, 1.0), top)
    lower = jnp.maximum(floor - SPACING, 0.0)
    return upper, upper - lower - SPACING * (nodes + free)


def nodes_of(range_: Range, y: Array) -> Array:
    """Nodes [K] in s from the logits y [K + 1] of their gaps: `SPACING + room softmax(y)`, see `walls`."""
    upper, room = walls(range_)
    real = jnp.arange(y.shape[0]) < range_.nodes + range_.free
    gaps = jnp.where(real, SPACING + room * jax.nn.softmax(jnp.where(real, y, -jnp.inf)), 0.0)
    below = jnp.cumsum(gaps)
    return upper - jnp.where(range_.free, below, below - gaps)[:-1]


def logits_of(range_: Range, nodes: Array) -> Array:
    """The inverse of `nodes_of`; nodes closer than `SPACING` are moved apart a little more than that."""
    upper, room = walls(range_)
    count = range_.nodes + range_.free
    ends = upper[None], (upper - room - SPACING * count)[None]
    real = jnp.where(jnp.arange(nodes.shape[0]) < range_.nodes, nodes, ends[1])
    free, pinned = jnp.concatenate([ends[0], real, ends[1]]), jnp.concatenate([ends[0], real[1:], ends[1], ends[1]])
    row = jnp.where(range_.free, free, pinned)
    spare = jnp.maximum(row[:-1] - row[1:] - SPACING, 1e-3 * room / count)
    return jnp.where(jnp.arange(row.shape[0] - 1) < count, jnp.log(spare), 0.0)


def lams_of(range_: Range, nodes: Array) -> Array:
    """Lam [K] of nodes [K] in s, a pinned first one at the model's end; 0 where there is none."""
    top = range_.top
    index = jnp.arange(nodes.shape[0])
    moves = (index < range_.nodes) & (range_.free | (index > 0))
    safe = jnp.where(moves, nodes, 0.5)
    lams = jnp.log1p(-safe) - jnp.log(safe)
    pinned = jnp.where(top < 1.0, jnp.log1p(-jnp.minimum(top, 0.999999)) - jnp.log(top), -jnp.inf)
    return jnp.where(moves, lams, jnp.where(index < range_.nodes, pinned, 0.0))


FIRST_RADIUS, LARGEST_RADIUS = 0.5, 3.0

TOLERANCE = 1e-4
"""On the gain in the function that its model still promises: in a log of squares, 0.005 % of the error."""

SMALLEST_RADIUS = 1e-4
"""A trust radius below this says that rounding, or a rough function, ends the descent."""

_BISECTIONS = 24

Function = Callable[[Array], tuple[Array, Array]]
"""y [M] -> value, gradient [M]; where a y has no effect its gradient is 0."""


class State(NamedTuple):
    """Carried from step to step.

    Attributes:
        y: [M].
        value, gradient: of the function at y.
        hessian: [M, M] positive definite model of its second derivatives.
        move: [M] the next step, the model's minimiser within the radius.
        promised: what the model says the value falls by then.
        radius: of the trust region, in the Euclidean norm of y.
        steps: evaluations after the first; -1 before it.
    """

    y: Array
    value: Array
    gradient: Array
    hessian: Array
    move: Array
    promised: Array
    radius: Array
    steps: Array


class Info(NamedTuple):
    """Of one step: whether it was accepted, and the function before and after."""

    accepted: Array
    before: Array
    after: Array


class Solution(NamedTuple):
    """A minimiser.

    Attributes:
        y: [M].
        value: of the function there.
        result: code, an index into `results.RESULTS`.
        steps: taken.
        stationarity: largest entry of the gradient.
        hessian: [M, M] the model of the second derivatives there.
    """

    y: Array
    value: Array
    result: Array
    steps: Array
    stationarity: Array
    hessian: Array


def init(y: Array, hessian: Array | None = None) -> State:
    """The state before the first evaluation, which is a step that stays at y [M]: the function is compiled once."""
    chex.assert_rank(y, 1)
    zero, nothing = jnp.zeros_like(y), jnp.zeros((), y.dtype)
    hessian = jnp.eye(y.shape[0], dtype=y.dtype) if hessian is None else hessian
    radius = jnp.asarray(FIRST_RADIUS, y.dtype)
    return State(y, nothing + jnp.inf, zero, hessian, zero, nothing, radius, jnp.asarray(-1))


def step(function: Function, state: State) -> tuple[State, Info]:
    """One evaluation; the step is kept if the value falls, and the model learns from it either way. NaN is a rise."""
    move = state.move
    value, gradient = function(state.y + move)
    chex.assert_rank(value, 0)
    chex.assert_equal_shape([gradient, move])
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    gained = jnp.where(finite, state.value - value, -jnp.inf)
    length = jnp.linalg.norm(move)
    radius = jnp.where(gained < 0.25 * state.promised, jnp.where(gained < 0, 0.25, 0.5) * length, state.radius)
    wider = (gained > 0.75 * state.promised) & (length > 0.8 * state.radius)
    radius = jnp.where(wider, jnp.minimum(2.0 * radius, LARGEST_RADIUS), radius)
    hessian = jnp.where(finite, _learn(state.hessian, move, gradient - state.gradient), state.hessian)
    better = gained > 0
    info = Info(better, state.value, value)
    y, value, gradient = (
        jnp.where(better, new, old)
        for new, old in ((state.y + move, state.y), (value, state.value), (gradient, state.gradient))
    )
    moved = State(y, value, gradient, hessian, *_subproblem(gradient, hessian, radius), radius, state.steps + 1)
    return moved, info


def settled(state: State) -> Array:
    """Whether the model promises next to nothing although the trust region does not hold it back."""
    inside = jnp.linalg.norm(state.move) <= 0.99 * state.radius
    return (state.steps >= 0) & ((inside & (state.promised <= TOLERANCE)) | (state.radius < SMALLEST_RADIUS))


def solve(function: Function, y: Array, max_steps: Array | int, hessian: Array | None = None) -> Solution:
    """From y [M] until it has settled or for `max_steps` steps; with the model [M, M] of a similar function, if any."""
    last = jax.lax.while_loop(
        lambda state: (state.steps < max_steps) & ~settled(state),
        lambda state: step(function, state)[0],
        init(y, hessian),
    )
    result = jnp.where(settled(last), CONVERGED, MAX_STEPS)
    result = jnp.where(jnp.isfinite(last.value), result, NOT_FINITE)
    return Solution(last.y, last.value, result, last.steps, jnp.max(jnp.abs(last.gradient)), last.hessian)


def _learn(hessian: Array, move: Array, change: Array) -> Array:
    """BFGS; where the change of the gradient shows too little curvature it is mixed with the model's own (Powell)."""
    model = hessian @ move
    curved, seen = move @ model, move @ change
    damped = seen < 0.2 * curved
    share = jnp.where(damped, 0.8 * curved / jnp.where(damped, curved - seen, 1.0), 1.0)
    mixed = share * change + (1.0 - share) * model
    new = hessian - jnp.outer(model, model) / curved + jnp.outer(mixed, mixed) / (move @ mixed)
    return jnp.where(jnp.all(jnp.isfinite(new)), new, hessian)


def _subproblem(gradient: Array, hessian: Array, radius: Array) -> tuple[Array, Array]:
    """The minimiser of the positive definite model within the radius, and the fall it promises."""
    values, vectors = jnp.linalg.eigh(hessian)
    values = jnp.maximum(values, 1e-6 * jnp.max(values))
    slopes = vectors.T @ gradient

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        long = jnp.linalg.norm(slopes / (values + middle)) > radius
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    zero = jnp.zeros_like(radius)
    _, damping = jax.lax.fori_loop(0, _BISECTIONS, halve, (zero, jnp.linalg.norm(slopes) / radius))
    damping = jnp.where(jnp.linalg.norm(slopes / values) <= radius, 0.0, damping)
    along = -slopes / (values + damping)
    return vectors @ along, -jnp.sum(along * (slopes + 0.5 * values * along))
