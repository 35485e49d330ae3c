"""Reference problems: the closed forms against quadrature and autodiff, the exact solution against SciPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal, norm

from hso_jax import problems
from hso_jax.noise import alpha_sigma

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]])
VARIANCES = np.array([0.15, 0.05])


def small() -> problems.Problem:
    return problems.mixture(WEIGHTS, MEANS, VARIANCES, members=[0, 2])


def points(dimension: int = 2, batch: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, dimension))


@pytest.mark.parametrize("lam", [-1.5, 0.0, 1.2])
@pytest.mark.parametrize("inside", [[0, 1, 2], [0, 2]], ids=["whole", "class"])
def test_denoiser_is_the_posterior_mean_by_quadrature(lam: float, inside: list[int]) -> None:
    """E[x_0 | x] by integrating prior times likelihood over x_0, knowing nothing of mixtures' posteriors."""
    sigma = 1.0 / np.sqrt(1.0 + np.exp(2.0 * lam))
    alpha = np.sqrt(1.0 - sigma**2)

    def prior(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        spread = VARIANCES**0.5
        return sum(
            WEIGHTS[c] * norm.pdf(a, MEANS[c, 0], spread[0]) * norm.pdf(b, MEANS[c, 1], spread[1]) for c in inside
        )

    grid = np.linspace(-4.0, 4.0, 801)  # the trapezium rule converges exponentially here
    a, b = np.meshgrid(grid, grid, indexing="ij")
    density = prior(a, b)
    with jax.enable_x64(True):
        got = problems.denoise(small(), points(), lam, float(len(inside) == 2))
    for x, mean in zip(points(), np.asarray(got), strict=True):
        joint = density * np.exp(-((x[0] - alpha * a) ** 2 + (x[1] - alpha * b) ** 2) / (2.0 * sigma**2))
        wanted = np.array([(a * joint).sum(), (b * joint).sum()]) / joint.sum()
        np.testing.assert_allclose(mean, wanted, rtol=1e-9, atol=1e-10)


def test_density_is_normalised() -> None:
    axis = np.linspace(-6.0, 6.0, 241)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    with jax.enable_x64(True):
        density = jnp.exp(problems.log_density(small(), grid, 0.3, of_class=True))
        assert float(density.sum()) * 0.05**2 == pytest.approx(1.0, rel=1e-9)
    for lam in (-np.inf, np.inf):  # standard normal noise, and the data itself
        with jax.enable_x64(True):
            got = problems.log_density(small(), points(), lam)
        parts = [
            w * multivariate_normal.pdf(points(), m, np.diag(VARIANCES)) for w, m in zip(WEIGHTS, MEANS, strict=True)
        ]
        noise = multivariate_normal.pdf(points(), np.zeros(2))
        np.testing.assert_allclose(np.exp(got), noise if lam < 0 else sum(parts), rtol=1e-12)


@pytest.mark.parametrize("lam", [-4.0, 0.0, 3.0, np.inf])
def test_score_is_the_gradient_of_the_log_density(lam: float) -> None:
    with jax.enable_x64(True):
        x = points() / (1.0 + np.exp(lam)) + MEANS[:1]
        problem = small()
        grads = [
            jax.vmap(jax.grad(lambda y, c=c: problems.log_density(problem, y, lam, of_class=c)))(x)
            for c in (False, True)
        ]
        for weight in (0.0, 1.0, 4.0):
            wanted = grads[0] + weight * (grads[1] - grads[0])
            np.testing.assert_allclose(problems.score(small(), x, lam, weight), wanted, rtol=1e-10, atol=1e-10)
        alpha, sigma = alpha_sigma(np.float64(lam), "vp")
        if sigma > 0:  # Tweedie's formula ties it to the denoiser
            tweedie = (x + sigma**2 * problems.score(small(), x, lam, 4.0)) / alpha
            np.testing.assert_allclose(problems.denoise(small(), x, lam, 4.0), tweedie, rtol=1e-9, atol=1e-9)


def test_guidance_formula() -> None:
    with jax.enable_x64(True):
        whole = problems.mixture(WEIGHTS, MEANS, VARIANCES)
        part = problems.mixture(WEIGHTS[[0, 2]], MEANS[[0, 2]], VARIANCES)
        for lam in (-np.inf, -1.0, 0.5, np.inf):
            u, c = (problems.denoise(p, points(), lam) for p in (whole, part))
            for weight in (0.0, 1.0, 7.5):
                got = problems.denoiser(small(), weight)(points(), lam)
                np.testing.assert_allclose(got, u + weight * (c - u), rtol=1e-11, atol=1e-11)
        again = problems.with_class(whole, [0, 2])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), again, small())


