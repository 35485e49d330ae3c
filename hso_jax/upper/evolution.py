"""The upper level: evosax differential evolution over a box, in one `lax.scan`.

Its random numbers are drawn before, in NumPy: a program that draws them takes a third longer to compile. They are those
that evosax draws itself from the same key, whatever JAX's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Memo = Any
"""A pytree of float arrays: what a fitness evaluation leaves behind besides its value."""

CROSSOVER, WEIGHTS = 0.7, (0.5, 1.0)
"""Rate of crossover, and the range that the weight of a difference is dithered in: those of SciPy's
`differential_evolution`, which the paper uses."""


class Draws(NamedTuple):
    """All that is random in an evolution of R rounds, P points and D axes.

    Attributes:
        shift: [D] of the start, in [0, 1).
        weight: [R] of the differences.
        rivals: [R, P, 3] other points, by lot: a point's difference is that of the first two that are not the best.
        crossed: [R, P, D] bool: which coordinates are taken from the new point.
    """

    shift: Any
    weight: Any
    rivals: Any
    crossed: Any


def draws(seeds: Sequence[int] | np.ndarray, rounds: int, population: int, axes: int, boxes: int = 1) -> Draws:
    """The random numbers [L, S, ...] of each seed, and of S boxes each. NumPy.

    A seed is a key of JAX's "threefry2x32", which is split as evosax splits it: for the boxes if there are several; for
    start, state and rounds; each round's for asking and telling; the asking one for each point, and so on.
    """
    distinct, row = np.unique(np.asarray(seeds, np.uint32), return_inverse=True)
    at_once = max(1, 2**14 // population**2)  # as many streams as the caches hold
    parts = []
    for begin in range(0, len(distinct), at_once):
        some = distinct[begin : begin + at_once]
        keys = np.zeros_like(some), some
        one = (keys[0][:, None], keys[1][:, None]) if boxes == 1 else _split(keys, boxes)
        parts.append(_drawn(one, rounds, population, axes))
    return Draws(*(np.concatenate(column)[row] for column in zip(*parts, strict=True)))


_Keys = tuple[np.ndarray, np.ndarray]
"""Two arrays of uint32 of one shape."""


def _drawn(keys: _Keys, rounds: int, population: int, axes: int) -> Draws:
    start, _, run = _each(_split(keys, 3))
    ask = _each(_split(_split(run, rounds), 2))[0]
    every = _split(ask, population + 1)
    points, dither = (every[0][..., :-1], every[1][..., :-1]), _each(every)[-1]
    weight = _uniform(_threefry(dither, np.arange(rounds, dtype=np.uint32)), 1)[..., 0]
    _, sure, crossing, lot = _each(_split(points, 4))
    # A whole number below D from 64 bits, by the remainders of their halves: `jax.random.randint`.
    high, low = (_bits(key, 1)[..., 0] for key in _each(_split(sure, 2)))
    size, carry = np.uint32(axes), np.uint32((2**16 % axes) ** 2 % axes)
    always = ((high % size) * carry + low % size) % size
    rivals = []
    lots = _each(_split(lot, 2))[1]
    for key in zip(*(np.moveaxis(part, -2, 0) for part in lots), strict=True):  # of a round: [P, P] are drawn
        order = _uniform(key, population)
        order[..., np.arange(population), np.arange(population)] = -1.0  # a point is no rival of its own
        rivals.append(np.argsort(-order, axis=-1, kind="stable")[..., :3].astype(np.min_scalar_type(population)))
    least, most = np.asarray(WEIGHTS, np.float32)
    return Draws(
        _uniform(start, axes),
        np.maximum(weight * (most - least) + least, least),
        np.stack(rivals, axis=-3),
        (_uniform(crossing, axes) < np.float32(CROSSOVER)) | (np.arange(axes) == always[..., None]),
    )


def _threefry(key: _Keys, count: np.ndarray) -> _Keys:
    """The hash of a 32-bit count by keys: Threefry-2x32 with 20 rounds (Salmon et al., SC 2011)."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = key[0] + np.zeros_like(count), key[1] + count
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = x ^ (y << np.uint32(turn) | y >> np.uint32(32 - turn))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _split(key: _Keys, count: int) -> _Keys:
    """So many keys of each, on a last axis."""
    return _threefry((key[0][..., None], key[1][..., None]), np.arange(count, dtype=np.uint32))


def _each(keys: _Keys) -> list[_Keys]:
    return [(keys[0][..., i], keys[1][..., i]) for i in range(keys[0].shape[-1])]


