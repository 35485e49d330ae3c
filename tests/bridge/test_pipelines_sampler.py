"""A pipeline's latents are those of the plain sampler, which shares no code with diffusers, around the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixture import random_schedule
from test_pipelines_schedule import family_of, use

from bridge import Level, noise_schedule_of, sample, with_schedule

VP = [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp-2m"), ("UniPCMultistepScheduler", "unipc-3")]
CASES = [
    *[("StableDiffusionPipeline", scheduler, solver) for scheduler, solver in VP],
    ("PixArtAlphaPipeline", *VP[0]),
    ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", "ddim"),
    ("WanPipeline", "UniPCMultistepScheduler", "unipc"),
]


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize(("cls", "scheduler", "solver"), CASES)
def test_the_pipeline_is_the_plain_sampler_around_its_network(cls: str, scheduler: str, solver: str, end: str) -> None:
    family = family_of(cls)
    pipe = family.build()
    use(pipe, family, scheduler)
    schedule = random_schedule(noise_schedule_of(pipe), 6, end, seed=7)
    if solver == "unipc-3":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=3)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    network = getattr(pipe, family.network)
    calls: list[tuple[Any, dict[str, Any]]] = []
    hook = network.register_forward_pre_hook(lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    call = {**family.call, "guidance_scale": 1.0, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    result = pipe(**call, num_inference_steps=6, generator=generator, return_dict=False)[0]
    hook.remove()
    assert len(calls) == 6
    args, kwargs = calls[0]
    first = args[0] if args else kwargs["hidden_states"]

    def denoiser(x: torch.Tensor, level: Level) -> torch.Tensor:
        told = torch.tensor(level.timestep, dtype=torch.float32)
        given = {**kwargs}
        if "timestep" in kwargs:
            given["timestep"] = told.expand(len(x))
        if "hidden_states" in kwargs:
            given["hidden_states"] = x
        output = network(*[x, told][: len(args)], **given)[0]
        output = output[:, : x.shape[1]]  # PixArt's other half is a variance
        if family.flow:
            return x - level.sigma * output
        return (x - level.sigma * output) / level.alpha

    with torch.no_grad():
        expected = sample(denoiser, schedule, first, solver)
    assert ((result - expected).abs().max() / expected.abs().max()).item() < 1e-4