def test_both_ends_are_limits_and_have_gradients() -> None:
    with jax.enable_x64(True):
        x = points()
        np.testing.assert_allclose(problems.denoise(small(), x, -np.inf, 0.0), np.tile(WEIGHTS @ MEANS, (5, 1)))
        np.testing.assert_allclose(problems.denoise(small(), x, np.inf, 3.0), x, rtol=1e-13)
        slopes = jax.jit(jax.grad(lambda x, lam, p: problems.denoise(p, x, lam, 3.0).sum(), argnums=(0, 1)))
        for lam in (-np.inf, np.inf):
            assert all(np.isfinite(s).all() for s in slopes(x, lam, small()))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
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
    narrow_problem = problems.generic(jax.random.key(0))
    with jax.enable_x64(True):
        wide_problem = problems.generic(jax.random.key(0))
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


def test_variance_counts_the_weights_and_averages_the_dimensions() -> None:
    mixed = problems.mixture([1.0, 3.0], [[0.0, 2.0], [4.0, 2.0]], [0.5, 1.5])
    assert float(problems.variance(mixed)) == pytest.approx((0.25 * 0.75 * 4.0**2 + 0.5 + 1.5) / 2)


def test_generic_has_the_variance_and_the_spectrum_it_says() -> None:
    for spectrum, within, dimension in ((1.5, 0.3, 32), (0.0, 0.6, 7)):
        options = {"dimension": dimension, "spectrum": spectrum, "within": within}
        found = problems.generic(jax.random.key(1), components=2000, **options)
        between = np.asarray(found.means).var(0)
        assert np.asarray(found.means).mean(0) == pytest.approx(0.0, abs=1e-5)
        assert (between + found.variances).mean() == pytest.approx(1.0, rel=1e-5)
        assert np.mean(found.variances) == pytest.approx(within, rel=1e-5)
        power = np.arange(1, dimension + 1.0) ** -spectrum
        np.testing.assert_allclose(found.variances / found.variances[0], power, rtol=1e-5)
        np.testing.assert_allclose(between / between.sum(), power / power.sum(), rtol=0.2)
        assert np.exp(found.class_log_weights).tolist() == pytest.approx([0.25] * 4 + [0.0] * 1996)


def test_the_same_key_is_the_same_problem_in_any_dtype() -> None:
    narrow = problems.generic(jax.random.key(5))
    with jax.enable_x64(True):
        wide = problems.generic(jax.random.key(5))
        assert wide.means.dtype == np.float64 and narrow.means.dtype == np.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.asarray(b), rtol=1e-6, atol=1e-6), narrow, wide)
    again = problems.generic(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, narrow, again)


def test_problems_stack() -> None:
    several = [problems.generic(jax.random.key(k), dimension=4, components=3, members=1) for k in range(3)]
    x = np.float32(points(4))
    together = jax.vmap(lambda p: problems.denoise(p, x, 0.3, 2.0))(jax.tree.map(lambda *a: jnp.stack(a), *several))
    for problem, got in zip(several, together, strict=True):
        np.testing.assert_allclose(got, problems.denoise(problem, x, 0.3, 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, -0.5, 1.0], MEANS, VARIANCES), "negative"),
        (([0.0, 0.0, 0.0], MEANS, VARIANCES), "not all 0"),
        (([0.5, np.nan, 0.5], MEANS, VARIANCES), "weights has NaN"),
        ((WEIGHTS, MEANS * np.inf, VARIANCES), "means has NaN"),
        ((WEIGHTS, MEANS, [0.1, 0.0]), r"variances\[1\] is 0.*singular"),
        ((WEIGHTS, MEANS[:2], VARIANCES), "shapes"),
    ],
)
def test_mixture_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems.mixture(*arguments)


@pytest.mark.parametrize("members", [[], [3], [-1], [0, 0], [0.5]])
def test_mixture_refuses_members(members: list) -> None:
    with pytest.raises(ValueError, match="members"):
        problems.mixture(WEIGHTS, MEANS, VARIANCES, members=members)
    with pytest.raises(ValueError, match="no weight"):
        problems.mixture([0.0, 0.5, 0.5], MEANS, VARIANCES, members=[0])


@pytest.mark.parametrize(
    "options", [{"components": 1}, {"dimension": 0}, {"members": 40}, {"within": 1.0}, {"spectrum": np.nan}]
)
def test_generic_refuses(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        problems.generic(jax.random.key(0), **options)
