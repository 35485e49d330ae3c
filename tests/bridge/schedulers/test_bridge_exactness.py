"""diffusers with an installed schedule, against the same solver written independently."""

from __future__ import annotations

from typing import Any

import cases
import diffusers
import numpy as np
import oracles.one_step as solvers
import pytest
import torch
from cases import SD
from diffusers.utils import is_torchsde_available
from mixture import Model, denoise, random_schedule, start
from oracles import multistep

from bridge import Level, with_schedule
from bridge.sampling import levels
from bridge.schedulers.rows import ROWS, distillation_grid
from hso_jax.schedule import Schedule

# Every start-up of the solvers, both sides of 15 (where diffusers' last steps change), each prediction several times.
BUDGETS = (1, 2, 3, 4, 6, 14, 15)


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_agrees_with_the_independent_solver(case: cases.Case, end: str) -> None:
    if end not in case.ends:
        schedule = random_schedule(cases.noise_of(case.model), 4, end, 0)
        with pytest.raises(ValueError, match="sigma 0"):
            cases.installed(case, case.predictions[0], schedule)
        return
    for nfe in BUDGETS:
        schedule = random_schedule(cases.noise_of(case.model), nfe, end, seed=nfe)
        prediction = case.predictions[nfe % len(case.predictions)]
        scheduler = cases.installed(case, prediction, schedule)
        got, model = cases.run(case, scheduler, prediction, start())
        wanted, calls = cases.reference(case, schedule, start())
        assert type(got) is torch.Tensor and got.dtype == torch.float64
        assert torch.isfinite(got).all()
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-10, (nfe, prediction)
        assert len(model.told) == calls
        told = [level.timestep for level in cases.evaluations(scheduler, schedule)]
        np.testing.assert_allclose(model.told, told, rtol=1e-7, atol=0)
        if scheduler._row.layout in ("plain", "table") and not scheduler.config.get("invert_sigmas"):
            assert model.told == np.float32(schedule.timesteps).tolist()


@pytest.mark.parametrize("case", cases.CORNERS)
def test_float32(case: cases.Case) -> None:
    for nfe, end in ((n, end) for n in (1, 5, 15) for end in case.ends):
        schedule = random_schedule(cases.noise_of(case.model), nfe, end, seed=3)
        prediction = case.predictions[nfe % len(case.predictions)]
        scheduler = cases.installed(case, prediction, schedule)
        got, _ = cases.run(case, scheduler, prediction, start(dtype=torch.float32))
        wanted, _ = cases.reference(case._replace(draws=torch.float32), schedule, start(dtype=torch.float32).double())
        assert got.dtype == torch.float32
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-5, (nfe, end, prediction)


@pytest.mark.skipif(not is_torchsde_available(), reason="DPMSolverSDE and CosineDPMSolverMultistep need torchsde")
def test_every_row_is_a_case() -> None:
    assert {case.scheduler for case in cases.CASES} | {"LCMScheduler", "TCDScheduler"} == set(ROWS)


NOISE = cases.noise_of("sd15")


def drawing(generator: torch.Generator) -> Any:
    return lambda: torch.randn(4, 2, generator=generator, dtype=torch.float64)


def x0(x: torch.Tensor, level: Level) -> torch.Tensor:
    return denoise(x, level.alpha, level.sigma)


@pytest.mark.parametrize("off", [0.0, -2e-8, 2e-8])  # what float32 makes of t = 0.201 is 199.99998 or 200.00002
def test_whole_timesteps_in_float32(off: float) -> None:
    whole = np.array([900, 800, 700, 600, 500, 400, 300, 200, 100, 50])
    exact, rounded = (levels(Schedule.from_t(NOISE, (whole + 1) / 1000 + by)) for by in (0.0, off))
    seen: list[float] = []

    def tau(t: torch.Tensor) -> int:
        seen.append(float(t))
        return int(200 <= t <= 800)

    scheduler = with_schedule(diffusers.SASolverScheduler(**SD), Schedule.from_t(NOISE, (whole + 1) / 1000 + off))
    scheduler.tau_func = tau
    scheduler.set_timesteps(10)
    x, generator = start(), torch.Generator().manual_seed(1)
    for t, level in zip(scheduler.timesteps, rounded[:-1], strict=True):
        x = scheduler.step(Model("epsilon")(x, t, level), t, x, generator=generator).prev_sample
    assert set(seen) <= set(whole.astype(float))
    grid = [level._replace(timestep=round(other.timestep, 3)) for level, other in zip(rounded, exact, strict=True)]
    wanted = multistep.sa_solver(x0, grid, start(), drawing(torch.Generator().manual_seed(1)))
    assert ((x - wanted).abs().max() / wanted.abs().max()).item() < 1e-10


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
def test_distilled_solvers_agree_with_the_independent_ones(prediction: str, indices: list[int]) -> None:
    # The levels are the float32 table's, so agreement with the schedule's float64 levels is to float32.
    schedule = on_grid(indices)
    generator = torch.Generator().manual_seed(1)
    draw = drawing(generator)
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
    with pytest.raises(ValueError, match="distillation grid"):
        with_schedule(scheduler, on_grid([999, 759, 490, 259]))  # one is off it
    with pytest.raises(ValueError, match="with_end"):
        with_schedule(scheduler, Schedule.from_t(NOISE, [1.0, 0.5, 0.1], layout="interval"))
    if name == "TCDScheduler":
        with pytest.raises(ValueError, match="level 0"):
            with_schedule(diffusers.TCDScheduler(**SD, original_inference_steps=1000), on_grid([999, 0]))


def test_grid_is_diffusers_own() -> None:
    scheduler = diffusers.LCMScheduler(**SD)
    scheduler.set_timesteps(50)
    assert distillation_grid(scheduler.config)[::-1].tolist() == scheduler.timesteps.tolist()
