"""DPM-Solver++(2M) and UniPC, a loop each, step by step as their papers write them.

With `lam = log(alpha/sigma)` and `h` the step in it, both integrate

    x(t) = (sigma_t/sigma_s) x(s) + sigma_t * integral from lam_s to lam_t of e^lam x0(lam) dlam

with a polynomial for `x0`: through two nodes (2M), or through the nodes so far and corrected by the new one (UniPC).
A step to sigma = 0 returns the predicted x0. The conventions are those of `one_step`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from oracles.one_step import X0, Draw, Tensor

from bridge.sampling import Level


def _first_order(x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """Exact for constant x0: (sigma_t/sigma_s) x + alpha_t (1 - e^-h) x0; x0 itself at sigma 0."""
    return (then.sigma / now.sigma) * x - then.alpha * math.expm1(now.lam - then.lam) * x0


def dpmpp_2m(denoiser: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095, algorithm 2."""
    before: tuple[Level, Tensor] | None = None
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


def unipc(denoiser: X0, grid: list[Level], x: Tensor, draw: Draw, order: int, variant: str = "bh2") -> Tensor:
    """UniPC, Zhao et al. 2023, arXiv 2302.04867: each evaluation corrects the step to it, then predicts the next.

    `past` holds the levels evaluated so far with their x0, newest last; `start` is where the step in hand began.
    """
    past: list[tuple[Level, Tensor]] = []
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
    x: Tensor,
    past: list[tuple[Level, Tensor]],
    then: Level,
    order: int,
    variant: str,
    corrector: Tensor | None = None,
) -> Tensor:
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
