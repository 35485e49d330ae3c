"""A pipeline run on jobs makes what calls by hand make, is left as it is, and says what it does not take."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import noise_of
from mixture import denoise, random_schedule, start
from test_pipelines_schedule import family_of, use

from bridge import Level, install, noise_schedule_of, sample, schedule_of, with_schedule
from bridge.pipeline import PipelineJobs, several
from bridge.sampling import converged
from hso_jax import Schedule, baseline

SMALL: dict[str, Any] = {"height": 16, "width": 16}
JOBS = [(prompt, seed) for prompt in ("a small fox", "a hill", "rain") for seed in (3, 8)]


@pytest.mark.parametrize("model", ["sd15", "sd3-medium", "edm-cifar10"])
def test_converged_is_converged_and_spans_the_model(model: str) -> None:
    noise, x = noise_of(model), start(32)

    def draw(schedule: Schedule) -> torch.Tensor:
        return sample(denoiser, schedule, x, "dpmpp-2m")

    def denoiser(x: torch.Tensor, level: Level) -> torch.Tensor:
        return denoise(x, level.alpha, level.sigma)

    schedule = converged(noise, 100)
    assert schedule.t[0] == 1.0 and schedule.t[-1] == pytest.approx(float(noise.t_min)) and schedule.nfe == 100
    x = x * math.sqrt(1 + schedule.sigmas[0] ** 2) if noise.kind == "ve" else x
    coarse, fine, few = draw(schedule), draw(converged(noise, 800)), draw(baseline("karras", noise, 4))
    assert (coarse - fine).square().mean().sqrt() < 0.05 * (few - fine).square().mean().sqrt()


@functools.cache
def pipeline(cls: str = "StableDiffusionPipeline", scheduler: str = "DPMSolverMultistepScheduler") -> Any:
    family = family_of(cls)
    pipe = family.build()
    use(pipe, family, scheduler)
    return pipe


def seen_by(network: Any, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What `run` returns, and the batch of each call of the network."""
    batches: list[int] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        batches.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        return run(), batches
    finally:
        handle.remove()


def drawn(jobs: PipelineJobs, schedule: Schedule, batch: int) -> torch.Tensor:
    pipe, count = jobs.copied(), len(jobs._jobs)
    install(pipe, schedule)
    with torch.no_grad():
        parts = [jobs.sample(pipe, schedule.nfe, range(count)[i : i + batch]) for i in range(0, count, batch)]
    return torch.cat(parts)


def test_jobs_are_sampled_as_by_hand_and_the_pipeline_is_left_as_it_is() -> None:
    pipe = pipeline()
    before = {name: id(value) for name, value in vars(pipe).items()}
    config = dict(pipe.scheduler.config), set(vars(pipe.scheduler))
    call: dict[str, Any] = {**SMALL, "negative_prompt": "grey"}
    jobs, schedule = PipelineJobs(pipe, JOBS, 5.0, call), random_schedule(noise_schedule_of(pipe), 4, "clean", 0)
    found, batches = seen_by(pipe.unet, lambda: drawn(jobs, schedule, 4))
    # Six samples in calls of four and two, each with and without its prompt.
    assert batches == [8] * 4 + [4] * 4 and jobs.call["guidance_scale"] == jobs.guidance == 5.0
    assert {name: id(value) for name, value in vars(pipe).items()} == before
    assert (dict(pipe.scheduler.config), set(vars(pipe.scheduler))) == config and schedule_of(pipe) is None

    by_hand = family_of("StableDiffusionPipeline").build()
    for row, (prompt, seed) in enumerate(JOBS):
        by_hand.scheduler = with_schedule(pipe.scheduler, schedule)
        options = {**call, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
        wanted = by_hand(prompt, num_inference_steps=4, guidance_scale=5.0, **options).images
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=1e-4, atol=1e-4)


def test_one_embedding_serves_all_jobs_in_place_of_their_prompts() -> None:
    pipe, schedule = pipeline(), random_schedule(noise_schedule_of(pipeline()), 2, "clean", 0)
    embeds, _ = pipe.encode_prompt("a small fox", "cpu", 1, False)
    jobs = [("a small fox", 3), ("a small fox", 8)]
    named, embedded = (
        PipelineJobs(pipe, jobs, 1.0, SMALL),
        PipelineJobs(pipe, jobs, 1.0, {**SMALL, "prompt_embeds": embeds}),
    )
    torch.testing.assert_close(drawn(embedded, schedule, 2), drawn(named, schedule, 2), rtol=1e-4, atol=1e-4)


def test_classes_are_jobs_too() -> None:
    pipe = family_of("DiTPipeline").build()
    jobs = PipelineJobs(pipe, [(3, 0), (5, 0)], 1.0, {})
    schedule = random_schedule(noise_schedule_of(pipe), 2, "clean", 0)
    assert jobs.given == "class_labels" and len(drawn(jobs, schedule, 1)) == 2


BAD_CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "steps": ("StableDiffusionPipeline", {"num_inference_steps": 4}, "num_inference_steps: set by the schedule"),
    "unknown": ("StableDiffusionPipeline", {"guidance": 4}, "StableDiffusionPipeline does not take guidance; it takes"),
    "img2img": ("StableDiffusionImg2ImgPipeline", {}, "starts from an image and skips nodes"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_named_before_sampling(case: str) -> None:
    cls, call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        PipelineJobs(family_of(cls).build(), JOBS, None, call)


@pytest.mark.parametrize("values", [[], "fox"])
def test_several_values_are_a_list_with_one_at_least(values: Any) -> None:
    with pytest.raises(ValueError, match=r"prompts is .*; need a list"):
        several(values, "prompts")


def test_a_pipeline_that_returns_no_tensor_is_named() -> None:
    jobs = PipelineJobs(pipeline(), JOBS[:1], 1.0, {**SMALL, "output_type": "pil"})
    with pytest.raises(ValueError, match="returned a list; use output_type='pt'"):
        drawn(jobs, random_schedule(noise_schedule_of(pipeline()), 1, "clean", 0), 1)
