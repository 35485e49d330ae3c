"""Every family: its closed form or its table, smoothness, the inverse, derivatives, padding; the first node; s."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from hso_jax.hso import stack
from hso_jax.noise import NoiseSchedule, alpha_sigma, cosine, discrete, first_lam, flow, lam_of_s, preset, s_of_lam
from hso_jax.noise.schedule import from_knots

ALL = problems.every_noise()
CLOSED = problems.CLOSED_FORMS
each = pytest.mark.parametrize("name", ALL)


def inner(noise: NoiseSchedule, count: int = 400) -> np.ndarray:
    """Times inside the usable range, off the knots."""
    low, high = float(noise.t_min), float(noise.t_max)
    return low + (high - low) * (np.arange(count) + 0.377) / count


@pytest.mark.parametrize("name", CLOSED)
def test_lam_is_the_closed_form(name: str) -> None:
    noise, lam = CLOSED[name]
    t = inner(noise)
    # Between the knots (4001, for EDM 1001) the cubic is off by the fourth power of their distance.
    np.testing.assert_allclose(noise.lam(t), lam(t), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", problems.TABLES)
def test_lam_is_exact_at_the_training_levels(name: str) -> None:
    table = problems.TABLES[name]
    t = np.arange(1, len(table) + 1) / len(table)
    noise = discrete(alphas_cumprod=table)
    np.testing.assert_allclose(noise.lam(t), problems.lam_of_bar(table), rtol=0, atol=1e-12)


def test_lam_follows_a_smooth_table_between_levels() -> None:
    closed = CLOSED["linear-vp"].lam
    levels = np.arange(1, 1001) / 1000
    noise = discrete(alphas_cumprod=1.0 / (1.0 + np.exp(-2.0 * closed(levels))))
    t = np.linspace(0.02, 0.999, 3001)
    np.testing.assert_allclose(noise.lam(t), closed(t), rtol=0, atol=1e-7)


@each
def test_lam_falls_everywhere(name: str) -> None:
    noise = ALL[name]
    low, high = float(noise.t_min), float(noise.t_max)
    assert np.all(np.diff(noise.lam(np.linspace(low, high, 20_001))) < 0)
    assert np.all(np.isfinite(noise.lam(np.array([low, high]))))


@each
def test_lam_is_differentiable_at_the_knots(name: str) -> None:
    noise = ALL[name]
    knots = float(noise.first) + float(noise.spacing) * np.arange(1, int(noise.cells))
    knots = knots[(knots > float(noise.t_min)) & (knots < float(noise.t_max))][:: max(1, len(knots) // 200)]
    if not knots.size:
        pytest.skip("a single cell has no inner knot")
    step = 1e-9
    left, slope_left, bend_left = noise.lam_derivatives(knots - step)
    right, slope_right, bend_right = noise.lam_derivatives(knots + step)
    slope = np.abs(noise.lam_derivatives(knots)[1]).max()
    bend = np.maximum(np.abs(bend_left), np.abs(bend_right)).max()
    np.testing.assert_allclose(left, right, rtol=0, atol=3.0 * step * slope + 1e-12)
    np.testing.assert_allclose(slope_left, slope_right, rtol=0, atol=3.0 * step * bend + 1e-9)


@each
def test_derivatives_match_finite_differences(name: str) -> None:
    noise = ALL[name]
    t = inner(noise, 101)
    place = (t - float(noise.first)) / float(noise.spacing)
    t = t[np.abs(place - np.rint(place)) > 1e-3]  # the second derivative jumps at a knot
    h = 1e-5 * float(noise.spacing)
    lam, rate, bend = noise.lam_derivatives(t)
    ahead, behind = noise.lam_derivatives(t + h), noise.lam_derivatives(t - h)
    np.testing.assert_array_equal(lam, noise.lam(t))
    np.testing.assert_allclose(rate, (ahead[0] - behind[0]) / (2 * h), rtol=2e-5, atol=1e-13 / h)
    np.testing.assert_allclose(bend, (ahead[1] - behind[1]) / (2 * h), rtol=2e-5, atol=1e-11 * np.abs(rate).max() / h)


@each
def test_round_trip_in_float64(name: str) -> None:
    noise = ALL[name]
    low, high = float(noise.t_min), float(noise.t_max)
    near = (high - low) * 10.0 ** -np.arange(2.0, 9.0)
    t = np.concatenate([inner(noise), low + near, high - near])
    # The inverse is as good as lam's own rounding allows: 1e-12 in t, or a few eps of lam where lam is flat.
    flat = 8.0 * np.finfo(float).eps * np.maximum(1.0, np.abs(noise.lam(t))) / np.abs(noise.lam_derivatives(t)[1])
    assert np.all(np.abs(noise.t_of_lam(noise.lam(t)) - t) <= np.maximum(1e-12, flat))
    np.testing.assert_array_equal(noise.t_of_lam(np.array([-1e3, 1e3])), [high, low])


@functools.cache
def _float32() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, times [F, n] and t_of_lam(lam(t)) of all families, in one compiled call."""
    names = list(ALL)
    bank = stack([ALL[n] for n in names], np.dtype(np.float32))
    t = np.stack([inner(ALL[n]) for n in names]).astype(np.float32)
    back = jax.jit(jax.vmap(lambda noise, t: noise.t_of_lam(noise.lam(t))))(jax.tree.map(jnp.asarray, bank), t)
    return names, t, np.asarray(back)


