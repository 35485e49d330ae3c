"""The solver's error, on problems whose exact probability-flow solution is known."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from hso_jax import solvers
from hso_jax.checks import check_guidance, number, whole
from hso_jax.compiling import jit, normal, platform, random_key
from hso_jax.noise import alpha_sigma
from hso_jax.problems.bank import Bank, Exact, Problems, collect, denoise, exact, pick, spread
from hso_jax.problems.mixture import KINDS, Problem, family
from hso_jax.problems.model_error import ModelError, Waves, check_model_error, draw, error, guided
from hso_jax.problems.product import Product, spectral, spectrum

SAMPLES = 32
"""Noise samples a problem: 36 x 32 in all. Four times as many cost four times as much, and schedules that were searched
on half as many are as good on networks: other problems differ more than other samples of these."""

EXACT_STEPS = 64
"""Of the exact solution: leaves 2e-6 at guidance 1 and 2e-5 at 7.5, a hundredth and less of any solver's error here."""


DETAIL = 0.5
"""Default exponent of the weight `variance^-detail` of a direction's squared error, where guidance is all there is: at
weight w it is `DETAIL (1 - 1/w)`, and 0 without guidance (docs/solver-error.md)."""

POWER = 0.0
"""Default exponent of the mean over problems: 1 is the mean of squared errors, 0 that of their logarithms."""

PURE = -2.0
"""Largest lam of a noise end at which samples begin with pure noise, as models do (SD's is -2.7): where more of the
data is left, as in image-to-image, they begin with noised data."""


class Chunks(NamedTuple):
    """What a schedule's error is measured on: samples of P problems, in Q chunks of B samples of one problem each.

    `error_data` has a chunk a problem; `in_chunks` cuts smaller ones, the problems taken in turn. However many of them
    a loop takes, its body is the same: one compilation serves a quick look and the whole. A pytree of arrays.

    Attributes:
        problems: of either kind.
        problem: [Q] which one a chunk belongs to.
        noise: [Q, B, D] the sample at the first node, wherever that is: standard normal, or noised data (`PURE`).
        truth: [Q, B, D] the exact solution at clean data of the flow that starts at the model's noise end.
        importance: [P, D] what a squared error along each coordinate weighs; the data's own variance weighs 1 in all.
        frequencies, coefficients, capped: [P, K], [Q, 2 K, B, D] and scalar: `Waves` of the model's error under
            guidance, its size included; K = 0 without error.
        guidance: scalar, w of classifier-free guidance.
        power: scalar, the exponent of the mean over problems, see `log_power_mean`.
        inaccuracy: scalar, estimated error of `truth`, in the same units as a schedule's error.
    """

    problems: Bank
    problem: Array
    noise: Array
    truth: Array
    importance: Array
    frequencies: Array
    coefficients: Array
    capped: Array
    guidance: Array
    power: Array
    inaccuracy: Array


OF_A_MODEL = ("truth", "coefficients", "capped", "guidance")
"""Fields that differ between the lanes of a bank; the others are shared."""


class Clusters(NamedTuple):
    """Of a default family.

    Attributes:
        scale: how many times the scale of `family`'s kinds its clusters have.
        floor: the least variance along a coordinate, within a component and of a product. Data hold white noise
            (latents' autoencoder's, a camera's): what lies below it a network cannot tell, and it decides nothing.
    """

    scale: float
    floor: float


USUAL, OF_FLOWS = Clusters(1.25, 0.2), Clusters(2.0, 0.4)
"""Flow models are latent models of many channels. Schedules that were learned on real ones begin noisier and end
earlier than pictures' do: `OF_FLOWS` was chosen on these (docs/solver-error.md)."""

LEADING, REACH = (2.5, 5.0, 10.0), 12.0
"""Of the default family's products: largest standard deviations, and how many times the smallest one each is."""


def default_family(prediction: str = "epsilon") -> Bank:
    """The 36 problems that schedules are optimised on, in float64 always: 24 clusters, and 12 products among them.

    Clusters decide at one scale, products at many (`spectral`): theirs are `REACH` apart, evenly in their logarithm.
    Held-out problems have other seeds.
    """
    return _family(OF_FLOWS if prediction == "flow_prediction" else USUAL)


