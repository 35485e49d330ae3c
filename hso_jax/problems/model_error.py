"""The error of a trained network: a smooth random function of the noise level, added to the exact denoiser.

What a network predicts is off by about the same everywhere; what that means for x_0 depends on what it predicts:

    D(x, lam) + eta c(lam) xi(lam),    c = sigma/sqrt(alpha^2 + (sigma/cap)^2)

| prediction | x_0 from it | c | cap |
|---|---|---|---|
| epsilon | (x - sigma eps)/alpha | sigma/alpha | inf |
| v_prediction | alpha x - sigma v | sigma | 1 |
| edm | c_skip x + c_out F, c_out = sigma for data of unit variance | sigma | 1 |
| flow_prediction | x - s v in a flow's scaling; s is between sigma/sqrt(2) and sigma | sigma | 1 |
| sample | x_0 | sigma | 1 |

A network that predicts x_0 itself is off by less than what is left to predict, which vanishes with sigma; an error that
stayed constant there would have no converged solution: the sample would drift by it for every unit of lam.

The paper's Theorem 1 (arXiv 2511.11688) carries the same term as the bound eta sigma^p/alpha; p = 1 is epsilon's c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.checks import brief, choice, number, whole
from hso_jax.compiling import normal, random_key, uniform
from hso_jax.noise import PREDICTIONS, alpha_sigma

ETA: Mapping[str, float] = {**dict.fromkeys(PREDICTIONS, 0.06), "epsilon": 0.04}
"""Default size of the error by prediction type, in units of what the network predicts (docs/solver-error.md says what
it, `LENGTH` and `ALIKE` were chosen on). An epsilon model's error in x_0 grows without bound towards the noise end."""

LENGTH = 0.7
"""Default correlation length of the error in lam."""

ALIKE = 0.9
"""Default correlation of the errors of the two branches of guidance: one network makes both."""

CAP: Mapping[str, float] = {**dict.fromkeys(PREDICTIONS, 1.0), "epsilon": math.inf}
"""Largest c by prediction type, the one at lam = -inf."""

SATURATION = 7.0
"""xi stops to vary beyond this |lam|: sigma and alpha are then 1e-3, and pure noise is a level like its neighbours."""


class ModelError(NamedTuple):
    """What the error is like; plain numbers, of which None means the prediction type's default.

    Attributes:
        eta, cap: its size; the largest c, inf for epsilon.
        terms: K, number of waves.
        length: correlation length of xi in lam.
        tilt: r: along a coordinate of standard deviation s_j the error is proportional to s_j^r, with the total kept:
            1 is an error like the data, 0 the same in every direction.
        alike: correlation of the errors of the two branches of guidance.
        seed: of the draws.
    """

    eta: float | None = None
    cap: float | None = None
    terms: int = 6
    length: float = LENGTH
    tilt: float = 1.0
    alike: float = ALIKE
    seed: int = 0

    def numbers(self, prediction: str) -> tuple[float, float]:
        """Eta and cap^-2 for a prediction type; (0, 1) without error.

        Raises ValueError for an unknown type, or a size or cap out of range.
        """
        choice("prediction", prediction, ETA)
        eta = ETA[prediction] if self.eta is None else self.eta
        cap = CAP[prediction] if self.cap is None else self.cap
        eta = number("eta", eta, low=0.0, high=1e3, closed=True)
        cap = cap if isinstance(cap, float) and cap == math.inf else number("cap", cap, low=1e-3, closed=True)
        return (eta, cap**-2.0) if eta > 0 else (0.0, 1.0)

    def size(self, prediction: str, lam: float, guidance: float = 1.0) -> float:
        """Of the guided prediction's error in x_0 at lam, in standard deviations of the data. Raises ValueError."""
        eta, capped = self.numbers(prediction)
        return eta * _c(lam, capped) * math.sqrt(_branches(guidance, self.alike))


