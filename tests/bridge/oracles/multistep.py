"""The multistep solvers of `one_step`; the same conventions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from oracles.one_step import X0, Draw, Tensor, _integral, _lagrange, k_sigma, k_x0, noise_path

from bridge.sampling import Level


def lms(x0: X0, grid: list[Level], x: Tensor, draw: Draw, order: int = 4) -> Tensor:
    """k-diffusion's sample_lms: Adams-Bashforth in sigma through the last slopes."""
    denoised = k_x0(x0)
    sigmas = [k_sigma(level) for level in grid]
    slopes: list[Tensor] = []
    for i in range(len(grid) - 1):
        slopes = [(x - denoised(x, sigmas[i])) / sigmas[i], *slopes][:order]
        points = [sigmas[i - k] for k in range(len(slopes))]
        for j, slope in enumerate(slopes):
            basis = np.poly1d([1.0])
            for k, point in enumerate(points):
                if k != j:
                    basis = basis * np.poly1d([1.0, -point]) / (points[j] - point)
            primitive = basis.integ()
            x = x + float(primitive(sigmas[i + 1]) - primitive(sigmas[i])) * slope
    return x


def deis(x0: X0, grid: list[Level], x: Tensor, draw: Draw, order: int = 2) -> Tensor:
    """Zhang and Chen 2023, arXiv 2204.13902: the noise, a polynomial in log rho, integrated over rho = sigma/alpha.

    x_t/alpha_t = x_s/alpha_s + sum_j eps_j * integral of l_j(log rho) drho; a step to sigma 0 takes the newest only.
    """
    past: list[tuple[float, Tensor]] = []
    for now, then in pairwise(grid):
        past = [(math.log(k_sigma(now)), (x - now.alpha * x0(x, now)) / now.sigma), *past][:order]
        used = past[:1] if then.sigma == 0 else past
        points = [point for point, _ in used]
        y = x / now.alpha
        for j, (_, noise) in enumerate(used):
            if then.sigma == 0:
                y = y - k_sigma(now) * noise
                continue
            end = math.log(k_sigma(then))
            y = y + _integral(lambda u, j=j, points=points: _lagrange(points, j, u) * np.exp(u), points[0], end) * noise
        x = then.alpha * y
    return x


def dpm(
    x0: X0,
    grid: list[Level],
    x: Tensor,
    draw: Draw,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    kind: str = "midpoint",
    lower_final: bool = False,
) -> Tensor:
    """Multistep DPM-Solver (arXiv 2206.00927), DPM-Solver++ (2211.01095, algorithm 2) and their SDE forms.

    The steps after a clean end's last: of first order; `lower_final` also makes the last but one of second order.
    """
    past: list[tuple[Level, Tensor]] = []
    steps = len(grid) - 1
    for i, (now, then) in enumerate(pairwise(grid)):
        data = x0(x, now)
        value = data if algorithm.endswith("++") else (x - now.alpha * data) / now.sigma
        past = [(now, value), *past][:3]
        used = min(order, i + 1)
        if i == steps - 1 and (then.sigma == 0 or lower_final):
            used = 1
        elif i == steps - 2 and lower_final:
            used = min(used, 2)
        noise = draw() if algorithm.startswith("sde") else None
        x = _dpm_step(x, past[:used], then, algorithm, kind, noise)
    return x


