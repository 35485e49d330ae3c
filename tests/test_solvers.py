"""What can be said of the solvers without diffusers: convergence, padding, gradients, both infinite ends."""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from hso_jax import solvers
from hso_jax.problems import denoiser, exact, generic
from hso_jax.solvers.weights import phi

NAMES = list(solvers.SOLVERS)
FROM_PURE_NOISE = [name for name in NAMES if "bh1" not in name and name != "heun"]
LAMS = np.array([-2.1, -1.2, -0.7, -0.1, 0.4, 1.1, 2.0])


SLOTS = 10


@functools.cache
def problem(wide: bool = True) -> Any:
    with jax.enable_x64(wide):
        return generic(jax.random.key(0), dimension=4, components=5, members=2)


def noise(batch: int = 4, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 4)).astype(dtype)


@functools.cache
def sampler(name: str) -> Any:
    """Samples at guidance 2; all numbers dynamic, so that a test's calls share a compilation."""

    def run(problem: Any, lams: Any, x: Any, end: Any, nfe: Any) -> jax.Array:
        return solvers.sample(denoiser(problem, 2.0), lams, x, solver=name, end=end, nfe=nfe)

    return jax.jit(run)


@functools.cache
def slopes(name: str) -> Any:
    """The value and the gradient in lams and end of a smooth function of the samples."""

    def loss(lams: Any, end: Any, problem: Any, x: Any, nfe: Any) -> jax.Array:
        return jnp.sum(jnp.sin(sampler(name)(problem, lams, x, end, nfe)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def loss(name: str, lams: np.ndarray, end: float = np.inf, filler: float = np.nan) -> tuple[float, np.ndarray, float]:
    """Value, gradient in lams and gradient in end, padded to one shape."""
    padded = np.append(lams, np.full(SLOTS - len(lams), filler))
    value, (by_lams, by_end) = slopes(name)(padded, end, problem(), noise(), len(lams))
    np.testing.assert_array_equal(by_lams[len(lams) :], 0.0)
    return float(value), np.asarray(by_lams[: len(lams)]), float(by_end)


@pytest.mark.parametrize("name", NAMES)
def test_converges_with_its_order_to_the_exact_solution(name: str) -> None:
    with jax.enable_x64(True):
        start, end = -3.0, 2.0
        truth = exact(problem(), noise(), start=start, end=end, guidance=2.0, steps=512).value
        errors = []
        for steps in (64, 256):
            lams = np.append(np.linspace(start, end, steps + 1)[:-1], np.zeros(256 - steps))
            got = sampler(name)(problem(), lams, noise(), end, steps)
            errors.append(float(jnp.sqrt(jnp.mean((got - truth) ** 2))))
    order = np.log2(errors[0] / errors[1]) / 2
    assert abs(order - solvers.SOLVERS[name].order) < 0.35
    assert errors[1] < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_prediction_is_integrated_exactly(name: str) -> None:
    data = np.array([0.4, -0.7, 1.1, 2.0])

    @jax.jit
    def run(lams: Any, end: Any) -> jax.Array:
        return solvers.sample(lambda x, lam: jnp.broadcast_to(data, x.shape), lams, noise(), solver=name, end=end)

    def sigma(lam: float) -> float:
        return 1.0 / np.sqrt(1.0 + np.exp(2.0 * lam))

    with jax.enable_x64(True):
        for end in (np.inf, 2.6):
            decay = sigma(end) / sigma(LAMS[0])
            gain = sigma(-end) - decay * sigma(-LAMS[0])
            np.testing.assert_allclose(run(LAMS, end), decay * noise() + gain * data, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_padded_is_unpadded(name: str) -> None:
    """Whatever the padding holds, in value and gradient."""
    with jax.enable_x64(True):
        for end in (np.inf, 2.4):
            value, (by_lams, by_end) = slopes(name)(LAMS, end, problem(), noise(), len(LAMS))
            for filler in (np.nan, np.inf, 0.0):
                got = loss(name, LAMS, end, filler)
                np.testing.assert_allclose(got[0], value, rtol=1e-12)
                np.testing.assert_allclose(got[1], by_lams, rtol=1e-10, atol=1e-11)
                np.testing.assert_allclose(got[2], by_end, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["dpmpp-3m", "unipc-3", "heun"])
def test_a_batch_of_schedules_is_a_loop_over_them(name: str) -> None:
    with jax.enable_x64(True):
        rows = np.stack([LAMS - 0.1 * np.cos(np.arange(len(LAMS)) * k) for k in range(4)])
        counts, ends = np.array([1, 2, 4, 7]), np.array([np.inf, 2.5, np.inf, 3.0])
        lanes = jax.jit(jax.vmap(sampler(name), (None, 0, None, 0, 0)))
        got = lanes(problem(), rows, noise(), ends, counts)
        for row, count, end, x in zip(rows, counts, ends, got, strict=True):
            np.testing.assert_allclose(x, sampler(name)(problem(), row, noise(), end, count), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_difference_quotient(name: str) -> None:
    def quotient(f: Any, h: float = 2e-3) -> float:  # of sixth order
        near, middle, far = ((f(k * h) - f(-k * h)) / (2.0 * k * h) for k in (1, 2, 3))
        return 1.5 * near - 0.6 * middle + 0.1 * far

    with jax.enable_x64(True):
        for end in (np.inf, 2.4):
            _, by_lams, by_end = loss(name, LAMS, end)
            wanted = [quotient(lambda d, e=e, end=end: loss(name, LAMS + d * e, end)[0]) for e in np.eye(len(LAMS))]
            np.testing.assert_allclose(by_lams, wanted, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(by_end, quotient(lambda d: loss(name, LAMS, 2.4 + d)[0]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FROM_PURE_NOISE)
def test_pure_noise_is_the_limit_of_a_low_first_node(name: str) -> None:
    with jax.enable_x64(True):
        value, by_lams, _ = loss(name, np.append(-np.inf, LAMS[1:]))
        low, by_low, _ = loss(name, np.append(-1e9, LAMS[1:]))
        assert value == pytest.approx(low, abs=1e-7)
        assert by_lams[0] == 0.0
        np.testing.assert_allclose(by_lams[1:], by_low[1:], atol=1e-6)
        alone = loss(name, np.array([-np.inf]))  # one evaluation, from pure noise to clean data: the mean
        assert np.isfinite(alone[0]) and alone[1] == 0.0


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FROM_PURE_NOISE)))
def test_a_solver_without_that_limit_says_so(name: str) -> None:
    with jax.enable_x64(True):
        assert np.isnan(loss(name, np.append(-np.inf, LAMS[1:]))[0])
    assert "finite first node" in solvers.SOLVERS[name].description


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate(name: str) -> None:
    """Also where differences of predictions are divided by small gaps."""
    for gaps, bound in ((np.diff(LAMS), 3e-6), (np.array([1, 1e-2, 1, 1e-2, 1e-2, 1]), 3e-4)):
        lams, x = np.float32(np.append(-2.1, -2.1 + np.cumsum(gaps))), noise(dtype=np.float32)
        narrow = sampler(name)(problem(False), lams, x, np.float32(np.inf), 7)
        assert narrow.dtype == np.float32
        with jax.enable_x64(True):
            wide = sampler(name)(problem(), np.append(np.float64(lams), [0, 0, 0]), np.float64(x), np.inf, 7)
        assert np.abs(np.asarray(narrow) - np.asarray(wide)).max() < bound * np.abs(wide).max()


def test_phi_functions() -> None:
    """phi_k(x) is the integral of e^((1-s) x) s^(k-1)/(k-1)!."""
    points = np.array([-30.0, -8.0, -2.001, -2.0, -1.999, -1.0, -0.3, -1e-3, -1e-8, 0.0])

    def integral(x: float, k: int) -> float:
        return quad(lambda s: np.exp((1 - s) * x) * s**k / math.factorial(k), 0, 1, epsabs=1e-15)[0]

    wanted = [[integral(x, k) for x in points] for k in range(4)]
    for wide, bound in ((True, 1e-13), (False, 1e-6)):
        with jax.enable_x64(wide):
            np.testing.assert_allclose(np.stack(jax.jit(phi)(jnp.asarray(points))), wanted, rtol=bound)
            assert np.isfinite(jax.jit(jax.vmap(jax.grad(lambda x: sum(phi(x)))))(jnp.asarray(points))).all()


def test_one_compilation_serves_every_budget_and_end() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(problem: Any, lams: Any, end: Any, nfe: Any) -> jax.Array:
        return solvers.sample(denoiser(problem), lams, noise(2, np.float32), solver="unipc-3", end=end, nfe=nfe)

    for nfe in (1, 4, 7):
        for end in (np.inf, 3.0):
            assert np.isfinite(run(problem(False), np.float32(LAMS), np.float32(end), nfe)).all()


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_honestly(name: str) -> None:
    for end in ("clean", "t_eps"):
        weights = solvers.weights(name, np.float32(LAMS), end=np.inf if end == "clean" else 2.4)
        assert int(weights.real.sum()) == solvers.evaluations(name, len(LAMS), end=end)


def test_heun_calls_twice_a_step() -> None:
    assert solvers.evaluations("heun", 5) == 9
    assert solvers.evaluations("heun", 5, end="t_eps") == 10


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'rk4'.*ddim"):
        solvers.sample(lambda x, lam: x, LAMS, noise(), solver="rk4")
    with pytest.raises(ValueError, match="shape"):
        solvers.sample(lambda x, lam: x, np.float32(LAMS[None]), noise())
    with pytest.raises(ValueError, match="at least 1"):
        solvers.evaluations("ddim", 0)
    with pytest.raises(ValueError, match="'zero'"):
        solvers.evaluations("ddim", 3, end="zero")
