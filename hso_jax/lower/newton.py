"""Value, gradient and Hessian of an objective in the nodes' times, and Newton steps on a face of the feasible set.

An objective is either a sum over intervals (MEP), whose Hessian is tridiagonal and costs O(K), or any
function of the nodes, whose Hessian is dense. The trust region works with both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hso_jax.noise import NoiseSchedule

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
