"""Each solver once more, written from its paper and not from diffusers: what an installed schedule is compared with.

A solver takes `x0(x, level)`, the grid of N + 1 levels (the last is the end) and the start in its own scaling: VP or
flow solvers the model's, k-diffusion's solvers x/alpha. `draw()` gives the next standard normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from bridge.sampling import Level

Tensor = torch.Tensor
X0 = Callable[[Tensor, Level], Tensor]
Draw = Callable[[], Tensor]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)


def _integral(function: Callable[[np.ndarray], np.ndarray], start: float, end: float) -> float:
    middle, half = (start + end) / 2, (end - start) / 2
    return float(half * np.sum(_WEIGHTS * function(middle + half * _NODES)))


def _lagrange(points: Sequence[float], j: int, at: np.ndarray) -> np.ndarray:
    value = np.ones_like(at)
    for k, point in enumerate(points):
        if k != j:
            value = value * (at - point) / (points[j] - point)
    return value


def k_sigma(level: Level) -> float:
    return level.sigma / level.alpha


def k_level(sigma: float) -> Level:
    """A VP level from its ksigma."""
    alpha = 1.0 / math.sqrt(1.0 + sigma**2)
    return Level(math.nan, alpha, sigma * alpha, -math.log(sigma))


def k_x0(x0: X0) -> Callable[[Tensor, float], Tensor]:
    """x0 as a function of k-diffusion's sample and sigma, for a VP model."""

    def of_k(x: Tensor, sigma: float) -> Tensor:
        level = k_level(sigma)
        return x0(level.alpha * x, level)

    return of_k


# ---------------------------------------------------------------- first order, and stochastic relatives


def ddim(x0: X0, grid: list[Level], x: Tensor, draw: Draw, eta: float = 0.0) -> Tensor:
    """Song et al. 2021, arXiv 2010.02502, eq. 12 and 16."""
    for now, then in pairwise(grid):
        data = x0(x, now)
        noise = (x - now.alpha * data) / now.sigma
        spread = eta * then.sigma / now.sigma * math.sqrt(max(1.0 - (now.alpha / then.alpha) ** 2, 0.0))
        x = then.alpha * data + math.sqrt(then.sigma**2 - spread**2) * noise
        if eta > 0:
            x = x + spread * draw()
    return x


def ddpm(x0: X0, grid: list[Level], x: Tensor, draw: Draw, variance: str = "fixed_small") -> Tensor:
    """Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7: the posterior between any two levels."""
    for now, then in pairwise(grid):
        ratio = now.alpha / then.alpha
        beta = now.sigma**2 - ratio**2 * then.sigma**2  # 1 - ratio^2 for a VP model
        x = then.alpha * beta / now.sigma**2 * x0(x, now) + ratio * then.sigma**2 / now.sigma**2 * x
        if then.sigma > 0:
            x = x + math.sqrt(beta * (1.0 if variance == "fixed_large" else then.sigma**2 / now.sigma**2)) * draw()
    return x


def euler(x0: X0, grid: list[Level], x: Tensor, draw: Draw, churn: float = 0.0) -> Tensor:
    """Karras et al. 2022, arXiv 2206.00364, algorithm 2 without the second-order correction."""
    denoised = k_x0(x0)
    for now, then in pairwise(grid):
        sigma = k_sigma(now)
        gamma = min(churn / (len(grid) - 1), math.sqrt(2.0) - 1.0)
        hat = sigma * (1.0 + gamma)
        given = x0(now.alpha * x, now) if gamma > 0 else None
        raised = x + math.sqrt(hat**2 - sigma**2) * draw() if gamma > 0 else x
        # diffusers evaluates before it adds the noise, and keeps the noise prediction
        data = denoised(x, sigma) if given is None else raised - hat * (x - given) / sigma
        x = raised + (raised - data) / hat * (k_sigma(then) - hat)
    return x


