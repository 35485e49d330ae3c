"""Every family of pipelines, through its public call: the network is told the schedule's timesteps and no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW
from mixture import random_schedule
from pipelines import FAMILIES, HUNYUAN, LCM, Family, family_of

from bridge import Level, noise_schedule_of, sample, schedule_of, with_schedule
from bridge.schedulers.rows import distillation_grid
from hso_jax.schedule import Schedule

NFE = 5
_VP = ("DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
# Every solver in text-to-image; `strength` has its own tests, and here the family's usual solver.
WITH_SOLVERS = [
    pytest.param(family, solver, ("clean", "t_eps")[i % 2], id=f"{family.name}-{solver}")
    for family in FAMILIES
    for i, solver in enumerate((_FLOW if family.flow else _VP)[: 1 if family.strength else None])
]


def use(pipe: Any, family: Family, solver: str) -> None:
    """Change the pipeline's solver as a user would."""
    cls, config = getattr(diffusers, solver), dict(pipe.scheduler.config)
    if isinstance(pipe.scheduler, cls):
        return
    if family.flow:
        shift = config["flow_shift"] if "flow_shift" in config else config["shift"]
        dynamic = config.get("use_dynamic_shifting", False)  # insisted on where a pipeline passes mu
        flow = {**FLOW, "flow_shift": shift, "use_dynamic_shifting": dynamic}
        config = {"shift": shift} if solver.startswith("FlowMatch") else flow
    else:
        config["clip_sample"] = False  # DDIM's own default, which other classes' configs do not mention
    pipe.scheduler = cls.from_config(config)


def told(pipe: Any, family: Family, steps: int, **call: Any) -> tuple[np.ndarray, np.ndarray]:
    """The output, and what the network was told in each step."""
    seen: list[float] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        assert len(set(given.flatten().tolist())) == 1
        seen.append(float(given.flatten()[0]))

    handle = getattr(pipe, family.network).register_forward_pre_hook(hook, with_kwargs=True)
    output = generate(pipe, family, steps, **call)
    handle.remove()
    assert seen == [t for t in seen[:: family.calls] for _ in range(family.calls)]
    return output, np.asarray(seen[:: family.calls])


def generate(pipe: Any, family: Family, steps: int, seed: int = 0, **call: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    call = {**family.call, "generator": generator, "output_type": "np", **call}
    result = pipe(num_inference_steps=steps, **call)
    return np.asarray(result.frames if hasattr(result, "frames") else result.images)


def wanted(schedule: Schedule, family: Family, skip: int = 0) -> np.ndarray:
    """The schedule's timesteps in float32, in the network's unit."""
    return (torch.tensor(schedule.timesteps[skip:], dtype=torch.float32) / family.told).to(torch.float64).numpy()


@pytest.mark.parametrize(("family", "solver", "end"), WITH_SOLVERS)
def test_the_network_is_told_the_schedules_timesteps(family: Family, solver: str, end: str) -> None:
    pipe = family.shared()
    use(pipe, family, solver)
    assert type(pipe.scheduler) is getattr(diffusers, solver)
    call = {"strength": 1.0} if family.strength else {}
    default = generate(pipe, family, NFE, **call)
    schedule = random_schedule(noise_schedule_of(pipe), NFE, end, seed=1)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = told(pipe, family, schedule.nfe, **call)
    np.testing.assert_array_equal(seen, wanted(schedule, family))
    assert np.isfinite(output).all() and output.std() > 0.01
    np.testing.assert_array_equal(output, generate(pipe, family, schedule.nfe, **call))
    assert not np.array_equal(output, generate(pipe, family, schedule.nfe, seed=1, **call))
    assert np.abs(output - default).max() > 1e-3


@pytest.mark.parametrize(
    "cls", ["StableDiffusionPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxPipeline", "WanPipeline"]
)
def test_a_saved_pipeline_keeps_the_schedule(cls: str, tmp_path: Path) -> None:
    family = family_of(cls)
    pipe = family.shared()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "t_eps", seed=2)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output = generate(pipe, family, NFE)
    pipe.save_pretrained(tmp_path)
    for door in (diffusers.DiffusionPipeline, getattr(diffusers, cls)):
        loaded = door.from_pretrained(tmp_path, local_files_only=True)
        loaded.set_progress_bar_config(disable=True)
        assert schedule_of(loaded).timesteps.tolist() == schedule.timesteps.tolist()
        again, seen = told(loaded, family, NFE)
        np.testing.assert_array_equal(seen, wanted(schedule, family, NFE - len(seen)))
        np.testing.assert_allclose(again, output, atol=1e-4)  # loaded weights are aligned otherwise in memory
    with pytest.raises(ValueError, match=f"{NFE} evaluations"):
        generate(loaded, family, NFE + 2)


