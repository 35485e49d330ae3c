"""Variance-exploding noise: alpha = 1, sigma = ksigma."""

from __future__ import annotations

import numpy as np

from hso_jax.noise.noise_schedule import NoiseSchedule, from_knots

_KNOTS = 1001


def _check(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"sigma_min {sigma_min}, sigma_max {sigma_max}: need 0 < sigma_min < sigma_max")


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, *, name: str = "ve") -> NoiseSchedule:
    """The VE SDE, geometric in t: sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 30.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """
    _check(sigma_min, sigma_max)
    lam = -np.log([sigma_min, sigma_max])
    return from_knots(lam, 0.0, 1.0, kind="ve", timestep_rule="log_ksigma", name=name)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, *, name: str = "edm") -> NoiseSchedule:
    """EDM's noise; t is EDM's own ramp, sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5 and table 1. The network is told log(sigma)/4.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and rho > 0.
    """
    _check(sigma_min, sigma_max)
    if not 0 < rho < np.inf:
        raise ValueError(f"rho is {rho}; need a positive number")
    t = np.linspace(0.0, 1.0, _KNOTS)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = -rho * np.log(low + t * (high - low))
    noise = from_knots(levels, 0.0, t[1], kind="ve", timestep_rule="log_ksigma", name=name)
    return noise.with_prediction("edm")
