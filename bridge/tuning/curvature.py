"""How the error of samples bends at a point, by the reference problems: the first model of the network's own error."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.tuning.coordinates import STATIC, Coordinates, weights_at
from hso_jax import solvers
from hso_jax.error import Chunks, denoiser, error_data, in_chunks
from hso_jax.lower.quasi_newton import Range
from hso_jax.noise import NoiseSchedule
from hso_jax.profile import Profile

CHUNKS, SIZE = 24, 32
FLOOR = 0.03
"""Least curvature along any direction: a step of 1 along one that the problems know nothing of is a long one."""

_STEP = 0.05


def reference_curvature(
    coordinates: Coordinates, z: np.ndarray, guidance: float, profile: Profile | None = None
) -> np.ndarray:
    """[size, size] Gauss-Newton matrix of the logarithm of the root-mean-square error at a point.

    The mean over problems of J^T J / |r|^2, r the residuals of their samples: what a step does to the samples in
    units of their error.
    """
    noise = coordinates.noise
    problems, error = (None, None) if profile is None else (profile.problems(), profile.model_error())
    data = in_chunks(
        error_data(noise.noise_end, guidance, prediction=noise.prediction, problems=problems, model_error=error), SIZE
    )

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


def floored(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, vectors) of a symmetric matrix, the values at least `FLOOR`."""
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return np.maximum(values, FLOOR), vectors
