"""Plain PyTorch samplers for models outside diffusers: DDIM, DPM-Solver++(2M) and UniPC, a loop each.

All three integrate the probability-flow ODE in data prediction. With `lam = log(alpha/sigma)` and `h` the step in it,

    x(t) = (sigma_t/sigma_s) x(s) + sigma_t * integral from lam_s to lam_t of e^lam x0(lam) dlam

and differ in the polynomial that stands for `x0`: constant (DDIM), through two nodes (2M), through the nodes so far and
corrected by the new one (UniPC). A step to sigma = 0 returns the predicted x0, whatever the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from hso_jax.noise import alpha_sigma
from hso_jax.schedule import Schedule

# Log-SNR that stands for pure noise where a solver needs a finite one; diffusers' values.
_PURE_NOISE = {"vp": -0.5 * math.log(2.0**24 - 1.0), "flow": math.log(1e-6 / (1.0 - 1e-6))}


class Level(NamedTuple):
    """A noise level, `x = alpha x_0 + sigma eps`.

    Attributes:
        timestep: what the network is told (diffusers' convention), nan at an end that is not evaluated.
        alpha, sigma: coefficients of data and noise in the model's own scaling (alpha = 1 for VE models).
        lam: half log-SNR, inf at clean data.
    """

    timestep: float
    alpha: float
    sigma: float
    lam: float


Denoiser = Callable[[torch.Tensor, Level], torch.Tensor]


def levels(schedule: Schedule) -> list[Level]:
    """The schedule's N levels and, as the last of N + 1, its end."""
    lams = np.append(schedule.lams[: schedule.nfe], math.inf if schedule.end == "clean" else schedule.lams[-1])
    if np.isinf(lams[0]):
        lams[0] = _PURE_NOISE[schedule.kind]
    alphas, sigmas = (np.array(x) for x in alpha_sigma(lams, schedule.kind))
    told = np.append(schedule.timesteps, math.nan)
    return [Level(*map(float, row)) for row in zip(told, alphas, sigmas, lams, strict=True)]


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: torch.Tensor,
    solver: str = "unipc",
    *,
    order: int = 3,
    variant: str = "bh2",
) -> torch.Tensor:
    """Sample with N calls of the denoiser, one at each of the schedule's evaluated levels.

    Args:
        denoiser: `(x, level) -> x0`, the predicted clean data, of x's shape. From a noise prediction it is
            `(x - level.sigma * eps) / level.alpha`, from v `level.alpha * x - level.sigma * v`, from a flow
            `x - level.sigma * v`.
        schedule: for the model.
        noise: [...] standard normal. VP and flow models start at it, as diffusers' pipelines do; VE models at
            `sqrt(1 + sigma^2)` times it.
        solver: "ddim", "dpmpp-2m" or "unipc".
        order: of UniPC, 1 to 3 (the order of its predictor).
        variant: of UniPC, "bh1" or "bh2": the B(h) of its paper.

    Returns:
        The sample at the schedule's end, of noise's shape and dtype.

    Raises:
        ValueError: for an unknown solver, order or variant.
    """
    grid = levels(schedule)
    x = noise * math.sqrt(1.0 + grid[0].sigma ** 2) if schedule.kind == "ve" else noise
    if solver == "ddim":
        return _ddim(denoiser, grid, x)
    if solver == "dpmpp-2m":
        return _dpmpp_2m(denoiser, grid, x)
    if solver != "unipc":
        raise ValueError(f"solver is {solver!r}; use 'ddim', 'dpmpp-2m' or 'unipc'")
    if order not in (1, 2, 3) or variant not in ("bh1", "bh2"):
        raise ValueError(
            f"UniPC of order {order!r}, variant {variant!r}: use order 1, 2 or 3 and variant 'bh1' or 'bh2'"
        )
    return _unipc(denoiser, grid, x, order, variant)


