"""Points, tables and gradients of what tuning moves, against the schedules and samplers that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_form import Network, latents

import bridge
from bridge.tuning.coordinates import Coordinates, Table, table_at
from bridge.tuning.gits import best_path, euler_costs
from bridge.tuning.models import DenoiserModel
from hso_jax import baseline, preset, zoo
from hso_jax.schedule import Origin

MODELS = ("sd15", "sd3-medium", "edm-cifar10", "pixart-alpha")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("free", [False, True])
def test_a_schedule_is_a_point_and_back(model: str, free: bool) -> None:
    noise = preset(model)
    shipped = zoo(model, 5, "nonstationary")  # an epsilon model's may begin below the noise end
    lams = [noise.noise_end, *shipped.lams[1:]]
    schedule = type(shipped).from_lams(noise, lams, origin=shipped.origin, coefficients=shipped.coefficients)
    if free:
        schedule = baseline("trailing", noise, 6)
        schedule = type(schedule).from_lams(noise, schedule.lams[1:], origin=Origin(solver="unipc-3"))
    coordinates = Coordinates.of(noise, 5, "nonstationary", "unipc-3", free)
    z = coordinates.point(schedule)
    assert z.shape == (4 + free + 9,)
    again = coordinates.schedule(z, Origin(solver="nonstationary"))
    # Nodes closer than a level are moved apart, by less than a level.
    np.testing.assert_allclose(again.t, schedule.t, atol=2e-3)
    np.testing.assert_allclose(coordinates.point(again), z, atol=1e-6)
    for mine, theirs in zip(coordinates.table(z), table_at(noise, again, "unipc-3"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3"])
@pytest.mark.parametrize("model", MODELS[:3])
def test_a_table_samples_as_the_solver_that_it_stands_for(model: str, solver: str) -> None:
    """Correctors too: what they revise joins the next step."""
    noise, start, network = preset(model), latents(3), Network()
    schedule = baseline("trailing", noise, 5)
    wanted = bridge.sample(network, schedule, start, solver=solver)
    table = Table(*(x.tolist() for x in table_at(noise, schedule, solver)))
    found = DenoiserModel(network, noise, start).run(table, range(3))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "free"),
    [
        ("sd15", True),
        ("sd3-medium", False),  # from pure noise
        *(pytest.param(model, model != "sd15", marks=pytest.mark.slow) for model in MODELS[:3]),
        pytest.param("edm-cifar10", False, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_differences(model: str, free: bool) -> None:
    noise, rng = preset(model), np.random.default_rng(2)
    coordinates = Coordinates.of(noise, 5, "nonstationary", "unipc-3", free)
    z = coordinates.point(baseline("karras", noise, 5)) + 0.1 * rng.standard_normal(4 + free + 9)
    weights = Table(*(rng.standard_normal(x.shape) for x in coordinates.table(z)))
    weights = weights._replace(timestep=weights.timestep / noise.num_train_timesteps)

    def value(point: np.ndarray) -> float:
        return sum(float((w * x).sum()) for w, x in zip(weights, coordinates.table(point), strict=True))

    step = 1e-5
    steps = step * np.eye(len(z))
    wanted = [(value(z + e) - value(z - e)) / (2 * step) for e in steps]
    np.testing.assert_allclose(coordinates.pull(z, weights), wanted, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bh1.*cannot start at lam = -inf; use 'unipc-3'"):
        Coordinates.of(preset("sd3-medium"), 4, "unipc-3-bh1", "ddim")
    with pytest.raises(ValueError, match="heun"):
        Coordinates.of(preset("sd15"), 4, "heun", "ddim")


def test_no_step_on_a_straight_trajectory_costs_anything() -> None:
    """With one prediction everywhere Euler steps of any length are exact, from pure noise too."""
    clean, noise = torch.ones(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    alpha, sigma = [0.0, 0.5, 0.8], [1.0, 0.5, 0.2]
    xs = [a * clean + s * noise for a, s in zip(alpha, sigma, strict=True)] + [clean]
    costs = euler_costs(xs, [clean] * 3, alpha, sigma)
    assert np.isinf(costs[np.tril_indices(4)]).all()
    np.testing.assert_allclose(costs[np.triu_indices(4, 1)], 0.0, atol=1e-12)


def test_the_best_path_is_the_cheapest_of_all() -> None:
    costs = np.random.default_rng(1).uniform(0.0, 1.0, (7, 7))
    costs[np.tril_indices(7)] = math.inf
    found = best_path(costs, 3, 1.15)

    def price(path: tuple[int, ...]) -> float:
        return sum(1.15**k * costs[i, j] for k, (i, j) in enumerate(zip(path, (*path[1:], 6), strict=True)))

    every = [(0, i, j) for i in range(1, 6) for j in range(i + 1, 6)]
    assert tuple(found) == min(every, key=price)
