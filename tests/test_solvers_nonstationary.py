"""Non-stationary solvers: the known ones are points of the form, and constants are exact whatever the coefficients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hso_jax import Schedule, preset, solvers
from hso_jax.schedule import Origin
from hso_jax.solver_error_levels import older_of
from hso_jax.solvers.weights import grid

KNOWN = {"ddim": 2, "dpmpp-2m": 2, "dpmpp-3m": 3, "unipc-1": 2, "unipc-2": 3, "unipc-3": 4}
FREE = Origin(method="solver-error", solver=solvers.NONSTATIONARY)


def nodes(seed: int, first: float) -> np.ndarray:
    """Seven, rising."""
    lams = np.sort(np.random.default_rng(seed).uniform(-4.0, 2.5, 7))
    lams[0] = first
    return lams


@pytest.mark.parametrize("name", KNOWN)
def test_every_multistep_solver_is_a_point_of_the_form(name: str) -> None:
    """UniPC with its corrector too: the same sample to rounding."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(2).normal(size=5))
        for first, end in itertools.product((-4.5, -np.inf), (np.inf, 3.0)):
            lams = nodes(1, first)
            known = solvers.weights(name, lams, end=end)
            steps = grid(jnp.asarray(lams), jnp.asarray(end), jnp.asarray(7))
            free = solvers.nonstationary(lams, solvers.coefficients_of(known, steps, KNOWN[name]), end=end)

            def denoiser(x: jax.Array, lam: jax.Array) -> jax.Array:
                return jnp.tanh(1.3 * x + 0.1 * jnp.maximum(lam, -20.0))

            apart = jnp.abs(solvers.run(denoiser, known, x) - solvers.run(denoiser, free, x)).max()
            assert apart < 1e-12 * max(1.0, float(jnp.abs(known.predict).max()))


@pytest.mark.parametrize("name", KNOWN)
def test_a_row_tells_how_many_earlier_predictions_its_steps_combine(name: str) -> None:
    steps = grid(nodes(1, -4.5), np.asarray(3.0), np.asarray(7))
    older = np.flatnonzero(solvers.coefficients_of(solvers.find(name).weights(steps), steps, 5).any(0))
    assert older.tolist() == list(range(older_of(name)))


def test_the_free_solver_is_a_row_beside_the_known_ones() -> None:
    assert list(solvers.EVERY) == [*solvers.SOLVERS, solvers.NONSTATIONARY]
    free = solvers.find(solvers.NONSTATIONARY)
    steps, coefficients = grid(nodes(1, -4.5), np.asarray(3.0), np.asarray(7)), np.full((7, 2), 0.1)
    made, wanted = free.weights(steps, coefficients), solvers.nonstationary(nodes(1, -4.5), coefficients, end=3.0)
    np.testing.assert_allclose(made.predict, wanted.predict, rtol=1e-5)
    with pytest.raises(ValueError, match="solver is 'nonstationary'; use one of ddim"):
        solvers.weights(solvers.NONSTATIONARY, nodes(1, -4.5))


@pytest.mark.parametrize("end", [np.inf, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_constant_prediction_is_exact_for_any_coefficients(end: float, seed: int) -> None:
    """Padding changes nothing."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        lams = nodes(seed, -4.5 if seed % 2 else -np.inf)
        coefficients = rng.normal(size=(10, 1 + seed % 3))
        weights = solvers.nonstationary(np.pad(lams, (0, 3), mode="edge"), coefficients, end=end, nfe=7)
        x, constant = jnp.asarray(rng.normal(size=(2, 5)))
        got = solvers.run(lambda x, lam: constant, weights, x)
        want = constant
        if end == 3.0:
            want = solvers.run(lambda x, lam: constant, solvers.weights("ddim", lams, end=end), x)
        assert jnp.abs(got - want).max() < 1e-12


def test_amplification_is_that_of_the_worst_perturbation() -> None:
    """By brute force: one prediction at a time is off by 1, the signs are the worst."""
    with jax.enable_x64(True):
        lams, coefficients = nodes(3, -4.5), np.random.default_rng(5).normal(size=(7, 2))
        weights = solvers.nonstationary(lams, coefficients)
        worst = 1.0
        for upto in range(1, 8):
            part = jax.tree.map(lambda leaf: leaf[:upto], weights)  # noqa: B023
            total = [
                float(solvers.run(lambda x, lam, k=k: jnp.where(lam == lams[k], 1.0, 0.0), part, jnp.zeros(())))
                for k in range(upto)
            ]
            worst = max(worst, np.abs(total).sum() / abs(np.sum(total)))
        assert float(solvers.amplification(weights)) == pytest.approx(worst, rel=1e-12)
        assert float(solvers.amplification(solvers.weights("ddim", lams))) == pytest.approx(1.0)


ROWS = [[0.0, 0.0], [0.5, 0.0], [0.3, -0.2]]


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (None, "coefficients: none for solver 'nonstationary'"),
        ([[0.0]] * 2, r"shape \(2, 1\); need \(3, H - 1\)"),
        ([[0.0] * 4] * 3, r"H from 2 to 4"),
        ([[1.0]] * 3, r"coefficients\[0\]\[0\] is 1; step 0 has 0 earlier predictions"),
        ([[0.0], [float("nan")], [1.0]], r"coefficients\[1\]\[0\] is .*nan"),
        ([[0.0], [2e3], [1.0]], r"coefficients\[1\]\[0\] is 2000.0"),
        ([["a"]] * 3, "need numbers"),
    ],
)
def test_a_schedule_has_coefficients_that_fit_it(coefficients: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.from_t(preset("sdxl"), [0.9, 0.5, 0.2], origin=FREE, coefficients=coefficients)
    with pytest.raises(ValueError, match="alone has them"):
        Schedule.from_t(preset("sdxl"), [0.9, 0.5, 0.2], coefficients=ROWS)


def test_coefficients_belong_to_the_schedule() -> None:
    made, again = (
        Schedule.from_t(preset("sdxl"), [0.9, 0.5, 0.2], origin=FREE, coefficients=x) for x in (ROWS, np.array(ROWS))
    )
    assert made == again and made.coefficients is not None and not made.coefficients.flags.writeable
