"""The upper level: evosax differential evolution over a box, in one `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Memo = Any
"""A pytree of float arrays: what a fitness evaluation leaves behind besides its value."""


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


def spread_points(key: Array, population: int, lower: Array, upper: Array) -> Array:
    """[population, D] evenly spread points: the additive recurrence of the generalised golden ratio, randomly shifted.

    Source: Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018); the shift is Cranley's and
    Patterson's (SIAM J. Numer. Anal. 13, 1976).
    """
    axes = lower.shape[0]
    ratio = 2.0
    for _ in range(60):  # the root of x^(D + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (axes + 1))
    strides = ratio ** -np.arange(1.0, axes + 1.0)
    points = jnp.asarray(np.outer(np.arange(population), strides) % 1.0, lower.dtype)
    shifted = (points + jax.random.uniform(key, (axes,), lower.dtype)) % 1.0
    return lower + shifted * (upper - lower)


def evolve(
    fitness: Callable[[Array, Memo], tuple[Array, Memo]],
    blank: Memo,
    key: Array,
    lower: Array,
    upper: Array,
    *,
    population: int,
    generations: int,
    polish: int = 0,
) -> Evolution:
    """Minimise `fitness` over the box by evosax's best/1/bin differential evolution (Storn and Price 1997).

    The weight is dithered in [0.5, 1) and the crossover rate 0.7, as in SciPy's `differential_evolution`, which the
    paper uses. Points that leave the box are clipped onto it, so that optima on its edges are found exactly.

    Args:
        fitness: (point [D], memo) -> (value, memo). The memo it gets is `blank`, and in the polishing rounds what the
            best point's last evaluation left behind. A value that is not finite counts as +inf.
        blank: the memo of a point that is new.
        key: a typed PRNG key.
        lower: [D] the box's lower ends; equal ends fix a coordinate.
        upper: [D] its upper ends.
        population: static, at least 4.
        generations: static.
        polish: static; after the generations the best point is evaluated so many times more, with its memo. Doing it
            in the same loop means that the fitness is compiled once.
    """
    # Imported here: evosax makes arrays when it is imported, which would start JAX before the caller can set it up.
    from evosax.algorithms import DifferentialEvolution

    # evosax keeps arrays of its own: built from NumPy, outside the trace, it cannot leak a tracer.
    with jax.ensure_compile_time_eval():
        algorithm = DifferentialEvolution(population, np.zeros(lower.shape[0], lower.dtype))
    params = algorithm.default_params.replace(
        elitism=True, crossover_rate=0.7, differential_weight_min=0.5, differential_weight_max=1.0
    )
    start_key, init_key, run_key = jax.random.split(key, 3)
    start = spread_points(start_key, population, lower, upper)
    state = algorithm.init(init_key, start, np.full(population, np.inf, lower.dtype), params)

    def generation(carry: tuple[Any, Memo], inputs: tuple[Array, Array]) -> tuple[tuple[Any, Memo], Array]:
        state, memo = carry
        key, number = inputs
        ask_key, tell_key = jax.random.split(key)
        points, state = algorithm.ask(ask_key, state, params)
        polishing = number > generations
        points = jnp.where(number == 0, start, jnp.clip(points, lower, upper))
        points = jnp.where(polishing, state.best_solution, points).astype(lower.dtype)
        given = jax.tree.map(lambda old, new: jnp.where(polishing, old, new), memo, blank)
        values, memos = jax.vmap(fitness, (0, None))(points, given)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        better = polishing | (values[best] < state.best_fitness)
        memo = jax.tree.map(lambda old, new: jnp.where(better, new[best], old), memo, memos)
        state = algorithm.tell(tell_key, points, values.astype(lower.dtype), state, params)[0]
        return (state, memo), state.best_fitness

    rounds = generations + 1 + polish
    inputs = (jax.random.split(run_key, rounds), jnp.arange(rounds))
    (state, memo), history = jax.lax.scan(generation, (state, blank), inputs)
    return Evolution(state.best_solution, state.best_fitness, memo, history)
