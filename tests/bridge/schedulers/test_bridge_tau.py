"""SASolver looks at the timestep itself (tau is 1 in [200, 800]): whole but for rounding must count as whole."""

from __future__ import annotations

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from mixture import denoise, start
from oracles import multistep

from bridge import Level, sampling, with_schedule
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")


@pytest.mark.parametrize("off", [0.0, -2e-8, 2e-8])  # what float32 makes of t = 0.201 is 199.99998 or 200.00002
def test_whole_timesteps_in_float32(off: float) -> None:
    whole = np.array([900, 800, 700, 600, 500, 400, 300, 200, 100, 50])
    exact = Schedule.from_t(NOISE, (whole + 1) / 1000)
    rounded = Schedule.from_t(NOISE, (whole + 1) / 1000 + off)
    seen: list[float] = []

    def tau(t: torch.Tensor) -> int:
        seen.append(float(t))
        return int(200 <= t <= 800)

    plain = diffusers.SASolverScheduler(**SD)
    scheduler = with_schedule(plain, rounded)
    scheduler.tau_func = tau
    scheduler.set_timesteps(10)
    x, generator = start(), torch.Generator().manual_seed(1)
    grid = sampling.levels(rounded)
    for t, level in zip(scheduler.timesteps, grid[:-1], strict=True):
        x = scheduler.step(cases.Model("epsilon")(x, t, level), t, x, generator=generator).prev_sample
    assert set(seen) <= set(whole.astype(float))
    generator = torch.Generator().manual_seed(1)

    def x0(y: torch.Tensor, level: Level) -> torch.Tensor:
        return denoise(y, level.alpha, level.sigma)

    told = sampling.levels(exact)
    grid = [level._replace(timestep=round(other.timestep, 3)) for level, other in zip(grid, told, strict=True)]
    wanted = multistep.sa_solver(
        x0, grid, start(), lambda: torch.randn(start().shape, generator=generator, dtype=torch.float64)
    )
    assert ((x - wanted).abs().max() / wanted.abs().max()).item() < 1e-10


def test_other_timesteps_are_told_as_they_are() -> None:
    schedule = Schedule.from_t(NOISE, [0.9012, 0.5003, 0.2005])
    scheduler = with_schedule(diffusers.SASolverScheduler(**SD), schedule)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == np.float32(schedule.timesteps).tolist()
