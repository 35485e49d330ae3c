"""The plain sampler: each of its solvers against an independent loop, and what holds whatever the solver."""

from __future__ import annotations

import functools
import itertools
from itertools import pairwise
from typing import Any

import cases
import numpy as np
import pytest
import torch
from free import in_jax
from mixture import denoise, random_schedule, start
from oracles import multistep, one_step, plain

from bridge import Level, sample
from bridge.sampling import levels
from hso_jax import noise
from hso_jax.schedule import Schedule
from hso_jax.shipped.zoo import zoo
from hso_jax.solvers import SOLVERS, evaluations

MODELS = ["sd15", "sd3-medium", "edm-cifar10"]
# Solver -> its loop, and whether that takes x/alpha.
ORACLES: dict[str, tuple[Any, bool]] = {
    "ddim": (one_step.ddim, False),
    "dpmpp-2m": (plain.dpmpp_2m, False),
    "dpmpp-3m": (functools.partial(multistep.dpm, order=3), False),
    "heun": (one_step.heun, True),
    "heun-flow": (one_step.flow_heun, False),
    **{
        f"unipc-{n}{'' if variant == 'bh2' else '-bh1'}": (
            functools.partial(plain.unipc, order=n, variant=variant),
            False,
        )
        for n in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
}


def mixture(x: torch.Tensor, level: Level) -> torch.Tensor:
    return denoise(x, level.alpha, level.sigma)


def test_every_solver_has_an_oracle() -> None:
    assert set(ORACLES) == set(SOLVERS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_agrees_with_an_independent_loop(solver: str, end: str, model: str) -> None:
    if solver == "heun-flow" and model != "sd3-medium":
        pytest.skip("the oracle works in a flow's s")
    oracle, scaled = ORACLES[solver]
    # The oracle of 3M does not lower the last but one step to clean data, as diffusers does for N < 15.
    for nfe in (1, 2, 3, 16) if (solver, end) == ("dpmpp-3m", "clean") else (1, 2, 3, 7, 16):
        schedule = random_schedule(cases.noise_of(model), nfe, end, nfe)
        grid = levels(schedule)
        x = start() * (1 + grid[0].sigma ** 2) ** 0.5 if model == "edm-cifar10" else start()
        wanted = oracle(mixture, grid, x / grid[0].alpha if scaled else x, start)
        wanted = wanted * grid[-1].alpha if scaled else wanted
        got = sample(mixture, schedule, start(), solver)
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-11, nfe


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_exact_for_a_constant_prediction_and_calls_as_often_as_it_says(solver: str, end: str, model: str) -> None:
    schedule = random_schedule(cases.noise_of(model), 6, end, 0)
    data, seen = torch.tensor([[0.4, -0.7]], dtype=torch.float64), []

    def constant(x: torch.Tensor, level: Level) -> torch.Tensor:
        seen.append(level)
        return data.expand_as(x)

    noise = start()
    got = sample(constant, schedule, noise, solver)
    grid = levels(schedule)
    first = noise * (1 + grid[0].sigma ** 2) ** 0.5 if model == "edm-cifar10" else noise
    wanted = grid[-1].alpha * data + grid[-1].sigma * (first - grid[0].alpha * data) / grid[0].sigma
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    twice = [level for pair in pairwise(grid) for level in pair]
    expected = (twice if SOLVERS[solver].calls == 2 else grid)[: evaluations(solver, 6, end=end)]
    assert seen == expected
    assert [level.timestep for level in grid[:-1]] == schedule.timesteps.tolist()


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_starts_at_pure_noise(solver: str) -> None:
    schedule = Schedule.from_t(cases.noise_of("sd3-medium"), [1.0, 0.7, 0.4, 0.1])
    assert torch.isfinite(sample(mixture, schedule, start(), solver)).all()


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_solver_in_jax_is_the_same(solver: str) -> None:
    """To either end, from pure noise too. What is exact here and in diffusers' classes is so in JAX."""
    for nfe, end, model in itertools.product((1, 2, 3, 4, 16), ("clean", "t_eps"), MODELS):
        schedule = random_schedule(cases.noise_of(model), nfe, end, nfe)
        got, wanted = in_jax(schedule, start(), solver), sample(mixture, schedule, start(), solver).numpy()
        assert np.abs(got - wanted).max() < 1e-10 * np.abs(wanted).max(), (nfe, end, model)
    zero_snr = noise.discrete(betas=noise.beta_table(), rescale_betas_zero_snr=True)
    for model in () if SOLVERS[solver].instead else (cases.noise_of("sd3-medium"), zero_snr):
        schedule = Schedule.from_t(model, [1.0, 0.8, 0.5, 0.3, 0.1])
        got, wanted = in_jax(schedule, start(), solver), sample(mixture, schedule, start(), solver).numpy()
        assert np.abs(got - wanted).max() < 1e-10 * np.abs(wanted).max()


@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3", "ddim"])
def test_a_schedule_is_sampled_by_the_solver_it_is_for(solver: str) -> None:
    schedule = zoo("sd15", 6, solver)
    assert torch.equal(sample(mixture, schedule, start()), sample(mixture, schedule, start(), solver))


def test_dtype_and_shape_follow_the_noise() -> None:
    schedule = random_schedule(cases.noise_of("sd15"), 5, "clean", 0)
    for dtype in (torch.float32, torch.bfloat16):
        noise = torch.randn(2, 3, 4, 4).to(dtype)
        got = sample(lambda x, level: torch.tanh(x), schedule, noise)
        assert got.dtype == dtype and got.shape == noise.shape


def test_refuses_an_unknown_solver() -> None:
    schedule = random_schedule(cases.noise_of("sd15"), 5, "clean", 0)
    with pytest.raises(ValueError, match="'rk4'; use one of ddim"):
        sample(mixture, schedule, start(), "rk4")
