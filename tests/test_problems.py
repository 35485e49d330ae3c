"""Mixtures and families of them: the closed forms against quadrature and autodiff, the exact solution against SciPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import norm

from hso_jax import problems
from hso_jax.noise import alpha_sigma
from hso_jax.problems import KINDS, Kind, family, generic, mixture, stack_problems

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]])
VARIANCES = np.array([0.15, 0.05])
SMALL = {"dimension": 4, "components": 3, "members": 2}


def small() -> problems.Problem:
    return mixture(WEIGHTS, MEANS, VARIANCES, members=[0, 2])


def points(dimension: int = 2, batch: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, dimension))


def log_density(problem: problems.Problem, x: jax.Array, lam: float, of_class: bool) -> jax.Array:
    """Of a sum of Gaussians at noise level lam, by its definition."""
    alpha, sigma = alpha_sigma(jnp.asarray(lam), "vp")
    weights = jnp.exp(problem.class_log_weights if of_class else problem.log_weights)
    deviations = jnp.sqrt(alpha**2 * problem.variances + sigma**2)
    return jnp.log(weights @ jax.scipy.stats.norm.pdf(x, alpha * problem.means, deviations).prod(-1))


def variance(problem: problems.Problem) -> np.ndarray:
    """Of the data a dimension, in the mean; of one problem or of several."""
    weights = np.exp(np.asarray(problem.log_weights))[..., None]
    means = np.asarray(problem.means)
    apart = means - (weights * means).sum(-2, keepdims=True)
    return ((weights * apart**2).sum(-2) + np.asarray(problem.variances)).mean(-1)


@pytest.mark.parametrize("lam", [-1.5, 0.0, 1.2])
@pytest.mark.parametrize("inside", [[0, 1, 2], [0, 2]], ids=["whole", "class"])
def test_denoiser_is_the_posterior_mean_by_quadrature(lam: float, inside: list[int]) -> None:
    """E[x_0 | x] by integrating prior times likelihood over x_0, knowing nothing of mixtures' posteriors."""
    sigma = 1.0 / np.sqrt(1.0 + np.exp(2.0 * lam))
    alpha = np.sqrt(1.0 - sigma**2)
    grid = np.linspace(-4.0, 4.0, 801)  # the trapezium rule converges exponentially here
    a, b = np.meshgrid(grid, grid, indexing="ij")
    s = VARIANCES**0.5
    density = sum(WEIGHTS[c] * norm.pdf(a, MEANS[c, 0], s[0]) * norm.pdf(b, MEANS[c, 1], s[1]) for c in inside)
    with jax.enable_x64(True):
        got = problems.denoise(small(), points(), lam, float(len(inside) == 2))
    for x, mean in zip(points(), np.asarray(got), strict=True):
        joint = density * np.exp(-((x[0] - alpha * a) ** 2 + (x[1] - alpha * b) ** 2) / (2.0 * sigma**2))
        wanted = np.array([(a * joint).sum(), (b * joint).sum()]) / joint.sum()
        np.testing.assert_allclose(mean, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lam", [-4.0, 0.0, 3.0, np.inf])
def test_score_is_the_gradient_of_the_log_density(lam: float) -> None:
    with jax.enable_x64(True):
        x, problem = points() / (1.0 + np.exp(lam)) + MEANS[:1], small()
        whole, part = (jax.vmap(jax.grad(lambda y, c=c: log_density(problem, y, lam, c)))(x) for c in (False, True))
        for weight in (0.0, 1.0, 4.0):
            wanted = whole + weight * (part - whole)
            np.testing.assert_allclose(problems.score(problem, x, lam, weight), wanted, rtol=1e-10, atol=1e-10)
        alpha, sigma = alpha_sigma(np.float64(lam), "vp")
        if sigma > 0:  # Tweedie's formula ties it to the denoiser
            tweedie = (x + sigma**2 * problems.score(problem, x, lam, 4.0)) / alpha
            np.testing.assert_allclose(problems.denoise(problem, x, lam, 4.0), tweedie, rtol=1e-9, atol=1e-9)


def test_guidance_formula() -> None:
    with jax.enable_x64(True):
        whole = mixture(WEIGHTS, MEANS, VARIANCES)
        part = mixture(WEIGHTS[[0, 2]], MEANS[[0, 2]], VARIANCES)
        for lam in (-np.inf, -1.0, 0.5, np.inf):
            u, c = (problems.denoise(p, points(), lam) for p in (whole, part))
            for weight in (0.0, 1.0, 7.5):
                got = problems.denoiser(small(), weight)(points(), lam)
                np.testing.assert_allclose(got, u + weight * (c - u), rtol=1e-11, atol=1e-11)


def test_both_ends_are_limits_and_have_gradients() -> None:
    with jax.enable_x64(True):
        x = points()
        np.testing.assert_allclose(problems.denoise(small(), x, -np.inf, 0.0), np.tile(WEIGHTS @ MEANS, (5, 1)))
        np.testing.assert_allclose(problems.denoise(small(), x, np.inf, 3.0), x, rtol=1e-13)
        slopes = jax.jit(jax.grad(lambda x, lam, p: problems.denoise(p, x, lam, 3.0).sum(), argnums=(0, 1)))
        for lam in (-np.inf, np.inf):
            assert all(np.isfinite(s).all() for s in slopes(x, lam, small()))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("start", "end"), [(-2.68, np.inf), (-np.inf, np.inf), (-np.inf, 2.0)])
