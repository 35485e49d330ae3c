"""The sampling fitness: its number against the exact solution, its calls against the network's; the pipeline after."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import SD, noise_of
from mixture import denoise, exact, random_schedule, start
from test_pipelines_schedule import family_of, use

from bridge import Level, SamplingFitness, noise_schedule_of, optimize_pipeline, sample, schedule_of, with_schedule
from bridge.fitness import converged, rmse
from hso_jax import Measured, Schedule, baseline, search

TEACHER = 12  # steps, where only the bookkeeping is looked at
SEEDS = (3, 8)


class Counted:
    """A sampler of the analytic mixture, and how many samples its denoiser was given."""

    def __init__(self, solver: str = "dpmpp-2m", batch: int = 32) -> None:
        self.solver, self.noise, self.calls = solver, start(batch), 0

    def __call__(self, schedule: Schedule) -> torch.Tensor:
        return sample(self.denoiser, schedule, self.noise, self.solver)

    def denoiser(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        self.calls += len(x)
        return denoise(x, level.alpha, level.sigma)


@pytest.mark.parametrize("model", ["sd15", "sd3-medium", "edm-cifar10"])
def test_converged_is_converged_and_spans_the_model(model: str) -> None:
    noise, draw = noise_of(model), Counted()
    schedule = converged(noise, 100)
    assert schedule.t[0] == 1.0 and schedule.t[-1] == pytest.approx(float(noise.t_min)) and schedule.nfe == 100
    draw.noise = draw.noise * math.sqrt(1 + schedule.sigmas[0] ** 2) if noise.kind == "ve" else draw.noise
    coarse, fine = draw(schedule), draw(converged(noise, 800))
    few = draw(baseline("karras", noise, 4))
    assert rmse(coarse, fine) < 0.05 * rmse(few, fine)


def test_the_number_is_the_distance_to_the_exact_solution() -> None:
    """The ODE from the first level to the smallest, by SciPy; the teacher itself is a hundredth of that away."""
    noise, draw = noise_of("sd15"), Counted("unipc")
    fitness = SamplingFitness(draw, noise)
    ends = Schedule.from_t(noise, [1.0, float(noise.t_min)], layout="interval")
    truth = exact(draw.noise, ends)
    scale = float(np.sqrt(1.0 / (1.0 + ends.sigmas[-1] ** 2)))  # alpha there: the solution is not quite clean
    for seed in range(3):
        schedule = random_schedule(noise, 5, "clean", seed)
        off = (draw(schedule) - truth / scale).square().mean().sqrt().item()
        assert fitness(schedule) == pytest.approx(off, rel=0.03)
        assert fitness(schedule) == fitness(schedule)


def test_calls_are_those_of_the_network_and_the_budget_s() -> None:
    draw = Counted(batch=16)
    fitness = SamplingFitness(draw, noise_of("sd15"), teacher_nfe=50)
    assert draw.calls == fitness.teacher_calls == 16 * 50
    draw.calls = 0
    fitness(baseline("trailing", fitness.noise, 6))
    assert draw.calls == fitness.calls(6) == 16 * 6
    draw.calls = 0
    budget = 12 * fitness.calls(4) + 1
    found = search(fitness.noise, 4, method=Measured(fitness, budget, [baseline("trailing", fitness.noise, 4)]))
    assert draw.calls == 12 * 4 * 16
    assert found.fitness == fitness(found) < fitness(baseline("trailing", fitness.noise, 4))
    twice = SamplingFitness(draw, fitness.noise, teacher_nfe=2, evaluations=lambda nfe: 2 * nfe)
    assert twice.calls(5) == 160 and twice.teacher_calls == 64


def test_a_metric_of_the_caller_s() -> None:
    draw = Counted()
    worst = SamplingFitness(draw, noise_of("sd15"), metric=lambda a, b: (a - b).abs().max())
    schedule = baseline("karras", worst.noise, 4)
    assert worst(schedule) == (draw(schedule) - worst.teacher).abs().max().item()
    assert worst.settings["metric"].endswith("<lambda>") and worst.settings["teacher_nfe"] == 100


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


def test_a_pipeline_is_judged_by_its_latents_and_left_as_it_is() -> None:
    pipe = pipeline()
    before = {name: id(value) for name, value in vars(pipe).items()}
    config = dict(pipe.scheduler.config), set(vars(pipe.scheduler))
    call: dict[str, Any] = {"guidance_scale": 5.0, "height": 16, "width": 16, "negative_prompt": "grey"}
    prompts = ["a small fox", "a hill", "rain"]
    build = functools.partial(SamplingFitness.of_pipeline, pipe, prompts, seeds=SEEDS, batch=4, teacher_nfe=TEACHER)
    fitness, batches = seen_by(pipe.unet, lambda: build(**call))
    # Six samples in calls of four and two, each with and without its prompt.
    assert batches == [8] * TEACHER + [4] * TEACHER and fitness.teacher_calls == 6 * TEACHER
    schedule = random_schedule(fitness.noise, 4, "clean", 0)
    value, batches = seen_by(pipe.unet, lambda: fitness(schedule))
    assert batches == [8] * 4 + [4] * 4 and fitness.calls(4) == 6 * 4
    assert {name: id(value) for name, value in vars(pipe).items()} == before
    assert (dict(pipe.scheduler.config), set(vars(pipe.scheduler))) == config and schedule_of(pipe) is None

    by_hand = family_of("StableDiffusionPipeline").build()

    def latents(schedule: Schedule) -> torch.Tensor:
        rows = []
        for prompt in prompts:
            for seed in SEEDS:
                by_hand.scheduler = with_schedule(pipe.scheduler, schedule)
                options = {**call, "generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
                rows.append(by_hand(prompt, num_inference_steps=schedule.nfe, **options).images)
        return torch.cat(rows)

    expected = rmse(latents(schedule), latents(converged(fitness.noise, TEACHER)))
    assert value == pytest.approx(expected, rel=1e-4) and value > 0


def test_one_call_tunes_a_pipeline() -> None:
    pipe = family_of("StableDiffusion3Pipeline").build()
    small = {"height": 16, "width": 16, "max_sequence_length": 16, "guidance_scale": 1.0}
    fitness = SamplingFitness.of_pipeline(pipe, ["a small fox"], seeds=[0], teacher_nfe=TEACHER, **small)
    schedule, batches = seen_by(
        pipe.transformer, lambda: optimize_pipeline(pipe, 2, method=Measured(fitness, 9 * fitness.calls(2)))
    )
    assert len(batches) == 9 * 2 and schedule.t[0] == 1.0
    assert schedule_of(pipe).timesteps.tolist() == schedule.timesteps.tolist()
    assert fitness(schedule) == schedule.fitness  # the pipeline that it judges by is the one it was given


def test_a_checkpoint_knows_the_pipeline_s_call(tmp_path: Any) -> None:
    def tune(**changes: Any) -> Schedule:
        options = {"guidance_scale": 1.0, "height": 16, "width": 16, "seeds": [0], "teacher_nfe": 2, **changes}
        fitness = SamplingFitness.of_pipeline(pipeline(), ["a small fox"], **options)
        return search(fitness.noise, 1, method=Measured(fitness, 8, checkpoint=tmp_path / "c.json"))

    first = tune()
    assert tune().t.tolist() == first.t.tolist()
    for changes, told in (
        ({"guidance_scale": 3.0}, r"fitness\.guidance_scale was 1\.0, is 3\.0"),
        ({"seeds": [1]}, r"fitness\.seeds was \[0\], is \[1\]"),
        ({"teacher_nfe": 3}, r"fitness\.teacher_nfe was 2, is 3"),
    ):
        with pytest.raises(ValueError, match=told):
            tune(**changes)


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        ("DDIMScheduler", 5),
        ("HeunDiscreteScheduler", 10),
        ("KDPM2DiscreteScheduler", 10),
        ("KDPM2AncestralDiscreteScheduler", 10),
        ("DPMSolverSDEScheduler", 10),
        ("PNDMScheduler", 6),
    ],
)
def test_solvers_that_evaluate_more_than_once_a_step(scheduler: str, calls: int) -> None:
    pipe = family_of("StableDiffusionPipeline").build()
    pipe.scheduler = getattr(diffusers, scheduler)(**SD, **({"skip_prk_steps": True} if calls == 6 else {}))
    small = {"height": 16, "width": 16, "guidance_scale": 1.0}
    fitness = SamplingFitness.of_pipeline(pipe, ["a small fox"], seeds=[0], teacher_nfe=2, **small)
    assert fitness.calls(5) == calls
    for end in ("clean", "t_eps"):
        schedule = random_schedule(noise_schedule_of(pipe), 5, end, 1)
        _, batches = seen_by(pipe.unet, functools.partial(fitness, schedule))
        assert len(batches) == calls - (calls == 10 and end == "clean")


def test_a_pipeline_without_latents_is_judged_by_its_images() -> None:
    pipe = family_of("DiTPipeline").build()
    options = {"seeds": [0], "teacher_nfe": 2, "guidance_scale": 1.0}
    fitness = SamplingFitness.of_pipeline(pipe, [3, 5], batch=1, **options)
    assert len(fitness.teacher) == 2 and fitness.calls(3) == 6
    assert fitness(converged(fitness.noise, 2)) == 0.0


BAD_CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompts": ("StableDiffusionPipeline", {"prompts": []}, r"prompts is \[\]; need a list"),
    "a text": ("StableDiffusionPipeline", {"prompts": "fox"}, "prompts is 'fox'; need a list"),
    "no seeds": ("StableDiffusionPipeline", {"seeds": []}, r"seeds is \[\]"),
    "batch": ("StableDiffusionPipeline", {"batch": 0}, "batch is 0"),
    "teacher": ("StableDiffusionPipeline", {"teacher_nfe": 1}, "teacher_nfe is 1; need a whole number of at least 2"),
    "steps": ("StableDiffusionPipeline", {"num_inference_steps": 4}, "num_inference_steps: set by the schedule"),
    "unknown": ("StableDiffusionPipeline", {"guidance": 4}, "StableDiffusionPipeline does not take guidance; it takes"),
    "img2img": ("StableDiffusionImg2ImgPipeline", {}, "starts from an image and skips nodes"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_named_before_sampling(case: str) -> None:
    cls, options, message = BAD_CALLS[case]
    pipe = family_of(cls).build()
    network = getattr(pipe, family_of(cls).network)
    network.register_forward_pre_hook(lambda *_: pytest.fail("sampled first"))
    with pytest.raises(ValueError, match=message):
        SamplingFitness.of_pipeline(pipe, **{"prompts": ["a small fox"], **options})


def test_bad_samplers_are_named() -> None:
    noise = noise_of("sd15")
    with pytest.raises(ValueError, match="draw returned a list; need a tensor"):
        SamplingFitness(lambda s: [1.0], noise)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"converged samples \(100 steps\) are not finite"):
        SamplingFitness(lambda s: torch.full((2, 2), math.nan), noise)
    changing = SamplingFitness(lambda s: torch.zeros(s.nfe), noise)
    with pytest.raises(ValueError, match=r"draw returned \(4,\) now, \(100,\) before"):
        changing(baseline("trailing", noise, 4))
