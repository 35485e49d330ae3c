"""A Gaussian mixture whose denoiser and probability-flow ODE are known exactly: the problem of the bridge's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bridge.sampling import Level
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule

MEANS = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.10, 0.02], dtype=torch.float64)


def denoise(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x_0 | x] at x = alpha x_0 + sigma eps, computed in float64; x is [B, 2]."""
    wide = x.to(torch.float64)
    variance = alpha**2 * VARIANCES + sigma**2
    offset = wide[:, None] - alpha * MEANS
    weight = torch.softmax(-(offset**2).sum(-1) / (2 * variance) - torch.log(variance), dim=-1)
    mean = MEANS + (alpha * VARIANCES / variance)[:, None] * offset
    return (weight[..., None] * mean).sum(1).to(x.dtype)


def start(batch: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """[batch, 2] standard normal numbers."""
    return torch.randn(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_t(noise: NoiseSchedule, nfe: int, end: str, rng: np.random.Generator) -> np.ndarray:
    """Random nodes, with gaps of at least a tenth of the even spacing."""
    low, high = (0.02, 0.99) if noise.kind != "ve" else (0.0, 1.0)
    gaps = rng.uniform(0.1, 1.0, nfe + (end == "t_eps") + 1)
    return (high - (high - low) * np.cumsum(gaps) / gaps.sum())[:-1]


def random_schedule(noise: NoiseSchedule, nfe: int, end: str, seed: int) -> Schedule:
    t = random_t(noise, nfe, end, np.random.default_rng([seed, nfe]))
    return Schedule.from_t(noise, t, layout="node" if end == "clean" else "interval", end=end)


class Model:
    """The network: predicts what the scheduler asks for, and records how often and as what noise level it is called."""

    def __init__(self, prediction: str) -> None:
        self.prediction, self.told = prediction, []

    def __call__(self, x: torch.Tensor, timestep: Any, level: Level, sigma_data: float | None = None) -> torch.Tensor:
        """The output for an input x in the model's own scaling (EDM: scaled by c_in; then pass sigma_data)."""
        self.told.append(float(timestep))
        sigma, alpha = level.sigma, level.alpha
        if sigma_data is not None:
            sample = x * (sigma**2 + sigma_data**2) ** 0.5
            skip = sigma_data**2 / (sigma**2 + sigma_data**2)
            out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
            return (denoise(sample, 1.0, sigma) - skip * sample) / (out if self.prediction == "epsilon" else -out)
        x0 = denoise(x, alpha, sigma)
        noise = (x - alpha * x0) / sigma
        outputs = {
            "epsilon": noise,
            "sample": x0,
            "v_prediction": alpha * noise - sigma * x0,
            "flow_prediction": noise - x0,
        }
        return outputs[self.prediction]
