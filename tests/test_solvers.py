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
from marks import slow_but
from scipy.integrate import quad

from hso_jax import solvers
from hso_jax.problems import denoiser, exact, generic
from hso_jax.solvers.weights import phi

NAMES = list(solvers.SOLVERS)
GRADED = ["ddim", "dpmpp-3m", "unipc-3", "heun-flow"]
"""Each formula once (the lower orders are these solvers' first steps): gradients take long to compile."""
QUICK = ["ddim", "unipc-3", "heun-flow"]
FROM_PURE_NOISE = [name for name in NAMES if "bh1" not in name and name != "heun"]
LAMS = np.array([-2.1, -1.2, -0.7, -0.1, 0.4, 1.1, 2.0])


SLOTS = 256
"""Every schedule is padded to this, so that a solver's tests share their compilations."""

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is what takes long


@functools.cache
def problem(wide: bool = True) -> Any:
    with jax.enable_x64(wide):
        return generic(jax.random.key(0), dimension=4, components=5, members=2)


def noise(batch: int = 4, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 4)).astype(dtype)


def sample(problem: Any, lams: Any, x: Any, end: Any, nfe: Any, name: str) -> jax.Array:
    return solvers.sample(denoiser(problem, 2.0), lams, x, solver=name, end=end, nfe=nfe)


@functools.cache
def sampler(name: str) -> Any:
    """Samples at guidance 2; all numbers dynamic, so that a test's calls share a compilation."""
    return jit(functools.partial(sample, name=name))


@functools.cache
def slopes(name: str) -> Any:
    """The gradient, in lams and end, of a smooth function of the samples."""

    def loss(lams: Any, end: Any, problem: Any, x: Any, nfe: Any) -> jax.Array:
        return jnp.sum(jnp.sin(sample(problem, lams, x, end, nfe, name)))

    return jit(jax.grad(loss, argnums=(0, 1)))


def padded(lams: Any, filler: float = np.nan) -> np.ndarray:
    return np.append(lams, np.full(SLOTS - len(lams), filler, np.asarray(lams).dtype))


def run(name: str, lams: Any, end: float = np.inf, filler: float = np.nan) -> np.ndarray:
    """The samples, in float64."""
    return np.asarray(sampler(name)(problem(), padded(lams, filler), noise(), end, len(lams)))


def gradient(name: str, lams: Any, end: float = np.inf, filler: float = np.nan) -> tuple[np.ndarray, float]:
    """Of sum(sin(samples)), in lams and in end."""
    by_lams, by_end = slopes(name)(padded(lams, filler), end, problem(), noise(), len(lams))
    np.testing.assert_array_equal(by_lams[len(lams) :], 0.0)
    return np.asarray(by_lams[: len(lams)]), float(by_end)


@pytest.mark.parametrize("name", NAMES)
def test_converges_with_its_order_to_the_exact_solution(name: str) -> None:
    with jax.enable_x64(True):
        start, end = -3.0, 2.0
        truth = exact(problem(), noise(), start=start, end=end, guidance=2.0, steps=512).value
        errors = []
        for steps in (64, 256):
            got = run(name, np.linspace(start, end, steps + 1)[:-1], end)
            errors.append(float(np.sqrt(np.mean((got - truth) ** 2))))
    order = np.log2(errors[0] / errors[1]) / 2
    assert abs(order - solvers.SOLVERS[name].order) < 0.35
    assert errors[1] < 0.02


@pytest.mark.parametrize("name", slow_but(QUICK, GRADED))
def test_padding_does_not_matter(name: str) -> None:
    """Whatever it holds: to the sample and to its gradient."""
    with jax.enable_x64(True):
        for end in (np.inf, 2.4):
            wanted = sampler(name)(problem(), LAMS, noise(), end, len(LAMS))
            by_lams, by_end = gradient(name, LAMS, end)
            for filler in (np.nan, np.inf, 0.0):
                np.testing.assert_allclose(run(name, LAMS, end, filler), wanted, rtol=1e-12, atol=1e-14)
                padded_lams, padded_end = gradient(name, LAMS, end, filler)
                np.testing.assert_array_equal(padded_lams, by_lams)
                assert padded_end == by_end


