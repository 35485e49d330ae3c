"""Products of 1-D mixtures and spectra, against quadrature, autodiff and the quantile map."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from hso_jax import problems
from hso_jax.noise import alpha_sigma
from hso_jax.problems import product as products
from hso_jax.problems.bank import denoise, predict
from hso_jax.problems.product import directions

WEIGHTS = np.array([[0.2, 1.0], [0.5, 2.0], [0.3, 1.0]])
MEANS = np.array([[-1.0, 4.0], [0.8, -1.0], [0.2, 2.0]])
VARIANCES = np.array([[0.15, 1.0], [0.05, 0.5], [0.3, 2.0]])
MEMBERS = np.array([[True, True], [False, True], [True, True]])
SHARES = WEIGHTS / WEIGHTS.sum(0)
OF_CLASS = WEIGHTS * MEMBERS / (WEIGHTS * MEMBERS).sum(0)


def small(counts: Any = None) -> problems.Product:
    return products(WEIGHTS, MEANS, VARIANCES, counts=counts, members=MEMBERS)


def points(batch: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 2))


def log_density(x: jax.Array, alpha: jax.Array, sigma: jax.Array, of_class: bool) -> jax.Array:
    """Of the product of 1-D sums of Gaussians, by its definition."""
    deviations = jnp.sqrt(alpha**2 * VARIANCES + sigma**2)
    shares = OF_CLASS if of_class else SHARES
    return jnp.log((shares * jax.scipy.stats.norm.pdf(x, alpha * MEANS, deviations)).sum(0)).sum()


@pytest.mark.parametrize("lam", [-1.5, 0.0, 1.2])
@pytest.mark.parametrize(("weight", "shares"), [(0.0, SHARES), (1.0, OF_CLASS)], ids=["whole", "class"])
def test_denoiser_is_the_posterior_mean_by_quadrature(lam: float, weight: float, shares: np.ndarray) -> None:
    sigma = 1.0 / np.sqrt(1.0 + np.exp(2.0 * lam))
    alpha = np.sqrt(1.0 - sigma**2)
    grid = np.linspace(-15.0, 15.0, 6001)[:, None]
    density = sum(shares[c] * norm.pdf(grid, MEANS[c], VARIANCES[c] ** 0.5) for c in range(3))
    with jax.enable_x64(True):
        got, score = predict(small(), points(), jnp.asarray(alpha), jnp.asarray(sigma), weight)
    for x, mean, residual in zip(points(), np.asarray(got), np.asarray(score), strict=True):
        joint = density * np.exp(-((x - alpha * grid) ** 2) / (2.0 * sigma**2))
        wanted = (grid * joint).sum(0) / joint.sum(0)
        np.testing.assert_allclose(mean, wanted, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(residual, (x - alpha * wanted) / sigma**2, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("lam", [-np.inf, -2.0, 0.5, np.inf])
def test_score_density_and_guidance(lam: float) -> None:
    """The score is the gradient of the log density of either branch, and guidance is linear in its weight."""
    with jax.enable_x64(True):
        problem, x = small(), points()
        alpha, sigma = (jnp.asarray(a) for a in alpha_sigma(np.float64(lam), "vp"))
        found = {w: predict(problem, x, alpha, sigma, w) for w in (0.0, 1.0, 7.5)}
        for of_class in (False, True):
            slope = jax.vmap(jax.grad(lambda y, c=of_class: log_density(y, alpha, sigma, c)))(x)
            np.testing.assert_allclose(-found[float(of_class)][1], slope, rtol=1e-9, atol=1e-11)
        for part in (0, 1):
            linear = found[0.0][part] + 7.5 * (found[1.0][part] - found[0.0][part])
            np.testing.assert_allclose(found[7.5][part], linear, rtol=1e-10, atol=1e-11)
        if lam == -np.inf:
            np.testing.assert_allclose(found[0.0][0], np.tile((SHARES * MEANS).sum(0), (5, 1)))
            np.testing.assert_allclose(found[1.0][0], np.tile((OF_CLASS * MEANS).sum(0), (5, 1)))
        if lam == np.inf:
            np.testing.assert_allclose(found[7.5][0], x, rtol=1e-13)
    assert np.any(found[0.0][0] != found[1.0][0])


def test_derivatives_of_the_search_s_denoiser_are_autodiff_s() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        made = problems.spectral(jax.random.key(0), problems.power_law(4096, 1.0), dimension=8)
        change = jnp.asarray(rng.normal(size=(5, 8)))
        for lam in (-3.0, -0.5, 0.3, 2.0):
            x = jnp.asarray(2.0 * rng.normal(size=(5, 8)))

            def plain(x: jax.Array, lam: jax.Array) -> jax.Array:
                return predict(made, x, *alpha_sigma(lam, "vp"), 3.0)[0]

            wanted, pull = jax.vjp(plain, x, jnp.asarray(lam))
            got, fast = jax.vjp(lambda x, lam: denoise(made, x, lam, 3.0), x, jnp.asarray(lam))
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13)
            for a, b in zip(fast(change), pull(change), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        for lam in (-np.inf, np.inf):
            slopes = jax.grad(lambda x, lam: denoise(made, x, lam, 3.0).sum(), (0, 1))(np.ones((1, 8)), lam)
            assert all(np.isfinite(slope).all() for slope in slopes)


def test_gradients_are_finite_at_both_ends_and_far_out() -> None:
    x = np.float32([[30.0, -50.0], [-200.0, 3.0]])

    def total(x: jax.Array, lam: jax.Array) -> jax.Array:
        return sum(part.sum() for part in predict(small(), x, *alpha_sigma(lam, "vp"), 4.0))

    for lam in np.float32([-np.inf, -3.0, 3.0, np.inf]):
        assert np.isfinite(total(x, jnp.asarray(lam)))
        assert all(np.isfinite(slope).all() for slope in jax.grad(total, (0, 1))(x, jnp.asarray(lam)))


@pytest.mark.parametrize(("weight", "shares"), [(0.0, SHARES), (1.0, OF_CLASS)], ids=["whole", "class"])
def test_exact_is_the_quantile_map(weight: float, shares: np.ndarray) -> None:
    """In one dimension the probability flow keeps quantiles: `F_0(x_0) = Phi(z)` from pure noise."""
    z = points(4)
    with jax.enable_x64(True):
        found = problems.exact(small(), z, guidance=weight, steps=128)

    def distribution(x: float, j: int) -> float:
        return float((shares[:, j] * norm.cdf(x, MEANS[:, j], VARIANCES[:, j] ** 0.5)).sum())

    for row, got in zip(z, np.asarray(found.value), strict=True):
        for j in range(2):
            quantile = norm.cdf(row[j])
            wanted = brentq(lambda x, j=j, q=quantile: distribution(x, j) - q, -30.0, 30.0, xtol=1e-13)
            assert got[j] == pytest.approx(wanted, abs=1e-7)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(found.errors))), found.error, rtol=1e-12)


def test_spectral_has_the_spectrum() -> None:
    spectrum = problems.power_law(4096, 1.0, deviation=2.0)
    assert spectrum.dimension == 4096 and spectrum.total == pytest.approx(4 * 4096)
    made = problems.spectral(jax.random.key(3), spectrum, dimension=24, leading=0.3)
    again = problems.spectral(jax.random.key(3), spectrum, dimension=24, leading=0.3)
    jax.tree.map(np.testing.assert_array_equal, made, again)
    s, counts = directions(spectrum, 24)
    variances, kept = problems.spread(problems.collect([made]))
    np.testing.assert_allclose(variances[0], s**2, rtol=1e-5)
    np.testing.assert_allclose(kept[0], counts, rtol=1e-6)
    weights = np.exp(made.log_weights)
    np.testing.assert_allclose((weights * made.means).sum(0), 0.0, atol=1e-5 * s[0])
    np.testing.assert_allclose((weights * made.variances).sum(0) / variances[0], 0.3, rtol=1e-5)
    knows = np.isneginf(made.class_log_weights).any(0)
    held = np.cumsum(counts * s**2) / (counts * s**2).sum()
    assert knows.tolist() == [True, *(held[:-1] < 0.3)]
    assert np.isneginf(made.class_log_weights[:, 0]).sum() == 2


def test_directions_keep_the_variance_and_space_evenly_in_logarithm() -> None:
    for of in (
        problems.spectrum([5.0, 2.0, 0.1], [1.0, 3.0, 100.0]),
        problems.power_law(768, 1.3),
        problems.power_law(300_000, 0.7),
        problems.spectrum([1.0, 1.0, 1.0, 0.5, 0.5]),
        problems.spectrum([2.0], [50.0]),
    ):
        s, counts = directions(of, 16)
        assert (counts * s**2).sum() == pytest.approx(of.total, rel=1e-6)
        assert np.all(counts > 0)
        np.testing.assert_allclose(np.diff(np.log(s)), np.log(s[1] / s[0]), atol=1e-9)
        # Of the variance, as much lies above any scale as in the spectrum, within the width of an interval.
        width = max(s[0] / s[1], 1.0) * (1 + 1e-9)
        for deviation, wanted in zip(of.deviations, np.cumsum(of.counts * of.deviations**2), strict=True):
            near = (counts * s**2)[s >= deviation / width**2 / 1.5].sum()
            assert near >= min(wanted, 0.99 * of.total) * 0.5


def test_from_components_goes_on_to_the_total() -> None:
    head = np.array([4.0, 3.0, 2.5, 2.0])
    for rest in (20.0, 200.0, 2000.0):
        found = problems.from_components(head, (head**2).sum() + rest, 256)
        np.testing.assert_allclose(found.deviations[:4], np.sort(found.deviations)[::-1][:4])
        assert set(head) <= set(found.deviations.tolist())
        assert found.total == pytest.approx((head**2).sum() + rest) and found.dimension == pytest.approx(256)
    whole = problems.from_components(head, (head**2).sum(), 4)
    np.testing.assert_array_equal(whole.deviations, head)


REFUSED: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (products, (WEIGHTS, MEANS[:2], VARIANCES), {}, "shapes"),
    (products, (WEIGHTS, MEANS * np.nan, VARIANCES), {}, "means has NaN"),
    (products, (WEIGHTS, MEANS, -VARIANCES), {}, "must be positive"),
    (products, (WEIGHTS - 0.5, MEANS, VARIANCES), {}, "weights of coordinate"),
    (products, (WEIGHTS, MEANS, VARIANCES), {"counts": [1.0]}, "counts"),
    (products, (WEIGHTS, MEANS, VARIANCES), {"members": np.zeros((3, 2), bool)}, "none is left for the class"),
    *((problems.spectrum, (bad,), {}, "deviations") for bad in ([], [1.0, -1.0], [np.nan], [np.inf], [[1.0]])),
    (problems.spectrum, ([1.0], [0.0]), {}, "counts must be positive"),
    (problems.named, ("audio",), {}, "spectrum 'audio' is not known; use one of latents-4"),
    (problems.power_law, (10, -1.0), {}, "exponent -1"),
    (problems.from_components, ([2.0, 1.0], 4.0, 10), {}, "leading directions alone have variance 5"),
    (problems.from_components, ([2.0, 1.0], 5.0, 1), {}, "dimension 1"),
    *(
        (problems.spectral, (jax.random.key(0), problems.spectrum([1.0])), options, next(iter(options)))
        for options in ({"dimension": 0}, {"leading": 1.1}, {"left_out": 1.0})
    ),
]


@pytest.mark.parametrize(("door", "arguments", "options", "message"), REFUSED)
def test_a_bad_value_is_named(door: Any, arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        door(*arguments, **options)