def check_model_error(error: object, prediction: str, start: float) -> ModelError:
    """The error from outside, its numbers plain; the default for None, at a noise end `start`.

    Raises ValueError for anything else, values out of range, or an error that is infinite at the start.
    """
    if error is None:
        # An epsilon network says nothing about x_0 at pure noise: what starts there has a bounded error.
        choice("prediction", prediction, ETA)
        error = ModelError(cap=1.0 if start == -math.inf and prediction == "epsilon" else None)
    if not isinstance(error, ModelError):
        raise ValueError(f"model_error is {brief(error)}; need a ModelError(eta=...)")
    eta, capped = error.numbers(prediction)
    if start == -math.inf and capped == 0.0:
        raise ValueError(
            f"prediction is {prediction!r} and the noise end pure noise (lam = -inf), where its error in x0 is "
            "infinite; need a model of another prediction type, a noise end before lam = -inf, or eta = 0"
        )
    return ModelError(
        eta=None if error.eta is None else eta,
        cap=None if error.cap is None else float(error.cap),
        terms=whole("terms", error.terms, 1, 1000),
        length=number("length", error.length, low=1e-3, high=1e3, closed=True),
        tilt=number("tilt", error.tilt, low=-10.0, high=10.0),
        alike=number("alike", error.alike, low=-1.0, high=1.0 + 1e-12, closed=True, need="a number from -1 to 1"),
        seed=whole("seed", error.seed, 0, 2**31 - 1),
    )


class Waves(NamedTuple):
    """One draw of xi for B samples: frequencies [K], cosines and sines [2 K, B, D] with eta, cap^-2. A pytree."""

    frequencies: Array
    coefficients: Array
    capped: Array


def draw(error: ModelError, variances: np.ndarray, counts: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [P, K] and coefficients [P, 2, 2 K, B, D] of both branches, eta aside, for P problems; NumPy.

    xi is Gaussian with covariance exp(-(lam - lam')^2/(2 length^2)) in the mean over problems: the frequencies are
    normal, one from each K-th part of the distribution of their size. They are shared by a problem's samples and
    coordinates, whose amplitudes and phases are independent; so K cosines serve them all.

    `variances` [P, D] are the data's along each coordinate, `counts` [P, D] the directions that a coordinate stands
    for, 0 for padding.
    """
    (problems, dimension), terms = variances.shape, error.terms
    key = random_key(error.seed)
    shift = np.asarray(uniform(jax.random.fold_in(key, 0), (problems, terms)), np.float64)
    quantiles = (np.arange(terms) + np.clip(shift, 0.0, 0.999)) / terms
    frequencies = np.vectorize(NormalDist().inv_cdf)(0.5 + 0.5 * quantiles) / error.length
    shape = (problems, 2, 2 * terms, samples, dimension)
    draws = np.array(normal(jax.random.fold_in(key, 1), shape))
    draws[:, 1] = error.alike * draws[:, 0] + math.sqrt(1.0 - error.alike**2) * draws[:, 1]
    sizes = np.where(variances > 0, variances, 1.0) ** error.tilt
    sizes *= ((counts * variances).sum(1) / (counts * sizes).sum(1))[:, None]
    return frequencies, draws * np.sqrt(sizes / terms)[:, None, None, None].astype(np.float32)


def guided(eta: float, coefficients: np.ndarray, guidance: float) -> np.ndarray:
    """[P, 2 K, B, D] of the error of `D_u + w (D_c - D_u)`: `eta ((1 - w) e_u + w e_c)`, from what `draw` gives."""
    of_whole, of_class = eta * (1.0 - guidance), eta * guidance
    return of_whole * coefficients[:, 0] + of_class * coefficients[:, 1]


def over_sigma(waves: Waves, alpha: Array, sigma: Array) -> Array:
    """[B, D] the error divided by sigma, which is finite at clean data."""
    small = math.exp(-SATURATION)
    level = jnp.log(alpha + small * sigma) - jnp.log(sigma + small * alpha)
    angles = waves.frequencies * level
    basis = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)]) / jnp.sqrt(alpha * alpha + waves.capped * sigma * sigma)
    terms, *shape = waves.coefficients.shape
    return (basis[None] @ waves.coefficients.reshape(terms, -1)).reshape(shape)  # one product of a row and a matrix


def error(waves: Waves, alpha: Array, sigma: Array) -> Array:
    """[B, D] what is added to the exact denoiser."""
    return sigma * over_sigma(waves, alpha, sigma)


def _branches(guidance: float, alike: float) -> float:
    """Variance of the guided error, where that of either branch is 1."""
    return max(guidance**2 + (1.0 - guidance) ** 2 + 2.0 * alike * guidance * (1.0 - guidance), 0.0)


def _c(lam: float, capped: float) -> float:
    alpha, sigma = (float(x) for x in alpha_sigma(np.float64(lam), "vp"))
    return sigma / math.sqrt(alpha**2 + capped * sigma**2)
