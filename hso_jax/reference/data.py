"""Reference data: problems, noise samples, and where the exact probability flow takes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from hso_jax import solvers
from hso_jax.noise import alpha_sigma
from hso_jax.problems.bank import Bank, Problems, collect, denoise, pick, spread
from hso_jax.problems.exact import Exact, exact
from hso_jax.problems.family import family
from hso_jax.problems.model_error import ModelError, Waves, draw, error, guided

SAMPLES = 128
"""Noise samples a problem: 36 x 128 in all (benchmarks/reference_study.py says what fewer cost)."""

EXACT_STEPS = 64
"""Of the exact solution: leaves 2e-6 at guidance 1 and 2e-5 at 7.5, a hundredth and less of any solver's error here."""


DETAIL = 0.0
"""Default exponent of the weight `variance^-detail` of a direction's squared error."""

POWER = 1.0
"""Default exponent of the mean over problems: 1 is the mean of squared errors, 0 that of their logarithms."""


class Reference(NamedTuple):
    """What a schedule's error is measured on: P problems with B samples each. A pytree of arrays.

    Attributes:
        problems: of either kind.
        noise: [P, B, D] standard normal: the sample at the first node, wherever that is.
        truth: [P, B, D] the exact solution at clean data of the flow that starts at the model's noise end.
        importance: [P, D] what a squared error along each coordinate weighs; the data's own variance weighs 1 in all.
        frequencies: [P, K] of the model's error, see `model_error.draw`.
        coefficients: [P, 2 K, B, D] of the same under guidance, its size included.
        capped: scalar, see `Waves`.
        guidance: scalar, w of classifier-free guidance.
        power: scalar, the exponent of the mean over problems, see `mean_over_problems`.
        inaccuracy: scalar, estimated error of `truth`, in the same units as a schedule's error.
    """

    problems: Bank
    noise: Array
    truth: Array
    importance: Array
    frequencies: Array
    coefficients: Array
    capped: Array
    guidance: Array
    power: Array
    inaccuracy: Array


