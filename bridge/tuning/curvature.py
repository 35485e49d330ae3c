"""How the error of samples bends at a point, by the reference problems: the first model of the network's own error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.tuning.coordinates import Coordinates
from hso_jax import solvers
from hso_jax.objectives.solver_error import denoiser, error_data, in_chunks
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

    @jax.jit
    def residuals(z: Array) -> Array:
        weights = coordinates.weights(z)

        def one(i: Array) -> Array:
            x = solvers.run(denoiser(data, i), weights, data.noise[i])
            return ((x - data.truth[i]) * jnp.sqrt(data.importance[data.problem[i]])).ravel()

        return jax.lax.map(one, jnp.arange(min(CHUNKS, data.problem.shape[0])))

    def at(point: np.ndarray) -> np.ndarray:
        return np.asarray(residuals(jnp.asarray(point)), np.float64)

    here = at(z)
    steps = _STEP * np.eye(len(z))
    slopes = np.stack([(at(z + step) - at(z - step)) / (2 * _STEP) for step in steps], axis=-1)
    return np.einsum("pim,pin,p->mn", slopes, slopes, 1.0 / (here**2).sum(1)) / len(here)


def floored(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, vectors) of a symmetric matrix, the values at least `FLOOR`."""
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return np.maximum(values, FLOOR), vectors
