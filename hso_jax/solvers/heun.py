"""Heun's method: each step but one to clean data evaluates the model at both of its ends."""

from __future__ import annotations

from hso_jax.noise import alpha_sigma
from hso_jax.optional_jax import Array, jnp
from hso_jax.solvers.weights import Grid, Weights


def heun(grid: Grid, time: str = "ksigma") -> Weights:
    """Heun's method in ksigma (EDM, arXiv 2206.00364, algorithm 1; no churn) or in a rectified flow's s.

    An Euler step with m_i = x0(x_i) leads to x_e, where m_e is evaluated at the next node; the step is then taken
    again with the mean of both slopes, `x' = (sigma'/sigma) x + alpha' (1 - e^-h) ((1 - w) m_i + w m_e)` with
    `w = r/2`, r = time/time'. From lam = -inf ksigma is infinite: the result is then NaN, use "flow".
    """
    weight = 0.5 * _time_ratio(grid, time)
    one, zero = jnp.ones_like(weight), jnp.zeros_like(weight)
    gain = jnp.where(grid.clean, 0.0, grid.gain)

    def pairs(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

    correct = jnp.stack([gain * weight, gain * (1.0 - weight)], axis=-1)
    return Weights(
        lams=pairs(grid.lams, grid.stop),
        real=pairs(grid.real, grid.real & ~grid.clean),
        carry=pairs(grid.decay, one),
        predict=pairs(grid.gain, zero)[:, None],
        keep=pairs(one, grid.decay),
        correct=pairs(jnp.zeros_like(correct), correct),
    )


def _time_ratio(grid: Grid, time: str) -> Array:
    """time/time' of each step; 1 where the step goes to clean data, which is not corrected."""
    if time == "ksigma":
        return jnp.where(grid.clean, 1.0, jnp.where(grid.pure, jnp.nan, jnp.exp(grid.gap)))
    here, there = alpha_sigma(grid.lams, "flow")[1], alpha_sigma(grid.stop, "flow")[1]
    return jnp.where(grid.clean, 1.0, here / there)
