"""Differential evolution on functions whose minimum is known: inside the box, on its faces, in its corners."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but

from hso_jax.upper.evolution import CROSSOVER, WEIGHTS, Draws, Evolution, _best_1_bin, draws, evolve, spread_points

LOWER, UPPER = np.array([-2.0, 0.5, 1.0], np.float32), np.array([2.0, 3.0, 5.0], np.float32)


def bowl(x: jax.Array, goal: jax.Array) -> jax.Array:
    return jnp.sum((x - goal) ** 2 * jnp.array([1.0, 3.0, 0.5]))


def ripples(x: jax.Array, goal: jax.Array) -> jax.Array:
    """Rastrigin: a hundred local minima around the goal."""
    y = x - goal
    return jnp.sum(y * y + 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * y)))


def holes(x: jax.Array, goal: jax.Array) -> jax.Array:
    """A bowl that is NaN, inf or -inf in three quarters of the box."""
    value = bowl(x, goal)
    value = jnp.where(x[0] > goal[0] + 0.5, jnp.nan, value)
    value = jnp.where(x[1] > goal[1] + 0.5, jnp.inf, value)
    return jnp.where(x[2] > goal[2] + 0.5, -jnp.inf, value)


def nowhere(x: jax.Array, goal: jax.Array) -> jax.Array:
    return jnp.nan * jnp.sum(x)


@functools.lru_cache
def runner(
    function: Callable[..., jax.Array], generations: int = 60, polish: int = 0, population: int = 24
) -> Callable[..., Evolution]:
    """evolve(function) as (draws, lower, upper, goal) -> Evolution; the memo is the point and a count of rounds."""

    def run(random: Draws, lower: jax.Array, upper: jax.Array, goal: jax.Array) -> Evolution:
        def fitness(x: jax.Array, memo: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            return function(x, goal), (x, memo[1] + 1.0)

        blank = (jnp.full(3, jnp.nan), jnp.zeros(()))
        return evolve(fitness, blank, random, lower, upper, generations=generations, polish=polish)

    program = jax.jit(run)

    def search(seed: int, *arguments: object) -> Evolution:
        random = draws([seed], 1 + generations + polish, population, 3)
        return program(jax.tree.map(lambda x: x[0, 0], random), *arguments)

    return search


@pytest.mark.parametrize("function", slow_but([bowl, holes], [bowl, ripples, holes]))
def test_finds_an_inner_minimum(function: Callable[..., jax.Array]) -> None:
    goal = np.array([0.3, 1.7, 2.2], np.float32)
    found = runner(function)(3, LOWER, UPPER, goal)
    np.testing.assert_allclose(found.best, goal, atol=5e-3)
    assert found.fitness == pytest.approx(float(function(found.best, goal)), abs=1e-6)
    assert np.all(np.diff(found.history) <= 0) and found.history.shape == (61,)
    assert found.history[-1] == found.fitness


@pytest.mark.parametrize("goal", [(-9.0, 1.7, 2.2), (0.3, 9.0, -9.0), (9.0, -9.0, 9.0)])
def test_finds_minima_on_faces_edges_and_corners_exactly(goal: tuple[float, ...]) -> None:
    found = runner(bowl)(0, LOWER, UPPER, np.array(goal, np.float32))
    wanted = np.clip(np.array(goal, np.float32), LOWER, UPPER)
    outside = wanted != np.array(goal, np.float32)
    np.testing.assert_array_equal(np.asarray(found.best)[outside], wanted[outside])
    np.testing.assert_allclose(found.best, wanted, atol=1e-2)  # where f is a hundred, float32 resolves no better


def test_equal_ends_fix_a_coordinate() -> None:
    lower, upper = LOWER.copy(), UPPER.copy()
    lower[1] = upper[1] = 1.2345678
    found = runner(bowl)(1, lower, upper, np.array([0.3, 2.9, 2.2], np.float32))
    assert np.asarray(found.best)[1] == lower[1]
    np.testing.assert_allclose(np.asarray(found.best)[[0, 2]], [0.3, 2.2], atol=2e-3)
    point = runner(bowl)(1, lower, lower, np.zeros(3, np.float32))
    np.testing.assert_array_equal(point.best, lower)


def test_the_key_decides_every_byte() -> None:
    goal = np.array([0.3, 1.7, 2.2], np.float32)
    a, b, c = (jax.tree.leaves(runner(ripples)(seed, LOWER, UPPER, goal)) for seed in (5, 5, 6))
    assert all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[-1], c[-1])


def test_a_never_finite_fitness_stays_in_the_box() -> None:
    found = runner(nowhere)(0, LOWER, UPPER, LOWER)
    assert np.isposinf(found.fitness) and np.all(np.isposinf(found.history))
    assert np.all((found.best >= LOWER) & (found.best <= UPPER))


def test_values_that_are_not_finite_count_as_infinite() -> None:
    def fitness(x: jax.Array, memo: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(x[0] < 0.3, -jnp.inf, jnp.where(x[0] > 0.7, jnp.nan, x[0])), x

    box = jnp.zeros(1), jnp.ones(1)
    random = jax.tree.map(lambda x: x[0, 0], draws([0], 4, 8, 1))
    found = evolve(fitness, jnp.full(1, jnp.nan), random, *box, generations=3)
    assert 0.3 <= float(found.fitness) == float(found.best[0]) == float(found.memo[0]) <= 0.7


def test_no_generations_scores_the_start_alone() -> None:
    goal = np.array([0.3, 1.7, 2.2], np.float32)
    found = runner(bowl, generations=0)(2, LOWER, UPPER, goal)
    start = spread_points(draws([2], 1, 24, 3).shift[0, 0], 24, jnp.asarray(LOWER), jnp.asarray(UPPER))
    scores = np.asarray(jax.vmap(lambda x: bowl(x, goal))(start))
    assert found.fitness == pytest.approx(scores.min(), rel=1e-6)
    np.testing.assert_allclose(found.best, start[int(scores.argmin())], rtol=1e-6)


def test_the_memo_belongs_to_the_best_point() -> None:
    goal = np.array([0.3, 1.7, 2.2], np.float32)
    plain, polished = runner(bowl)(4, LOWER, UPPER, goal), runner(bowl, polish=3)(4, LOWER, UPPER, goal)
    for found, rounds in ((plain, 1), (polished, 4)):
        np.testing.assert_array_equal(found.memo[0], found.best)
        assert found.memo[1] == rounds
    assert polished.history.shape == (64,) and np.all(polished.history[61:] == polished.fitness)


def test_the_start_covers_the_box_evenly() -> None:
    for seed in range(8):
        points = np.asarray(
            spread_points(draws([seed], 1, 32, 3).shift[0, 0], 32, jnp.asarray(LOWER), jnp.asarray(UPPER))
        )
        unit = (points - LOWER) / (UPPER - LOWER)
        assert np.all((unit >= 0) & (unit <= 1 + 1e-6))
        for axis in unit.T:  # the second stride is close to 2/3: its gaps are the widest, 7/n
            assert np.diff(np.sort(axis), prepend=0.0, append=1.0).max() < 8.0 / 32
        corners = {tuple(row) for row in (unit > 0.5).astype(int)}
        assert len(corners) == 8  # every octant has a point
    one = spread_points(jnp.array([0.2, 0.9, 0.4]), 8, jnp.asarray(LOWER), jnp.asarray(LOWER))
    np.testing.assert_array_equal(one, np.tile(LOWER, (8, 1)))


@pytest.mark.parametrize(("population", "axes", "boxes"), [(16, 3, 1), (4, 1, 3)])
def test_the_numbers_drawn_before_are_those_that_evosax_draws(population: int, axes: int, boxes: int) -> None:
    from evosax.algorithms import DifferentialEvolution

    rounds, seeds = 3, [7, 0, 2**31 - 1, 7]
    drawn = draws(seeds, rounds, population, axes, boxes)
    algorithm = DifferentialEvolution(population, np.zeros(axes, np.float32))
    least, most = WEIGHTS
    params = algorithm.default_params.replace(
        crossover_rate=CROSSOVER, differential_weight_min=least, differential_weight_max=most
    )
    points = np.random.default_rng(0).random((population, axes), np.float32)
    values = np.random.default_rng(1).random(population, np.float32)
    for row, seed in enumerate(seeds):
        key = jax.random.key(seed, impl="threefry2x32")
        for box, of_box in enumerate(jax.random.split(key, boxes) if boxes > 1 else [key]):
            random = jax.tree.map(lambda x: x[row, box], drawn)  # noqa: B023
            start, init, run = jax.random.split(of_box, 3)
            np.testing.assert_array_equal(random.shift, jax.random.uniform(start, (axes,)))
            state = algorithm.init(init, points, values, params)
            for number, of_round in enumerate(jax.random.split(run, rounds)):
                counted = state.replace(generation_counter=number)
                asked = algorithm.ask(jax.random.split(of_round)[0], counted, params)[0]
                of_this = random._replace(**{name: getattr(random, name)[number] for name in random._fields[1:]})
                mine = _best_1_bin(jnp.asarray(points), jnp.argmin(values), of_this)
                np.testing.assert_allclose(mine, asked, rtol=0, atol=1e-6)