def test_exact_is_what_scipy_integrates(guidance: float, start: float, end: float) -> None:
    """d(x/sigma)/d(e^lam) = x0 up to lam = 0, d(x/alpha)/d(e^-lam) = (x/alpha - x0) e^lam after; in NumPy."""
    part = np.array([0.4, 0.0, 0.6])

    def x0(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        total = alpha**2 * VARIANCES + sigma**2
        logits = -(((x[:, None] - alpha * MEANS) ** 2 / total).sum(-1)) / 2
        shares = [w * np.exp(logits - logits.max(1, keepdims=True)) for w in (WEIGHTS, part)]
        mixed = [s / s.sum(1, keepdims=True) for s in shares]
        mean = (mixed[0] + guidance * (mixed[1] - mixed[0])) @ MEANS
        return mean + alpha * VARIANCES / total * (x - alpha * mean)

    def early(z: float, y: np.ndarray) -> np.ndarray:
        sigma = 1.0 / np.hypot(1.0, z)
        return x0(y.reshape(-1, 2) * sigma, z * sigma, sigma).ravel()

    def late(k: float, y: np.ndarray) -> np.ndarray:
        alpha, y = 1.0 / np.hypot(1.0, k), y.reshape(-1, 2)
        return ((y - x0(y * alpha, alpha, k * alpha)) / max(k, 1e-9)).ravel()

    options: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}
    first, last = np.exp(start), np.exp(-end)
    y = points() * np.hypot(1.0, first)
    y = solve_ivp(early, (first, 1.0), y.ravel(), **options).y[:, -1]
    y = solve_ivp(late, (1.0, max(last, 1e-8)), y, **options).y[:, -1].reshape(-1, 2)
    wanted = y / np.hypot(1.0, last)
    with jax.enable_x64(True):
        for steps, bound in ((512, 1e-8), (64, 1e-4)):
            found = problems.exact(small(), points(), start=start, end=end, guidance=guidance, steps=steps)
            true = np.sqrt(np.mean((np.asarray(found.value) - wanted) ** 2))
            assert true < bound
            assert true < 3.0 * float(found.error) + 1e-9


def test_exact_in_float32() -> None:
    narrow_problem = generic(jax.random.key(0))
    with jax.enable_x64(True):
        wide_problem = generic(jax.random.key(0))
    x = points(32, 50)
    for guidance in (1.0, 7.5):
        narrow = problems.exact(narrow_problem, np.float32(x), guidance=guidance)
        with jax.enable_x64(True):
            wide = problems.exact(wide_problem, x, guidance=guidance)
        assert narrow.value.dtype == np.float32 and wide.value.dtype == np.float64
        assert float(wide.error) < 1e-6
        error = np.sqrt(np.mean((np.float64(narrow.value) - np.asarray(wide.value)) ** 2))
        assert error < 4e-6
        assert error < 2.0 * float(narrow.error)


def test_generic_has_the_variance_and_the_spectrum_it_says() -> None:
    for spectrum, within, dimension in ((1.5, 0.3, 32), (0.0, 0.6, 7)):
        found = generic(jax.random.key(1), components=2000, dimension=dimension, spectrum=spectrum, within=within)
        between = np.asarray(found.means).var(0)
        assert np.asarray(found.means).mean(0) == pytest.approx(0.0, abs=1e-5)
        assert (between + found.variances).mean() == pytest.approx(1.0, rel=1e-5)
        assert np.mean(found.variances) == pytest.approx(within, rel=1e-5)
        power = np.arange(1, dimension + 1.0) ** -spectrum
        np.testing.assert_allclose(found.variances / found.variances[0], power, rtol=1e-5)
        np.testing.assert_allclose(between / between.sum(), power / power.sum(), rtol=0.2)
        assert np.exp(found.class_log_weights).tolist() == pytest.approx([0.25] * 4 + [0.0] * 1996)


def test_a_key_is_one_problem_in_any_dtype() -> None:
    narrow, again = (generic(jax.random.key(5)) for _ in range(2))
    with jax.enable_x64(True):
        wide = generic(jax.random.key(5))
        assert wide.means.dtype == np.float64 and narrow.means.dtype == np.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), rtol=1e-6, atol=1e-6), narrow, wide)
    jax.tree.map(np.testing.assert_array_equal, narrow, again)