def euler_ancestral(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """k-diffusion's sample_euler_ancestral at eta = 1."""
    denoised = k_x0(x0)
    for now, then in pairwise(grid):
        sigma, target = k_sigma(now), k_sigma(then)
        down = target**2 / sigma
        x = x + (x - denoised(x, sigma)) / sigma * (down - sigma) + math.sqrt(target**2 - down**2) * draw()
    return x


def flow_euler(x0: X0, grid: list[Level], x: Tensor, draw: Draw, stochastic: bool = False) -> Tensor:
    """dx/ds = v of a rectified flow; or, stochastic, the predicted data noised anew."""
    for now, then in pairwise(grid):
        data = x0(x, now)
        if stochastic:
            x = then.alpha * data + then.sigma * draw()
        else:
            x = x + (then.sigma - now.sigma) * (x - data) / now.sigma
    return x


def consistency(x0: X0, grid: list[Level], x: Tensor, draw: Draw, scaling: float = 10.0) -> Tensor:
    """Luo et al. 2023, arXiv 2310.04378, algorithm 3, with the boundary scalings of diffusers' LCM."""
    for i, (now, then) in enumerate(pairwise(grid)):
        scaled = now.timestep * scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        data = out * x0(x, now) + skip * x
        x = data if i == len(grid) - 2 else then.alpha * data + then.sigma * draw()
    return x


def trajectory_consistency(
    x0: X0, grid: list[Level], x: Tensor, draw: Draw, middles: list[Level], eta: float
) -> Tensor:
    """Zheng et al. 2024, arXiv 2402.19159, algorithm 4: to `middles[i]` by DDIM, then noised up to the next level."""
    for i, (now, then) in enumerate(pairwise(grid)):
        data = x0(x, now)
        middle = middles[i] if i < len(grid) - 2 else then
        x = middle.alpha * data + middle.sigma * (x - now.alpha * data) / now.sigma
        if eta > 0 and i < len(grid) - 2:
            ratio = then.alpha / middle.alpha
            x = ratio * x + math.sqrt(1.0 - ratio**2) * draw()
    return x


# ---------------------------------------------------------------- second order, two evaluations a step


def heun(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """Karras et al. 2022, algorithm 1, for VP models in k-diffusion's scaling."""
    denoised = k_x0(x0)
    for now, then in pairwise(grid):
        sigma, target = k_sigma(now), k_sigma(then)
        slope = (x - denoised(x, sigma)) / sigma
        guess = x + slope * (target - sigma)
        if target > 0:
            slope = (slope + (guess - denoised(guess, target)) / target) / 2
        x = x + slope * (target - sigma)
    return x


def flow_heun(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """Heun's method on dx/ds = v."""
    for now, then in pairwise(grid):
        slope = (x - x0(x, now)) / now.sigma
        guess = x + slope * (then.sigma - now.sigma)
        if then.sigma > 0:
            slope = (slope + (guess - x0(guess, then)) / then.sigma) / 2
        x = x + slope * (then.sigma - now.sigma)
    return x


def dpm2(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """k-diffusion's sample_dpm_2: the midpoint rule, the middle in log sigma."""
    denoised = k_x0(x0)
    for now, then in pairwise(grid):
        sigma, target = k_sigma(now), k_sigma(then)
        slope = (x - denoised(x, sigma)) / sigma
        if target > 0:
            middle = math.sqrt(sigma * target)
            inner = x + slope * (middle - sigma)
            slope = (inner - denoised(inner, middle)) / middle
        x = x + slope * (target - sigma)
    return x


def dpm_sde(x0: X0, grid: list[Level], x: Tensor, draw: Draw, highest: float | None = None, seed: int = 1) -> Tensor:
    """k-diffusion's sample_dpmpp_sde at eta = 1, r = 1/2.

    Its noise is of a Brownian path between the lowest and the highest sigma, here from the same generator of paths
    (whose increments depend on the last digit of the times, hence the detours through the logarithm).
    """
    denoised = k_x0(x0)
    sigmas = [torch.tensor(np.exp(-level.lam)) for level in grid if level.sigma > 0]
    tree = noise_path(draw, float(sigmas[-1]), float(sigmas[0]) if highest is None else highest, seed)
    for now, then in pairwise(grid):
        sigma = torch.tensor(np.exp(-now.lam))
        data = denoised(x, float(sigma))
        if then.sigma == 0:
            return data
        t, end = -sigma.log(), -torch.tensor(np.exp(-then.lam)).log()
        middle = t + (end - t) * 0.5
        first, moved = (-t).exp(), x
        for to in (middle, end):
            target = (-to).exp()
            up = float(target * (1.0 - (target / first) ** 2).sqrt())
            down = float(target**2 / first)
            mean = down / float(first) * x + (1.0 - down / float(first)) * data
            moved = mean + up * tree(first, target)
            if to is middle:
                data = denoised(moved, float(target))
        x = moved
    return x


def noise_path(draw: Draw, lowest: float, highest: float, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Standard normal increments of a Brownian path in sigma, in the precision of `draw`."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    path = BrownianTreeNoiseSampler(draw(), lowest, highest, seed)
    return lambda now, then: path(now, then)


def dpm2_ancestral(x0: X0, grid: list[Level], x: Tensor, draw: Draw) -> Tensor:
    """k-diffusion's sample_dpm_2_ancestral at eta = 1."""
    denoised = k_x0(x0)
    for now, then in pairwise(grid):
        sigma, target = k_sigma(now), k_sigma(then)
        slope = (x - denoised(x, sigma)) / sigma
        if target == 0:
            x = x - slope * sigma
            continue
        up = math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2)
        down = math.sqrt(target**2 - up**2)
        middle = math.sqrt(sigma * down)
        inner = x + slope * (middle - sigma)
        x = x + (inner - denoised(inner, middle)) / middle * (down - sigma) + up * draw()
    return x
