"""What does not fit is refused before anything is sampled, with the reason and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, SD
from mixture import random_schedule

import bridge
from bridge import with_schedule
from bridge.schedulers.rows import INSTEAD, ROWS, check_supported
from bridge.schedulers.scheduled import end_timestep, nearest
from hso_jax import noise, preset
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")
N = 5
SCHEDULE = random_schedule(NOISE, N, "clean", 1)
INTERVAL = random_schedule(NOISE, N, "t_eps", 1)
FLOWING = random_schedule(cases.noise_of("sd3-medium"), N, "clean", 1)
EDM = random_schedule(cases.noise_of("edm-cifar10"), N, "clean", 1)
AUDIO = random_schedule(cases.noise_of("stable-audio"), N, "clean", 1)


class MyDDIM(diffusers.DDIMScheduler):
    pass


_EULER, _LCM, _DPM, _UNIPC = (
    "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
)  # fmt: skip
_SDE = {**SD, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
MISFITS: list[tuple[str, dict[str, Any], Schedule, str]] = [
    ("DDIMScheduler", SD, FLOWING, "kind 'flow'.*is 'vp'"),
    (_EULER, {}, SCHEDULE, "kind 'vp'.*is 'flow'"),
    ("EDMEulerScheduler", {}, SCHEDULE, "kind 'vp'.*is 've'"),
    ("DDIMScheduler", {}, SCHEDULE, "'sd15'.*other noise levels"),
    ("DDIMScheduler", {**SD, "rescale_betas_zero_snr": True}, SCHEDULE, "other noise levels"),
    ("DDIMScheduler", {**SD, "num_train_timesteps": 500}, SCHEDULE, "counts timesteps to 1000.*to 500"),
    ("EDMEulerScheduler", {"sigma_max": 20.0}, EDM, "leave .*20"),
    (_EULER, {"invert_sigmas": True, "stochastic_sampling": True}, FLOWING, "stochastic_sampling=False"),
    (_LCM, {"invert_sigmas": True}, FLOWING, "use invert_sigmas=False.*FlowMatchEuler"),
    (_LCM, {"scale_factors": [0.5, 0.75]}, FLOWING, "scale_factors has 2.*for 3 steps.* 5"),
    (
        "EulerAncestralDiscreteScheduler", {**SD, "prediction_type": "sample"}, SCHEDULE,
        "cannot sample with.*'sample'.*use UniPCMultistepScheduler.from_config",
    ),
    (_UNIPC, {**FLOW, "use_flow_sigmas": False}, FLOWING, "use_flow_sigmas=True"),
    ("PNDMScheduler", SD, SCHEDULE, "skip_prk_steps=True"),
    (_DPM, _SDE, SCHEDULE, "leaves noise.*sde-dpmsolver\\+\\+"),
    (_DPM, {**_SDE, "solver_order": 3}, INTERVAL, "no third order"),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, EDM, "no third order"),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}, AUDIO, "no third order"),
    (_UNIPC, {**SD, "solver_p": diffusers.DDIMScheduler()}, SCHEDULE, "solver_p=None"),
    (_UNIPC, {**FLOW, "predict_x0": False}, FLOWING, "predict_x0=True"),
    ("SASolverScheduler", {**FLOW, "algorithm_type": "noise_prediction"}, FLOWING, "data_prediction"),
    ("DDIMInverseScheduler", SD, SCHEDULE, "not supported.*DDIMScheduler.from_config"),
    ("RePaintScheduler", {}, SCHEDULE, r"RePaintScheduler is not supported: .*DDPMScheduler.from_config"),
    ("DDIMScheduler", SD, Schedule.from_t(NOISE, [0.9, 0.9 - 1e-9, 0.1]), "both .* in float32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "schedule", "message"), MISFITS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_misfit(name: str, config: dict[str, Any], schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_schedule(getattr(diffusers, name)(**config), schedule)


def test_scale_factors_are_one_less_than_steps() -> None:
    scheduler = diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 0.75])
    assert with_schedule(scheduler, random_schedule(cases.noise_of("sd3-medium"), 3, "clean", 1)).schedule.nfe == 3


def test_subclass_and_other_objects() -> None:
    with pytest.raises(ValueError, match=r"MyDDIM.*DDIMScheduler.from_config"):
        with_schedule(MyDDIM(**SD), SCHEDULE)
    with pytest.raises(ValueError, match="not a scheduler class of diffusers"):
        with_schedule(object(), SCHEDULE)
    scheduler = diffusers.DDIMScheduler(**SD)
    for pipe in (SimpleNamespace(scheduler=scheduler), diffusers.DDPMPipeline(unet=None, scheduler=scheduler)):
        with pytest.raises(ValueError, match=r"is a pipeline: pass pipe.scheduler"):
            with_schedule(pipe, SCHEDULE)


def test_unknown_timestep_is_refused() -> None:
    scheduler = with_schedule(diffusers.DDIMScheduler(**SD), SCHEDULE)
    scheduler.set_timesteps(N)
    with pytest.raises(ValueError, match="not in the installed schedule"):
        scheduler.step(np.zeros(1), 3.0, cases.torch.zeros(1, 2))


def test_import_without_torch_names_the_command() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.modules['diffusers'] = None; import bridge"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert 'pip install -e ".[torch]"' in result.stderr


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
def test_usual_proposals_of_flow_pipelines_are_replaced_silently(call: dict[str, Any]) -> None:
    scheduler = flow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(**call)
    check(scheduler, FLOWING)


@pytest.mark.parametrize("call", [{"timesteps": LTX * 1000}, {"sigmas": LTX}, {"timesteps": [900, 700, 500, 300, 9]}])
def test_other_levels_for_flow_are_noticed_once(call: dict[str, Any]) -> None:
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
    if schedule.kind == "vp":
        scheduler.set_timesteps(timesteps=schedule.integer_timesteps().tolist())
        check(scheduler, schedule)
    scheduler.set_timesteps(sigmas=own)
    scheduler.set_timesteps(sigmas=own[:-1])
    for call in ({"timesteps": schedule.timesteps * 1.1 + 5}, {"sigmas": own[:-1] * 0.9}):
        with pytest.raises(ValueError, match=r"differ from those of the installed schedule.*leave the argument out"):
            scheduler.set_timesteps(**call)
        check(scheduler, schedule)


@pytest.mark.parametrize("size", [N - 1, N + 1, N + 2])
@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_another_number_is_an_error_whatever_proposes_it(kind: str, size: int) -> None:
    scheduler = flow() if kind == "flow" else with_schedule(diffusers.DDIMScheduler(**SD), SCHEDULE)
    for call in (
        {"num_inference_steps": size},
        {"sigmas": np.linspace(1, 1 / size, size)},
        {"timesteps": np.linspace(1000, 1, size)},
        {"num_inference_steps": N, "sigmas": np.linspace(1, 1 / size, size)},
        {"num_inference_steps": size, "sigmas": EVEN},
    ):
        with pytest.raises(ValueError, match=f"is {size}, but the installed schedule has {N}"):
            scheduler.set_timesteps(**call)


def test_a_timestep_may_be_rounded_to_bfloat16() -> None:
    known = np.array([999.0, 700.3, 350.7])
    for i, value in enumerate(known):
        assert nearest(known, value) == nearest(torch.from_numpy(known), torch.tensor(value).bfloat16()) == i
    for wrong in (710.0, 690.0, 355.0, 900.0, 2.0):
        with pytest.raises(ValueError, match=rf"timestep {wrong:g} is not in the installed schedule"):
            nearest(known, wrong)


def test_of_equal_timesteps_the_first_or_the_last() -> None:
    known = np.array([900.0, 500.0, 500.0])
    assert (nearest(known, 500.0), nearest(known, 500.0, True)) == (1, 2)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (noise.flow(3.0), lambda s: 1000.0 * 3.0 * s.t[-1] / (1.0 + 2.0 * s.t[-1])),
        (preset("sd15"), lambda s: 1000.0 * s.t[-1] - 1.0),
        (noise.edm(), lambda s: -0.25 * s.lams[-1]),
    ],
)
def test_the_timestep_of_the_node_where_sampling_stops(model: noise.NoiseSchedule, told: Any) -> None:
    """A flow's is its shifted time; the other models' is the table's; EDM's a quarter of log sigma."""
    stops = Schedule.from_t(model, [1.0, 0.6, 0.2], layout="interval", end="t_eps")
    assert end_timestep(stops) == pytest.approx(told(stops), rel=1e-6)
    assert end_timestep(Schedule.from_t(model, [1.0, 0.6])) == 0.0


EVERY_CLASS = sorted(
    name
    for module in (diffusers, diffusers.schedulers)
    for name in dir(module)
    if name.endswith("Scheduler") and isinstance(getattr(module, name), type)
)


def test_every_class_has_a_row_or_advice() -> None:
    assert len(set(EVERY_CLASS)) > 50
    assert set(EVERY_CLASS) == set(ROWS) | set(INSTEAD)
    assert not set(ROWS) & set(INSTEAD)


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_the_advice_names_what_exists(name: str) -> None:
    with pytest.raises(ValueError, match="is not supported") as refusal:
        check_supported(name)
    advice = str(refusal.value).removeprefix(name)
    named = [word for word in re.split(r"[ (.,]", advice) if word.endswith("Scheduler")]
    assert all(word in ROWS for word in named)
    assert named or any(word in advice for word in ("no schedule applies", "no levels to set", "pass", "pipeline"))


def test_reading_its_noise_says_the_same() -> None:
    with pytest.raises(ValueError, match=r"MiniMaxH3Scheduler is not supported: use FlowMatchEulerDiscreteScheduler"):
        bridge.noise_schedule_of(diffusers.schedulers.MiniMaxH3Scheduler())
    assert bridge.noise_schedule_of(diffusers.UnCLIPScheduler()).kind == "vp"  # it has a training table
