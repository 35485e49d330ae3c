"""VE and EDM: end points, what the network is told, bad values."""

from __future__ import annotations

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
        with pytest.raises(ValueError, match="need 0 < sigma_min < sigma_max"):
            rule(*ends)


@pytest.mark.parametrize("rho", [0.0, -7.0, np.nan, np.inf])
def test_bad_rho(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        edm(rho=rho)
