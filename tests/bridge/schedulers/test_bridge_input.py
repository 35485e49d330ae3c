"""What does not fit is refused before anything is sampled, with the reason and what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
from cases import FLOW, SD
from mixture import random_schedule

from bridge import with_schedule
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")
SCHEDULE = random_schedule(NOISE, 4, "clean", 1)
INTERVAL = random_schedule(NOISE, 4, "t_eps", 1)
FLOWING = random_schedule(cases.noise_of("sd3-medium"), 4, "clean", 1)
EDM = random_schedule(cases.noise_of("edm-cifar10"), 4, "clean", 1)


class MyDDIM(diffusers.DDIMScheduler):
    pass


@pytest.mark.parametrize(
    ("name", "config", "schedule", "message"),
    [
        ("DDIMScheduler", SD, FLOWING, "kind 'flow'.*is 'vp'"),
        ("FlowMatchEulerDiscreteScheduler", {}, SCHEDULE, "kind 'vp'.*is 'flow'"),
        ("EDMEulerScheduler", {}, SCHEDULE, "kind 'vp'.*is 've'"),
        ("DDIMScheduler", {}, SCHEDULE, "other noise levels.*'sd15'"),
        ("DDIMScheduler", {**SD, "rescale_betas_zero_snr": True}, SCHEDULE, "other noise levels"),
        ("DDIMScheduler", {**SD, "num_train_timesteps": 500}, SCHEDULE, "counts timesteps to 1000.*to 500"),
        ("EDMEulerScheduler", {"sigma_max": 20.0}, EDM, "leave .*20"),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"invert_sigmas": True, "stochastic_sampling": True},
            FLOWING,
            "stochastic_sampling=False",
        ),
        ("FlowMatchLCMScheduler", {"invert_sigmas": True}, FLOWING, "use invert_sigmas=False.*FlowMatchEuler"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5, 0.75]}, FLOWING, "scale_factors has 2.*for 3 steps.* 4"),
        (
            "EulerAncestralDiscreteScheduler",
            {**SD, "prediction_type": "sample"},
            SCHEDULE,
            "cannot sample with.*'sample'.*use UniPCMultistepScheduler.from_config",
        ),
        ("UniPCMultistepScheduler", {**FLOW, "use_flow_sigmas": False}, FLOWING, "use_flow_sigmas=True"),
        ("PNDMScheduler", SD, SCHEDULE, "skip_prk_steps=True"),
        (
            "DPMSolverMultistepScheduler",
            {**SD, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            SCHEDULE,
            "leaves noise.*sde-dpmsolver\\+\\+",
        ),
        (
            "DPMSolverMultistepScheduler",
            {**SD, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
            INTERVAL,
            "no third order",
        ),
        (
            "EDMDPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            EDM,
            "no third order",
        ),
        ("UniPCMultistepScheduler", {**SD, "solver_p": diffusers.DDIMScheduler()}, SCHEDULE, "solver_p=None"),
        ("UniPCMultistepScheduler", {**FLOW, "predict_x0": False}, FLOWING, "predict_x0=True"),
        ("SASolverScheduler", {**FLOW, "algorithm_type": "noise_prediction"}, FLOWING, "data_prediction"),
        ("DDIMInverseScheduler", SD, SCHEDULE, "not supported.*DDIMScheduler.from_config"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_misfit(name: str, config: dict[str, Any], schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_schedule(getattr(diffusers, name)(**config), schedule)


def test_subclass_and_other_objects() -> None:
    with pytest.raises(ValueError, match=r"MyDDIM.*DDIMScheduler.from_config"):
        with_schedule(MyDDIM(**SD), SCHEDULE)
    with pytest.raises(ValueError, match="not a scheduler class of diffusers"):
        with_schedule(object(), SCHEDULE)
    scheduler = diffusers.DDIMScheduler(**SD)
    for pipe in (SimpleNamespace(scheduler=scheduler), diffusers.DDPMPipeline(unet=None, scheduler=scheduler)):
        with pytest.raises(ValueError, match=r"is a pipeline: pass pipe.scheduler"):
            with_schedule(pipe, SCHEDULE)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([14.0, 3.0, 3.0, 0.0], "fall"),
        ([3.0, 14.0, 0.0], "fall"),
        ([14.0, float("nan"), 0.0], "fall"),
        ([14.0, 3.0, -1.0], "fall"),
        ([100.0, 3.0, 0.0], "outside"),
        ([14.0, 3.0, 1e-4], "outside"),
        ([14.0], "N \\+ 1"),
        ([], "N \\+ 1"),
        ([[14.0, 1.0], [1.0, 0.0]], "N \\+ 1"),
    ],
    ids=str,
)
def test_sigma_list(sigmas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_schedule(diffusers.EulerDiscreteScheduler(**SD), sigmas)


def test_flow_sigma_list() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(ValueError, match="above 1"):
        with_schedule(scheduler, [1.5, 0.5, 0.0])
    installed = with_schedule(scheduler, [1.0, 0.5, 0.0])
    installed.set_timesteps(2)
    np.testing.assert_allclose(installed.sigmas, [1.0, 0.5, 0.0], rtol=1e-14)


@pytest.mark.parametrize("schedule", [SCHEDULE, INTERVAL, FLOWING, EDM], ids=["vp", "vp-t_eps", "flow", "edm"])
def test_a_list_is_as_good_as_the_schedule(schedule: Schedule) -> None:
    base = {"vp": diffusers.EulerDiscreteScheduler(**SD), "ve": diffusers.EDMEulerScheduler()}
    scheduler = base.get(schedule.kind, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    installed = with_schedule(scheduler, schedule.sampler_sigmas().tolist())
    installed.set_timesteps(4)
    np.testing.assert_allclose(installed.sigmas, schedule.sampler_sigmas(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(installed.timesteps, schedule.timesteps, rtol=1e-6)


def test_flow_schedule_of_another_shift_is_as_valid() -> None:
    installed = with_schedule(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), FLOWING)
    installed.set_timesteps(4)
    np.testing.assert_array_equal(installed.sigmas, FLOWING.sampler_sigmas())


def test_wrong_number_of_steps_names_both() -> None:
    for name, config, schedule in (("DDIMScheduler", SD, SCHEDULE), ("FlowMatchEulerDiscreteScheduler", {}, FLOWING)):
        scheduler = with_schedule(getattr(diffusers, name)(**config), schedule)
        for call in ({"num_inference_steps": 25}, {"sigmas": list(np.linspace(1, 0.1, 25))}, {"timesteps": [1.0] * 25}):
            with pytest.raises(ValueError, match=r"is 25, but the installed schedule has 4"):
                scheduler.set_timesteps(**call)
        scheduler.set_timesteps()  # as many as the schedule has
        assert len(scheduler.timesteps) == 4


def test_proposed_timesteps_and_sigmas() -> None:
    scheduler = with_schedule(diffusers.EulerDiscreteScheduler(**SD), SCHEDULE)
    scheduler.set_timesteps(timesteps=SCHEDULE.integer_timesteps().tolist())
    assert scheduler.timesteps.tolist() == np.float32(SCHEDULE.timesteps).tolist()
    scheduler.set_timesteps(sigmas=SCHEDULE.sampler_sigmas())  # N + 1 values
    with pytest.raises(ValueError, match="differ from those of the installed schedule"):
        scheduler.set_timesteps(timesteps=[900, 600, 300, 100])


def test_unknown_timestep_is_refused() -> None:
    scheduler = with_schedule(diffusers.DDIMScheduler(**SD), SCHEDULE)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="not in the installed schedule"):
        scheduler.step(np.zeros(1), 3.0, cases.torch.zeros(1, 2))


def test_nodes_too_close_for_float32() -> None:
    with pytest.raises(ValueError, match=r"both .* in float32"):
        with_schedule(diffusers.DDIMScheduler(**SD), Schedule.from_t(NOISE, [0.9, 0.9 - 1e-9, 0.1]))


def test_a_damaged_schedule_never_arrives() -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(SCHEDULE, timesteps=np.full(4, np.nan))


def test_import_without_torch_names_the_command() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.modules['diffusers'] = None; import bridge"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert 'pip install -e ".[torch]"' in result.stderr
