"""`strength`: pipelines slice `timesteps[t_start * order:]` and call `set_begin_index`; what is left must be exact."""

from __future__ import annotations

import functools
import math
from typing import Any

import cases
import diffusers
import oracles.one_step as solvers
import pytest
import torch
from cases import SD
from mixture import denoise, random_schedule, start
from oracles import multistep

from bridge import Level, with_schedule
from bridge.sampling import levels

NFE = 7


def sliced(case: cases.Case, scheduler: Any, prediction: str, skip: int, told: bool) -> torch.Tensor:
    """Noise clean data to the level at which sampling begins, then sample, as img2img pipelines do."""
    schedule = scheduler.schedule
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(NFE)
    begin = skip * getattr(scheduler, "order", 1)  # Wuerstchen's has none
    timesteps = cases.timesteps_of(scheduler)[begin:]
    if told and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    noising = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else None
    data, noise = start(seed=5), start(seed=6)
    first = timesteps[:1].repeat(len(data)) if case.scheduler != "FlowMatchHeunDiscreteScheduler" else timesteps[0]
    x = noising(data, first, noise) if noising else scheduler.add_noise(data, noise, first)
    options = dict(case.step)
    if "generator" in getattr(diffusers, case.scheduler).step.__code__.co_varnames:
        options["generator"] = generator
    expected = cases.evaluations(scheduler, schedule)[begin:]
    return cases.advance(case, scheduler, prediction, timesteps, expected, x, **options)[0]


def wanted(case: cases.Case, scheduler: Any, skip: int, **more: Any) -> torch.Tensor:
    """The independent solver on the levels that are left."""
    generator = torch.Generator().manual_seed(1)
    grid = levels(scheduler.schedule)[skip:]
    data, noise = start(seed=5), start(seed=6)
    x = grid[0].alpha * data + grid[0].sigma * noise

    def x0(y: torch.Tensor, level: Level) -> torch.Tensor:
        return denoise(y, level.alpha, level.sigma)

    def draw() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=case.draws or x.dtype)

    solver, options = case.reference, {}
    if isinstance(solver, functools.partial):
        solver, options = solver.func, dict(solver.keywords)
    if solver is multistep.dpm_singlestep:
        options["orders"] = scheduler.order_list[skip:]
    if solver is solvers.dpm_sde:
        options["highest"] = float(scheduler.schedule.sigmas[0])
    if solver is solvers.euler and "churn" in options:  # spread over the whole schedule
        options["churn"] = options["churn"] * (len(grid) - 1) / NFE
    return solver(x0, grid, x / grid[0].alpha if case.k else x, draw, **options, **more)


@pytest.mark.parametrize("skip", [2, 5, 6])
@pytest.mark.parametrize("case", [c for c in cases.CASES if c.scheduler != "PNDMScheduler"], ids=lambda case: case.name)
def test_sliced_schedule_is_exact(case: cases.Case, skip: int) -> None:
    end = case.ends[skip % len(case.ends)]
    prediction = case.predictions[skip % len(case.predictions)]
    schedule = random_schedule(cases.noise_of(case.model), NFE, end, seed=skip)
    # Adding noise before the first step uses the start index where the pipeline told it, else the timestep.
    for told in (True, False):
        scheduler = cases.installed(case, prediction, schedule)
        got, reference = sliced(case, scheduler, prediction, skip, told), wanted(case, scheduler, skip)
        assert ((got - reference).abs().max() / reference.abs().max()).item() < 1e-10


def test_pndm_begins_one_level_earlier_since_its_second_level_counts_twice() -> None:
    """A start between the two entries of the second level evaluates twice there, and uses the first."""
    schedule = random_schedule(cases.noise_of("sd15"), NFE, "clean", 0)
    case = next(c for c in cases.CASES if c.scheduler == "PNDMScheduler")
    for skip in (1, 2, 4, 6, 7):
        scheduler = with_schedule(diffusers.PNDMScheduler(**SD, skip_prk_steps=True), schedule)
        begin = max(skip - 1, 1)
        got, reference = sliced(case, scheduler, "epsilon", skip, True), wanted(case, scheduler, begin, twice=False)
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_noise_is_added_at_the_schedules_levels(case: cases.Case) -> None:
    """Inpainting adds noise at every level, for a batch, before and after steps."""
    schedule = random_schedule(cases.noise_of(case.model), NFE, case.ends[0], 2)
    scheduler = cases.installed(case, case.predictions[0], schedule)
    if case.scheduler == "FlowMatchHeunDiscreteScheduler":  # its scale_noise begins sampling; see above
        return
    scheduler.set_timesteps(NFE)
    data, noise = start(seed=5), start(seed=6)
    nodes = {float(t): level for t, level in zip(scheduler._levels.nodes, levels(schedule), strict=False)}
    for t in {float(t): t for t in scheduler.timesteps if float(t) in nodes}.values():
        level = nodes[float(t)]
        noisy = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
        got = noisy(data, noise, t.repeat(4)) if noisy.__name__ == "add_noise" else noisy(data, t.repeat(4), noise)
        scale = level.alpha if case.k else 1.0
        torch.testing.assert_close(got * scale, level.alpha * data + level.sigma * noise, rtol=1e-12, atol=1e-12)
    assert math.isfinite(float(got.sum()))
