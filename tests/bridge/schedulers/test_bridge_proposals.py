"""What a pipeline or its caller proposes: replaced, refused or noticed, by one rule."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
from cases import SD
from mixture import random_schedule

from bridge import with_schedule
from hso_jax.schedule import Schedule

N = 5
FLOWING = random_schedule(cases.noise_of("sd3-medium"), N, "clean", 1)
SCHEDULE = random_schedule(cases.noise_of("sd15"), N, "clean", 1)
EDM = random_schedule(cases.noise_of("edm-cifar10"), N, "clean", 1)
EVEN = np.linspace(1.0, 1.0 / N, N)
COGVIEW4 = np.linspace(1000, 1.0, N).astype(np.int64).astype(np.float32)
# LTX's linear-quadratic grid at N = 5: two small even steps, then a parabola to 0.
LTX = np.array([1.0, 0.9875, 0.975, 0.7417, 0.4167])


def flow() -> Any:
    return with_schedule(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), FLOWING)


def check(scheduler: Any, schedule: Schedule) -> None:
    assert scheduler.timesteps.tolist() == np.float32(schedule.timesteps).tolist()


@pytest.mark.parametrize(
    "call",
    [
        {"sigmas": EVEN},
        {"sigmas": EVEN.tolist()},
        {"sigmas": np.linspace(1.0, 0.0, N)},
        {"sigmas": np.linspace(0.999, 0.0, N + 1)[:-1]},
        {"timesteps": COGVIEW4, "sigmas": COGVIEW4 / 1000},
        {"timesteps": FLOWING.timesteps},
        {"sigmas": FLOWING.sampler_sigmas()},
        {"sigmas": np.float32(FLOWING.sampler_sigmas()[:-1])},
        {"num_inference_steps": N},
        {},
    ],
    ids=str,
)
def test_what_every_flow_pipeline_proposes_is_replaced_in_silence(call: dict[str, Any]) -> None:
    scheduler = flow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(**call)
    check(scheduler, FLOWING)


@pytest.mark.parametrize("call", [{"timesteps": LTX * 1000}, {"sigmas": LTX}, {"timesteps": [900, 700, 500, 300, 9]}])
def test_other_levels_for_a_flow_model_are_noticed_once(call: dict[str, Any]) -> None:
    scheduler = flow()
    with pytest.warns(UserWarning, match="differ from those of the installed schedule.*which is used"):
        scheduler.set_timesteps(**call)
    check(scheduler, FLOWING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(**call)
    check(scheduler, FLOWING)


@pytest.mark.parametrize(
    ("name", "config", "schedule"),
    [("EulerDiscreteScheduler", SD, SCHEDULE), ("DDIMScheduler", SD, SCHEDULE), ("EDMEulerScheduler", {}, EDM)],
    ids=["euler", "ddim", "edm"],
)
def test_a_callers_own_levels_are_an_error(name: str, config: dict[str, Any], schedule: Schedule) -> None:
    scheduler = with_schedule(getattr(diffusers, name)(**config), schedule)
    own = schedule.sampler_sigmas()
    scheduler.set_timesteps(timesteps=schedule.timesteps.tolist())
    scheduler.set_timesteps(sigmas=own)
    scheduler.set_timesteps(sigmas=own[:-1])
    for call in ({"timesteps": schedule.timesteps * 1.1 + 5}, {"sigmas": own[:-1] * 0.9}):
        with pytest.raises(ValueError, match=r"differ from those of the installed schedule.*leave the argument out"):
            scheduler.set_timesteps(**call)
        check(scheduler, schedule)


@pytest.mark.parametrize("size", [N - 1, N + 1, N + 2])
def test_another_number_is_an_error_whatever_proposes_it(size: int) -> None:
    for call in (
        {"num_inference_steps": size},
        {"sigmas": np.linspace(1, 1 / size, size)},
        {"timesteps": np.linspace(1000, 1, size)},
        {"num_inference_steps": N, "sigmas": np.linspace(1, 1 / size, size)},
        {"num_inference_steps": size, "sigmas": EVEN},
    ):
        with pytest.raises(ValueError, match=f"is {size}, but the installed schedule has {N}"):
            flow().set_timesteps(**call)
