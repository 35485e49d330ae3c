"""Searches for the point with the least error, each by what it may ask of the network.

`differences` (the default) takes Gauss-Newton steps: the residuals of all samples say how each of them moves with each
coordinate, which a single number does not. Their derivatives are differences along the axes of the curvature that is
known (of the reference problems at first), and are corrected by every step (Broyden's update). No gradients are needed;
steps of that width do not see the ripples that time embeddings have. `gradients` is quasi-Newton with gradients through
the network; `comparisons` is SciPy's COBYQA for errors that are no sum of squares and have no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize

from bridge.tuning.coordinates import STATIC, Coordinates, weights_at
from bridge.tuning.judge import Judge, Residuals
from hso_jax import solvers
from hso_jax.error import Chunks, denoiser, error_data, in_chunks
from hso_jax.lower import quasi_newton
from hso_jax.lower.quasi_newton import Range
from hso_jax.noise import NoiseSchedule

Seen = Callable[[np.ndarray, float], bool]
"""Called with each better point and its value; True ends the search."""

WIDTH = 0.1
"""Of the differences, in units in which a step of 1 changes the samples by as much as their error."""

LEAST_GAIN = 0.01
"""Of the logarithm of the error: a round of steps that gains less is the last."""

SHARE = 2 / 3
"""Of the rest of the budget that goes into a round's differences at most: along as many axes, the most curved."""

FAILURES = 3
"""Steps in a row that gain nothing and end a round."""

_RADIUS = 1.0

CHUNKS, SIZE = 24, 32
"""Samples of the reference problems that say how the error bends: at most so many chunks of so many."""

FLOOR = 0.03
"""Least curvature along any direction: a step of 1 along one that the problems know nothing of is a long one."""

_STEP = 0.05


def differences(judge: Judge, z: np.ndarray, curvature: np.ndarray, rows: Sequence[int], seen: Seen) -> None:
    """Gauss-Newton from z [M] until a round gains next to nothing, `seen` says so, or the budget is spent (SpentError).

    The judge's errors must be sums of squares; `curvature` [M, M] is what is known of it so far.
    """
    here = judge.residuals(z, rows)
    while True:
        before = here.value
        values, vectors = _floored(curvature)
        some = max(int(SHARE * judge.affordable(judge.coordinates.nfe, rows)), 1)
        axes = (vectors / np.sqrt(values))[:, ::-1][:, :some]  # the largest values come last
        slopes = _slopes(judge, z, axes, rows, here)
        z, here, slopes, ended = _steps(judge, z, axes, slopes, rows, here, seen)
        if ended or before - here.value < LEAST_GAIN:
            return
        inverse = np.linalg.pinv(axes)
        curvature = inverse.T @ (slopes.T @ slopes) @ inverse / np.exp(2 * here.value)


def _slopes(judge: Judge, z: np.ndarray, axes: np.ndarray, rows: Sequence[int], here: Residuals) -> np.ndarray:
    """[n S, M] derivatives of the residuals along the axes; 0 where a difference is not finite."""
    base, columns = here.rows.ravel(), []
    for axis in axes.T:
        there = judge.residuals(z + WIDTH * axis, rows).rows.ravel()
        columns.append(np.where(np.isfinite(there), there - base, 0.0) / WIDTH)
    return np.stack(columns, axis=-1)


def _steps(
    judge: Judge, z: np.ndarray, axes: np.ndarray, slopes: np.ndarray, rows: Sequence[int], here: Residuals, seen: Seen
) -> tuple[np.ndarray, Residuals, np.ndarray, bool]:
    """Steps of one round: the point, its residuals, the corrected slopes, and whether `seen` ended the search."""
    radius, failed = _RADIUS, 0
    while failed < FAILURES:
        residual = here.rows.ravel()
        move = _step(slopes, residual, radius)
        ahead = residual + slopes @ move
        promised = 0.5 * np.log((residual @ residual) / max(float(ahead @ ahead), 1e-300))
        if promised < 0.2 * LEAST_GAIN:
            break
        there = judge.residuals(z + axes @ move, rows)
        gained = here.value - there.value if np.isfinite(there.value) else -np.inf
        if np.isfinite(gained):
            slopes = slopes + np.outer(there.rows.ravel() - ahead, move) / (move @ move)
        length = float(np.linalg.norm(move))
        if gained < 0.25 * promised:
            radius = 0.5 * length if gained > 0 else 0.25 * length
        elif gained > 0.75 * promised and length > 0.8 * radius:
            radius *= 2.0
        failed = 0 if gained > 0.1 * LEAST_GAIN else failed + 1
        if gained > 0:
            z, here = z + axes @ move, there
            if seen(z, here.value):
                return z, here, slopes, True
    return z, here, slopes, False