@functools.lru_cache(maxsize=8)
def default_family() -> Bank:
    """The 36 problems that schedules are optimised on, in float64 always. Held-out ones have other seeds."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return collect(family())


def reference(
    start: float,
    guidance: float = 1.0,
    *,
    prediction: str = "epsilon",
    model_error: ModelError | None = None,
    problems: Problems | None = None,
    detail: float = DETAIL,
    power: float = POWER,
    samples: int = SAMPLES,
    seed: int = 0,
    steps: int = EXACT_STEPS,
) -> Reference:
    """Draw noise and model error and solve exactly. About half a second; the default problems' are kept.

    Args:
        start: lam of the model's noise end; -inf for pure noise.
        guidance: w; 1 is the class itself, without guidance.
        prediction: what the network predicts: a key of `problems.ETA`.
        model_error: what its error is like; by default what `ETA` has for the prediction type.
        problems: stacked on a leading axis, or a sequence of problems of either kind; the default family if None.
        detail: a direction's squared error weighs its `variance^-detail`: 0 is the plain error, 1 all details alike.
        power: of the mean over problems: 1 is the mean of their squared errors, 0 that of their logarithms.
        samples: B.
        seed: of the noise.
        steps: of the exact solution, see `problems.exact`.

    Raises:
        ValueError: for a negative or infinite guidance, fewer than 1 sample, start = inf or NaN, an error that is
            infinite at the start, problems without a leading axis, or a detail or power that is not finite.
    """
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance is {guidance}; need a finite number of at least 0 (1 is no guidance)")
    if isinstance(samples, bool) or samples < 1 or samples != int(samples):
        raise ValueError(f"samples is {samples!r}; need a whole number of at least 1")
    if math.isnan(start) or start == math.inf:
        raise ValueError(f"start is {start}; need the half log-SNR of a noise end (-inf for pure noise)")
    if not (math.isfinite(detail) and math.isfinite(power)):
        raise ValueError(f"detail is {detail}, power {power}; need finite numbers")
    kind = model_error or ModelError()
    numbers = kind.numbers(prediction)
    if start == -math.inf and numbers[1] == 0.0:
        raise ValueError(
            f"prediction is {prediction!r} and the noise end pure noise (lam = -inf), where its error in x0 is "
            "infinite; need a model of another prediction type, a noise end before lam = -inf, or eta = 0"
        )
    if problems is None:
        dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(float)).name
        rest = (float(detail), float(power), int(samples), seed, steps, dtype)
        return _default(float(start), float(guidance), kind, numbers, *rest)
    return _solve(collect(problems), start, guidance, kind, numbers, detail, power, samples, seed, steps)


@functools.lru_cache(maxsize=32)
def _default(*arguments: Any) -> Reference:
    return _solve(default_family(), *arguments[:-1])


def _solve(
    problems: Bank,
    start: float,
    guidance: float,
    model_error: ModelError,
    numbers: tuple[float, float],
    detail: float,
    power: float,
    samples: int,
    seed: int,
    steps: int,
) -> Reference:
    dtype = jax.dtypes.canonicalize_dtype(float)
    variances, counts = spread(problems)
    frequencies, draws = draw(model_error, variances, counts, samples)
    coefficients = guided(numbers[0], draws, guidance)
    problems = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else None), problems)
    count, dimension = variances.shape
    # Drawn in float32 whatever the default: the same seed is the same noise.
    noise = jax.random.normal(jax.random.key(seed), (count, samples, dimension), jnp.float32).astype(dtype)
    importance = counts * np.where(counts > 0, variances, 1.0) ** -detail
    importance /= (importance * variances).sum(1, keepdims=True)
    arrays = [jnp.asarray(x, dtype) for x in (importance, frequencies, coefficients, numbers[1], guidance, power)]
    truth = _exact(problems, noise, *arrays[1:4], jnp.asarray(start, dtype), arrays[4], steps)
    inaccuracy = jnp.sqrt(jnp.mean(jnp.sum(importance * truth.errors**2, axis=1)))
    return Reference(problems, noise, truth.value, *arrays, inaccuracy)  # type: ignore[call-arg]


@functools.partial(jax.jit, static_argnames="steps")
def _exact(
    problems: Bank,
    noise: Array,
    frequencies: Array,
    coefficients: Array,
    capped: Array,
    start: Array,
    guidance: Array,
    steps: int,
) -> Exact:
    def one(p: Array) -> Exact:
        waves = Waves(frequencies[p], coefficients[p], capped)
        return exact(pick(problems, p), noise[p], waves=waves, start=start, guidance=guidance, steps=steps)

    return jax.lax.map(one, jnp.arange(noise.shape[0]))


class Chunks(NamedTuple):
    """Reference data in chunks of a fixed size, each of one problem, the problems taken in turn.

    However many of them a loop takes, its body is the same: one compilation serves a quick look and the whole.

    Attributes:
        problems: P of them.
        problem: [Q] which one a chunk belongs to.
        noise, truth: [Q, B, D].
        coefficients: [Q, 2 K, B, D].
        importance, frequencies: [P, D] and [P, K].
        capped, guidance, power: as in `Reference`.
    """

    problems: Bank
    problem: Array
    noise: Array
    truth: Array
    coefficients: Array
    importance: Array
    frequencies: Array
    capped: Array
    guidance: Array
    power: Array


def in_chunks(data: Reference, size: int) -> Chunks:
    """`data` in chunks of `size` samples, which must divide the number of samples a problem."""
    count, samples, _ = data.noise.shape
    pieces = samples // size

    def cut(values: Array) -> Array:
        *inner, dimension = values.shape[1:]
        split = values.reshape(count, *inner[:-1], pieces, size, dimension)
        return jnp.moveaxis(split, -3, 0).reshape(-1, *inner[:-1], size, dimension)

    problem = jnp.tile(jnp.arange(count), pieces)
    arrays = (cut(data.noise), cut(data.truth), cut(data.coefficients), data.importance, data.frequencies)
    return Chunks(data.problems, problem, *arrays, data.capped, data.guidance, data.power)


Weigh = Callable[[Array], solvers.Weights]
"""lams [K] -> a solver's weights on them."""


def squared_errors(data: Chunks, weights: solvers.Weights, chunks: Array | int) -> Array:
    """[Q] relative mean squared error of each of the first `chunks` chunks at the end of a schedule, 0 for the rest."""

    def one(i: Array, errors: Array) -> Array:
        return errors.at[i].set(_squared_error(data, weights, i))

    return jax.lax.fori_loop(0, chunks, one, jnp.zeros(data.problem.shape[0], data.noise.dtype))