def _bits(key: _Keys, count: int) -> np.ndarray:
    first, second = _split(key, count)
    return first ^ second


def _uniform(key: _Keys, count: int) -> np.ndarray:
    """In [0, 1), from 23 bits each; float32."""
    return (_bits(key, count) >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1.0)


class Evolution(NamedTuple):
    """What a run found.

    Attributes:
        best: [D] the best point.
        fitness: its fitness.
        memo: what its last evaluation left behind.
        history: [generations + 1 + polish] best fitness of the start, and after each generation.
    """

    best: Array
    fitness: Array
    memo: Memo
    history: Array


def spread_points(shift: Array, population: int, lower: Array, upper: Array) -> Array:
    """[population, D] evenly spread points: the additive recurrence of the generalised golden ratio, shifted by [D].

    Source: Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018); a random shift is Cranley's and
    Patterson's (SIAM J. Numer. Anal. 13, 1976).
    """
    axes = lower.shape[0]
    ratio = 2.0
    for _ in range(60):  # the root of x^(D + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (axes + 1))
    strides = ratio ** -np.arange(1.0, axes + 1.0)
    points = jnp.asarray(np.outer(np.arange(population), strides) % 1.0, lower.dtype)
    shifted = (points + jnp.asarray(shift, lower.dtype)) % 1.0
    return lower + shifted * (upper - lower)


def evolve(
    fitness: Callable[[Array, Memo], tuple[Array, Memo]],
    blank: Memo,
    random: Draws,
    lower: Array,
    upper: Array,
    *,
    generations: int,
    polish: int = 0,
) -> Evolution:
    """Minimise `fitness` over the box by evosax's best/1/bin differential evolution (Storn and Price 1997).

    Points that leave the box are clipped onto it, so that optima on its edges are found exactly.

    Args:
        fitness: (point [D], memo) -> (value, memo). The memo it gets is `blank`, and in the polishing rounds what the
            best point's last evaluation left behind. A value that is not finite counts as +inf.
        blank: the memo of a point that is new.
        random: of 1 + generations + polish rounds.
        lower: [D] the box's lower ends; equal ends fix a coordinate.
        upper: [D] its upper ends.
        generations: static.
        polish: static; after the generations the best point is evaluated so many times more, with its memo. Doing it
            in the same loop means that the fitness is compiled once.
    """
    # Imported here: evosax makes arrays when it is imported, which would start JAX before the caller can set it up.
    from evosax.algorithms import DifferentialEvolution

    population = random.rivals.shape[-2]
    # evosax keeps arrays of its own: built from NumPy, outside the trace, it cannot leak a tracer.
    with jax.ensure_compile_time_eval():
        algorithm = DifferentialEvolution(population, np.zeros(lower.shape[0], lower.dtype))
    params = algorithm.default_params
    start = spread_points(random.shift, population, lower, upper)
    state = algorithm.init(None, start, np.full(population, np.inf, lower.dtype), params)

    def generation(carry: tuple[Any, Memo], inputs: tuple[Array, Draws]) -> tuple[tuple[Any, Memo], Array]:
        state, memo = carry
        number, chance = inputs
        points = _best_1_bin(state.population, jnp.argmin(state.fitness), chance)
        polishing = number > generations
        points = jnp.where(number == 0, start, jnp.clip(points, lower, upper))
        points = jnp.where(polishing, state.best_solution, points).astype(lower.dtype)
        given = jax.tree.map(lambda old, new: jnp.where(polishing, old, new), memo, blank)
        values, memos = jax.vmap(fitness, (0, None))(points, given)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        better = polishing | (values[best] < state.best_fitness)
        memo = jax.tree.map(lambda old, new: jnp.where(better, new[best], old), memo, memos)
        state = algorithm.tell(None, points, values.astype(lower.dtype), state, params)[0]
        return (state, memo), state.best_fitness

    inputs = (jnp.arange(generations + 1 + polish), random._replace(shift=None))
    (state, memo), history = jax.lax.scan(generation, (state, blank), inputs)
    return Evolution(state.best_solution, state.best_fitness, memo, history)


def _best_1_bin(points: Array, best: Array, random: Draws) -> Array:
    """The new points [P, D]: what evosax asks for, with numbers drawn before."""
    first, second, third = jnp.moveaxis(random.rivals.astype(int), -1, 0)
    one = jnp.where(first == best, second, first)
    other = jnp.where((first == best) | (second == best), third, second)
    weight = random.weight.astype(points.dtype)
    return jnp.where(random.crossed, points[best] + weight * (points[one] - points[other]), points)
