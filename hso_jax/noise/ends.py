"""The two ends of a noise schedule, and the coordinate s in which every model lives in [0, 1]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hso_jax.noise.noise_schedule import NoiseSchedule


def noise_end(noise: NoiseSchedule) -> float:
    """The model's lam at its noisiest level: -inf for flow and zero terminal SNR."""
    return -math.inf if noise.zero_terminal_snr else float(noise.lam(float(noise.t_max)))


def data_end(noise: NoiseSchedule) -> float:
    """The largest lam a node may have. Flow models are continuous in s: 0.001, whatever their shift calls it."""
    return math.log(999.0) if noise.kind == "flow" else float(noise.lam(float(noise.t_min)))


def s_of_lam(lam: Any) -> Any:
    """S = sigma/(alpha + sigma) in [0, 1], NumPy float64: rectified flow's time for alpha + sigma = 1."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.asarray(lam, np.float64)))


def lam_of_s(s: Any) -> np.ndarray:
    """The inverse of `s_of_lam`."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        return np.log1p(-s) - np.log(s)


def times(noise: NoiseSchedule, lams: np.ndarray) -> np.ndarray:
    """The model's t of nodes lams; t = 1 where lam is -inf, and no smaller than the model's first level."""
    pure = np.isneginf(lams)
    t = np.asarray(noise.t_of_lam(np.where(pure, 0.0, lams)), np.float64)
    return np.where(pure, 1.0, np.clip(t, float(noise.t_min), 1.0))
