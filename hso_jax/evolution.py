"""The upper level: evosax differential evolution over a box, in one `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import DifferentialEvolution
from jax import Array


class Evolution(NamedTuple):
    """What a run found.

    Attributes:
        best: [D] the best point.
        fitness: its fitness.
        history: [generations + 1] best fitness of the start and after each generation.
    """

    best: Array
    fitness: Array
    history: Array


def latin_hypercube(key: Array, population: int, lower: Array, upper: Array) -> Array:
    """[population, D] points with one in each of `population` equal slices of every axis."""
    place_key, order_key = jax.random.split(key)
    axes = lower.shape[0]
    order = jax.vmap(lambda k: jax.random.permutation(k, population))(jax.random.split(order_key, axes)).T
    place = (order + jax.random.uniform(place_key, (population, axes), lower.dtype)) / population
    return lower + place * (upper - lower)


def evolve(
    fitness: Callable[[Array], Array], key: Array, lower: Array, upper: Array, *, population: int, generations: int
) -> Evolution:
    """Minimise `fitness` over the box by best/1/bin differential evolution (Storn and Price 1997).

    The weight is dithered in [0.5, 1) and the crossover rate 0.7, as in SciPy's `differential_evolution`, which
    the paper uses. Points that leave the box are clipped onto it, so that optima on its edges are found exactly.

    Args:
        fitness: of one point [D]; a result that is not finite counts as +inf.
        key: a typed PRNG key.
        lower, upper: [D] the box; equal ends fix a coordinate.
        population: static, at least 4.
        generations: static.
    """
    # evosax keeps arrays of its own: built from NumPy, outside the trace, it cannot leak a tracer.
    with jax.ensure_compile_time_eval():
        algorithm = DifferentialEvolution(population, np.zeros(lower.shape[0], lower.dtype))
    params = algorithm.default_params.replace(
        elitism=True, crossover_rate=0.7, differential_weight_min=0.5, differential_weight_max=1.0
    )

    def evaluate(points: Array) -> Array:
        values = jax.vmap(fitness)(points)
        return jnp.where(jnp.isfinite(values), values, jnp.inf)

    start_key, init_key, run_key = jax.random.split(key, 3)
    start = latin_hypercube(start_key, population, lower, upper)
    state = algorithm.init(init_key, start, jnp.full(population, jnp.inf, lower.dtype), params)

    def generation(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
        key, number = inputs
        ask_key, tell_key = jax.random.split(key)
        points, state = algorithm.ask(ask_key, state, params)
        # Generation 0 scores the start itself, here rather than before the loop: the fitness is compiled once.
        points = jnp.where(number == 0, start, jnp.clip(points, lower, upper)).astype(lower.dtype)
        state, _ = algorithm.tell(tell_key, points, evaluate(points), state, params)
        return state, state.best_fitness

    inputs = (jax.random.split(run_key, generations + 1), jnp.arange(generations + 1))
    state, history = jax.lax.scan(generation, state, inputs)
    return Evolution(state.best_solution, state.best_fitness, history)
