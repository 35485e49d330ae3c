"""`Schedule.diffusers_sigmas`: plain schedulers and pipelines arrive at the schedule's levels after their own shift."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
from cases import SD
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from mixture import random_schedule
from pipelines import FLUX_CONFIG, family_of
from test_pipelines_schedule import NFE, told

from bridge import with_schedule
from hso_jax.schedule import Schedule

FLOWING = random_schedule(cases.noise_of("sd3-medium"), NFE, "clean", 1)
PURE = Schedule.from_t(cases.noise_of("sd3-medium"), [1.0, 0.9, 0.5, 0.2, 0.01])
DYNAMIC = {**FLUX_CONFIG, "base_image_seq_len": 256, "max_image_seq_len": 4096}
FLUX_MU = 0.5 + 0.65 * (1024 - 256) / (4096 - 256)  # calculate_shift of FluxPipeline, for 1024 tokens
COGVIEW4_MU = 1.15 * (1024 / 256) ** 0.5 + 0.5  # that of CogView4Pipeline, whose scheduler has time_shift_type "linear"


def arrives(scheduler: Any, sigmas: np.ndarray, mu: float | None = None, inverted: bool = False) -> None:
    assert sigmas.shape == (NFE,)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    got = 1.0 - scheduler.sigmas if inverted else scheduler.sigmas
    np.testing.assert_allclose(got, FLOWING.sampler_sigmas(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
@pytest.mark.parametrize(
    ("config", "size", "mu"),
    [
        ({"shift": 1.0}, {}, None),
        ({"shift": 12.0}, {"image_seq_len": 4096}, None),  # a constant shift does not look at the size
        ({"shift": 3.0, "invert_sigmas": True}, {}, None),
        (DYNAMIC, {"mu": 1.15}, 1.15),
        (DYNAMIC, {"image_seq_len": 1024}, FLUX_MU),
        ({**DYNAMIC, "time_shift_type": "linear"}, {"mu": 2.3}, 2.3),
        ({**DYNAMIC, "time_shift_type": "linear"}, {"image_seq_len": 1024}, COGVIEW4_MU),
        ({**DYNAMIC, "base_shift": math.log(3), "max_shift": math.log(3)}, {}, math.log(3)),
    ],
    ids=str,
)
def test_shifted_sigmas_arrive_at_the_schedule(
    name: str, config: dict[str, Any], size: dict[str, Any], mu: float | None
) -> None:
    scheduler = getattr(diffusers, name)(**config)
    arrives(scheduler, FLOWING.diffusers_sigmas(scheduler, **size), mu, config.get("invert_sigmas", False))
    scheduler.set_timesteps(sigmas=PURE.diffusers_sigmas(scheduler, **size), mu=mu)
    assert float(scheduler.sigmas[0]) == (0.0 if config.get("invert_sigmas") else 1.0)


def test_flux2_shifts_by_the_number_of_steps() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = type("Flux2Pipeline", (SimpleNamespace,), {})(scheduler=scheduler)
    arrives(scheduler, FLOWING.diffusers_sigmas(pipe, image_seq_len=1024), compute_empirical_mu(1024, NFE))


def test_a_shift_that_was_changed_by_hand() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(7.0)
    arrives(scheduler, FLOWING.diffusers_sigmas(scheduler))


@pytest.mark.parametrize("end", ["clean", "t_eps"])
def test_euler_takes_the_sigmas_as_they_are(end: str) -> None:
    schedule, scheduler = random_schedule(cases.noise_of("sd15"), NFE, end, 1), diffusers.EulerDiscreteScheduler(**SD)
    sigmas = schedule.diffusers_sigmas(scheduler)
    np.testing.assert_array_equal(sigmas, schedule.sampler_sigmas())
    scheduler.set_timesteps(sigmas=sigmas)
    np.testing.assert_allclose(scheduler.sigmas, schedule.sampler_sigmas(), rtol=1e-7)
    np.testing.assert_allclose(scheduler.timesteps, schedule.timesteps, atol=1e-2)  # it interpolates in its table


@pytest.mark.parametrize(
    ("cls", "size"),
    # 16 x 16 pixels are 8 x 8 latents here, and 4 x 4 tokens in FLUX
    [("StableDiffusion3Pipeline", {}), ("FluxPipeline", {"image_seq_len": 16})],
)
def test_in_a_pipeline(cls: str, size: dict[str, int]) -> None:
    family = family_of(cls)
    pipe = family.shared()
    sigmas = FLOWING.diffusers_sigmas(pipe, **size)
    with_argument, seen = told(pipe, family, NFE, sigmas=sigmas)
    np.testing.assert_allclose(seen * family.told, FLOWING.timesteps, rtol=1e-5)
    np.testing.assert_allclose(pipe.scheduler.sigmas, FLOWING.sampler_sigmas(), rtol=0, atol=2e-7)
    twice, _ = told(pipe, family, NFE, sigmas=FLOWING.sampler_sigmas()[:-1])
    assert np.abs(pipe.scheduler.sigmas.numpy() - FLOWING.sampler_sigmas()).max() > 0.01  # shifted a second time
    pipe.scheduler = with_schedule(pipe.scheduler, FLOWING)
    installed, _ = told(pipe, family, NFE)
    np.testing.assert_allclose(with_argument, installed, atol=1e-4)
    assert np.abs(twice - installed).max() > 1e-3


_EULER = "FlowMatchEulerDiscreteScheduler"
REFUSED: list[tuple[str, dict[str, Any], Schedule, dict[str, Any], str]] = [
    ("DDIMScheduler", SD, FLOWING, {}, "DDIMScheduler takes no sigmas.*bridge.with_schedule"),
    ("UniPCMultistepScheduler", cases.FLOW, FLOWING, {}, "takes no sigmas.*bridge.with_schedule"),
    ("EulerDiscreteScheduler", SD, FLOWING, {}, "kind 'flow'"),
    (_EULER, {}, random_schedule(cases.noise_of("sd15"), 3, "clean", 1), {}, "kind 'vp'"),
    (_EULER, {"use_karras_sigmas": True}, FLOWING, {}, "use_karras_sigmas"),
    (_EULER, {"shift_terminal": 0.1}, FLOWING, {}, "until the last is 0.1.*None"),
    (_EULER, DYNAMIC, FLOWING, {}, r"image_seq_len \(4096"),
    (_EULER, DYNAMIC, FLOWING, {"mu": 1.0, "image_seq_len": 4}, "one of them"),
    (_EULER, DYNAMIC, FLOWING, {"mu": math.nan}, "mu is nan"),
    (_EULER, {**DYNAMIC, "time_shift_type": "linear"}, FLOWING, {"mu": -1.0}, "mu is -1.0; need a positive"),
    (_EULER, {}, random_schedule(cases.noise_of("sd3-medium"), 3, "t_eps", 1), {}, "with_end\\('clean'\\)"),
]


@pytest.mark.parametrize(("name", "config", "schedule", "size", "message"), REFUSED)
def test_what_it_refuses(
    name: str, config: dict[str, Any], schedule: Schedule, size: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.diffusers_sigmas(getattr(diffusers, name)(**config), **size)


def test_a_terminal_shift_that_the_schedule_has() -> None:
    terminal = float(FLOWING.sampler_sigmas()[-2])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=terminal)
    scheduler.set_timesteps(sigmas=FLOWING.diffusers_sigmas(scheduler))
    np.testing.assert_allclose(scheduler.sigmas, FLOWING.sampler_sigmas(), rtol=0, atol=5e-7)


def test_other_objects_and_leftover_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="need a diffusers scheduler or pipeline, got int"):
        FLOWING.diffusers_sigmas(3)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config({"use_flow_sigmas": True})
    with pytest.raises(ValueError, match="drop `sigmas`"):
        FLOWING.diffusers_sigmas(scheduler)
