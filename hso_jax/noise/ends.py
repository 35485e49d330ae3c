"""The coordinate s in which every model lives in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np


def s_of_lam(lam: Any) -> Any:
    """S = sigma/(alpha + sigma) in [0, 1], NumPy float64: rectified flow's time for alpha + sigma = 1."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.asarray(lam, np.float64)))


def lam_of_s(s: Any) -> np.ndarray:
    """The inverse of `s_of_lam`."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        return np.log1p(-s) - np.log(s)
