"""VE and EDM: end points, what the network is told, bad values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hso_jax.noise import edm, ve


def test_ends_and_timesteps() -> None:
    noise = edm()
    np.testing.assert_allclose(noise.sigma(np.array([0.0, 1.0])), [0.002, 80.0], rtol=1e-12)
    np.testing.assert_array_equal(noise.alpha(np.array([0.1, 0.9])), 1.0)
    np.testing.assert_allclose(noise.timestep(0.5), 0.25 * np.log(noise.sigma(0.5)), rtol=1e-12)
    np.testing.assert_allclose(ve(0.01, 50.0).sigma(0.5), np.sqrt(0.01 * 50.0), rtol=1e-12)
    assert not noise.zero_terminal_snr


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (np.nan, 1.0), (0.1, np.inf)])
def test_bad_ends(ends: tuple[float, float]) -> None:
    for rule in (edm, ve):
        with pytest.raises(
            ValueError, match=r"sigma_m.. is .*need (0 < sigma_min < sigma_max|a finite number above 0)"
        ):
            rule(*ends)


@pytest.mark.parametrize("rho", [1.0, 7.0, 1e6, 1e300])
def test_edm_at_any_rho_up_to_the_limit_where_it_is_the_geometric_ramp(rho: float) -> None:
    noise, t = edm(rho=rho), np.linspace(0.0, 1.0, 11)
    if rho < 100:
        low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
        np.testing.assert_allclose(noise.sigma(t), (low + t * (high - low)) ** rho, rtol=1e-3)
    else:
        np.testing.assert_allclose(noise.lam(t), ve(0.002, 80.0).lam(t), rtol=0, atol=30.0 / rho + 1e-12)


@pytest.mark.parametrize("ends", [(1e-40, 1.0), (1.0, 1e40), (1.0, 1.0 + 1e-12), (5e-324, 1e308)])
def test_sigmas_beyond_float32_or_too_close(ends: tuple[float, float]) -> None:
    for rule in (edm, ve):
        with pytest.raises(ValueError, match=r"(need lam = log|need it to fall)"):
            rule(*ends)


@pytest.mark.parametrize("bad", ["1", True, None, [1.0, 2.0], 1j, 10**400])
def test_wrong_kinds_of_value(bad: Any) -> None:
    for call in (lambda: ve(bad, 10.0), lambda: ve(0.1, bad), lambda: edm(bad), lambda: edm(rho=bad)):
        with pytest.raises(ValueError, match=r"(sigma_min|sigma_max|rho) is .*; need a finite number"):
            call()


@pytest.mark.parametrize("rho", [0.0, -7.0, np.nan, np.inf, 1e-3])
def test_bad_rho(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        edm(rho=rho)
