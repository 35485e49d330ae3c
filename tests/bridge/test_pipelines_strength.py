"""img2img and inpainting leave out the schedule's first steps; what they say of N and how the slices differ."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mixture import random_schedule
from pipelines import FAMILIES, Family
from test_pipelines_schedule import family_of, generate, told, use, wanted

from bridge import noise_schedule_of, with_schedule

WITH_STRENGTH = [family for family in FAMILIES if family.strength]
NFE = 8


def left_out(family: Family, strength: float) -> int:
    """Steps left out of N: Stable Diffusion rounds the steps it does, newer pipelines those it leaves out."""
    if family.flow:
        return int(NFE - NFE * strength)
    return NFE - int(NFE * strength)


def scheduled(family: Family, end: str, seed: int = 1) -> Any:
    pipe = family.build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, end, seed)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    return pipe


@pytest.mark.parametrize("family", WITH_STRENGTH, ids=lambda family: family.name)
@pytest.mark.parametrize("strength", [1.0, 0.8, 0.5, 0.3])
def test_strength_keeps_the_last_steps(family: Family, strength: float) -> None:
    for end in ("clean", "t_eps"):
        pipe = scheduled(family, end)
        output, seen = told(pipe, family, NFE, strength=strength)
        skip = left_out(family, strength)
        np.testing.assert_array_equal(seen, wanted(pipe.scheduler.schedule, family, skip))
        assert len(seen) == NFE - skip
        assert np.isfinite(output).all() and output.std() > 0.01
        np.testing.assert_array_equal(output, generate(pipe, family, NFE, strength=strength))
    plain = generate(family.build(), family, NFE, strength=strength)
    assert np.abs(output - plain).max() > 1e-4


def test_the_two_ways_to_round() -> None:
    """N = 8 at strength 0.3 asks for 2.4 steps: Stable Diffusion takes 2, Flux and Stable Diffusion 3 take 3."""
    taken = {family.name: NFE - left_out(family, 0.3) for family in WITH_STRENGTH}
    assert taken["StableDiffusionImg2Img"] == taken["StableDiffusionXLInpaint"] == 2
    assert taken["FluxImg2Img"] == taken["StableDiffusion3Img2Img"] == math.ceil(2.4)


@pytest.mark.parametrize("solver", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("cls", ["StableDiffusionImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_other_solvers_begin_in_the_middle(cls: str, solver: str) -> None:
    family = family_of(cls)
    pipe = family.build()
    use(pipe, family, solver)
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", 2)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = told(pipe, family, NFE, strength=0.5)
    np.testing.assert_array_equal(seen, wanted(schedule, family, NFE // 2))
    assert np.isfinite(output).all()


def test_a_strength_that_leaves_no_step_raises() -> None:
    family = family_of("StableDiffusionInpaintPipeline")
    with pytest.raises(ValueError, match="strength"):
        generate(scheduled(family, "clean"), family, NFE, strength=0.05)


def test_img2img_starts_at_the_schedules_level() -> None:
    """What the network sees first is the image, noised to the level of the first timestep that is kept."""
    family = family_of("StableDiffusionImg2ImgPipeline")
    pipe = scheduled(family, "clean")
    seen: list[torch.Tensor] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:1].clone()))
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    call = {**family.call, "image": image, "strength": 0.5, "num_inference_steps": NFE, "output_type": "np"}
    pipe(**call, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = pipe.scheduler.schedule
    alpha = 1.0 / math.sqrt(1.0 + schedule.sigmas[NFE // 2] ** 2)
    expected = alpha * image + alpha * schedule.sigmas[NFE // 2] * noise
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_base_and_refiner_share_a_schedule() -> None:
    """`denoising_end` and `denoising_start` split at a noise level; together they are one run."""
    base, refiner = family_of("StableDiffusionXLPipeline"), family_of("StableDiffusionXLImg2ImgPipeline")
    pipe = base.build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", 3)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    second = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
    second.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 5.0, "output_type": "latent"}
    latent, seen = told(pipe, base, NFE, denoising_end=0.6, **call)
    options = {"image": torch.from_numpy(latent), "denoising_start": 0.6, **call}
    output, rest = told(second, refiner, NFE, **options)
    np.testing.assert_array_equal(np.append(seen, rest), wanted(schedule, base))
    assert 0 < len(seen) < NFE
    whole = generate(pipe, base, NFE, **call)
    assert output.shape == whole.shape and np.isfinite(output).all()
