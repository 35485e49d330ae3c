"""Non-stationary schedules through the public calls of pipelines: N network calls, at the schedule's timesteps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, public
from free import free_schedule
from pipelines import QWEN_IMAGE, Family, family_of
from test_pipelines_schedule import generate, told, wanted

import bridge
from bridge import NonstationaryScheduler, install, noise_schedule_of, schedule_of, with_schedule, without_schedule
from hso_jax import Schedule
from hso_jax.schedule import Origin, in_coefficients

NFE = 5
_CLASSES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline",
    "FluxPipeline", "WanPipeline",
)  # fmt: skip
FAMILIES = [*(family_of(name) for name in _CLASSES), QWEN_IMAGE]
pytestmark = pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_n_calls_at_the_schedules_timesteps(family: Family, tmp_path: Path) -> None:
    """From whatever scheduler the pipeline has; and the saved pipeline gives the same image."""
    pipe = family.shared()
    default, former = generate(pipe, family, NFE), type(pipe.scheduler)
    schedule = free_schedule(noise_schedule_of(pipe), NFE)
    install(pipe, schedule)
    assert type(pipe.scheduler) is NonstationaryScheduler and schedule_of(pipe) == schedule
    output, seen = told(pipe, family, NFE)
    np.testing.assert_array_equal(seen, wanted(schedule, family))
    assert np.isfinite(output).all() and output.std() > 0.01 and np.abs(output - default).max() > 1e-3
    np.testing.assert_array_equal(output, generate(pipe, family, NFE))
    with pytest.raises(ValueError, match=f"num_inference_steps is 7, but the installed schedule has {NFE}"):
        generate(pipe, family, 7)
    pipe.scheduler = without_schedule(pipe.scheduler)
    assert type(pipe.scheduler) is former
    np.testing.assert_array_equal(generate(pipe, family, NFE), default)
    if family is QWEN_IMAGE:
        return  # diffusers loads no pipeline without its text encoder
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is NonstationaryScheduler and schedule_of(loaded) == schedule
    np.testing.assert_allclose(generate(loaded, family, NFE), output, atol=1e-4)


NOISE = {
    "vp": noise_schedule_of(family_of("StableDiffusionPipeline").components()["scheduler"]),
    "flow": noise_schedule_of(family_of("StableDiffusion3Pipeline").components()["scheduler"]),
}


@pytest.mark.parametrize(
    ("cls", "config", "solver", "call"),
    [
        ("StableDiffusionPipeline", None, "dpmpp-2m", {}),
        ("StableDiffusionImg2ImgPipeline", None, "dpmpp-2m", {"strength": 0.5}),
        ("StableDiffusion3Pipeline", FLOW, "dpmpp-2m", {}),
        ("StableDiffusion3Img2ImgPipeline", {}, "ddim", {"strength": 0.5}),  # DPM++ cannot do that in diffusers
    ],
)
def test_a_known_solvers_coefficients_give_its_image(
    cls: str, config: dict[str, Any] | None, solver: str, call: dict[str, Any]
) -> None:
    family = family_of(cls)
    pipe = family.shared()
    plain = pipe.scheduler
    if solver == "dpmpp-2m":
        plain = diffusers.DPMSolverMultistepScheduler.from_config(plain.config if config is None else config)
    noise = noise_schedule_of(plain)
    schedule = free_schedule(noise, 6)
    nodes = Schedule.from_t(noise, schedule.t, origin=Origin(solver=solver))
    images = []
    for own in (nodes.sampler_sigmas(), in_coefficients(nodes), schedule):
        pipe.scheduler = with_schedule(plain, own)
        images.append(generate(pipe, family, 6, output_type="latent", **call))
    size = np.abs(images[0]).max()
    np.testing.assert_allclose(images[0], images[1], atol=2e-5 * size)
    assert np.abs(images[0] - images[2]).max() > 2e-3 * size


def test_flux_in_bfloat16() -> None:
    """The latents that the pipeline hands around have the network's precision, the steps are float32's."""
    family = family_of("FluxPipeline")
    pipe = family.build()
    pipe.scheduler = with_schedule(pipe.scheduler, free_schedule(noise_schedule_of(pipe), NFE))
    pipe.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    low = pipe(**family.call, num_inference_steps=NFE, generator=generator, output_type="latent").images
    assert low.dtype == torch.bfloat16 and torch.isfinite(low).all() and low.std() > 0.01


def test_proposals_and_mu_do_not_move_the_nodes() -> None:
    """FLUX and Qwen-Image pass sigmas and mu; a caller's own, which are no even grid, are told of."""
    for family in (family_of("FluxPipeline"), QWEN_IMAGE):
        pipe = family.shared()
        schedule = free_schedule(noise_schedule_of(pipe), 4)
        pipe.scheduler = with_schedule(pipe.scheduler, schedule)
        _, seen = told(pipe, family, 4)
        np.testing.assert_array_equal(seen, wanted(schedule, family))
        with pytest.warns(UserWarning, match=r"sigmas \[1, 0.9, 0.8, 0.1\] differ .*which is used"):
            _, seen = told(pipe, family, 4, sigmas=[1.0, 0.9, 0.8, 0.1])
        np.testing.assert_array_equal(seen, wanted(schedule, family))


def test_any_schedule_replaces_one_in_use() -> None:
    family = family_of("StableDiffusionPipeline")
    pipe = family.shared()
    plain = copy.deepcopy(pipe.scheduler)
    install(pipe, free_schedule(NOISE["vp"], 4))
    install(pipe, Schedule.from_t(NOISE["vp"], [0.9, 0.5, 0.1]))
    assert type(pipe.scheduler) is bridge.DDIMScheduler
    assert public(pipe.scheduler.config) == public(with_schedule(plain, pipe.scheduler.schedule).config)
