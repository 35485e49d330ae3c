"""A plain PyTorch sampler for models outside diffusers, with any solver of `hso_jax.solvers` or a schedule's own.

Those solvers are linear in the sample and in the predictions, with weights that depend on the schedule alone: the
weights are computed once, in float64, and one loop carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from bridge.schedulers.scheduled import end_timestep
from hso_jax import solvers
from hso_jax.noise import NoiseSchedule, alpha_sigma, noise_end_t
from hso_jax.schedule import Schedule

Array = np.ndarray[Any, Any]


class Level(NamedTuple):
    """A noise level, `x = alpha x_0 + sigma eps`.

    Attributes:
        timestep: what the network is told (diffusers' convention), nan at clean data.
        alpha, sigma: coefficients of data and noise in the model's own scaling (alpha = 1 for VE models).
        lam: half log-SNR, inf at clean data.
    """

    timestep: float
    alpha: float
    sigma: float
    lam: float


Denoiser = Callable[[torch.Tensor, Level], torch.Tensor]


def levels(schedule: Schedule) -> list[Level]:
    """The schedule's N levels and, as the last of N + 1, its end. Pure noise has the finite lam that diffusers uses."""
    clean = schedule.end == "clean"
    lams = np.append(schedule.lams[: schedule.nfe], math.inf if clean else schedule.lams[-1])
    if np.isinf(lams[0]):
        lams[0] = solvers.PURE_NOISE[schedule.kind]
    alphas, sigmas = (np.array(x) for x in alpha_sigma(lams, schedule.kind))
    told = np.append(schedule.timesteps, math.nan if clean else end_timestep(schedule))
    return [Level(*map(float, row)) for row in zip(told, alphas, sigmas, lams, strict=True)]


def converged(noise: NoiseSchedule, nfe: int) -> Schedule:
    """Many nodes from the model's noisiest level to its cleanest, at equal steps of the mean of t and lam.

    Equal steps of lam alone suit high orders, of t first order; half of each is within a factor two of the better.
    """
    grid = np.linspace(float(noise.t_max), float(noise.t_min), 20 * max(nfe, 100))
    lams = np.asarray(noise.lam(grid))
    way = (lams - lams[0]) / (lams[-1] - lams[0]) + (grid[0] - grid) / (grid[0] - grid[-1])
    t = np.interp(np.linspace(0.0, 2.0, nfe), way, grid)
    t[0] = noise_end_t(noise)
    return Schedule.from_t(noise, t)


def sample(denoiser: Denoiser, schedule: Schedule, noise: torch.Tensor, solver: str | None = None) -> torch.Tensor:
    """Sample with a call of the denoiser at each of the schedule's levels, or as often as the solver needs it.

    Args:
        denoiser: `(x, level) -> x0`, the predicted clean data, of x's shape. From a noise prediction it is
            `(x - level.sigma * eps) / level.alpha`, from v `level.alpha * x - level.sigma * v`, from a flow
            `x - level.sigma * v`.
        schedule: for the model.
        noise: [...] standard normal. VP and flow models start at it, as diffusers' pipelines do; VE models at
            `sqrt(1 + sigma^2)` times it.
        solver: a name that `hso_jax.solvers.canonical` knows; "unipc" is diffusers' default, "unipc-2" (in 0.1.0
            it meant "unipc-3"). N calls of the denoiser; Heun's solvers take 2N, one less to a clean end.
            "nonstationary" is the schedule's own coefficients. None: the solver that the schedule is for, if it is for
            one, else "unipc".

    Returns:
        The sample at the schedule's end, of noise's shape and dtype.

    Raises:
        ValueError: for an unknown solver, or "nonstationary" without coefficients.
    """
    if solver is None:
        known = schedule.solver if schedule.solver in solvers.SOLVERS else "unipc"
        solver = solvers.NONSTATIONARY if schedule.coefficients is not None else known
    solver = solvers.canonical(solver, solvers.EVERY)
    grid, calls = levels(schedule), 1
    if solver == solvers.NONSTATIONARY:
        rows: list[_Row] = [(1.0, [], row[0], row[1:]) for row in schedule.weights_table().tolist()]
        if np.isinf(schedule.lams[0]):  # no logarithm of the level is taken here: pure noise is that
            grid[0] = grid[0]._replace(alpha=0.0, sigma=1.0, lam=-math.inf)
    else:
        rows, calls = _weights(solver, grid), solvers.SOLVERS[solver].calls
    x = base = noise * math.sqrt(1.0 + grid[0].sigma ** 2) if schedule.kind == "ve" else noise
    past: list[torch.Tensor] = []
    for k, (keep, correct, carry, predict) in enumerate(rows):
        past = [denoiser(x, grid[(k + calls - 1) // calls]), *past][: max(len(correct), len(predict))]
        base = _combined(keep, base, correct, past) if len(correct) else x
        x = _combined(carry, base, predict, past)
    return x


_Row = tuple[float, list[float], float, list[float]]
"""Of an evaluation: keep, correct, carry, predict, as in `hso_jax.solvers.Weights`."""


_compiled = jax.jit(solvers.weights, static_argnums=0)


def _combined(weight: float, x: torch.Tensor, others: list[float], past: list[torch.Tensor]) -> torch.Tensor:
    """The weighted sum, without the terms of weight 0."""
    x = weight * x
    for other, known in zip(others, past, strict=False):
        if other:
            x = x + other * known
    return x


def _weights(solver: str, grid: list[Level]) -> list[_Row]:
    """The weights of each evaluation, for samples in the model's own scaling.

    `hso_jax.solvers` has VP-equivalent ones, alpha^2 + sigma^2 = 1; the model's are `scale` times those.
    """
    with jax.enable_x64(True):
        found = _compiled(solver, np.array([level.lam for level in grid[:-1]]), end=grid[-1].lam)
    found = jax.tree.map(np.asarray, found)
    calls, real = solvers.SOLVERS[solver].calls, found.real
    scale = np.array([math.hypot(level.alpha, level.sigma) for level in grid])
    at = (np.arange(int(real.sum()) + 1) + calls - 1) // calls
    now, then = scale[at[:-1]], scale[at[1:]]
    before = np.append(now[0], now[:-1])
    carry, predict = found.carry[real] * then / now, found.predict[real] * then[:, None]
    keep, correct = np.ones_like(now), np.zeros((len(now), 0))
    if found.keep is not None and found.correct is not None:
        keep, correct = found.keep[real] * now / before, found.correct[real] * now[:, None]
    return list(zip(keep.tolist(), correct.tolist(), carry.tolist(), predict.tolist(), strict=True))