def _step(slopes: np.ndarray, residual: np.ndarray, radius: float) -> np.ndarray:
    """The least-squares step within the radius (Levenberg and Marquardt, the damping by bisection)."""
    left, values, right = np.linalg.svd(slopes, full_matrices=False)
    along = values * (left.T @ residual)

    def at(damping: float) -> np.ndarray:
        return -right.T @ (along / (values**2 + damping))

    low, high = 1e-9 * float(values[0] ** 2), float(np.linalg.norm(along)) / radius
    if np.linalg.norm(at(low)) <= radius:
        return at(low)
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.linalg.norm(at(middle)) > radius else (low, middle)
    return at(high)


def gradients(judge: Judge, z: np.ndarray, curvature: np.ndarray, rows: Sequence[int], seen: Seen) -> None:
    """Quasi-Newton from z, see `hso_jax.lower.quasi_newton`; raises as `differences`, and as `Judge.gradient`."""
    values, vectors = _floored(curvature)
    with jax.enable_x64(True):

        def function(y: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, slope = judge.gradient(np.asarray(y), rows)
            return jnp.asarray(value), jnp.asarray(slope)

        state = quasi_newton.init(jnp.asarray(z), jnp.asarray((vectors * values) @ vectors.T))
        while not bool(quasi_newton.settled(state)):
            state, info = quasi_newton.step(function, state)
            if bool(info.accepted) and int(state.steps) > 0 and seen(np.asarray(state.y), float(state.value)):
                return


def comparisons(judge: Judge, z: np.ndarray, curvature: np.ndarray, rows: Sequence[int], seen: Seen) -> None:
    """A derivative-free trust region (SciPy's COBYQA) along the curvature's axes; raises as `differences`."""
    values, vectors = _floored(curvature)
    axes, best = vectors / np.sqrt(values), np.inf

    def function(u: np.ndarray) -> float:
        nonlocal best
        value = judge.value(z + axes @ u, rows)
        value = value if np.isfinite(value) else 1e30
        if value < best:
            best = value
            if seen(z + axes @ u, value):
                raise StopIteration
        return value

    try:
        options = {"initial_tr_radius": 0.3, "final_tr_radius": 0.01}
        minimize(function, np.zeros(len(z)), method="COBYQA", options=options)
    except StopIteration:
        return


def reference_curvature(coordinates: Coordinates, z: np.ndarray, guidance: float) -> np.ndarray:
    """[M, M] Gauss-Newton matrix of the logarithm of the root-mean-square error at a point.

    The mean over problems of J^T J / |r|^2, r the residuals of their samples: what a step does to the samples in
    units of their error.
    """
    noise = coordinates.noise
    data = in_chunks(error_data(noise.noise_end, guidance, prediction=noise.prediction), SIZE)

    def at(point: np.ndarray) -> np.ndarray:
        return np.asarray(_residuals(jnp.asarray(point), data, *coordinates.rest()), np.float64)

    here = at(z)
    steps = _STEP * np.eye(len(z))
    slopes = np.stack([(at(z + step) - at(z - step)) / (2 * _STEP) for step in steps], axis=-1)
    return np.einsum("pim,pin,p->mn", slopes, slopes, 1.0 / (here**2).sum(1)) / len(here)


@functools.partial(jax.jit, static_argnames=STATIC)
def _residuals(
    z: Array, data: Chunks, noise: NoiseSchedule, range_: Range, nfe: int, base: str, searched: bool
) -> Array:
    weights = weights_at(z, range_, nfe, base, searched)

    def one(i: Array) -> Array:
        x = solvers.run(denoiser(data, i), weights, data.noise[i])
        return ((x - data.truth[i]) * jnp.sqrt(data.importance[data.problem[i]])).ravel()

    return jax.lax.map(one, jnp.arange(min(CHUNKS, data.problem.shape[0])))


def _floored(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, vectors) of a symmetric matrix, the values at least `FLOOR`."""
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return np.maximum(values, FLOOR), vectors
