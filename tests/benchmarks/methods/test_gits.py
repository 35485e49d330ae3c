"""GITS: its dynamic programme against all paths, its costs against steps taken one by one."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_subject

from benchmarks.methods import gits
from benchmarks.models.denoiser import denoiser, own_subject
from bridge.sampling import Level
from hso_jax import preset

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


@pytest.mark.parametrize("coefficient", [1.0, 1.15, 3.0])
@pytest.mark.parametrize("nfe", [1, 2, 4, 7])
def test_the_path_is_the_cheapest_of_all(nfe, coefficient):
    levels = 7
    costs = np.random.default_rng(nfe).random((levels + 1, levels + 1))
    costs[np.tril_indices(levels + 1)] = np.inf

    def total(path):
        stops = [*path, levels]
        return sum(coefficient**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(stops)))

    paths = [(0, *rest) for rest in itertools.combinations(range(1, levels), nfe - 1)]
    assert gits.best_path(costs, nfe, coefficient).tolist() == list(min(paths, key=total))


def test_a_large_coefficient_takes_longer_steps_where_they_are_counted_least():
    s = np.linspace(1, 0, 21)
    costs = np.where(s[:, None] > s, (s[:, None] - s) ** 2, np.inf)
    first = [gits.best_path(costs, 4, c)[1] for c in (0.5, 1.0, 2.0)]
    assert first[0] < first[1] == 5 < first[2]


@pytest.mark.parametrize("name", ["fashion-eps", "emoji-flow"])
def test_costs_are_those_of_euler_steps_from_the_teacher(name, calls):
    subject = tiny_subject(name)
    grid = gits.teacher_grid(subject.noise, 5)
    costs = gits.euler_costs(subject, grid, slice(0, 3))
    assert calls.images == 5 * 3
    predict = denoiser(subject, slice(0, 3))
    alphas, sigmas = np.asarray(subject.noise.alpha(grid.t)), np.asarray(subject.noise.sigma(grid.t))
    x = subject.start[:3]
    x0 = predict(x, Level(grid.timesteps[0], alphas[0], sigmas[0], 0.0))
    assert costs[0, 1] < 1e-6 * (x / alphas[0]).norm()  # the teacher's first step is an Euler step as well
    clean = gits.bridge.sample(predict, grid, x, solver="dpmpp-2m")
    assert costs[0, 5] == pytest.approx(float((x0 - clean).flatten(1).norm(dim=1).sum()), rel=1e-4)
    assert np.isinf(costs[np.tril_indices(6)]).all() and np.isfinite(costs[np.triu_indices(6, 1)]).all()


def test_steps_to_a_single_image_cost_nothing():
    noise, image = preset("sd15"), torch.full((2, 1, 32, 32), 0.5)
    grid = gits.teacher_grid(noise, 6)

    def predict(x, timestep, labels, guidance):  # eps of data that is `image` alone
        t = (float(timestep) + 1) / 1000
        return (x - float(noise.alpha(t)) * image) / float(noise.sigma(t))

    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="epsilon"))
    point = SimpleNamespace(
        _trained=SimpleNamespace(predict=predict, scheduler=scheduler), noise=noise, guidance=1.0,
        labels=torch.zeros(2), start=torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    costs = gits.euler_costs(point, grid, slice(0, 2))
    size = grid.sigmas[0] * 32 * 2
    assert costs[np.triu_indices(7, 1)].max() < 1e-5 * size


def test_the_grid_is_karras_and_the_warm_up_serves_every_n(calls):
    subject = tiny_subject()
    found = [gits.search(subject, n, images=3, levels=8) for n in (1, 3, 8)]
    assert calls.images == 3 * 8 and {one.calls for one in found} == {24}
    grid = gits.teacher_grid(subject.noise, 8)
    np.testing.assert_allclose(np.diff(grid.sigmas ** (1 / 7)), np.diff(grid.sigmas ** (1 / 7)).mean(), rtol=1e-6)
    np.testing.assert_array_equal(found[-1].schedule.t, grid.t)  # as many evaluations as levels: all of them
    assert set(found[1].schedule.t) < set(grid.t) and found[1].schedule.t[0] == 1.0
    assert found[0].schedule.timesteps.tolist() == [999.0]
    assert found[0].seconds > 0 and found[0].schedule.method == "gits"
    costs, _ = gits.mean_costs(subject, 3, 8, 0)
    np.testing.assert_allclose(costs, gits.euler_costs(own_subject(subject, 3, 0), grid, slice(0, 3)) / 3, rtol=1e-5)


@pytest.mark.parametrize("nfe", [0, 61])
def test_more_evaluations_than_levels_are_refused(nfe, calls):
    with pytest.raises(ValueError, match=f"nfe is {nfe}; the teacher's grid has 60"):
        gits.search(tiny_subject(), nfe)
    assert calls.images == 0