@functools.cache
def _family(of: Clusters) -> Bank:
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        clusters = family(range(24), [kind._replace(scale=of.scale * kind.scale) for kind in KINDS])
        problems: list[Problem | Product] = []
        for i in range(24):
            cluster = jax.tree.map(lambda leaf: leaf[i], clusters)  # noqa: B023
            problems.append(cluster._replace(variances=jnp.maximum(cluster.variances, of.floor)))
            if i % 2:
                deviations = np.geomspace(LEADING[i // 2 % 3], LEADING[i // 2 % 3] / REACH, 32)
                own = spectrum(np.sqrt(np.maximum(deviations**2, of.floor)))
                problems.append(spectral(random_key(1000 + i), own))
        return collect(problems)


def error_data(
    start: float,
    guidance: float = 1.0,
    *,
    prediction: str = "epsilon",
    model_error: ModelError | None = None,
    problems: Problems | None = None,
    detail: float | None = None,
    power: float = POWER,
    samples: int = SAMPLES,
    seed: int = 0,
    steps: int = EXACT_STEPS,
) -> Chunks:
    """Draw noise and model error and solve exactly. About half a second; the last few are kept.

    Args:
        start: lam of the model's noise end; -inf for pure noise.
        guidance: w; up to 1 it is the class itself, without guidance.
        prediction: what the network predicts: a key of `problems.ETA`.
        model_error: what its error is like; by default what `ETA` has for the prediction type.
        problems: stacked on a leading axis, or a sequence of problems of either kind; the prediction type's
            `default_family` if None. The same ones are solved once.
        detail: a direction's squared error weighs its `variance^-detail`: 0 is the plain error, 1 all details alike; by
            default `DETAIL (1 - 1/w)`.
        power: of the mean over problems: 1 is the mean of their squared errors, 0 that of their logarithms.
        samples: B.
        seed: of the noise.
        steps: of the exact solution, see `problems.exact`.

    Raises:
        ValueError: for a guidance outside [0, 1e6), fewer than 1 sample or step, a bad seed, start = inf or NaN, an
            unknown prediction, an error that is infinite at the start, problems without a leading axis, or a detail or
            power out of range.
    """
    guidance, seed = check_guidance(guidance), whole("seed", seed, 0, 2**31 - 1)
    samples, steps = whole("samples", samples, 1, 10**6), whole("steps", steps, 1, 10**6)
    if not (isinstance(start, float) and start == -math.inf):
        start = number("start", start, low=-1e3, high=1e3, need="the half log-SNR of a noise end (-inf for pure noise)")
    weights = check_weights(detail, power, guidance)
    kind = check_model_error(model_error, prediction, start)
    problems = default_family(prediction) if problems is None else problems
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(float))
    numbers = kind.numbers(prediction)
    leaves, structure = jax.tree.flatten(problems)
    key = _Problems(problems, (structure, *map(_told_apart, leaves)))
    return _solve(key, dtype, start, guidance, kind, numbers, *weights, samples, seed, steps)


def check_weights(detail: object, power: object, guidance: float) -> tuple[float, float]:
    """Both exponents. Raises ValueError outside (-10, 10), where one direction or problem has long been all of E."""
    detail = DETAIL * (1.0 - 1.0 / max(guidance, 1.0)) if detail is None else detail
    return number("detail", detail, low=-10.0, high=10.0), number("power", power, low=-10.0, high=10.0)


@dataclasses.dataclass(frozen=True)
class _Problems:
    """Problems as the key of a cache."""

    given: Problems = dataclasses.field(compare=False)
    key: tuple[Any, ...]


def _told_apart(leaf: Any) -> Any:
    """NumPy's arrays may be changed where they are; of JAX's the same array is the same numbers."""
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype.str, hashlib.sha256(leaf.tobytes()).digest()
    return id(leaf)


@functools.lru_cache(maxsize=32)
def _solve(
    key: _Problems, dtype: np.dtype, start: float, guidance: float, model_error: ModelError,
    numbers: tuple[float, float], detail: float, power: float, samples: int, seed: int, steps: int,
) -> Chunks:  # fmt: skip
    problems = collect(key.given)
    variances, counts = spread(problems)
    if numbers[0] > 0:
        frequencies, draws = draw(model_error, variances, counts, samples)
        coefficients = guided(numbers[0], draws, guidance)
    else:  # no waves at all: their product would be a third of the work of a default search
        frequencies = np.zeros((len(counts), 0))
        coefficients = np.zeros((len(counts), 0, samples, counts.shape[1]))
    problems = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else None), problems)
    count, dimension = variances.shape
    noise = normal(random_key(seed), (count, samples, dimension)).astype(dtype)
    importance = counts * np.where(counts > 0, variances, 1.0) ** -detail
    importance /= (importance * variances).sum(1, keepdims=True)
    arrays = [jnp.asarray(x, dtype) for x in (importance, frequencies, coefficients, numbers[1], guidance, power)]
    if start > PURE:
        noise = _noised(problems, noise, start, seed, steps)
    truth = _exact(problems, noise, *arrays[1:4], jnp.asarray(start, dtype), arrays[4], steps)
    inaccuracy = jnp.sqrt(jnp.mean(jnp.sum(importance * truth.errors**2, axis=1)))
    return Chunks(problems, jnp.arange(count), noise, truth.value, *arrays, inaccuracy)  # type: ignore[call-arg]