def error_gradient(
    data: Chunks, weigh: Weigh, lams: Array, chunks: Array | int, axis: str | None = None
) -> tuple[Array, Array]:
    """Log of the mean squared error of the first chunks, and its gradient [K] in lams.

    Memory B D K, work chunks x B N; over all devices along `axis`.
    """

    # The weights are a short but intricate function of the nodes: its derivative is taken once, not for every chunk.
    def split(lams: Array) -> tuple[solvers.Weights, Array]:
        made = weigh(lams)
        return made._replace(real=None), made.real  # type: ignore[arg-type]

    weights, pull, real = jax.vjp(split, lams, has_aux=True)
    flat, whole = ravel_pytree(weights)

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        value, slopes = jax.value_and_grad(lambda w: _squared_error(data, w._replace(real=real), i))(weights)
        return sums[0].at[i].set(value), sums[1].at[data.problem[i]].add(ravel_pytree(slopes)[0])

    zero = jnp.zeros(data.problem.shape, lams.dtype), jnp.zeros((data.importance.shape[0], *flat.shape), flat.dtype)
    errors, gradients = jax.lax.fori_loop(0, chunks, add, zero)
    if axis is not None:
        errors, gradients = jax.lax.pmean((errors, gradients), axis)
    of_problem, count = _by_problem(data, errors, chunks)
    value, slopes = jax.value_and_grad(log_power_mean)(of_problem, count > 0, data.power)
    shares = slopes / jnp.maximum(count, 1.0)
    return value, pull(whole(shares @ gradients))[0]


def mean_error(data: Chunks, errors: Array, chunks: Array | int, axis: str | None = None) -> Array:
    """The power mean over problems of squared errors [Q] of the first chunks; over all devices along `axis`."""
    errors = errors if axis is None else jax.lax.pmean(errors, axis)
    of_problem, count = _by_problem(data, errors, chunks)
    return jnp.exp(log_power_mean(of_problem, count > 0, data.power))


def log_power_mean(values: Array, present: Array, power: Array) -> Array:
    """`log((mean of values^power)^(1/power))` of the values [P] that are present; at power 0 the mean of their logs."""
    count = jnp.sum(present)
    logs = jnp.log(jnp.where(present, jnp.maximum(values, jnp.finfo(values.dtype).tiny), 1.0))
    exponent = jnp.where(power == 0, 1.0, power)
    scaled = exponent * logs
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(present, scaled, -jnp.inf)))
    terms = jnp.where(present, jnp.exp(scaled - peak), 0.0)
    mean = (peak + jnp.log(jnp.sum(terms) / count)) / exponent
    return jnp.where(power == 0, jnp.sum(logs) / count, mean)


def _by_problem(data: Chunks, errors: Array, chunks: Array | int) -> tuple[Array, Array]:
    """[P] mean of each problem's errors [Q] over the first chunks, and how many of them are the problem's."""
    zero = jnp.zeros(data.importance.shape[0], errors.dtype)
    taken = (jnp.arange(errors.shape[0]) < chunks).astype(errors.dtype)
    count = zero.at[data.problem].add(taken)
    return zero.at[data.problem].add(errors * taken) / jnp.maximum(count, 1.0), count


def denoiser(data: Chunks, i: Array) -> solvers.Denoiser:
    """The guided, perturbed denoiser that chunk i is sampled with."""
    p = data.problem[i]
    problem = pick(data.problems, p)
    waves = Waves(data.frequencies[p], data.coefficients[i], data.capped)

    def model(x: Array, lam: Array) -> Array:
        return denoise(problem, x, lam, data.guidance) + error(waves, *alpha_sigma(lam, "vp"))

    return model


def _squared_error(data: Chunks, weights: solvers.Weights, i: Array) -> Array:
    """Of chunk i, relative to the variance of its problem's data: large data do not drown small ones."""
    x = solvers.run(denoiser(data, i), weights, data.noise[i])
    return jnp.mean((x - data.truth[i]) ** 2, axis=0) @ data.importance[data.problem[i]]
