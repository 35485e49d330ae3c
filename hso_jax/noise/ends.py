"""The coordinate s in which every model lives in [0, 1], and where sampling in few steps begins."""

from __future__ import annotations

from typing import Any

import numpy as np

FIRST_KSIGMA = 25.0, 60.0
"""Most sigma/alpha at which the fewest, and few, steps begin where the network predicts epsilon.

Its error in the clean data grows as sigma/alpha there, and the first step takes it whole; beginning at pure noise of 60
standard deviations in place of the model's end misses the data's mean by a sixtieth of it (docs/solver-error.md).
"""

FEWEST, FEW = 4, 10
"""Steps up to which that is so; more have less error than the mean that is missed. With guidance the fewest are one
less: four steps make less error on the reference problems from 60."""


def first_lam(noise: Any, nfe: int, guidance: float = 1.0) -> float:
    """Lam of the first of N nodes by default: the noise end, in few steps of epsilon models at most `FIRST_KSIGMA`."""
    end = float(noise.noise_end)
    if noise.prediction != "epsilon" or np.isneginf(end) or nfe > FEW:
        return end
    fewest = nfe <= FEWEST - (guidance != 1.0)
    return max(end, -float(np.log(FIRST_KSIGMA[0 if fewest else 1])))


def noise_end_t(noise: Any) -> float:
    """T of the noise end: 1 for a whole model, less for the part that image-to-image samples with."""
    return 1.0 if noise.zero_terminal_snr else float(noise.t_max)


def s_of_lam(lam: Any) -> Any:
    """S = sigma/(alpha + sigma) in [0, 1], NumPy float64: rectified flow's time for alpha + sigma = 1."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.asarray(lam, np.float64)))


def lam_of_s(s: Any) -> np.ndarray:
    """The inverse of `s_of_lam`."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        return np.log1p(-s) - np.log(s)
