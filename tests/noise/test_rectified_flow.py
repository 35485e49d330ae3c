"""Rectified flow: shifts, the end at pure noise, the network's timestep, gradients, bad values."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hso_jax.noise import dynamic_shift, flow

T = np.array([0.002, 0.1, 0.5, 0.9, 0.998])


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
def test_sigma_is_the_shifted_time(shift: float) -> None:
    s = shift * T / (1 + (shift - 1) * T)
    noise = flow(shift)
    np.testing.assert_allclose(noise.sigma(T), s, rtol=1e-12)
    np.testing.assert_allclose(noise.alpha(T), 1 - s, rtol=1e-12)
    np.testing.assert_allclose(noise.timestep(T), 1000 * s, rtol=1e-12)


def test_ends_at_pure_noise() -> None:
    noise = flow(3.0)
    assert noise.lam(1.0) == -np.inf and float(noise.t_max) == 0.999 and noise.zero_terminal_snr
    assert float(flow(num_train_timesteps=50).t_max) == 0.98


def test_dynamic_shift_is_flux_s() -> None:
    assert dynamic_shift(256) == pytest.approx(math.exp(0.5), rel=1e-14)
    assert dynamic_shift(4096) == pytest.approx(math.exp(1.15), rel=1e-14)
    assert dynamic_shift(1024) == pytest.approx(math.exp(0.5 + 0.65 * (1024 - 256) / (4096 - 256)), rel=1e-14)
    assert dynamic_shift(2176, time_shift_type="linear") == pytest.approx(0.825, rel=1e-14)


def test_gradient_with_respect_to_the_shift() -> None:
    """lam = log((1 - t)/t) - log(shift), so t = 1/(1 + shift exp(lam)) and dt/dshift = -t (1 - t)/shift."""
    lams = np.array([-3.0, 0.0, 2.0])
    with jax.enable_x64(True):
        rate = jax.jit(jax.jacfwd(lambda shift: flow(shift).t_of_lam(jnp.asarray(lams))))(jnp.asarray(3.0))
        back = jax.jit(jax.jacrev(lambda shift: flow(shift).t_of_lam(jnp.asarray(lams))))(jnp.asarray(3.0))
    t = 1.0 / (1.0 + 3.0 * np.exp(lams))
    np.testing.assert_allclose(rate, -t * (1 - t) / 3.0, rtol=1e-10)
    np.testing.assert_allclose(back, rate, rtol=1e-12)


@pytest.mark.parametrize(
    "shift", [0.0, -1.0, math.nan, math.inf, np.float32(-1.0), np.array(-2.0), "3", True, None, [1.0, 2.0]]
)
def test_bad_shift(shift: object) -> None:
    with pytest.raises(ValueError, match="shift is"):
        flow(shift)


def test_other_bad_values() -> None:
    with pytest.raises(ValueError, match="num_train_timesteps is 2;"):
        flow(num_train_timesteps=2)
    with pytest.raises(ValueError, match="image_seq_len is 0"):
        dynamic_shift(0)
    with pytest.raises(ValueError, match="'cubic'"):
        dynamic_shift(4096, time_shift_type="cubic")


def test_equal_lengths_in_a_dynamic_shift_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="image_seq_len"):
        dynamic_shift(256, base_image_seq_len=256, max_image_seq_len=256)


@pytest.mark.parametrize("levels", [0, -1, 1.5, "1000", True, None, math.nan, 10**400, 1e30])
def test_bad_numbers_of_levels(levels: object) -> None:
    with pytest.raises(ValueError, match=r"num_train_timesteps is .*; need a whole number from"):
        flow(num_train_timesteps=levels)


@pytest.mark.parametrize("shift", [1e300, 1e-300, 1e20])
def test_shifts_that_leave_no_two_levels_apart(shift: float) -> None:
    with pytest.raises(ValueError, match=r"flow: (lam is|the network is told)"):
        flow(shift)


def test_three_levels_are_enough() -> None:
    noise = flow(num_train_timesteps=3)
    assert noise.t_min < noise.t_max and np.isfinite(noise.lam(np.array([noise.t_min, noise.t_max]))).all()


@pytest.mark.parametrize("mu", [-1.0, 0.0])
def test_a_linear_dynamic_shift_must_be_positive(mu: float) -> None:
    with pytest.raises(ValueError, match="give 256 tokens a shift of"):
        dynamic_shift(256, base_shift=mu, time_shift_type="linear")


@pytest.mark.parametrize("bad", ["0.5", None, True, math.nan, [1]])
def test_wrong_kinds_in_a_dynamic_shift(bad: object) -> None:
    for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift", "time_shift_type"):
        with pytest.raises(ValueError, match=rf"{name} is .*; (need|use)"):
            dynamic_shift(4096, **{name: bad})