@pytest.mark.parametrize("cls", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_arguments_that_pipelines_pass_on(cls: str) -> None:
    """The schedule's own values, given again, change nothing; other timesteps are an error."""
    family = family_of(cls)
    pipe = family.shared()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", seed=3)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output = generate(pipe, family, NFE)
    sigmas = schedule.sampler_sigmas().tolist()
    np.testing.assert_array_equal(generate(pipe, family, NFE, sigmas=sigmas[:-1]), output)
    if not family.flow:
        np.testing.assert_array_equal(generate(pipe, family, NFE, timesteps=schedule.timesteps.tolist()), output)
        with pytest.raises(ValueError, match="differ from those of the installed schedule"):
            generate(pipe, family, NFE, timesteps=[999, 700, 500, 300, 100])


def test_bfloat16_rounds_only_what_the_network_is_told() -> None:
    family = family_of("FluxPipeline")
    pipe = family.build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", seed=4)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    pipe.to(torch.bfloat16)
    output, seen = told(pipe, family, NFE)
    assert np.isfinite(output).all()
    np.testing.assert_allclose(seen, wanted(schedule, family), rtol=2**-7)
    assert not np.array_equal(seen, wanted(schedule, family))
    np.testing.assert_array_equal(pipe.scheduler.timesteps, schedule.timesteps.astype(np.float32))


SEEDED = 4
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
RUNS = [*((SD, solver) for solver in SOLVERS), (XL, "DDIM-eta"), (XL, "Euler-a"), (HUNYUAN, "DDPM"), (LCM, "LCM")]


def even(pipe: Any) -> Schedule:
    """Four levels; of the distillation grid for an LCM."""
    noise = noise_schedule_of(pipe)
    grid = np.linspace(0.95, 0.2, SEEDED)
    if isinstance(pipe.scheduler, diffusers.LCMScheduler):
        grid = (distillation_grid(pipe.scheduler.config)[[49, 30, 20, 9]] + 1) / 1000
    return Schedule.from_t(noise, grid)


def built(family: Family, solver: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline with this scheduler, and what its call takes beside the family's."""
    pipe = family.shared()
    if solver not in SOLVERS:
        return pipe, {}
    name, config, call = SOLVERS[solver]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    return pipe, call


def sampled(pipe: Any, family: Family, call: dict[str, Any], seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """The picture, and the generator's state after it, whatever the global generator's was."""
    torch.seed()
    generator = torch.Generator().manual_seed(seed)
    result = pipe(**family.call, **call, num_inference_steps=SEEDED, generator=generator, output_type="np").images
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


WITH_STRENGTH = [family for family in FAMILIES if family.strength]
LONG = 8


def left_out(family: Family, strength: float) -> int:
    """Steps left out of N: Stable Diffusion rounds the steps it does, newer pipelines those it leaves out."""
    return int(LONG - LONG * strength) if family.flow else LONG - int(LONG * strength)


def scheduled(family: Family, end: str, seed: int = 1) -> Any:
    pipe = family.shared()
    schedule = random_schedule(noise_schedule_of(pipe), LONG, end, seed)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    return pipe


@pytest.mark.parametrize("family", WITH_STRENGTH, ids=lambda family: family.name)
def test_strength_keeps_the_last_steps(family: Family) -> None:
    for end, strength in (("clean", 0.8), ("t_eps", 0.3)):
        pipe = scheduled(family, end)
        output, seen = told(pipe, family, LONG, strength=strength)
        skip = left_out(family, strength)
        np.testing.assert_array_equal(seen, wanted(pipe.scheduler.schedule, family, skip))
        assert len(seen) == LONG - skip
        assert np.isfinite(output).all() and output.std() > 0.01
        np.testing.assert_array_equal(output, generate(pipe, family, LONG, strength=strength))


@pytest.mark.parametrize(
    ("cls", "solver"),
    [
        ("StableDiffusionImg2ImgPipeline", "DPMSolverMultistepScheduler"),
        ("StableDiffusionXLInpaintPipeline", "UniPCMultistepScheduler"),
    ],
)
def test_other_solvers_begin_in_the_middle(cls: str, solver: str) -> None:
    family = family_of(cls)
    pipe = family.shared()
    use(pipe, family, solver)
    schedule = random_schedule(noise_schedule_of(pipe), LONG, "clean", 2)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = told(pipe, family, LONG, strength=0.5)
    np.testing.assert_array_equal(seen, wanted(schedule, family, LONG // 2))
    assert np.isfinite(output).all()


def test_a_strength_that_leaves_no_step_raises() -> None:
    family = family_of("StableDiffusionInpaintPipeline")
    with pytest.raises(ValueError, match="strength"):
        generate(scheduled(family, "clean"), family, LONG, strength=0.05)


def test_img2img_starts_at_the_schedules_level() -> None:
    """What the network sees first is the image, noised to the level of the first timestep that is kept."""
    family = family_of("StableDiffusionImg2ImgPipeline")
    pipe = scheduled(family, "clean")
    seen: list[torch.Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:1].clone()))
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    call = {**family.call, "image": image, "strength": 0.5, "num_inference_steps": LONG, "output_type": "np"}
    pipe(**call, generator=torch.Generator().manual_seed(0))
    hook.remove()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = pipe.scheduler.schedule
    alpha = 1.0 / math.sqrt(1.0 + schedule.sigmas[LONG // 2] ** 2)
    expected = alpha * image + alpha * schedule.sigmas[LONG // 2] * noise
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_base_and_refiner_share_a_schedule() -> None:
    """`denoising_end` and `denoising_start` split at a noise level; together they are one run."""
    base, refiner = family_of("StableDiffusionXLPipeline"), family_of("StableDiffusionXLImg2ImgPipeline")
    pipe = base.build()
    schedule = random_schedule(noise_schedule_of(pipe), LONG, "clean", 3)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    second = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
    second.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 5.0, "output_type": "latent"}
    latent, seen = told(pipe, base, LONG, denoising_end=0.6, **call)
    options = {"image": torch.from_numpy(latent), "denoising_start": 0.6, **call}
    output, rest = told(second, refiner, LONG, **options)
    np.testing.assert_array_equal(np.append(seen, rest), wanted(schedule, base))
    assert 0 < len(seen) < LONG
    whole = generate(pipe, base, LONG, **call)
    assert output.shape == whole.shape and np.isfinite(output).all()


VP = [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp-2m"), ("UniPCMultistepScheduler", "unipc-3")]
SAMPLED = [
    *[("StableDiffusionPipeline", scheduler, solver) for scheduler, solver in VP],
    ("PixArtAlphaPipeline", *VP[0]),
    ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", "ddim"),
    ("WanPipeline", "UniPCMultistepScheduler", "unipc"),
]


@pytest.mark.parametrize(("cls", "scheduler", "solver"), SAMPLED)
def test_the_pipeline_is_the_plain_sampler(cls: str, scheduler: str, solver: str) -> None:
    family, end = family_of(cls), "clean" if solver.startswith("unipc") else "t_eps"
    pipe = family.shared()
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
        return x - level.sigma * output if family.flow else (x - level.sigma * output) / level.alpha

    with torch.no_grad():
        expected = sample(denoiser, schedule, first, solver)
    assert ((result - expected).abs().max() / expected.abs().max()).item() < 1e-4
