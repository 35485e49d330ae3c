"""Seeds and eta go through a pipeline to a scheduled step exactly as to the plain one."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from more_pipelines import HUNYUAN, LCM
from pipelines import Family, family_of

from bridge import noise_schedule_of, with_schedule
from bridge.schedulers.rows import distillation_grid
from hso_jax.schedule import Schedule

NFE = 4
SD, XL = family_of("StableDiffusionPipeline"), family_of("StableDiffusionXLPipeline")
SOLVERS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, {}),
    "DDIM-eta": ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    # Stopping above training level 0 (steps_offset 1), the plain class draws noise once more, and adds hardly any.
    "DDPM": ("DDPMScheduler", {"clip_sample": False, "steps_offset": 0}, {}),
    "Euler-a": ("EulerAncestralDiscreteScheduler", {}, {}),
    "SA": ("SASolverScheduler", {}, {}),
    "DPM++SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
}
RUNS = [
    *((SD, solver) for solver in SOLVERS),
    (XL, "DDIM-eta"),
    (XL, "Euler-a"),
    (HUNYUAN, "DDIM-eta"),
    (HUNYUAN, "DDPM"),
]
RUNS.append((LCM, "LCM"))


def even(pipe: Any) -> Schedule:
    """Four levels; of the distillation grid for an LCM."""
    noise = noise_schedule_of(pipe)
    if isinstance(pipe.scheduler, diffusers.LCMScheduler):
        return Schedule.from_t(
            noise, [(t + 1) / 1000 for t in distillation_grid(pipe.scheduler.config)[[49, 30, 20, 9]]]
        )
    return Schedule.from_t(noise, np.linspace(0.95, 0.2, NFE))


def built(family: Family, solver: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline with this scheduler, and what its call takes beside the family's."""
    pipe = family.build()
    if solver not in SOLVERS:
        return pipe, {}
    name, config, call = SOLVERS[solver]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    return pipe, call


def sampled(pipe: Any, family: Family, call: dict[str, Any], seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """The picture, and the generator's state after it, whatever the global generator's was."""
    torch.seed()
    generator = torch.Generator().manual_seed(seed)
    result = pipe(**family.call, **call, num_inference_steps=NFE, generator=generator, output_type="np").images
    return np.asarray(result), generator.get_state()


@pytest.mark.parametrize(("family", "solver"), RUNS, ids=lambda x: getattr(x, "name", x))
def test_seeds_are_honoured_as_by_the_plain_scheduler(family: Family, solver: str) -> None:
    pipe, call = built(family, solver)
    plain = pipe.scheduler
    _, plain_state = sampled(pipe, family, call, 0)
    passed = set(pipe.prepare_extra_step_kwargs(torch.Generator(), 1.0))
    pipe.scheduler = with_schedule(plain, even(pipe))
    assert set(pipe.prepare_extra_step_kwargs(torch.Generator(), 1.0)) == passed
    picture, state = sampled(pipe, family, call, 0)
    again, _ = sampled(pipe, family, call, 0)
    other, _ = sampled(pipe, family, call, 1)
    np.testing.assert_array_equal(picture, again)
    assert np.isfinite(picture).all() and not np.array_equal(picture, other)
    assert torch.equal(state, plain_state), "the scheduled step draws another number of random numbers"


@pytest.mark.parametrize("family", [SD, XL, HUNYUAN], ids=lambda family: family.name)
def test_eta_has_an_effect(family: Family) -> None:
    pipe, _ = built(family, "DDIM")
    pipe.scheduler = with_schedule(pipe.scheduler, even(pipe))
    pictures = [sampled(pipe, family, {"eta": eta}, 0)[0] for eta in (0.0, 1.0, 0.5)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[a] - pictures[b]).max() > 1e-3
