"""The model's own error: its size by prediction type, its statistics, and the perturbed flow against SciPy."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from hso_jax import Lane, NoiseSchedule, SolverError, baseline, from_config, preset, search, solver_error, solvers
from hso_jax.error import (
    Chunks,
    denoiser,
    error_data,
    error_gradient,
    in_chunks,
    log_power_mean,
    mean_error,
    squared_errors,
)
from hso_jax.noise import PREDICTIONS, alpha_sigma, stack, strip_static
from hso_jax.problems import ETA, ModelError, collect, family, mixture, power_law, product, spectral
from hso_jax.problems.bank import pick, predict, spread
from hso_jax.problems.model_error import CAP, SATURATION, Waves, check_model_error, draw, error, guided, over_sigma
from hso_jax.searches import checked
from hso_jax.solver_error_levels import data_of_lane, pack

SD, FLOW, EDM = preset("sd15"), preset("sd3-medium"), preset("edm-cifar10")
V = SD.with_prediction("v_prediction")
LAMS = np.array([-6.0, -2.0, 0.0, 1.5, 4.0])


def waves(numbers: tuple[float, float], coefficients: Any = None) -> Waves:
    """One wave of frequency 0 with xi = 1, or the given ones."""
    values = np.array([1.0, 0.0])[:, None, None] if coefficients is None else np.asarray(coefficients)
    frequencies = np.zeros(1) if coefficients is None else np.array([0.4, 1.3, 2.1])[: len(values) // 2]
    return Waves(jnp.asarray(frequencies), jnp.asarray(numbers[0] * values), jnp.asarray(numbers[1]))


@pytest.mark.parametrize(("weight", "branches"), [(1.0, 1.0), (0.0, 1.0), (3.0, 2.2), (7.5, 10.75)])
def test_size_under_guidance_is_that_of_branches_alike_by_nine_tenths(weight: float, branches: float) -> None:
    """The guided prediction errs as w and 1 - w times the errors: w^2 + (1 - w)^2 + 1.8 w (1 - w) of one's variance."""
    plain = ModelError(eta=0.04).size("flow_prediction", -7.0)
    assert plain == pytest.approx(0.04, rel=1e-5)
    guided_size = ModelError(eta=0.04).size("flow_prediction", -7.0, weight)
    assert guided_size == pytest.approx(plain * math.sqrt(branches), rel=1e-9)


def test_size_follows_from_what_is_predicted() -> None:
    """x_0 from a prediction that is off by delta is off by this factor times delta."""
    alpha, sigma = alpha_sigma(LAMS, "vp")
    of_network = {
        "epsilon": sigma / alpha,  # x_0 = (x - sigma eps)/alpha
        "v_prediction": sigma,  # x_0 = alpha x - sigma v
        "edm": np.exp(-LAMS) / np.sqrt(1.0 + np.exp(-2.0 * LAMS)),  # c_out with data of unit variance
    }
    with jax.enable_x64(True):
        for name, wanted in of_network.items():
            row = waves(ModelError(eta=0.1).numbers(name))
            found = np.array([error(row, *alpha_sigma(lam, "vp"))[0, 0] for lam in jnp.asarray(LAMS)])
            np.testing.assert_allclose(found, 0.1 * wanted, rtol=1e-12)
            scaled = np.array([over_sigma(row, *alpha_sigma(lam, "vp"))[0, 0] for lam in jnp.asarray(LAMS)])
            np.testing.assert_allclose(scaled * sigma, found, rtol=1e-12)
            assert float(error(row, *alpha_sigma(jnp.asarray(np.inf), "vp"))[0, 0]) == 0.0
            if np.isfinite(CAP[name]):
                noisiest = float(error(row, *alpha_sigma(jnp.asarray(-np.inf), "vp"))[0, 0])
                assert noisiest == pytest.approx(0.1 * CAP[name], rel=1e-12)
    # A flow's velocity is off by s in flow scaling; sigma is at most sqrt 2 times that.
    s = 1.0 / (1.0 + np.exp(LAMS))
    assert np.all((sigma >= s) & (sigma <= 1.4143 * s))
    assert set(ETA) == set(CAP) == set(PREDICTIONS)