@each
def test_round_trip_in_float32(name: str) -> None:
    names, t, back = _float32()
    i = names.index(name)
    # Stated tolerance: 5e-7 in t, or four float32 eps of lam where lam is flat in t.
    t64 = t[i].astype(float)
    rate = np.abs(ALL[name].lam_derivatives(t64)[1])
    flat = 4.0 * np.finfo(np.float32).eps * np.maximum(1.0, np.abs(ALL[name].lam(t64))) / rate
    assert np.all(np.abs(back[i] - t[i]) <= np.maximum(5e-7, flat))


def test_alpha_and_sigma_by_kind() -> None:
    lam = np.array([-300.0, -5.0, -0.3, 0.0, 0.3, 5.0, 300.0])
    for kind, total in (("vp", lambda a, s: a**2 + s**2), ("flow", lambda a, s: a + s), ("ve", lambda a, s: a)):
        alpha, sigma = alpha_sigma(lam, kind)
        np.testing.assert_allclose(total(alpha, sigma), 1.0, rtol=1e-14)
        np.testing.assert_allclose(np.log(alpha[1:-1] / sigma[1:-1]), lam[1:-1], rtol=0, atol=1e-13)
        assert np.all(np.isfinite(alpha)) and np.all(np.isfinite(sigma))
    with pytest.raises(ValueError, match="'pv'"):
        alpha_sigma(lam, "pv")


@pytest.mark.parametrize("name", ["linear-vp", "flow-3", "edm"])
def test_alpha_sigma_and_ksigma_agree_with_lam(name: str) -> None:
    noise = CLOSED[name].noise
    t = inner(noise, 50)
    np.testing.assert_allclose(noise.sigma(t) / noise.alpha(t), noise.ksigma(t), rtol=1e-12)
    np.testing.assert_allclose(noise.ksigma(t), np.exp(-CLOSED[name].lam(t)), rtol=1e-7)


def test_the_cubic_keeps_a_monotone_table_monotone() -> None:
    values = -np.cumsum(np.array([1.0, 1e-6, 1e-6, 50.0, 1e-9, 3.0, 2.0, 1e-3]))
    curve = from_knots(values, 0.125, 0.125).lam(np.linspace(0.125, 1.0, 1401))
    assert np.all(np.diff(curve) <= 1e-12)
    np.testing.assert_allclose(curve[::200], values, rtol=0, atol=1e-14)


