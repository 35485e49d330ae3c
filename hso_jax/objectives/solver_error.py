"""The solver's error, on problems whose exact probability-flow solution is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hso_jax import solvers
from hso_jax.checks import brief, check_guidance, number, whole
from hso_jax.problems import Exact, Problem, denoiser, exact, family, variance

SAMPLES = 128
"""Noise samples a problem: 36 x 128 in all (benchmarks/reference_study.py says what fewer cost)."""

EXACT_STEPS = 64
"""Of the exact solution: leaves 2e-6 at guidance 1 and 2e-5 at 7.5, a hundredth and less of any solver's error here."""


class ErrorData(NamedTuple):
    """What a schedule's error is measured on: P problems with B samples each. A pytree of arrays.

    Attributes:
        problems: stacked on a leading axis [P].
        noise: [P, B, D] standard normal: the sample at the first node, wherever that is.
        truth: [P, B, D] the exact solution at clean data of the flow that starts at the model's noise end.
        guidance: scalar, w of classifier-free guidance.
        inaccuracy: scalar, estimated root-mean-square error of `truth`.
    """

    problems: Problem
    noise: Array
    truth: Array
    guidance: Array
    inaccuracy: Array


@functools.lru_cache(maxsize=8)
def default_family() -> Problem:
    """The 36 problems that schedules are optimised on, in float64 always. Held-out ones have other seeds."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return family()


def error_data(
    start: float,
    guidance: float = 1.0,
    *,
    problems: Problem | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    steps: int = EXACT_STEPS,
) -> ErrorData:
    """Draw the noise and solve exactly. About half a second; the default problems' are kept.

    Args:
        start: lam of the model's noise end; -inf for pure noise.
        guidance: w; 1 is the class itself, without guidance.
        problems: stacked on a leading axis; the default family if None.
        samples: B.
        seed: of the noise.
        steps: of the exact solution, see `problems.exact`.

    Raises:
        ValueError: for a guidance outside [0, 1e6), fewer than 1 sample or step, a bad seed, start = inf or NaN, or
            problems without a leading axis.
    """
    guidance = check_guidance(guidance)
    samples, steps = whole("samples", samples, 1, 10**6), whole("steps", steps, 1, 10**6)
    seed = whole("seed", seed, 0, 2**31 - 1)
    if not (isinstance(start, float) and start == -math.inf):
        start = number("start", start, low=-1e3, high=1e3, need="the half log-SNR of a noise end (-inf for pure noise)")
    dtype = jax.dtypes.canonicalize_dtype(float)
    if problems is None:
        return _default(start, guidance, samples, seed, steps, jnp.dtype(dtype).name)
    if not isinstance(problems, Problem):
        raise ValueError(f"problems is {brief(problems)}; need a stacked Problem: problems.stack_problems([...])")
    if problems.means.ndim != 3:
        raise ValueError(
            f"problems have means of shape {problems.means.shape}; need a leading axis: problems.stack_problems([...])"
        )
    return _solve(problems, start, guidance, samples, seed, steps)


@functools.lru_cache(maxsize=32)
def _default(start: float, guidance: float, samples: int, seed: int, steps: int, dtype: str) -> ErrorData:
    return _solve(default_family(), start, guidance, samples, seed, steps)


def _solve(problems: Problem, start: float, guidance: float, samples: int, seed: int, steps: int) -> ErrorData:
    dtype = jax.dtypes.canonicalize_dtype(float)
    problems = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problems)
    count, _, dimension = problems.means.shape
    # Drawn in float32 whatever the default: the same seed is the same noise.
    noise = jax.random.normal(jax.random.key(seed), (count, samples, dimension), jnp.float32).astype(dtype)
    truth = _exact(problems, noise, jnp.asarray(start, dtype), jnp.asarray(guidance, dtype), steps)
    inaccuracy = jnp.sqrt(jnp.mean(truth.error**2))
    return ErrorData(problems, noise, truth.value, jnp.asarray(guidance, dtype), inaccuracy)


@functools.partial(jax.jit, static_argnames="steps")
def _exact(problems: Problem, noise: Array, start: Array, guidance: Array, steps: int) -> Exact:
    def one(row: tuple[Problem, Array]) -> Exact:
        return exact(*row, start=start, guidance=guidance, steps=steps)

    return jax.lax.map(one, (problems, noise))


class Chunks(NamedTuple):
    """Samples in chunks of a fixed size, each of one problem, the problems taken in turn.

    However many of them a loop takes, its body is the same: one compilation serves a quick look and the whole.

    Attributes:
        problems: stacked [P].
        problem: [Q] which one a chunk belongs to.
        noise, truth: [Q, B, D].
        guidance: scalar.
    """

    problems: Problem
    problem: Array
    noise: Array
    truth: Array
    guidance: Array


def in_chunks(data: ErrorData, size: int) -> Chunks:
    """`data` in chunks of `size` samples, which must divide the number of samples a problem."""
    count, samples, dimension = data.noise.shape
    pieces = samples // size

    def cut(values: Array) -> Array:
        return values.reshape(count, pieces, size, dimension).swapaxes(0, 1).reshape(-1, size, dimension)

    problem = jnp.tile(jnp.arange(count), pieces)
    return Chunks(data.problems, problem, cut(data.noise), cut(data.truth), data.guidance)


Weigh = Callable[[Array], solvers.Weights]
"""lams [K] -> a solver's weights on them."""


def squared_errors(data: Chunks, weights: solvers.Weights, chunks: Array | int) -> Array:
    """[Q] relative mean squared error of each of the first `chunks` chunks at the end of a schedule, 0 for the rest."""

    def one(i: Array, errors: Array) -> Array:
        return errors.at[i].set(_squared_error(data, weights, i))

    return jax.lax.fori_loop(0, chunks, one, jnp.zeros(data.problem.shape[0], data.noise.dtype))


def error_gradient(data: Chunks, weigh: Weigh, lams: Array, chunks: Array | int) -> tuple[Array, Array]:
    """Relative mean squared error of the first chunks and its gradient [K] in lams. Memory B D K, work chunks x B N."""

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        found = jax.value_and_grad(lambda lams: _squared_error(data, weigh(lams), i))(lams)
        return jax.tree.map(jnp.add, sums, found)

    zero = (jnp.zeros((), lams.dtype), jnp.zeros_like(lams))
    value, gradient = jax.lax.fori_loop(0, chunks, add, zero)
    return value / chunks, gradient / chunks


def _squared_error(data: Chunks, weights: solvers.Weights, i: Array) -> Array:
    """Of chunk i, relative to the variance of its problem's data: large data do not drown small ones."""
    problem = jax.tree.map(lambda leaf: leaf[data.problem[i]], data.problems)
    x = solvers.run(denoiser(problem, data.guidance), weights, data.noise[i])
    return jnp.mean((x - data.truth[i]) ** 2) / variance(problem)
