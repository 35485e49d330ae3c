"""A network in closed form: every coordinate of the data is +-its size, with a little spread; differentiable."""

from __future__ import annotations

from typing import Any

import torch

SIZES = torch.logspace(0.0, -1.0, 64, dtype=torch.float64).reshape(1, 8, 8)
SPREAD = 0.02


def latents(count: int = 24) -> torch.Tensor:
    """[count, 1, 8, 8] standard normal."""
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Network:
    """Counts the samples it is given; may run out of memory, as told."""

    def __init__(self, most: int = 10**9, gradients: bool = True) -> None:
        """`most` samples fit, and no gradients where these are not wanted."""
        self.calls, self.most, self.gradients = 0, most, gradients

    def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
        """E[x_0 | x]."""
        if len(x) > self.most or (torch.is_grad_enabled() and not self.gradients):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        self.calls += len(x)
        variance = level.alpha**2 * (SPREAD * SIZES) ** 2 + level.sigma**2
        centre = SIZES * torch.tanh(level.alpha * SIZES * x / variance)
        return centre + level.alpha * (SPREAD * SIZES) ** 2 / variance * (x - level.alpha * centre)
