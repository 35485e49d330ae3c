"""The families of noise against their closed forms, at their ends, and what each door refuses."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from hso_jax.noise import (
    beta_table,
    clipped_cosine,
    cosine,
    discrete,
    edm,
    flow,
    linear_vp,
    rescale_zero_terminal_snr,
    ve,
)

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
LEVELS = np.arange(1, 1001) / 1000
T = np.array([0.002, 0.1, 0.5, 0.9, 0.998])
NAN, INF = math.nan, math.inf


def replaced(table: np.ndarray, i: int, value: float) -> np.ndarray:
    changed = table.copy()
    changed[i] = value
    return changed


def test_beta_rules() -> None:
    def bar(t: float) -> float:
        return float(np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2)

    np.testing.assert_allclose(beta_table("scaled_linear", 0.00085, 0.012), BETAS, rtol=1e-14)
    np.testing.assert_allclose(
        beta_table("linear", 1e-4, 0.02), 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999, rtol=1e-13
    )
    capped = [min(1.0 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]
    np.testing.assert_allclose(beta_table("squaredcos_cap_v2"), capped, rtol=1e-12)


def test_betas_and_their_product_are_one_schedule() -> None:
    a, b, c = discrete(betas=BETAS), discrete(alphas_cumprod=np.cumprod(1.0 - BETAS)), discrete(betas=BETAS.tolist())
    np.testing.assert_array_equal(a.lam(LEVELS), b.lam(LEVELS))
    assert a.fingerprint() == b.fingerprint() == c.fingerprint()
    np.testing.assert_allclose(a.timestep(LEVELS), np.arange(1000), atol=1e-9)


def test_squaredcos_reaches_its_last_level() -> None:
    noise = discrete(betas=beta_table("squaredcos_cap_v2"))
    assert not noise.zero_terminal_snr and float(noise.t_max) == 1.0
    np.testing.assert_allclose(noise.lam(1.0), problems.lam_of_bar(np.cumprod(1 - beta_table("squaredcos_cap_v2")))[-1])


def test_rescaled_to_zero_terminal_snr() -> None:
    root = np.sqrt(problems.SD_TABLE)  # Lin et al. 2024, algorithm 1, line by line
    rescaled = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    np.testing.assert_allclose(rescale_zero_terminal_snr(problems.SD_TABLE), rescaled, rtol=1e-13)
    noise = discrete(betas=BETAS, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(noise.lam(LEVELS[:-1]), problems.lam_of_bar(rescaled[:-1]), rtol=0, atol=1e-12)
    assert noise.zero_terminal_snr and noise.lam(1.0) == -np.inf and float(noise.t_max) == 0.999
    same = discrete(alphas_cumprod=rescaled)
    assert same.zero_terminal_snr and same.lam(1.0) == -np.inf
    np.testing.assert_allclose(same.lam(LEVELS), noise.lam(LEVELS), rtol=0, atol=1e-12)


def test_a_steep_linear_vp_does_not_overflow() -> None:
    noise = linear_vp(0.1, 300.0)
    b = 0.1 * 0.9 + 0.5 * 299.9 * 0.81
    assert noise.lam(0.9) == pytest.approx(-0.5 * (b + np.log(-np.expm1(-b))), rel=1e-9)


def test_pure_noise_at_the_end() -> None:
    flat = discrete(alphas_cumprod=[0.9, 0.8, 0.7, 0.2, 0.19, 0.0])  # its last slope is limited to 0
    for noise, t_max in ((flat, 5 / 6), (cosine(), 0.999), (flow(3.0), 0.999), (flow(num_train_timesteps=50), 0.98)):
        assert noise.zero_terminal_snr and noise.lam(1.0) == -np.inf and float(noise.t_max) == pytest.approx(t_max)
    assert not any(noise.zero_terminal_snr for noise in (linear_vp(), edm(), clipped_cosine()))


def test_ends_and_timesteps_of_ve_and_edm() -> None:
    noise = edm()
    np.testing.assert_allclose(noise.sigma(np.array([0.0, 1.0])), [0.002, 80.0], rtol=1e-12)
    np.testing.assert_array_equal(noise.alpha(np.array([0.1, 0.9])), 1.0)
    np.testing.assert_allclose(noise.timestep(0.5), 0.25 * np.log(noise.sigma(0.5)), rtol=1e-12)
    np.testing.assert_allclose(ve(0.01, 50.0).sigma(0.5), np.sqrt(0.01 * 50.0), rtol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 7.0, 1e6, 1e300])
def test_edm_at_large_rho_is_the_geometric_ramp(rho: float) -> None:
    noise, t = edm(rho=rho), np.linspace(0.0, 1.0, 11)
    if rho < 100:
        low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
        np.testing.assert_allclose(noise.sigma(t), (low + t * (high - low)) ** rho, rtol=1e-3)
    else:
        np.testing.assert_allclose(noise.lam(t), ve(0.002, 80.0).lam(t), rtol=0, atol=30.0 / rho + 1e-12)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
def test_flow_s_sigma_is_the_shifted_time(shift: float) -> None:
    s = shift * T / (1 + (shift - 1) * T)
    noise = flow(shift)
    np.testing.assert_allclose(noise.sigma(T), s, rtol=1e-12)
    np.testing.assert_allclose(noise.alpha(T), 1 - s, rtol=1e-12)
    np.testing.assert_allclose(noise.timestep(T), 1000 * s, rtol=1e-12)


def test_three_levels_of_flow_are_enough() -> None:
    noise = flow(num_train_timesteps=3)
    assert noise.t_min < noise.t_max and np.isfinite(noise.lam(np.array([noise.t_min, noise.t_max]))).all()


def test_gradient_with_respect_to_betas() -> None:
    betas = 1.0 - problems.random_table(3, 10)[1:] / problems.random_table(3, 10)[:-1]
    t = np.array([0.31, 0.5, 0.87])

    def total(betas: jax.Array) -> jax.Array:
        return jnp.sum(discrete(betas=betas).lam(jnp.asarray(t)))

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(betas)))
    for i in range(len(betas)):
        h = 1e-6 * betas[i]
        up, down = (discrete(betas=replaced(betas, i, betas[i] + s * h)).lam(t).sum() for s in (1, -1))
        np.testing.assert_allclose(gradient[i], (up - down) / (2 * h), rtol=1e-5, atol=1e-6)


def test_gradient_with_respect_to_the_shift() -> None:
    """lam = log((1 - t)/t) - log(shift), so t = 1/(1 + shift exp(lam)) and dt/dshift = -t (1 - t)/shift."""
    lams = np.array([-3.0, 0.0, 2.0])
    with jax.enable_x64(True):
        rate = jax.jit(jax.jacfwd(lambda shift: flow(shift).t_of_lam(jnp.asarray(lams))))(jnp.asarray(3.0))
        back = jax.jit(jax.jacrev(lambda shift: flow(shift).t_of_lam(jnp.asarray(lams))))(jnp.asarray(3.0))
    t = 1.0 / (1.0 + 3.0 * np.exp(lams))
    np.testing.assert_allclose(rate, -t * (1 - t) / 3.0, rtol=1e-10)
    np.testing.assert_allclose(back, rate, rtol=1e-12)


FLAT = [0.5027137871490782, 0.4999999997203407, 0.4999999990944517, 0.49955988811134766, 0.49723331412411054]
TABLES = {"betas": BETAS, "alphas_cumprod": problems.SD_TABLE}
NO_TABLES = [0.5, [], [0.5], [[0.5, 0.4]], ["0.5", "0.4"], [0.5, None], [0.5, [0.4]], {}]
NO_NUMBERS = ["1", True, None, [1.0, 2.0], 1j, 10**400]
SIGMAS = "sigma_m.. is .*need (0 < sigma_min < sigma_max|a finite number above 0)"
RANGE = "need lam = log|need it to fall"

# A door, the argument, its bad values, what the refusal says, the other arguments.
REFUSED: list[tuple[Any, str, list[Any], str, dict[str, Any]]] = [
    *(
        (discrete, k, [replaced(t, 417, x) for x in (NAN, 0.0, 1.0, 1.5)], rf"{k}\[417\] is", {})
        for k, t in TABLES.items()
    ),
    *((discrete, k, NO_TABLES, rf"{k}(\[\d\])? (is|has shape) .*; need", {}) for k in TABLES),
    (discrete, "betas", [jnp.asarray(replaced(BETAS, 417, NAN))], r"\[417\] is nan", {}),
    (discrete, "betas", [None], "either alphas_cumprod or betas", {}),
    (discrete, "betas", [BETAS], "either alphas_cumprod or betas", {"alphas_cumprod": problems.SD_TABLE}),
    (discrete, "betas", [[1e-20, 0.1, 0.2]], r"betas\[0\] is 1e-20, .*need at least", {}),
    (
        discrete,
        "alphas_cumprod",
        [replaced(problems.SD_TABLE, 10, 0.9999)],
        "strictly, but entry 9 is .* and entry 10",
        {},
    ),
    (discrete, "alphas_cumprod", [np.full(5, 0.5)], "fall strictly, but entry 0 is", {}),
    (discrete, "alphas_cumprod", [[0.5, 0.0]], "at least 3 levels", {}),
    (discrete, "alphas_cumprod", [[0.5, 0.5 - 1e-9], [0.5, 1e-80]], RANGE, {}),
    (discrete, "alphas_cumprod", [FLAT], "inverse is off by .*use levels whose dist", {"rescale_betas_zero_snr": True}),
    (discrete, "rescale_betas_zero_snr", ["false", 1, None], "rescale_.* is .*; need true or false", {"betas": BETAS}),
    (beta_table, "rule", ["cubic"], "beta_schedule is 'cubic'; use one of", {}),
    (beta_table, "beta_start", [0.0, 0.03, NAN, "0.1"], "beta_start.* (is|are) .*need", {"beta_end": 0.02}),
    (beta_table, "beta_end", [1.0, NAN], "beta_.*end.* (is|are) .*need", {"rule": "linear"}),
    (beta_table, "num_train_timesteps", [1, 10**400, 1e30], "num_train_timesteps is .*need", {}),
    (linear_vp, "beta_min", [20.5, NAN, 0.0], "need", {}),
    (linear_vp, "beta_max", [1e300, 4458.7, True], "need", {"beta_min": 0.000482}),
    (linear_vp, "t_min", [0.0, 1.0], "need", {}),
    (cosine, "offset", [-0.1, 1e300, "0.008"], "offset is .*need|need lam", {}),
    (cosine, "t_min", [1.0, 0.9995], "t_min is .*need", {}),
    (clipped_cosine, "offset", [-0.1, NAN, "0.008"], "s is .*; need a finite number at least 0", {}),
    (clipped_cosine, "scaler", [0.0, -1.0, INF, None], "scaler is .*; need a finite number above 0", {}),
    *((rule, "sigma_min", [0.0, 2.0, 1.0, NAN], SIGMAS, {"sigma_max": 1.0}) for rule in (ve, edm)),
    *((rule, "sigma_max", [1e40, 1.0 + 1e-12], RANGE, {"sigma_min": 1.0}) for rule in (ve, edm)),
    *((rule, "sigma_max", NO_NUMBERS, "sigma_max is .*; need a finite number", {}) for rule in (ve, edm)),
    (edm, "rho", [*NO_NUMBERS, 0.0, -7.0, NAN, INF, 1e-3], "rho is", {}),
    (flow, "shift", [*NO_NUMBERS, 0.0, NAN, INF, np.float32(-1.0), np.array(-2.0)], "shift is", {}),
    (flow, "shift", [1e300, 1e-300, 1e20], r"flow: (lam is|the network is told)", {}),
    (
        flow,
        "num_train_timesteps",
        [2, 0, -1, 1.5, "1000", True, None, NAN, 10**400],
        "num_train_timesteps is .*need",
        {},
    ),
]


@pytest.mark.parametrize(("door", "name", "values", "message", "given"), REFUSED)
def test_a_bad_value_is_named(door: Any, name: str, values: list[Any], message: str, given: dict[str, Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            door(**given, **{name: value})
