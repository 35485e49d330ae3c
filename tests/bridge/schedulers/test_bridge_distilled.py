"""LCM and TCD: their distillation grid or nothing."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import oracles.one_step as solvers
import pytest
import torch
from cases import SD, noise_of
from mixture import Model, denoise, start

from bridge import Level, with_schedule
from bridge.sampling import levels
from bridge.schedulers.rows import distillation_grid
from hso_jax.schedule import Schedule

NOISE = noise_of("sd15")


def on_grid(indices: list[int]) -> Schedule:
    return Schedule.from_t(NOISE, (np.array(indices) + 1) / 1000)


def run(scheduler: Any, schedule: Schedule, prediction: str, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(schedule.nfe)
    assert scheduler.timesteps.tolist() == np.rint(schedule.timesteps).tolist()
    x = start()
    for t, level in zip(scheduler.timesteps, levels(schedule)[:-1], strict=True):
        x = scheduler.step(Model(prediction)(x, t, level), t, x, generator=generator, **options).prev_sample
    return x


def table_level(scheduler: Any, index: int) -> Level:
    alpha = float(scheduler.alphas_cumprod[index]) ** 0.5
    return Level(float(index), alpha, (1.0 - float(scheduler.alphas_cumprod[index])) ** 0.5, 0.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("indices", [[999], [999, 499], [979, 739, 459, 19], [999, 979, 959, 500 - 1, 39, 19]])
def test_on_the_grid_it_agrees_with_the_independent_solver(prediction: str, indices: list[int]) -> None:
    # The levels are the float32 table's, so agreement with the schedule's float64 levels is to float32.
    schedule = on_grid(indices)
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        return torch.randn(4, 2, generator=generator, dtype=torch.float64)

    def x0(x: torch.Tensor, level: Level) -> torch.Tensor:
        return denoise(x, level.alpha, level.sigma)

    lcm = with_schedule(diffusers.LCMScheduler(**SD, prediction_type=prediction), schedule)
    wanted = solvers.consistency(x0, levels(schedule), start(), draw)
    torch.testing.assert_close(run(lcm, schedule, prediction), wanted, rtol=1e-5, atol=1e-5)
    for eta in (0.0, 0.3):
        generator = generator.manual_seed(1)
        tcd = with_schedule(diffusers.TCDScheduler(**SD, prediction_type=prediction), schedule)
        middles = [table_level(tcd, int((1 - eta) * i)) for i in indices[1:]]
        wanted = solvers.trajectory_consistency(x0, levels(schedule), start(), draw, middles, eta)
        torch.testing.assert_close(run(tcd, schedule, prediction, eta=eta), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_refuses_what_it_cannot_honour(name: str) -> None:
    scheduler = getattr(diffusers, name)(**SD)
    with pytest.raises(ValueError, match=r"distillation grid.*nearest are \[959, 719, 379, 39\]"):
        with_schedule(scheduler, on_grid([957, 716, 370, 30]))
    with pytest.raises(ValueError, match="with_end"):
        with_schedule(scheduler, Schedule.from_t(NOISE, [1.0, 0.5, 0.1], layout="interval"))


def test_tcd_refuses_its_own_end() -> None:
    scheduler = diffusers.TCDScheduler(**SD, original_inference_steps=1000)
    with pytest.raises(ValueError, match="level 0"):
        with_schedule(scheduler, on_grid([999, 0]))


def test_grid_is_diffusers_own() -> None:
    scheduler = diffusers.LCMScheduler(**SD)
    scheduler.set_timesteps(50)
    assert distillation_grid(scheduler.config)[::-1].tolist() == scheduler.timesteps.tolist()