def test_stacking_leaves_lam_unchanged_to_the_bit() -> None:
    noises = [ALL["three"], ALL["scaled-linear"], ALL["zero-snr"], ALL["cosine"], ALL["flow-3"]]
    for dtype in (np.float32, np.float64):
        bank = stack(noises, np.dtype(dtype))
        for i, noise in enumerate(noises):
            t = inner(noise, 101).astype(dtype)
            alone = jax.tree.map(lambda x, d=dtype: np.asarray(x, d), noise)
            row = jax.tree.map(lambda x, i=i: x[i], bank)
            for got, wanted in zip(row.lam_derivatives(t), alone.lam_derivatives(t), strict=True):
                np.testing.assert_array_equal(got, wanted)


def test_fingerprint_tells_levels_and_kinds_apart_and_not_names() -> None:
    vp, named = (discrete(alphas_cumprod=problems.SD_TABLE, name=name) for name in ("a", "b"))
    assert vp.fingerprint() == named.fingerprint()
    kinds = {dataclasses.replace(vp, kind=kind).fingerprint() for kind in ("vp", "ve", "flow")}
    assert len(kinds | {noise.fingerprint() for noise in ALL.values()}) == len(ALL) + 2
    table = problems.TABLES["two"]
    prints = [discrete(alphas_cumprod=table * (1.0 - change)).fingerprint() for change in (0.0, 1e-9, 1e-3)]
    assert prints[0] == prints[1] != prints[2]


FALL, RANGE = "need it to fall", "need lam"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *((x, RANGE) for x in ([1.0, np.nan, -1.0], [np.inf, 0.0, -1.0], [1.0, 0.0, -np.inf], [81.0, 0.0, -1.0])),
        *((x, FALL) for x in ([1.0, 1.0], [1.0, 2.0], [1.0, 0.9999], [1.0, 0.5, 0.5])),
    ],
)
def test_knots_that_no_schedule_has_are_refused(values: list[float], message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=f"custom: lam is .*{message}"):
        from_knots(np.array(values), 0.0, 1.0 / (len(values) - 1))


def test_gradients_of_the_inverse() -> None:
    """d t/d lam = 1/lam'(t); d t/d coefficients by finite differences."""
    noise = discrete(alphas_cumprod=problems.random_table(0, 12))
    lams = np.linspace(*noise.lam(np.array([0.95, 0.15])), 5)
    weights = np.arange(1.0, 6.0)

    def total(coefficients: jax.Array, lams: jax.Array) -> jax.Array:
        return jnp.sum(weights * dataclasses.replace(noise, coefficients=coefficients).t_of_lam(lams))

    table = np.asarray(noise.coefficients)
    with jax.enable_x64(True):
        by_table, by_lam = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.asarray(table), jnp.asarray(lams))
        np.testing.assert_allclose(by_lam, weights / noise.lam_derivatives(noise.t_of_lam(lams))[1], rtol=1e-9)
        for i, j in np.ndindex(table.shape):
            change = 1e-6 * np.eye(table.size)[4 * i + j].reshape(table.shape)
            up, down = (float(total(jnp.asarray(table + s * change), jnp.asarray(lams))) for s in (1, -1))
            np.testing.assert_allclose(by_table[i, j], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["three", "zero-snr", "edm"])
def test_its_repr_is_one_line_with_ends(name: str) -> None:
    noise = ALL[name]
    text = repr(noise)
    assert len(text) < 120 and "\n" not in text and f"lam {noise.noise_end:.4g} .. {noise.data_end:.4g}" in text
    seen: list[str] = []
    jax.jit(lambda traced: seen.append(repr(traced)))(noise)
    assert "traced" in seen[0] and "several" in repr(jax.tree.map(lambda leaf: np.stack([leaf, leaf]), noise))


