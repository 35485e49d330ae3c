"""What an installed schedule switches off in a scheduler's config, and how it comes back."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
from cases import SD
from mixture import random_schedule

from bridge import noise_schedule_of, with_schedule, without_schedule
from hso_jax.schedule import Schedule

VP = random_schedule(cases.noise_of("sd15"), 4, "clean", 1)
FLOWING = random_schedule(cases.noise_of("sd3-medium"), 4, "clean", 1)
FLAGGED = [
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}, VP),
    ("UniPCMultistepScheduler", {**SD, "use_exponential_sigmas": True}, VP),
    ("HeunDiscreteScheduler", {**SD, "use_beta_sigmas": True}, VP),
    ("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}, VP),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_beta_sigmas": True}, FLOWING),
]


def flag_of(config: dict[str, Any]) -> str:
    return next(key for key in config if key in ("use_lu_lambdas",) or (key.startswith("use_") and "sigmas" in key))


@pytest.mark.parametrize(("name", "config", "schedule"), FLAGGED, ids=lambda x: x if isinstance(x, str) else "")
def test_spacing_flags_are_switched_off_said_once_and_put_back(
    name: str, config: dict[str, Any], schedule: Schedule
) -> None:
    flag = flag_of(config)
    plain = getattr(diffusers, name)(**config)
    with pytest.warns(UserWarning, match=f"{name}: the schedule replaces {flag}, now switched off"):
        scheduler = with_schedule(plain, schedule)
    assert (plain.config[flag], scheduler.config[flag]) == (True, False)
    scheduler.set_timesteps(4)
    told = np.unique(scheduler.timesteps.numpy())[::-1]
    assert set(np.float32(schedule.timesteps)) <= set(told)
    assert set(schedule.sampler_sigmas()) == set(scheduler.sigmas.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = with_schedule(scheduler, schedule)
        rebuilt = type(again).from_config(again.config)
        back = without_schedule(rebuilt)
    assert (again.config[flag], rebuilt.config[flag], back.config[flag]) == (False, False, True)
    assert type(back) is type(plain)
    public = {key: value for key, value in plain.config.items() if not key.startswith("_")}
    assert {key: value for key, value in back.config.items() if not key.startswith("_")} == public
    plain.set_timesteps(4)
    back.set_timesteps(4)
    np.testing.assert_array_equal(back.sigmas, plain.sigmas)


def test_stable_video_diffusion_as_it_is_shipped() -> None:
    config = {
        **SD, "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True,
        "sigma_min": 0.002, "sigma_max": 700.0,
    }  # fmt: skip
    plain = diffusers.EulerDiscreteScheduler(**config)
    schedule = Schedule.from_sigmas(noise_schedule_of(plain), [700.0, 30.0, 2.0, 0.1])
    with pytest.warns(UserWarning, match="use_karras_sigmas"):
        scheduler = with_schedule(plain, schedule)
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(scheduler.sigmas, [700.0, 30.0, 2.0, 0.1, 0.0], rtol=1e-9)


def test_without_schedule_puts_back_what_an_end_replaced_and_leaves_a_plain_scheduler_alone() -> None:
    plain = diffusers.DPMSolverMultistepScheduler(**SD, euler_at_final=True)
    scheduler = with_schedule(plain, random_schedule(cases.noise_of("sd15"), 4, "t_eps", 1))
    assert not scheduler.config.euler_at_final
    back = without_schedule(scheduler)
    assert back.config.euler_at_final and back.config.final_sigmas_type == "zero"
    assert not [key for key in back.config if key.startswith("hso_")]
    assert without_schedule(plain) is plain


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_training_timestep(name: str, shift: float) -> None:
    """Stable Audio 3 and ACE-Step: the network is told s itself."""
    plain = getattr(diffusers, name)(num_train_timesteps=1, shift=shift)
    noise = noise_schedule_of(plain)
    schedule = Schedule.from_t(noise, [1.0, 0.7, 0.4, 0.1])
    scheduler = with_schedule(plain, schedule)
    scheduler.set_timesteps(4)
    wanted = schedule.sampler_sigmas()
    np.testing.assert_array_equal(np.unique(scheduler.sigmas)[::-1], wanted)
    np.testing.assert_allclose(np.unique(scheduler.timesteps.numpy())[::-1], wanted[:4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"counts timesteps to 1000.*to 1"):
        with_schedule(plain, FLOWING)
    with pytest.raises(ValueError, match=r"told a time in \[0, 1\]"):
        schedule.integer_timesteps()