def test_a_family_s_members_are_generic_problems() -> None:
    kinds = [Kind(1.0, 0.2, 0.5), Kind(2.0, 0.6, 3.0)]
    many = family([5, 6, 9], kinds, **SMALL)
    assert [leaf.shape for leaf in many] == [(3, 3), (3, 3), (3, 3, 4), (3, 4)]
    for own, options, seeds in ((kinds, SMALL, [5, 6, 9]), (list(KINDS), {}, [2, 3])):
        made = family(seeds, own, **options) if options else family(seeds)
        for i, (seed, kind) in enumerate(zip(seeds, [*own, own[0]], strict=False)):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_array_equal(a[i], b),
                made,
                generic(jax.random.key(seed), **kind._asdict(), **options),
            )
    assert not np.any(np.isclose(family(range(2), **SMALL).means, family(range(2, 4), **SMALL).means))


def test_default_members_have_their_kind_s_spectrum() -> None:
    many = family()
    assert many.means.shape == (len(KINDS), 32, 32)
    total = variance(many)
    np.testing.assert_allclose(total, [kind.scale**2 for kind in KINDS], rtol=1e-5)
    np.testing.assert_allclose(many.variances.mean(-1) / total, [kind.within for kind in KINDS], rtol=1e-5)
    ratio = many.variances[:, 0] / many.variances[:, -1]
    np.testing.assert_allclose(ratio, [32.0**kind.spectrum for kind in KINDS], rtol=1e-5)
    in_centre = (many.means[:, :4].mean(1) ** 2).mean(-1) / total
    assert 0.5 < float(in_centre.mean()) < 0.7  # a default class has more than half of the variance in its centre


def test_apart_moves_the_class_and_keeps_variance() -> None:
    def ratio(apart: float) -> float:
        problem = generic(jax.random.key(1), scale=2.0, apart=apart)
        np.testing.assert_allclose(variance(problem), 4.0, rtol=1e-5)
        groups = np.asarray(problem.means[:4]), np.asarray(problem.means[4:])
        distance = groups[0].mean(0) - groups[1].mean(0)
        return (distance**2).sum() / sum(((g - g.mean(0)) ** 2).sum() for g in groups)

    assert ratio(2.0) == pytest.approx(4.0 * ratio(0.5), rel=1e-4)
    whole = generic(jax.random.key(1), members=32)
    np.testing.assert_allclose(whole.class_log_weights, whole.log_weights)


ONE = mixture([1.0, 2.0], [[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5])
REFUSED: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (mixture, ([0.5, -0.5, 1.0], MEANS, VARIANCES), {}, "negative"),
    (mixture, ([0.0, 0.0, 0.0], MEANS, VARIANCES), {}, "not all 0"),
    (mixture, ([0.5, np.nan, 0.5], MEANS, VARIANCES), {}, "weights has NaN"),
    (mixture, (WEIGHTS, MEANS * np.inf, VARIANCES), {}, "means has NaN"),
    (mixture, (WEIGHTS, MEANS * 1e9, VARIANCES), {}, "scale them to a size near 1"),
    (mixture, (WEIGHTS, MEANS, [0.1, 0.0]), {}, r"variances\[1\] is 0.*singular"),
    (mixture, (WEIGHTS, MEANS[:2], VARIANCES), {}, "shapes"),
    *((mixture, (WEIGHTS, MEANS, VARIANCES), {"members": x}, "members is") for x in ([], [3], [-1], [0, 0], [0.5])),
    (mixture, ([0.0, 0.5, 0.5], MEANS, VARIANCES), {"members": [0]}, "no weight"),
    (family, ([],), {}, "0 seeds and 36 kinds"),
    (family, ([1],), {"kinds": ()}, "1 seeds and 0 kinds"),
    (family, ([1],), {"dimension": 0}, "dimension is 0"),
    (family, ([1],), {"components": 1}, "components is 1"),
    (family, ([1],), {"components": 4, "members": 5}, "members is 5"),
    (family, ([1],), {"kinds": [Kind(within=1.0)]}, r"within is 1\.0"),
    (family, ([1],), {"kinds": [Kind(spectrum=np.inf)]}, "spectrum is inf"),
    (family, ([1],), {"kinds": [Kind(scale=0.0)]}, r"scale is 0\.0"),
    (family, ([1],), {"apart": 0.0}, r"apart is 0\.0"),
    (stack_problems, ([ONE, mixture([1.0], [[0.0, 1.0]], [0.5, 0.5])],), {}, r"\(1, 2\), \(2, 2\).*one shape"),
    (stack_problems, ([],), {}, "need one shape"),
]


@pytest.mark.parametrize(("door", "arguments", "options", "message"), REFUSED)
def test_a_bad_value_is_named(door: Any, arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        door(*arguments, **options)
