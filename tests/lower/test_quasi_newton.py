"""The quasi-Newton trust region on functions whose minimiser is known, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from hso_jax.lower.quasi_newton import State, init, settled, solve, step
from hso_jax.lower.trust_region import CONVERGED, MAX_STEPS, NOT_FINITE


def rosenbrock(y: jax.Array) -> jax.Array:
    """In the log, as the search takes it; the last of five coordinates has no effect, as padding has none."""
    x = y[:4]
    return jnp.log(1e-3 + jnp.sum(10.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))


def with_gradient(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    return jax.value_and_grad(function)


START = np.array([-0.5, 0.6, 0.2, 1.3, 0.7])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_it_reaches_scipy_s_minimiser_about_as_fast() -> None:
    wanted = optimize.minimize(
        lambda y: float(rosenbrock(jnp.asarray(y))),
        START,
        jac=lambda y: np.asarray(jax.grad(rosenbrock)(jnp.asarray(y))),
        method="BFGS",
        options={"gtol": 1e-6},
    )
    state = jax.jit(lambda y: solve(with_gradient(rosenbrock), y, 200))(jnp.asarray(START))
    assert int(state.result) == CONVERGED and int(state.steps) <= 2 * wanted.nfev
    np.testing.assert_allclose(state.y, [1, 1, 1, 1, START[4]], rtol=0, atol=2e-3)
    assert float(state.value) == pytest.approx(wanted.fun, abs=1e-4)


def run(function: Callable[[jax.Array], jax.Array], start: np.ndarray, steps: int) -> list[State]:
    both = with_gradient(function)
    advance = jax.jit(lambda state: step(both, state))
    states = [advance(init(jnp.asarray(start)))[0]]
    for _ in range(steps):
        state, info = advance(states[-1])
        assert float(info.before) == float(states[-1].value) and bool(info.accepted) == bool(info.after < info.before)
        states.append(state)
    return states


def test_every_state_keeps_what_the_method_promises() -> None:
    """Values fall, steps stay within the radius and minimise the model there, and the model is positive definite."""
    states = run(rosenbrock, START, 25)
    values = np.array([float(s.value) for s in states])
    assert np.all(np.diff(values) <= 0) and values[-1] < values[0] - 2
    for s in states:
        hessian, gradient, move = (np.asarray(x) for x in (s.hessian, s.gradient, s.move))
        assert np.linalg.eigvalsh(hessian).min() > 0
        assert np.linalg.norm(move) <= float(s.radius) * (1 + 1e-9)
        assert move[4] == 0
        promised = -(gradient @ move + 0.5 * move @ hessian @ move)
        assert float(s.promised) == pytest.approx(promised, rel=1e-9) and promised >= 0
        others = np.random.default_rng(0).normal(size=(200, 5))
        others *= float(s.radius) / np.linalg.norm(others, axis=1, keepdims=True)
        models = others @ gradient + 0.5 * np.einsum("ij,jk,ik->i", others, hessian, others)
        assert -promised <= models.min() + 1e-6 * abs(promised)


def test_the_model_satisfies_the_secant_condition() -> None:
    states = run(rosenbrock, START, 25)
    checked = 0
    for before, after in itertools.pairwise(states):
        if not float(after.value) < float(before.value):
            continue
        move, change = np.asarray(before.move), np.asarray(after.gradient - before.gradient)
        if move @ change > 0.2 * move @ np.asarray(before.hessian) @ move:
            np.testing.assert_allclose(np.asarray(after.hessian) @ move, change, rtol=0, atol=1e-9 * abs(change).max())
            checked += 1
    assert checked > 5


def test_nan_is_a_rise() -> None:
    """The minimiser lies behind a region without values: the descent stops at its edge, with a finite result."""

    def walled(y: jax.Array) -> jax.Array:
        return jnp.where(y[0] < 1.0, jnp.sum((y - 2.0) ** 2), jnp.nan)

    state = jax.jit(lambda y: solve(with_gradient(walled), y, 60))(jnp.zeros(2))
    assert np.isfinite(float(state.value)) and np.all(np.isfinite(np.asarray(state.y)))
    assert 0.9 < float(state.y[0]) < 1.0


def test_a_minimum_has_settled_and_costs_no_step() -> None:
    both = with_gradient(lambda y: jnp.sum(y**2))
    state = jax.jit(lambda y: solve(both, y, 10))(jnp.zeros(3))
    assert int(state.result) == CONVERGED and int(state.steps) == 0 and bool(settled(step(both, init(jnp.zeros(3)))[0]))


def test_result_codes_say_how_it_ended() -> None:
    slow = jax.jit(lambda y: solve(with_gradient(rosenbrock), y, 3))(jnp.asarray(START))
    assert int(slow.result) == MAX_STEPS and int(slow.steps) == 3
    nowhere = jax.jit(lambda y: solve(with_gradient(lambda y: jnp.nan * jnp.sum(y)), y, 3))(jnp.ones(2))
    assert int(nowhere.result) == NOT_FINITE
