"""Non-stationary multistep solvers: coefficients of their own for every step, given as data.

In data prediction and VP-equivalent scaling, with m_i the prediction at node i and g_i = alpha' (1 - e^-h) its gain,

    x_{i+1} = (sigma'/sigma) x_i + g_i [ (1 - sum_j c_ij) m_i + sum_{j=1..H-1} c_ij m_{i-j} ]

and g = 1 for a last step to clean data. The weights in brackets sum to 1: a constant prediction is integrated exactly
whatever the coefficients. c = 0 is DDIM, and every multistep solver here is a point of the form (`coefficients_of`),
UniPC with its corrector too: that revises the sample by predictions alone. Solvers whose coefficients are free at every
step are known as non-stationary (Shaul et al., Bespoke Non-Stationary Solvers, arXiv 2403.01329).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hso_jax.checks import numbers
from hso_jax.noise import namespace
from hso_jax.optional_jax import Array, jax, jnp
from hso_jax.solvers.weights import Grid, Weights, grid

NONSTATIONARY = "nonstationary"

MAX_HISTORY = 4
"""Largest H: predictions that a step may combine, its own included."""

MAX_COEFFICIENT = 1e3
"""Those of known solvers lie below 10."""


def nonstationary(lams: Array, coefficients: Array, *, end: Array | float = math.inf, nfe: Any = None) -> Weights:
    """The arithmetic of `solvers.weights` for given coefficients; traceable.

    Args:
        lams: [K] half log-SNR of the evaluated nodes, rising; the first may be -inf.
        coefficients: [K, H - 1] c above: column j - 1 weighs the prediction j steps before. Entries for predictions
            that do not exist yet have no effect.
        end: inf for a last step to clean data, else the lam where sampling stops.
        nfe: N, if only the first N rows are real and the rest is padding.
    """
    lams = jnp.asarray(lams)
    steps = grid(lams, jnp.asarray(end, lams.dtype), jnp.asarray(lams.shape[0] if nfe is None else nfe))
    return weights_of(steps, coefficients)


def weights_of(steps: Grid, coefficients: Array) -> Weights:
    """The weights on steps that are known; see `nonstationary`."""
    older = jnp.where(known(*coefficients.shape), coefficients, 0.0)
    bracket = jnp.concatenate([1.0 - older.sum(-1, keepdims=True), older], axis=-1)
    return Weights(steps.lams, steps.real, steps.decay, steps.gain[:, None] * bracket)


def known(steps: int, older: int) -> np.ndarray:
    """[steps, older] whether the prediction so many steps before exists."""
    return np.arange(older)[None, :] < np.arange(steps)[:, None]


def coefficients_of(weights: Weights, steps: Grid, history: int) -> Array:
    """[K, history - 1] the coefficients of a solver that is given by its weights on the same steps; traceable.

    A corrector revises the sample by predictions that the next step knows as well, so its part joins that step's.
    Coefficients beyond `history` are left out: DPM-Solver++ of order p has p - 1, UniPC of order p has p.
    """
    xp, predict, correct = namespace(steps.gain), weights.predict, weights.correct
    reach = max(history, predict.shape[-1] + 1, 0 if correct is None else correct.shape[-1])

    def placed(rows: Array, first: int = 0) -> Array:
        return xp.pad(rows, ((0, 0), (first, reach - first - rows.shape[-1])))

    total = placed(predict)
    if correct is not None:
        before = xp.concatenate([xp.zeros_like(predict[:1]), predict[:-1]])
        revised = placed(correct) - placed(before, 1)
        total = total + weights.carry[:, None] * xp.where(xp.arange(len(revised))[:, None] > 0, revised, 0.0)
    older = total[:, 1:history] / steps.gain[:, None]
    return xp.where(known(*older.shape), older, 0.0)


def check_coefficients(coefficients: Any, nfe: int) -> np.ndarray:
    """Coefficients [N, H - 1] from outside as float64, entries before the first step 0.

    Raises ValueError for another shape, an H above `MAX_HISTORY`, or entries that are not finite, above
    `MAX_COEFFICIENT`, or not 0 where there is no earlier prediction yet.
    """
    values = numbers("coefficients", coefficients)
    if values.ndim != 2 or len(values) != nfe or not 1 <= values.shape[1] <= MAX_HISTORY - 1:
        raise ValueError(
            f"coefficients has shape {values.shape}; need ({nfe}, H - 1): a row a step, H from 2 to {MAX_HISTORY}"
        )
    for i, j in np.argwhere(~(np.abs(values) <= MAX_COEFFICIENT)).tolist():
        raise ValueError(f"coefficients[{i}][{j}] is {values[i, j]}; need finite numbers within +-{MAX_COEFFICIENT:g}")
    for i, j in np.argwhere(~known(*values.shape) & (values != 0)).tolist():
        raise ValueError(f"coefficients[{i}][{j}] is {values[i, j]:g}; step {i} has {i} earlier predictions: need 0")
    return values


def amplification(weights: Weights) -> Array:
    """How much a solver without corrector magnifies errors of the predictions; at least 1, which is DDIM's.

    The sample at each node is a weighted sum of the first sample and of the predictions so far. If every prediction is
    off by at most 1, it is off by at most the sum of their weights' magnitudes; relative to the weights' sum, which a
    constant prediction meets, the largest over all nodes.
    """
    count, width = weights.predict.shape

    def step(held: Array, row: tuple[Array, Array, Weights]) -> tuple[Array, Array]:
        index, real, w = row
        placed = jnp.zeros(count + width, held.dtype)
        for j in range(width):
            placed = placed.at[index + width - j].add(w.predict[j])
        then = jnp.where(real, w.carry * held + placed[width:], held)
        sum_ = jnp.abs(jnp.sum(then))
        ratio = jnp.sum(jnp.abs(then)) / jnp.where(sum_ > 0, sum_, 1.0)
        return then, jnp.where(real, ratio, 1.0)

    rows = jnp.arange(count), weights.real, weights
    _, ratios = jax.lax.scan(step, jnp.zeros(count, weights.predict.dtype), rows)
    return jnp.max(ratios)