def test_xi_has_unit_variance_and_its_length() -> None:
    variances, counts = np.full((60, 2), 4.0), np.ones((60, 2))
    for length in (1.0, 2.5):
        frequencies, coefficients = draw(ModelError(length=length), variances, counts, 40)
        levels = np.array([0.0, 0.5, 1.0, 2.0]) * length
        angles = frequencies[:, :, None] * (levels + 0.7)
        basis = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        xi = np.einsum("pkl,pxkbd->pxlbd", basis, coefficients) / 2.0
        covariance = np.einsum("pxlbd,pxbd->l", xi, xi[:, :, 0]) / xi[:, :, 0].size
        np.testing.assert_allclose(covariance, np.exp(-0.5 * (levels / length) ** 2), atol=0.05)
        # Five standard errors: problems, branches, samples and coordinates are independent, each of variance at most 1.
        assert abs(xi.mean()) < 5.0 / np.sqrt(60 * 2 * 40 * 2)


def test_xi_is_constant_beyond_its_saturation() -> None:
    row = waves((1.0, 1.0), np.random.default_rng(0).normal(size=(6, 2, 3)))
    with jax.enable_x64(True):
        far = [np.asarray(error(row, *alpha_sigma(jnp.asarray(lam), "vp"))) for lam in (-np.inf, -2.0 * SATURATION)]
        near = np.asarray(error(row, *alpha_sigma(jnp.asarray(-5.0), "vp")))
    np.testing.assert_allclose(far[0], far[1], atol=1e-2)
    assert np.abs(far[0] - near).max() > 0.1


def test_tilt_keeps_the_total_and_padding_counts_for_nothing() -> None:
    variances, counts = np.array([[9.0, 1.0, 0.0]]), np.array([[1.0, 20.0, 0.0]])
    for tilt, ratio in ((1.0, 9.0), (0.0, 1.0), (0.5, 3.0)):
        _, c = draw(ModelError(tilt=tilt), variances, counts, 4000)
        energy = (c[0, 0] ** 2).sum(0).mean(0) / 1.0
        assert energy[0] / energy[1] == pytest.approx(ratio, rel=0.1)
        assert energy[0] + 20.0 * energy[1] == pytest.approx(2 * 29.0 * 0.5 * 2, rel=0.1)


def test_branches_are_as_alike_as_asked() -> None:
    one = np.ones((1, 2))
    for alike in (0.0, 0.6, 1.0):
        _, c = draw(ModelError(alike=alike), one, one, 5000)
        assert np.mean(c[:, 0] * c[:, 1]) / np.mean(c[:, 0] ** 2) == pytest.approx(alike, abs=0.02)
        assert np.mean(c[:, 1] ** 2) == pytest.approx(np.mean(c[:, 0] ** 2), rel=0.03)
        both = [guided(1.0, c, w) for w in (0.0, 1.0, 4.0)]
        np.testing.assert_allclose(both[2], both[0] + 4.0 * (both[1] - both[0]), atol=1e-5)


@functools.cache
def problems() -> tuple:
    """Both kinds, of different numbers of coordinates, in float32 whoever asks first."""
    with jax.enable_x64(False):
        spectrum = power_law(64, 1.0, deviation=0.7)
        made = [spectral(jax.random.key(k), spectrum, dimension=3) for k in range(2)]
        return (family(range(2), dimension=4, components=4, members=2), *made)


def data(guidance: float, **options: Any) -> Chunks:
    return error_data(-4.0, guidance, problems=problems(), samples=4, **options)


CASES = {
    "plain": (1.0, {"model_error": ModelError(eta=0.0), "power": 1.0}),
    "error": (1.0, {"model_error": ModelError(eta=0.05), "power": 1.0}),
    "guided": (4.0, {"model_error": ModelError(eta=0.05, alike=0.5), "prediction": "v_prediction", "detail": 0.5}),
    "logs": (2.0, {"model_error": ModelError(eta=0.05, tilt=0.0), "power": 0.0, "detail": -0.3}),
    "sample": (1.5, {"model_error": ModelError(eta=0.05), "prediction": "sample", "power": 0.5}),
}


