"""MEP and SPF against the definition in float64, automatic differentiation and the SciPy oracle."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import scipy_search as reference
from scipy import optimize

from hso_jax.mep_spf import (
    mep,
    mep_interval,
    mep_interval_derivatives,
    paper_d_min,
    resolve_spacing,
    spacing_penalty,
    spf,
)

RNG = np.random.default_rng(5)
LAMS = np.sort(RNG.uniform(-5.0, 5.0, (20, 9)), axis=1)
POWERS = [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 4.0]


def naive(lams: np.ndarray, p: float) -> float:
    """`sum_i eps(m_i) (exp(lam_{i+1}) - exp(lam_i))`, eps = sigma^p/alpha, as the paper writes it."""
    m = 0.5 * (lams[1:] + lams[:-1])
    alpha, sigma = 1.0 / np.sqrt(1.0 + np.exp(-2.0 * m)), 1.0 / np.sqrt(1.0 + np.exp(2.0 * m))
    return float(np.sum(sigma**p / alpha * (np.exp(lams[1:]) - np.exp(lams[:-1]))))


@pytest.mark.parametrize("p", POWERS)
def test_the_sinh_form_is_the_definition(p: float) -> None:
    for lams in LAMS:
        assert mep(lams, p) == pytest.approx(naive(lams, p), rel=1e-12)
        assert mep(lams, p) == pytest.approx(reference.mep(lams, p), rel=1e-12)


def test_uniform_lam_minimises_p_1() -> None:
    found = optimize.minimize(
        lambda x: float(mep(np.concatenate([[-3.0], x, [4.0]]), 1.0)), np.sort(RNG.uniform(-3, 4, 5)), tol=1e-12
    )
    np.testing.assert_allclose(found.x, np.linspace(-3.0, 4.0, 7)[1:-1], atol=1e-4)
    uniform = mep(np.linspace(-3.0, 4.0, 7), 1.0)
    assert uniform <= found.fun * (1 + 1e-12)
    assert uniform == pytest.approx(6 * 2 * math.sinh(7 / 12), rel=1e-14)


@pytest.mark.parametrize("p", POWERS)
def test_written_out_derivatives_match_automatic_differentiation(p: float) -> None:
    a, b = LAMS[:, :-1].ravel(), LAMS[:, 1:].ravel()
    with jax.enable_x64(True):

        def value(ab: jax.Array) -> jax.Array:
            return mep_interval(ab[0], ab[1], p)

        pairs = jnp.asarray(np.stack([a, b], axis=1))
        value_, grad, hess = jax.jit(jax.vmap(lambda x: (value(x), jax.grad(value)(x), jax.hessian(value)(x))))(pairs)
    value_, grad, hess = (np.asarray(x) for x in (value_, grad, hess))
    wanted = [value_, grad[:, 0], grad[:, 1], hess[:, 0, 0], hess[:, 0, 1], hess[:, 1, 1]]
    scale = np.exp(0.5 * (b - a)) + np.abs(value_)
    for got, want in zip(mep_interval_derivatives(a, b, p), wanted, strict=True):
        assert np.max(np.abs(got - want) / scale) < 1e-13 * 4 ** max(p, 1)


def test_float32_is_accurate_for_steps_of_every_length() -> None:
    for h in (1e-4, 1e-3, 0.1, 1.0, 8.0):
        a = np.linspace(-6, 6, 25).astype(np.float32)
        b = (a + np.float32(h)).astype(np.float32)
        exact = mep_interval_derivatives(a.astype(float), b.astype(float), 2.0)
        got = [np.asarray(x) for x in mep_interval_derivatives(jnp.asarray(a), jnp.asarray(b), 2.0)]
        np.testing.assert_allclose(got[0], exact[0], rtol=3e-6)
        np.testing.assert_allclose(np.asarray(mep_interval(jnp.asarray(a), jnp.asarray(b), 2.0)), exact[0], rtol=3e-6)
        scale = max(np.abs(x).max() for x in exact[1:])
        for x, y in zip(got[1:], exact[1:], strict=True):
            assert np.abs(x - y).max() <= 3e-6 * scale


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_no_overflow_at_extreme_levels(p: float) -> None:
    ends = np.array([-40.0, -39.0, -1.0, 1.0, 39.0, 40.0])
    for array in (ends.astype(np.float32), ends):
        values = mep_interval_derivatives(jnp.asarray(array[:-1]), jnp.asarray(array[1:]), p)
        assert all(np.all(np.isfinite(x)) for x in values)
        assert np.isfinite(mep(jnp.asarray(array), p))
    m = -39.5  # sigma = 1 there, to the bit
    assert mep(np.array([-40.0, -39.0]), p) == pytest.approx(
        2 * math.sinh(0.5) * (1 + math.exp(2 * m)) ** (-0.5 * (p - 1))
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_padding_adds_exactly_nothing(dtype: type) -> None:
    lams = LAMS[0].astype(dtype)
    t = np.linspace(1, 0.1, 9).astype(dtype)
    padded, t_padded = np.append(lams, [lams[-1]] * 5), np.append(t, [t[-1]] * 5)
    parts = mep_interval(padded[:-1], padded[1:], 2.0)
    assert np.all(parts[8:] == 0.0)
    assert all(np.all(np.asarray(x)[8:] == 0.0) for x in mep_interval_derivatives(padded[:-1], padded[1:], 2.0)[:1])
    assert spacing_penalty(t_padded, dtype(0.2), 8) == spacing_penalty(t, dtype(0.2))
    wanted = spf(lams, t, dtype(0.2))
    assert spf(padded, t_padded, dtype(0.2), intervals=8) == pytest.approx(float(wanted), rel=1e-6)


def test_a_single_node_costs_nothing() -> None:
    assert mep(np.array([0.3])) == 0.0


@pytest.mark.parametrize("nfe", [4, 5, 9, 20])
def test_spf_is_the_oracle_s(nfe: int) -> None:
    t = np.sort(RNG.uniform(0.01, 1.0, nfe + 1))[::-1]
    lams = np.log((1.001 - t) / t)
    d = paper_d_min(nfe)
    assert spf(lams, t, d) == pytest.approx(reference.spf(lams, t, nfe), rel=1e-12)
    assert spf(lams, t, 0.07, p=1.0, gamma=3.0) == pytest.approx(
        reference.spf(lams, t, nfe, p=1.0, gamma=3.0, spacing=0.07), rel=1e-12
    )


def test_the_penalty_by_hand() -> None:
    assert spacing_penalty(np.array([1.0, 0.9, 0.5, 0.45]), 0.2) == pytest.approx(0.1**2 + 0.15**2)
    assert spacing_penalty(np.array([1.0, 0.5, 0.0]), 0.5) == 0.0
    assert spacing_penalty(np.array([1.0]), 0.5) == 0.0


def test_the_paper_s_spacing() -> None:
    assert [paper_d_min(n) for n in (1, 4, 20, 64)] == [0.15, 0.15, pytest.approx(0.01, abs=1e-15), 0.01]
    assert paper_d_min(5) == pytest.approx(0.14125) and paper_d_min(12) == pytest.approx(0.08)
    assert all(paper_d_min(n) == pytest.approx(reference.d_min(n), abs=1e-15) for n in range(1, 65))


def test_resolving_a_spacing() -> None:
    assert resolve_spacing(0.1, 7) == 0.1 and resolve_spacing(0, 7) == 0.0
    assert resolve_spacing(lambda n: 1 / (2 * n), 5) == 0.1
    assert resolve_spacing(np.float64(0.25), 5) == 0.25


@pytest.mark.parametrize("spacing", [-0.1, 1.0, math.nan, math.inf, "wide", None, True, lambda n: -1.0])
def test_a_bad_spacing(spacing: object) -> None:
    with pytest.raises(ValueError, match="at nfe 6; need a number"):
        resolve_spacing(spacing, 6)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12, unique=True), st.floats(-2, 5))
def test_splitting_an_interval_lowers_mep_at_p_1(values: list[float], p: float) -> None:
    lams = np.sort(np.array(values))
    assert np.isfinite(mep(lams, p)) and mep(lams, p) >= 0
    halves = np.sort(np.concatenate([lams, 0.5 * (lams[1:] + lams[:-1])]))
    assert mep(halves, 1.0) <= mep(lams, 1.0) * (1 + 1e-12)


def test_second_derivatives_are_right_at_midpoint_0() -> None:
    """The written-out gradient's own derivative is the written-out second derivative, also where the midpoint is 0."""
    with jax.enable_x64(True):
        at = jnp.asarray(-0.5), jnp.asarray(0.5)
        gradient = jax.jacfwd(lambda a, b: jnp.stack(mep_interval_derivatives(a, b, 2.5)[1:3]), (0, 1))(*at)
        *_, aa, ab, bb = mep_interval_derivatives(*at, 2.5)
    np.testing.assert_allclose(np.stack(gradient, -1), [[aa, ab], [ab, bb]], rtol=1e-12)