def cogvideox_dpm(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """SDE-DPM-Solver++(2M); a second-order step draws its noise twice and uses the second."""
    steps = iter(range(len(grid) - 1))

    def last_draw() -> Tensor:
        i = next(steps)
        noise = draw()
        return draw() if i > 0 and grid[i + 1].sigma > 0 else noise

    return dpm(x0, grid, x, last_draw, algorithm="sde-dpmsolver++")


def stable_audio(
    x0: X0, grid: list[Level], x: Tensor, draw: Draw, order: int = 2, kind: str = "midpoint", seed: int = 1
) -> Tensor:
    """SDE-DPM-Solver++ along a Brownian path in sigma, from 0.3 to 500."""
    path = noise_path(draw, 0.3, 500.0, seed)
    sigmas = [torch.tensor(np.exp(-level.lam) if level.sigma > 0 else 0.0) for level in grid]
    increments = (path(now, then) for now, then in pairwise(sigmas))
    return dpm(x0, grid, x, lambda: next(increments), algorithm="sde-dpmsolver++", order=order, kind=kind)


def _dpm_step(
    x: Tensor, past: list[tuple[Level, Tensor]], then: Level, algorithm: str, kind: str, noise: Tensor | None
) -> Tensor:
    """One step from the newest level, by the newest values' divided differences in units of h."""
    now, d0 = past[0]
    h = then.lam - now.lam
    d1: Tensor | float = 0.0
    d2: Tensor | float = 0.0
    if len(past) > 1:
        r0 = (now.lam - past[1][0].lam) / h
        d1 = (d0 - past[1][1]) / r0
    if len(past) > 2:
        r1 = (past[1][0].lam - past[2][0].lam) / h
        older = (past[1][1] - past[2][1]) / r1
        d2 = (d1 - older) / (r0 + r1)
        d1 = d1 + r0 * d2
    return _dpm_update(x, now, then, h, (d0, d1, d2), algorithm, kind if len(past) == 2 else "heun", noise)


def _dpm_update(x, now, then, h, d, algorithm, kind, noise):  # type: ignore[no-untyped-def]
    """The exponential integrator of d0 + d1 u + d2 u^2 / 2, u in [0, 1] across the step."""
    d0, d1, d2 = d
    if then.sigma == 0:
        return d0 if algorithm.endswith("++") else (x - now.sigma * d0) / now.alpha
    if algorithm == "dpmsolver":
        half = 0.5 * math.expm1(h) if kind == "midpoint" else math.expm1(h) / h - 1.0
        third = (math.expm1(h) - h) / h**2 - 0.5
        return then.alpha / now.alpha * x - then.sigma * (math.expm1(h) * d0 + half * d1 + third * d2)
    if algorithm == "sde-dpmsolver":
        half = 0.5 * math.expm1(h) if kind == "midpoint" else math.expm1(h) / h - 1.0
        mean = then.alpha / now.alpha * x - 2.0 * then.sigma * (math.expm1(h) * d0 + half * d1)
        return mean + then.sigma * math.sqrt(math.expm1(2 * h)) * noise
    c = h if algorithm == "dpmsolver++" else 2.0 * h
    half = -0.5 * math.expm1(-c) if kind == "midpoint" else math.expm1(-c) / c + 1.0
    third = 0.5 - (math.expm1(-c) + c) / c**2
    if algorithm == "sde-dpmsolver++":  # diffusers' sign in the third-order term of the multistep form
        third = (-math.expm1(-c) - c) / c**2 - 0.5
    mean = then.sigma / now.sigma * math.exp(h - c) * x + then.alpha * (-math.expm1(-c) * d0 + half * d1 + third * d2)
    return mean if noise is None else mean + then.sigma * math.sqrt(-math.expm1(-2 * h)) * noise


def singlestep_orders(steps: int, order: int, clean: bool) -> list[int]:
    """Orders 1, 2, 3, 1, 2, 3, ... that add up to `steps`; to clean data the last is 1 and the last group is short."""
    if not clean and steps % order == 0:
        return list(range(1, order + 1)) * (steps // order)
    if order == 3:
        tail = {0: [1, 2, 1], 1: [1], 2: [1, 2]}[steps % 3]
    elif order == 2:
        tail = [1, 1] if steps % 2 == 0 else [1]
    else:
        tail = [1]
    orders = list(range(1, order + 1)) * ((steps - len(tail)) // order) + tail
    if clean:
        orders[-1] = 1
    return orders


def dpm_singlestep(
    x0: X0,
    grid: list[Level],
    x: Tensor,
    draw: Draw,
    algorithm: str = "dpmsolver++",
    order: int = 2,
    kind: str = "midpoint",
    orders: list[int] | None = None,
) -> Tensor:
    """Single-step DPM-Solver(++): in a group each step starts again from the group's first sample, one order higher."""
    base, group = x, []
    orders = orders or singlestep_orders(len(grid) - 1, order, grid[-1].sigma == 0)
    for i, (now, then) in enumerate(pairwise(grid)):
        used = min(orders[i], i + 1)  # a start within a group (img2img) begins it anew
        if used == 1:
            base, group = x, []
        data = x0(x, now)
        group.append((now, data if algorithm.endswith("++") else (x - now.alpha * data) / now.sigma))
        first, d0 = group[0]
        h = then.lam - first.lam
        slopes = [((level.lam - first.lam) / h, value - d0) for level, value in group[1:]]
        d1: Tensor | float = 0.0
        d2: Tensor | float = 0.0
        if used == 2 or (used == 3 and kind == "midpoint"):
            d1 = slopes[-1][1] / slopes[-1][0]
        elif used == 3:
            (r1, a), (r0, b) = slopes
            d1 = (r0 * a / r1 - r1 * b / r0) / (r0 - r1)
            d2 = 2.0 * (b / r0 - a / r1) / (r0 - r1)
        noise = draw() if algorithm.startswith("sde") else None
        x = _dpm_update(base, first, then, h, (d0, d1, d2), algorithm, "heun" if used == 3 else kind, noise)
    return x


def sa_solver(
    x0: X0,
    grid: list[Level],
    x: Tensor,
    draw: Draw,
    predictor: int = 2,
    corrector: int = 2,
    data_prediction: bool = True,
) -> Tensor:
    """Xue et al. 2023, arXiv 2305.14267: stochastic Adams, tau = 1 for timesteps in [200, 800], else 0.

    x_t = decay x_s + sum_j w_j f_j + spread z, w_j the integral of l_j e^((1+tau^2) lam) (data) or l_j e^-lam (noise).
    To clean data the order falls by one a step; to an end of sigma > 0 it stays.
    """
    past: list[tuple[Level, Tensor]] = []
    last, noise, tau, corrected = x, x, 0, 0
    steps, lower_final = len(grid) - 1, grid[-1].sigma == 0
    for i, (now, then) in enumerate(pairwise(grid)):
        data = x0(x, now)
        value = data if data_prediction else (x - now.alpha * data) / now.sigma
        past = [(now, value), *past]
        if i > 0:
            x = _adams(last, past[1][0], now, past[:corrected], tau, noise, data_prediction, correct=True)
        left = steps - i
        used = min(predictor, left if lower_final else predictor, i + 1)
        if then.sigma == 0:
            used = 1
        corrected = min(corrector, left + 1 if lower_final else corrector, i + 2)
        last, noise, tau = x, draw(), int(200 <= now.timestep <= 800)
        if then.sigma == 0:  # the limit; noise prediction is only asked for it at tau = 0
            x = value if data_prediction else (x - now.sigma * value) / now.alpha
        else:
            x = _adams(last, now, then, past[:used], tau, noise, data_prediction, correct=False)
    return x


def _adams(x, now, then, used, tau, noise, data_prediction, correct):  # type: ignore[no-untyped-def]
    h, points = then.lam - now.lam, [level.lam for level, _ in used]
    c = 1 + tau**2
    if not data_prediction:
        y = then.alpha / now.alpha * x + tau * then.sigma * math.sqrt(math.expm1(2 * h)) * noise
        for j, (_, value) in enumerate(used):
            weight = _integral(lambda u, j=j, points=points: _lagrange(points, j, u) * np.exp(-u), now.lam, then.lam)
            y = y - c * then.alpha * weight * value
        return y
    y = (
        math.exp(-(tau**2) * h) * then.sigma / now.sigma * x
        + then.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h)) * noise
    )
    scale = c * then.sigma * math.exp(-(tau**2) * then.lam)
    weights = [
        _integral(lambda u, j=j, points=points: _lagrange(points, j, u) * np.exp(c * (u - then.lam)), now.lam, then.lam)
        for j in range(len(used))
    ]
    if len(used) == 2:  # its appendix: at order 2 the first moment is replaced by h^2/2, as UniPC's B(h) does
        first = (h * c + math.expm1(-c * h)) / c**2
        extra = (h / 2 - first / h) if correct else (h**2 / 2 - first) / (now.lam - points[1])
        weights = [weights[0] + extra, weights[1] - extra]
    for weight, (_, value) in zip(weights, used, strict=True):
        y = y + scale * math.exp(c * then.lam) * weight * value
    return y


def plms(x0: X0, grid: list[Level], x: Tensor, draw: Draw, mix_v: bool = False, twice: bool = True) -> Tensor:
    """Liu et al. 2022, arXiv 2202.09778: DDIM steps with Adams-Bashforth noise; the first step is taken twice (Heun).

    `twice`: unless sampling begins in the middle (img2img).
    `mix_v`: diffusers combines what the network returns, so for a v model v, of several levels, and not the noise.
    """

    def output(y: Tensor, level: Level) -> Tensor:
        data = x0(y, level)
        noise = (y - level.alpha * data) / level.sigma
        return level.alpha * noise - level.sigma * data if mix_v else noise

    def move(y: Tensor, mean: Tensor, now: Level, then: Level) -> Tensor:
        noise = now.alpha * mean + now.sigma * y if mix_v else mean
        return then.alpha / now.alpha * (y - now.sigma * noise) + then.sigma * noise

    past: list[Tensor] = []
    for i, (now, then) in enumerate(pairwise(grid)):
        first = output(x, now)
        past = [first, *past][:4]
        if i == 0:
            mean = first if len(grid) == 2 or not twice else (first + output(move(x, first, now, then), then)) / 2
        else:
            rule = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}[
                len(past)
            ]
            mean = sum((weight * old for weight, old in zip(rule, past, strict=True)), torch.zeros_like(x))
        x = move(x, mean, now, then)
    return x