def test_a_batch_of_schedules_is_a_loop_over_them() -> None:
    name = "unipc-3"
    with jax.enable_x64(True):
        rows = np.stack([LAMS - 0.1 * np.cos(np.arange(len(LAMS)) * k) for k in range(4)])
        counts, ends = np.array([1, 2, 4, 7]), np.array([np.inf, 2.5, np.inf, 3.0])
        lanes = jit(jax.vmap(functools.partial(sample, name=name), (None, 0, None, 0, 0)))
        got = lanes(problem(), rows, noise(), ends, counts)
        for row, count, end, x in zip(rows, counts, ends, got, strict=True):
            np.testing.assert_allclose(x, run(name, row[:count], end), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", slow_but(QUICK, GRADED))
def test_gradient_is_the_difference_quotient(name: str) -> None:
    def quotient(f: Any, h: float = 2e-3) -> float:  # of sixth order
        near, middle, far = (np.sum(np.sin(f(k * h)) - np.sin(f(-k * h))) / (2.0 * k * h) for k in (1, 2, 3))
        return 1.5 * near - 0.6 * middle + 0.1 * far

    with jax.enable_x64(True):
        for end in (np.inf, 2.4):
            by_lams, by_end = gradient(name, LAMS, end)
            wanted = [quotient(lambda d, e=e, end=end: run(name, LAMS + d * e, end)) for e in np.eye(len(LAMS))]
            np.testing.assert_allclose(by_lams, wanted, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(by_end, quotient(lambda d: run(name, LAMS, 2.4 + d)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", slow_but([x for x in NAMES if x in QUICK or x not in GRADED], NAMES))
def test_pure_noise_is_a_low_node_s_limit(name: str) -> None:
    """Or NaN, for a solver whose description says that it needs a finite one. Gradients are that limit's too."""
    with jax.enable_x64(True):
        endless, low = np.append(-np.inf, LAMS[1:]), np.append(-1e9, LAMS[1:])
        if name not in FROM_PURE_NOISE:
            assert np.isnan(run(name, endless)).all() and "finite first node" in solvers.SOLVERS[name].description
            assert solvers.SOLVERS[name].instead in FROM_PURE_NOISE
            return
        assert not solvers.SOLVERS[name].instead
        np.testing.assert_allclose(run(name, endless), run(name, low), atol=1e-7)
        mean = np.exp(problem().class_log_weights) * 2.0 - np.exp(problem().log_weights)
        np.testing.assert_allclose(run(name, [-np.inf]), np.tile(mean @ problem().means, (4, 1)), atol=1e-12)
        if name in GRADED:
            at_noise, at_low = gradient(name, endless)[0], gradient(name, low)[0]
            assert at_noise[0] == 0.0 == gradient(name, [-np.inf])[0]
            np.testing.assert_allclose(at_noise[1:], at_low[1:], atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "unipc-3-bh1", "heun-flow"])
def test_float32_is_accurate(name: str) -> None:
    """Also where differences of predictions are divided by small gaps."""
    for gaps, bound in ((np.diff(LAMS), 3e-6), (np.array([1, 1e-2, 1, 1e-2, 1e-2, 1]), 3e-4)):
        lams, x = np.float32(np.append(-2.1, -2.1 + np.cumsum(gaps))), noise(dtype=np.float32)
        narrow = sampler(name)(problem(False), lams, x, np.float32(np.inf), 7)
        assert narrow.dtype == np.float32
        with jax.enable_x64(True):
            wide = np.asarray(sampler(name)(problem(), padded(np.float64(lams)), np.float64(x), np.inf, 7))
        assert np.abs(np.asarray(narrow) - wide).max() < bound * np.abs(wide).max()


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
    def serve(problem: Any, lams: Any, end: Any, nfe: Any) -> jax.Array:
        return solvers.sample(denoiser(problem), lams, noise(2, np.float32), solver="unipc-3", end=end, nfe=nfe)

    for nfe in (1, 4, 7):
        for end in (np.inf, 3.0):
            assert np.isfinite(serve(problem(False), np.float32(LAMS), np.float32(end), nfe)).all()


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_honestly(name: str) -> None:
    count = jit(lambda end: solvers.weights(name, np.float32(LAMS), end=end).real.sum())
    calls = 2 if "heun" in name else 1
    for end, layout, wanted in ((np.inf, "clean", calls * 7 - calls + 1), (2.4, "t_eps", calls * 7)):
        assert int(count(end)) == solvers.evaluations(name, len(LAMS), end=layout) == wanted


def test_refuses_bad_arguments() -> None:
    for call, message in (
        (lambda: solvers.sample(lambda x, lam: x, LAMS, noise(), solver="rk4"), r"'rk4'.*ddim"),
        (lambda: solvers.sample(lambda x, lam: x, np.float32(LAMS[None]), noise()), "shape"),
        (lambda: solvers.evaluations("ddim", 0), "at least 1"),
        (lambda: solvers.evaluations("ddim", 3, end="zero"), "'zero'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
