"""Discrete tables, their rules and options, zero terminal SNR, gradients, and bad tables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from hso_jax.noise import beta_table, cosine, discrete, linear_vp, rescale_zero_terminal_snr

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
LEVELS = np.arange(1, 1001) / 1000


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


def test_betas_and_their_cumulative_product_are_one_schedule() -> None:
    a, b = discrete(betas=BETAS), discrete(alphas_cumprod=np.cumprod(1.0 - BETAS))
    np.testing.assert_array_equal(a.lam(LEVELS), b.lam(LEVELS))
    assert a.fingerprint() == b.fingerprint()
    np.testing.assert_allclose(a.timestep(LEVELS), np.arange(1000), atol=1e-9)


def test_lists_are_as_good_as_arrays() -> None:
    assert discrete(betas=BETAS.tolist()).fingerprint() == discrete(betas=BETAS).fingerprint()


def test_squaredcos_in_float32_reaches_its_last_level() -> None:
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


def test_cosine_ends_at_pure_noise() -> None:
    assert cosine().lam(1.0) == -np.inf and float(cosine().t_max) == 0.999 and cosine().zero_terminal_snr
    assert not linear_vp().zero_terminal_snr


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


@pytest.mark.parametrize("value", [np.nan, 0.0, 1.0, -0.1, 1.5, np.inf])
@pytest.mark.parametrize("what", ["betas", "alphas_cumprod"])
def test_a_bad_entry_is_named(what: str, value: float) -> None:
    table = BETAS if what == "betas" else problems.SD_TABLE
    with pytest.raises(ValueError, match=rf"{what}\[417\] is {value}"):
        discrete(**{what: replaced(table, 417, value)})


@pytest.mark.parametrize("what", ["betas", "alphas_cumprod"])
def test_a_bad_entry_in_a_jax_array_is_named_too(what: str) -> None:
    table = BETAS if what == "betas" else problems.SD_TABLE
    with pytest.raises(ValueError, match=r"\[417\] is nan"):
        discrete(**{what: jnp.asarray(replaced(table, 417, np.nan))})


def test_a_rising_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fall strictly, but entry 9 is .* and entry 10"):
        discrete(alphas_cumprod=replaced(problems.SD_TABLE, 10, 0.9999))
    with pytest.raises(ValueError, match="fall strictly, but entry 0 is"):
        discrete(alphas_cumprod=np.full(5, 0.5))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either alphas_cumprod or betas"),
        ({"betas": BETAS, "alphas_cumprod": problems.SD_TABLE}, "either"),
        ({"betas": [0.1]}, r"shape \(1,\)"),
        ({"betas": []}, r"shape \(0,\)"),
        ({"betas": np.ones((2, 2)) / 2}, r"shape \(2, 2\)"),
        ({"alphas_cumprod": [0.5, 0.0]}, "at least 3 levels"),
    ],
)
def test_bad_tables(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        discrete(**arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda: beta_table("cubic"),
        lambda: beta_table("linear", 0.0, 0.02),
        lambda: beta_table("linear", 0.02, 0.01),
        lambda: beta_table("linear", 0.1, np.nan),
        lambda: beta_table("linear", num_train_timesteps=1),
        lambda: linear_vp(20.0, 0.1),
        lambda: linear_vp(t_min=0.0),
        lambda: linear_vp(np.nan),
        lambda: cosine(-0.1),
        lambda: cosine(t_min=1.0),
        lambda: cosine(t_min=0.9995),
        lambda: cosine(1e300),
        lambda: cosine("0.008"),
        lambda: linear_vp(0.000482, 4458.7),
        lambda: linear_vp(0.1, 1e300),
        lambda: linear_vp(1e-300, 20.0, t_min=1e-300),
        lambda: linear_vp(beta_max=True),
        lambda: beta_table("linear", 0.1, 1.0),
        lambda: beta_table("linear", "0.1", 0.2),
        lambda: beta_table("linear", num_train_timesteps=10**400),
        lambda: beta_table(num_train_timesteps=1e30),
        lambda: discrete(betas=[1e-20, 0.1, 0.2]),
        lambda: discrete(alphas_cumprod=[0.5, 0.5 - 1e-9]),
        lambda: discrete(alphas_cumprod=[0.5, 1e-80]),
    ],
)
def test_bad_rules(call: object) -> None:
    with pytest.raises(ValueError, match=r"need|use one of"):
        call()


def test_a_steep_linear_vp_is_computed_without_overflow() -> None:
    noise = linear_vp(0.1, 300.0)
    b = 0.1 * 0.9 + 0.5 * 299.9 * 0.81
    assert noise.lam(0.9) == pytest.approx(-0.5 * (b + np.log(-np.expm1(-b))), rel=1e-9)


@pytest.mark.parametrize("flag", ["false", 1, None, []])
def test_a_text_is_no_boolean(flag: Any) -> None:
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr is .*; need true or false"):
        discrete(betas=BETAS, rescale_betas_zero_snr=flag)


@pytest.mark.parametrize("table", [0.5, True, [], [0.5], [[0.5, 0.4]], ["0.5", "0.4"], [0.5, None], [0.5, [0.4]], {}])
def test_what_is_no_table(table: Any) -> None:
    for name in ("betas", "alphas_cumprod"):
        with pytest.raises(ValueError, match=rf"{name} (is|has shape) .*; need"):
            discrete(**{name: table})


def test_a_table_that_is_flat_before_its_zero_still_ends_at_pure_noise() -> None:
    noise = discrete(alphas_cumprod=[0.9, 0.8, 0.7, 0.2, 0.19, 0.0])
    assert noise.zero_terminal_snr and noise.lam(1.0) == -np.inf


def test_a_table_too_flat_to_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inverse is off by .*use levels whose distances"):
        discrete(
            alphas_cumprod=[
                0.5027137871490782,
                0.4999999997203407,
                0.4999999990944517,
                0.49955988811134766,
                0.49723331412411054,
            ],
            rescale_betas_zero_snr=True,
        )