def _first_order(x: torch.Tensor, x0: torch.Tensor, now: Level, then: Level) -> torch.Tensor:
    """Exact for constant x0: (sigma_t/sigma_s) x + alpha_t (1 - e^-h) x0; x0 itself at sigma 0."""
    return (then.sigma / now.sigma) * x - then.alpha * math.expm1(now.lam - then.lam) * x0


def _ddim(denoiser: Denoiser, grid: list[Level], x: torch.Tensor) -> torch.Tensor:
    for now, then in pairwise(grid):
        x = _first_order(x, denoiser(x, now), now, then)
    return x


def _dpmpp_2m(denoiser: Denoiser, grid: list[Level], x: torch.Tensor) -> torch.Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095, algorithm 2."""
    before: tuple[Level, torch.Tensor] | None = None
    for now, then in pairwise(grid):
        x0 = denoiser(x, now)
        extrapolated = x0
        if before is not None and then.sigma > 0:
            level, previous = before
            r = (now.lam - level.lam) / (then.lam - now.lam)
            extrapolated = x0 + (x0 - previous) / (2.0 * r)
        x = _first_order(x, extrapolated, now, then)
        before = (now, x0)
    return x


def _unipc(denoiser: Denoiser, grid: list[Level], x: torch.Tensor, order: int, variant: str) -> torch.Tensor:
    """UniPC, Zhao et al. 2023, arXiv 2302.04867: each evaluation corrects the step to it, then predicts the next.

    `past` holds the levels evaluated so far with their x0, newest last; `start` is where the step in hand began.
    """
    past: list[tuple[Level, torch.Tensor]] = []
    start, used = x, 0
    for i, (now, then) in enumerate(pairwise(grid)):
        x0 = denoiser(x, now)
        if past:
            x = _unified_step(start, past, now, used, variant, corrector=x0)
        past = [*past[-2:], (now, x0)]
        # At an end of sigma > 0 every step may use the full order; to clean data it falls by one a step, to 1.
        used = min(order, i + 1) if grid[-1].sigma > 0 else min(order, i + 1, len(grid) - 1 - i)
        start = x
        x = x0 if then.sigma == 0 else _unified_step(x, past, then, used, variant)
    return x


def _unified_step(
    x: torch.Tensor,
    past: list[tuple[Level, torch.Tensor]],
    then: Level,
    order: int,
    variant: str,
    corrector: torch.Tensor | None = None,
) -> torch.Tensor:
    """UniP (no corrector) or UniC (with the new x0): eq. 7 and 8 of the paper for data prediction.

    The weights rho of the differences `D_k = (x0_k - x0_now) / r_k` solve the moment conditions
    `sum_k r_k^(n-1) rho_k = n! phi_(n+1)(-h) (-h) / B(h)`, one for each difference.
    """
    now, x0 = past[-1]
    h = then.lam - now.lam
    ratios = [(level.lam - now.lam) / h for level, _ in past[-2 : -order - 1 : -1]]
    differences = [(old - x0) / r for (_, old), r in zip(past[-2 : -order - 1 : -1], ratios, strict=True)]
    if corrector is not None:
        ratios, differences = [*ratios, 1.0], [*differences, corrector - x0]
    scale = -h if variant == "bh1" else math.expm1(-h)
    result = _first_order(x, x0, now, then)
    if not ratios:
        return result
    moments, phi, factorial = [], math.expm1(-h) / -h - 1.0, 1.0
    for n in range(1, len(ratios) + 1):
        moments.append(phi * factorial / scale)
        factorial *= n + 1
        phi = phi / -h - 1.0 / factorial
    solved = np.linalg.solve(np.vander(ratios, increasing=True).T, moments)
    weights = solved.tolist() if len(ratios) > 1 else [0.5]  # the paper's choice for one difference, of the same order
    for weight, difference in zip(weights, differences, strict=True):
        result = result - then.alpha * scale * weight * difference
    return result