@functools.partial(jax.jit, static_argnames="solver")
def both(chunks: Chunks, lams: jax.Array, solver: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    def weigh(lams: jax.Array) -> solvers.Weights:
        return solvers.weights(solver, lams)

    count = chunks.problem.shape[0] - 1  # the last chunk's problem has one less than the others
    plain = mean_error(chunks, squared_errors(chunks, weigh(lams), count), count)
    return plain, *error_gradient(chunks, weigh, lams, count)


def test_gradient_against_differences() -> None:
    solver, lams, h = "unipc-3", np.array([-4.0, -1.7, -0.4, 0.8, 2.2]), 1e-4
    with jax.enable_x64(True):
        for guidance, options in CASES.values():
            chunks = in_chunks(data(guidance, **options), 2)
            value, logged, gradient = both(chunks, jnp.asarray(lams), solver)
            assert np.log(value) == pytest.approx(float(logged), abs=1e-12)
            moved = [[lams + a * h * shift for a in (-2, -1, 1, 2)] for shift in np.eye(5)]
            logs = [[np.log(both(chunks, jnp.asarray(x), solver)[0]) for x in row] for row in moved]
            wanted = np.array(logs) @ [1.0, -8.0, 8.0, -1.0] / (12.0 * h)
            np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def test_squared_errors_are_those_of_sampling() -> None:
    """By hand, one problem after the other: weights by direction, the error added, powers of the mean."""
    guidance, options = CASES["guided"]
    lams = np.array([-4.0, -1.0, 0.5, 2.0])
    with jax.enable_x64(True):
        made = data(guidance, **options, power=2.0)
        chunks = in_chunks(made, 4)
        weights = solvers.weights("dpmpp-2m", lams)
        found = np.asarray(squared_errors(chunks, weights, 4))
        mean = float(mean_error(chunks, jnp.asarray(found), 4))
        variances, counts = spread(collect(problems()))
        by_hand = []
        for p in range(4):
            mixed = made.coefficients[p]

            def model(x: jax.Array, lam: jax.Array, p: int = p, mixed: jax.Array = mixed) -> jax.Array:
                alpha, sigma = alpha_sigma(lam, "vp")
                angles = made.frequencies[p] * jnp.log((alpha + np.exp(-7) * sigma) / (sigma + np.exp(-7) * alpha))
                xi = jnp.einsum("k,kbd->bd", jnp.concatenate([jnp.cos(angles), jnp.sin(angles)]), mixed)
                return predict(pick(made.problems, p), x, alpha, sigma, guidance)[0] + sigma * xi

            x = solvers.sample(model, lams, made.noise[p], solver="dpmpp-2m")
            square = np.mean((np.asarray(x) - np.asarray(made.truth[p])) ** 2, axis=0)
            used = counts[p] > 0
            importance = counts[p, used] * variances[p, used] ** -0.5
            by_hand.append(square[used] @ importance / (variances[p, used] @ importance))
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert mean == pytest.approx(np.mean(np.square(by_hand)) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 0.5, -1.0, 2.0, 0.0])
def test_power_means(power: float) -> None:
    values = np.array([0.3, 2.0, 5e-4, 7.0])
    wanted = np.log(np.mean(values[:3] ** power)) / power if power else np.log(values[:3]).mean()
    with jax.enable_x64(True):
        got = log_power_mean(jnp.asarray(values), jnp.arange(4) < 3, jnp.asarray(power))
        assert float(got) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("start", "prediction", "guidance"),
    [(-5.06, "epsilon", 1.0), (-np.inf, "v_prediction", 3.0), (-np.inf, "flow_prediction", 1.0), (-3.0, "sample", 1.0)],
)
def test_truth_is_the_perturbed_flow_that_scipy_integrates(start: float, prediction: str, guidance: float) -> None:
    """In lam: `d(x/sigma) = e^lam (D + e) dlam`, from a lam where nothing but the mean has been seen."""
    two = [
        mixture([1.0, 2.0], [[-1.0, 0.4], [1.0, -0.2]], [0.2, 0.1], members=[0]),
        product([[1.0, 1.0], [2.0, 1.0]], [[-1.0, 3.0], [0.5, -3.0]], [[0.2, 1.0], [0.1, 2.0]]),
    ]
    with jax.enable_x64(True):
        options: dict[str, Any] = {"problems": two, "samples": 3, "model_error": ModelError(eta=0.1)}
        made = error_data(start, guidance, prediction=prediction, **options)
        chunks = in_chunks(made, 3)
        model = jax.jit(lambda i, x, lam: denoiser(chunks, i)(x, lam))
        begin, finish = max(start, -18.0), 12.0
        for p in range(2):

            def slope(lam: float, y: np.ndarray, p: int = p) -> np.ndarray:
                # y = x/(alpha + sigma) stays of order 1 at both ends.
                alpha, sigma = alpha_sigma(np.float64(lam), "vp")
                x = y.reshape(3, 2) * (alpha + sigma)
                data = np.asarray(model(p, x, jnp.asarray(lam)))
                # dx/dlam = alpha data + (dsigma/dlam)/sigma x, with dsigma/dlam = -alpha^2 sigma.
                dx = alpha * data - alpha**2 * x
                dy = dx / (alpha + sigma) - x * (sigma**2 * alpha - alpha**2 * sigma) / (alpha + sigma) ** 2
                return dy.ravel()

            y = np.asarray(made.noise[p]) / sum(alpha_sigma(np.float64(begin), "vp"))
            solved = solve_ivp(slope, (begin, finish), y.ravel(), method="DOP853", rtol=1e-9, atol=1e-10)
            x = solved.y[:, -1].reshape(3, 2) * sum(alpha_sigma(np.float64(finish), "vp"))
            wanted = np.asarray(model(p, x, jnp.asarray(finish)))
            np.testing.assert_allclose(made.truth[p], wanted, atol=2e-6)


