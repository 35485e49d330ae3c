"""Variance-exploding noise: alpha = 1, sigma = ksigma."""

from __future__ import annotations

import numpy as np

from hso_jax.checks import number
from hso_jax.noise.noise_schedule import NoiseSchedule, from_knots

_KNOTS = 1001
_LARGEST_EXPONENT = 700.0  # exp of it is a float64


def _ends(sigma_min: float, sigma_max: float) -> np.ndarray:
    """[2] logarithms of the two ends."""
    low, high = number("sigma_min", sigma_min, low=0.0), number("sigma_max", sigma_max, low=0.0)
    if not low < high:
        raise ValueError(f"sigma_min is {low:g}, sigma_max {high:g}; need 0 < sigma_min < sigma_max")
    return np.log([low, high])


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, *, name: str = "ve") -> NoiseSchedule:
    """The VE SDE, geometric in t: sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 30.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max; and as `from_knots`.
    """
    return from_knots(-_ends(sigma_min, sigma_max), 0.0, 1.0, kind="ve", timestep_rule="log_ksigma", name=name)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, *, name: str = "edm") -> NoiseSchedule:
    """EDM's noise; t is EDM's own ramp, sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5 and table 1. The network is told log(sigma)/4.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max, and 0 < rho is large enough that sigma^(1/rho) is a float; and as
            `from_knots`.
    """
    low, high = _ends(sigma_min, sigma_max)
    least = (high - low) / _LARGEST_EXPONENT
    rho = number("rho", rho, low=0.0, need=f"a finite number of at least {least:.3g} (EDM's is 7)")
    if rho < least:
        raise ValueError(f"rho is {rho:g}; need at least {least:.3g} between these sigmas (EDM's is 7)")
    t = np.linspace(0.0, 1.0, _KNOTS)
    # log(a + t (b - a)) = log a + log1p(t (b/a - 1)): at large rho a and b are both 1 but for rounding.
    lam = -(low + rho * np.log1p(t * np.expm1((high - low) / rho)))
    noise = from_knots(lam, 0.0, t[1], kind="ve", timestep_rule="log_ksigma", name=name)
    return noise.with_prediction("edm")
