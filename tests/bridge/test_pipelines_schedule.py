"""Every family of pipelines, through its public call: the network is told the schedule's timesteps and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mixture import random_schedule
from pipelines import FAMILIES, Family, family_of

from bridge import noise_schedule_of, schedule_of, with_schedule
from hso_jax.schedule import Schedule

NFE = 5
_VP = ("DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
# Every solver in text-to-image; `strength` has its own tests, and here the family's usual solver.
WITH_SOLVERS = [
    (family, solver)
    for family in FAMILIES
    for solver in (_FLOW if family.flow else _VP)[: 1 if family.strength else None]
]


def use(pipe: Any, family: Family, solver: str) -> None:
    """Change the pipeline's solver as a user would."""
    cls, config = getattr(diffusers, solver), dict(pipe.scheduler.config)
    if isinstance(pipe.scheduler, cls):
        return
    if family.flow:
        shift = config["flow_shift"] if "flow_shift" in config else config["shift"]
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        flow["use_dynamic_shifting"] = config.get(
            "use_dynamic_shifting", False
        )  # insisted on where a pipeline passes mu
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


@pytest.mark.parametrize(("family", "solver"), WITH_SOLVERS, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("end", ["clean", "t_eps"])
def test_the_network_is_told_the_schedules_timesteps(family: Family, solver: str, end: str) -> None:
    pipe = family.build()
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


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_another_number_of_steps_raises(family: Family) -> None:
    pipe = family.build()
    pipe.scheduler = with_schedule(pipe.scheduler, random_schedule(noise_schedule_of(pipe), NFE, "clean", seed=1))
    for steps in (NFE - 1, NFE + 1, NFE + 2, 50):
        with pytest.raises(ValueError, match=f"num_inference_steps is {steps}.* has {NFE} evaluations"):
            generate(pipe, family, steps)
    with pytest.raises(ValueError, match=f"{NFE} evaluations"):  # the pipeline's own default
        pipe(**family.call)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_saved_pipeline_keeps_the_schedule(family: Family, tmp_path: Path) -> None:
    pipe = family.build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "t_eps", seed=2)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output = generate(pipe, family, NFE)
    pipe.save_pretrained(tmp_path)
    for cls in (diffusers.DiffusionPipeline, getattr(diffusers, family.cls)):
        loaded = cls.from_pretrained(tmp_path, local_files_only=True)
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
    pipe = family.build()
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


def test_pndm_evaluates_its_second_level_twice() -> None:
    """The scheduler that Stable Diffusion 1.5 comes with spends N + 1 evaluations on N steps."""
    family = family_of("StableDiffusionPipeline")
    pipe = family.build()
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", seed=5)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = told(pipe, family, NFE)
    np.testing.assert_array_equal(seen, np.insert(wanted(schedule, family), 1, wanted(schedule, family)[1]))
    assert np.isfinite(output).all()
