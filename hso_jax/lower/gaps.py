"""Nodes in s from the logarithms of their gaps: a coordinate without constraints.

In s = sigma/(alpha + sigma) every model starts at s <= 1 and ends near 0. Nodes run from the model's noise end, or
below a wall beside it where the first node is free, to a wall at the model's data end,

    top >= node_0 > node_1 > ... > wall,    neighbours at least `SPACING` apart.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

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
