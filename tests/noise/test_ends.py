"""Where sampling in few steps begins, and the coordinate s."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hso_jax import noise, preset
from hso_jax.noise import first_lam, lam_of_s, s_of_lam


@pytest.mark.parametrize("model", ["pixart-alpha", "ddpm-cifar10", "dit-xl-2"])
def test_few_steps_of_epsilon_models_begin_below_their_end(model: str) -> None:
    of = preset(model)
    assert of.noise_end < -math.log(60.0) - 0.5
    assert {first_lam(of, nfe) for nfe in (1, 2, 3, 4)} == {-math.log(25.0)}
    assert {first_lam(of, nfe) for nfe in range(5, 11)} == {-math.log(60.0)}
    assert [first_lam(of, nfe, 4.5) for nfe in (3, 4)] == [-math.log(25.0), -math.log(60.0)]
    assert {first_lam(of, nfe) for nfe in (11, 12, 50)} == {of.noise_end}
    assert first_lam(of.with_prediction("v_prediction"), 4) == of.noise_end


@pytest.mark.parametrize("model", ["sd15", "flux-dev", "edm-cifar10", "cogvideox-5b"])
def test_all_others_begin_at_their_noise_end(model: str) -> None:
    of = preset(model)
    assert first_lam(of, 4) == of.noise_end == first_lam(of, 20)
    assert first_lam(noise.flow(3.0), 4) == -math.inf


def test_s_and_lam_are_inverse() -> None:
    lam = np.array([-np.inf, -9.0, -1.0, 0.0, 2.5, 9.0])
    np.testing.assert_allclose(lam_of_s(s_of_lam(lam)), lam, rtol=1e-12)
    assert s_of_lam(-np.inf) == 1.0 and s_of_lam(0.0) == 0.5