def _noised(problems: Bank, noise: Array, start: float, seed: int, steps: int) -> Array:
    """[P, B, D] `alpha x_0 + sigma noise` at lam = start; x_0 is where the exact flow of other noise ends."""
    other = normal(jax.random.fold_in(random_key(seed), 1), noise.shape).astype(noise.dtype)
    count, samples, dimension = noise.shape
    no_waves = np.zeros((count, 0)), np.zeros((count, 0, samples, dimension)), 0.0
    numbers = (jnp.asarray(x, noise.dtype) for x in (*no_waves, -math.inf, 1.0))
    alpha, sigma = alpha_sigma(start, "vp")
    return alpha * _exact(problems, other, *numbers, steps).value + sigma * noise


@functools.partial(jit, static_argnames="steps")
def _exact(
    problems: Bank, noise: Array, frequencies: Array, coefficients: Array, capped: Array, start: Array, guidance: Array,
    steps: int,
) -> Exact:  # fmt: skip
    def one(p: Array) -> Exact:
        waves = Waves(frequencies[p], coefficients[p], capped) if frequencies.shape[1] else None
        return exact(pick(problems, p), noise[p], waves=waves, start=start, guidance=guidance, steps=steps)

    return jax.lax.map(one, jnp.arange(noise.shape[0]))


def in_chunks(data: Chunks, size: int) -> Chunks:
    """`data` as `error_data` has it in chunks of `size` samples, which must divide the number of samples a problem."""
    count, samples, _ = data.noise.shape
    pieces = samples // size

    def cut(values: Array) -> Array:
        *inner, dimension = values.shape[1:]
        split = values.reshape(count, *inner[:-1], pieces, size, dimension)
        return jnp.moveaxis(split, -3, 0).reshape(pieces * count, *inner[:-1], size, dimension)

    noise, truth, coefficients = (cut(x) for x in (data.noise, data.truth, data.coefficients))
    return data._replace(problem=jnp.tile(data.problem, pieces), noise=noise, truth=truth, coefficients=coefficients)


def squared_errors(data: Chunks, weights: solvers.Weights, chunks: Array | int) -> Array:
    """[Q] relative mean squared error of each of the first `chunks` chunks at the end of a schedule, 0 for the rest.

    A CPU takes chunk after chunk, for its caches; other devices, whose kernels would be short of work, all at once.
    """
    index = jnp.arange(data.problem.shape[0])
    if platform() != "cpu":
        return jnp.where(index < chunks, jax.vmap(lambda i: _squared_error(data, weights, i))(index), 0.0)

    def one(i: Array, errors: Array) -> Array:
        return errors.at[i].set(_squared_error(data, weights, i))

    return jax.lax.fori_loop(0, chunks, one, jnp.zeros(index.shape, data.noise.dtype))


def error_gradient(
    data: Chunks,
    weigh: Callable[[Array], solvers.Weights],
    place: Array,
    chunks: Array | int,
    axis: str | None = None,
) -> tuple[Array, Array]:
    """Log of the mean squared error of the first chunks, and its gradient [M] in the place.

    `weigh` gives the weights there: of nodes lams, or of nodes and coefficients. Memory B D K, work chunks x B N (all
    chunks at once where `squared_errors` takes them so); over all devices along `axis`.
    """

    # The weights are a short but intricate function of the place: its derivative is taken once, not for every chunk.
    def split(place: Array) -> tuple[solvers.Weights, Array]:
        made = weigh(place)
        return made._replace(real=None), made.real

    weights, pull, real = jax.vjp(split, place, has_aux=True)
    flat, whole = ravel_pytree(weights)

    def of_chunk(i: Array) -> tuple[Array, Array]:
        value, slopes = jax.value_and_grad(lambda w: _squared_error(data, w._replace(real=real), i))(weights)
        return value, ravel_pytree(slopes)[0]

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        value, slopes = of_chunk(i)
        return sums[0].at[i].set(value), sums[1].at[data.problem[i]].add(slopes)

    zero = jnp.zeros(data.problem.shape, place.dtype), jnp.zeros((data.importance.shape[0], *flat.shape), flat.dtype)
    if platform() == "cpu":
        errors, gradients = jax.lax.fori_loop(0, chunks, add, zero)
    else:
        index = jnp.arange(data.problem.shape[0])
        errors, every = jax.vmap(of_chunk)(index)
        errors = jnp.where(index < chunks, errors, 0.0)
        gradients = zero[1].at[data.problem].add(jnp.where(index[:, None] < chunks, every, 0.0))
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
    if not data.frequencies.shape[1]:
        return lambda x, lam: denoise(problem, x, lam, data.guidance)
    waves = Waves(data.frequencies[p], data.coefficients[i], data.capped)

    def model(x: Array, lam: Array) -> Array:
        return denoise(problem, x, lam, data.guidance) + error(waves, *alpha_sigma(lam, "vp"))

    return model


def _squared_error(data: Chunks, weights: solvers.Weights, i: Array) -> Array:
    """Of chunk i, relative to the variance of its problem's data: large data do not drown small ones."""
    x = solvers.run(denoiser(data, i), weights, data.noise[i])
    return jnp.mean((x - data.truth[i]) ** 2, axis=0) @ data.importance[data.problem[i]]