def test_the_ends_are_the_models() -> None:
    linear = problems.SD
    assert (linear.noise_end, linear.data_end) == (linear.lam(linear.t_max), linear.lam(linear.t_min))
    flow = preset("flux-dev")
    assert flow.noise_end == -np.inf and flow.data_end == pytest.approx(np.log(999.0), abs=1e-15)
    assert cosine().noise_end == -np.inf


def test_the_inverse_of_flat_then_steep_lam() -> None:
    """Five levels, the middle ones 5e-6 and 3e-7 and 6e-8, the last -76: Newton's steps are of no use there."""
    noise = from_knots(np.array([1.8e-2, 5.5e-6, 2.7e-7, 5.9e-8, -76.0]), 0.2, 0.2, num_train_timesteps=5)
    lam = noise.lam(np.linspace(0.2, 1.0, 1001))
    np.testing.assert_allclose(noise.lam(noise.t_of_lam(lam)), lam, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(ALL)[::4])
def test_the_inverse_s_first_two_derivatives(name: str) -> None:
    """Oracle: t' = 1/lam' and t'' = -lam''/lam'^3, from the table's own closed derivatives."""
    noise = ALL[name]
    with jax.enable_x64(True):
        t = jnp.asarray(0.377)
        lam, slope, bend = (float(x) for x in noise.lam_derivatives(t))
        first, second = jax.grad(noise.t_of_lam)(lam), jax.grad(jax.grad(noise.t_of_lam))(lam)
        reverse = jax.jacrev(jax.jacrev(noise.t_of_lam))(lam)
    assert first == pytest.approx(1.0 / slope, rel=1e-9)
    assert second == pytest.approx(-bend / slope**3, rel=1e-6)
    assert reverse == pytest.approx(float(second), rel=1e-9)


def test_the_slope_at_the_last_level() -> None:
    noise = ALL["scaled-linear"]
    with jax.enable_x64(True):
        end = float(noise.t_max)
        assert jax.grad(noise.lam)(end) == pytest.approx(float(noise.lam_derivatives(jnp.asarray(end))[1]), rel=1e-12)


@pytest.mark.parametrize(("kind", "slope"), [("vp", 8**-0.5), ("flow", 0.25)])
def test_alpha_rises_at_lam_0_as_beside_it(kind: str, slope: float) -> None:
    found = jax.jacfwd(lambda lam: jnp.stack(alpha_sigma(lam, kind)))(0.0)
    np.testing.assert_allclose(found, [slope, -slope], rtol=1e-6)


@pytest.mark.parametrize("model", ["pixart-alpha", "ddpm-cifar10", "dit-xl-2"])
def test_few_steps_of_epsilon_begin_below_the_end(model: str) -> None:
    noise = preset(model)
    assert noise.noise_end < -math.log(60.0) - 0.5
    wanted = [-math.log(k) for k in (16.0, 16.0, 22.5, 40.0, 62.5, 90.0, 122.5)]  # 2.5 N^2
    assert [first_lam(noise, nfe) for nfe in range(1, 8)] == pytest.approx(wanted, abs=1e-12)
    assert {first_lam(noise, nfe) for nfe in (8, 20, 50)} == {noise.noise_end}
    assert first_lam(noise.with_prediction("v_prediction"), 4) == noise.noise_end


@pytest.mark.parametrize("model", ["sd15", "flux-dev", "edm-cifar10", "cogvideox-5b"])
def test_all_others_begin_at_their_noise_end(model: str) -> None:
    noise = preset(model)
    assert first_lam(noise, 4) == noise.noise_end == first_lam(noise, 20)
    assert first_lam(flow(3.0), 4) == -math.inf


def test_s_and_lam_are_inverse() -> None:
    lam = np.array([-np.inf, -9.0, -1.0, 0.0, 2.5, 9.0])
    np.testing.assert_allclose(lam_of_s(s_of_lam(lam)), lam, rtol=1e-12)
    assert s_of_lam(-np.inf) == 1.0 and s_of_lam(0.0) == 0.5