@pytest.mark.slow
def test_truth_converges_with_its_steps_and_says_how_far() -> None:
    with jax.enable_x64(True):
        options: dict[str, Any] = {"prediction": "edm", "model_error": ModelError(eta=0.05)}
        best = data(4.0, steps=512, **options)
        errors, told = [], []
        for steps in (32, 64, 128):
            found = data(4.0, steps=steps, **options)
            squares = np.mean((found.truth - best.truth) ** 2, axis=1)
            errors.append(np.sqrt(np.mean(np.sum(found.importance * squares, axis=1))))
            told.append(float(found.inaccuracy))
        assert errors[1] < 1e-4 and errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]
        assert np.all(np.array(told) > np.array(errors))


def test_the_same_bytes_twice_and_other_seeds_other_errors() -> None:
    without = data(1.0, model_error=ModelError(eta=0.0))
    assert without.coefficients.size == without.frequencies.size == 0
    first, again, other = (data(1.0, model_error=ModelError(eta=0.05, seed=seed)) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert np.asarray(first.noise).tobytes() == np.asarray(other.noise).tobytes()
    assert np.any(first.truth != other.truth)


def test_lanes_have_the_error_of_their_model() -> None:
    """One bank for models of the same noise end that predict different things."""
    how = SolverError(problems=problems(), samples=4, model_error=ModelError(eta=0.02))
    lanes = checked([Lane(noise, 3, method=how) for noise in (SD, V, SD)])
    assert len({lane.method.group(lane) for lane in lanes}) == 1
    arrays, bank, inaccuracy = pack(lanes, ["dpmpp-2m"])
    assert arrays.data.tolist() == [0, 1, 0] and bank.truth.shape[0] == 2
    np.testing.assert_allclose(bank.capped, [0.0, 1.0])
    alone = data_of_lane(lanes[1])
    np.testing.assert_array_equal(bank.truth[1], in_chunks(alone, 4).truth)
    assert inaccuracy[1] == float(alone.inaccuracy)
    assert np.any(bank.truth[0] != bank.truth[1])


@pytest.mark.slow
def test_a_search_reports_the_error_its_options_mean() -> None:
    """Both kinds of problem, an error, weights: the error told is `solver_error` of the schedule, below a rule's."""
    options: dict[str, Any] = {"model_error": ModelError(eta=0.05), "detail": 0.5, "power": 0.5, "samples": 8}
    how = SolverError(problems=problems(), compare=(), **options)
    found = search(V, 3, method=how)
    measured = solver_error(found, V, problems=problems(), **options)
    assert measured == pytest.approx(found.error, rel=1e-3)
    rule = baseline("trailing", V, 3)
    assert measured < solver_error(rule, V, solver="dpmpp-2m", problems=problems(), **options)
    # The prediction is the noise schedule's, which an epsilon network's larger error tells.
    assert solver_error(rule, SD, solver="ddim", problems=problems(), **options) != solver_error(
        rule, V, solver="ddim", problems=problems(), **options
    )


def test_what_networks_predict() -> None:
    assert (SD.prediction, FLOW.prediction, EDM.prediction) == ("epsilon", "flow_prediction", "edm")
    assert V.prediction == "v_prediction" and V.fingerprint() == SD.fingerprint()
    assert jax.tree.structure(V) == jax.tree.structure(SD)
    assert isinstance(V, NoiseSchedule)
    stacked = stack([SD, V, EDM], np.dtype(np.float32))
    assert stacked.predicts.tolist() == [0.0, 1.0, 3.0] and strip_static(V).prediction == "v_prediction"
    config = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    assert from_config(config).prediction == "v_prediction"
    assert from_config({"_class_name": "CosineDPMSolverMultistepScheduler"}).prediction == "edm"
    with pytest.raises(ValueError, match="DDIMScheduler: prediction is 'noise'; use one of epsilon"):
        from_config({**config, "prediction_type": "noise"})
    with pytest.raises(ValueError, match="prediction is 'noise'; use one of epsilon"):
        SD.with_prediction("noise")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "infinite at the start": ({"start": -np.inf, "model_error": ModelError(eta=0.1)}, "pure noise .*eta = 0"),
    "eta": ({"model_error": ModelError(eta=-1.0)}, r"eta is -1\.0"),
    "cap": ({"model_error": ModelError(eta=0.1, cap=0.0)}, r"cap is 0\.0"),
    "length": ({"model_error": ModelError(eta=0.1, length=0.0)}, r"length is 0\.0"),
    "alike": ({"model_error": ModelError(eta=0.1, alike=2.0)}, r"alike is 2\.0"),
    "no error": ({"model_error": 0.1}, r"model_error is 0\.1; need a ModelError"),
    "a number": ({"problems": 3}, "problems is 3"),
    "no problems": ({"problems": []}, "problems is empty"),
    "no problem": ({"problems": [3]}, "problems has 3"),
    "components": ({"problems": [mixture([1.0], [[0.0]], [1.0]), mixture([1.0] * 2, [[0.0]] * 2, [1.0])]}, r"\[1, 2\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        error_data(**{"start": -3.0, "problems": problems()} | options)
    if not {"start", "prediction"} & set(options):  # those the noise schedule says, no option of the method
        with pytest.raises(ValueError, match=message):
            checked([Lane(SD, 3, method=SolverError(samples=32, **{"problems": problems()} | options))])


def test_an_epsilon_model_s_default_error_is_bounded() -> None:
    """Such a network says nothing about x_0 there: what starts there is taken as bounded; a stated error is refused."""
    assert check_model_error(None, "epsilon", -math.inf).numbers("epsilon") == (ETA["epsilon"], 1.0)
    assert check_model_error(None, "epsilon", -5.0).numbers("epsilon") == (ETA["epsilon"], 0.0)
    with pytest.raises(ValueError, match="lam = -inf"):
        check_model_error(ModelError(eta=0.02), "epsilon", -math.inf)
