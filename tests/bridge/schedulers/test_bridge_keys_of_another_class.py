"""Schedulers made `from_config` of another class: the keys that they ignore describe the model all the same."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from diffusers.utils import is_torchsde_available

import bridge
from bridge.schedulers.rows import ROWS
from hso_jax import from_config
from hso_jax.baselines import baseline
from hso_jax.noise.from_config import CLASSES, READERS

V = {**SD, "prediction_type": "v_prediction", "snr_shift_scale": 1.0}
# What a config of the model says, as its JSON file does.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rescale_betas_zero_snr": ("EulerDiscreteScheduler", {**V, "rescale_betas_zero_snr": True}),
    "snr_shift_scale": ("CogVideoXDDIMScheduler", {**V, "snr_shift_scale": 3.0}),
    "timestep_type": (
        "EulerDiscreteScheduler",
        {**V, "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0},
    ),
}
DATA_STD = 0.5
OF_VP = [name for name in ROWS if CLASSES[name].family == "vp"]
if not is_torchsde_available():
    OF_VP.remove("DPMSolverSDEScheduler")
STEPS = 200
OPTIONS = {"skip_prk_steps": True, "clip_sample": False}


def made_from(name: str, key: str) -> Any:
    """A scheduler of the class `name` from the config of a model that has `key`."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    return cls.from_config(MODELS[key][1], **{k: v for k, v in OPTIONS.items() if k in known})


def predicted_v(noise: Any, z: torch.Tensor, timestep: float) -> torch.Tensor:
    """What a perfect network of data N(0, DATA_STD^2) says, told a timestep, of a sample scaled as VP."""
    if noise.kind == "ve":
        k = np.exp(4.0 * timestep)
    else:  # beyond the last level but one the model of zero terminal SNR sees noise alone
        t = (timestep + 1.0) / noise.num_train_timesteps
        k = np.inf if noise.zero_terminal_snr and t > 1.0 - 1e-6 else float(noise.ksigma(t))
    alpha, sigma = 1.0 / np.hypot(1.0, k), 1.0 if np.isinf(k) else k / np.hypot(1.0, k)
    return z * (alpha * sigma * (1.0 - DATA_STD**2) / (alpha**2 * DATA_STD**2 + sigma**2))


IGNORING = [(name, key) for key in MODELS for name in OF_VP if key not in CLASSES[name].reads]


@pytest.mark.parametrize(("name", "key"), IGNORING)
def test_the_noise_is_the_model_s_by_both_doors(name: str, key: str) -> None:
    origin, config = MODELS[key]
    model, t = from_config({**config, "_class_name": origin}), np.linspace(0.05, 0.95, 9)
    for read in (bridge.noise_schedule_of(made_from(name, key)), from_config({**config, "_class_name": name})):
        assert (read.kind, read.prediction) == (model.kind, model.prediction)
        np.testing.assert_allclose(read.lam(t), model.lam(t), atol=1e-12)


def refused(name: str, key: str) -> bool:
    """Its steps go by its own training table, which is another model's."""
    return ROWS[name].layout == "grid" or (key == "timestep_type" and ROWS[name].layout in ("table", "plms"))


@pytest.mark.parametrize(("name", "key"), [x for x in IGNORING if refused(*x)])
def test_a_class_whose_steps_cannot_have_the_model_s_levels_is_refused(name: str, key: str) -> None:
    scheduler = made_from(name, key)
    schedule = baseline("karras", bridge.noise_schedule_of(scheduler), 6)
    with pytest.raises(ValueError, match=f"{name} ignores {key} of its config.*use {READERS[key]}.from_config"):
        bridge.with_schedule(scheduler, schedule)


@pytest.mark.parametrize(("name", "key"), [x for x in IGNORING if not refused(*x)])
def test_the_others_sample_the_data_s_deviation_and_say_that_they_ignore_the_key(name: str, key: str) -> None:
    scheduler, steps = made_from(name, key), 50 if name == "DPMSolverSDEScheduler" else STEPS
    noise = bridge.noise_schedule_of(scheduler)
    with pytest.warns(UserWarning, match=f"{name} ignores {key} of its config"):
        installed = bridge.with_schedule(scheduler, baseline("karras", noise, steps))
    installed.set_timesteps(steps)
    draws = torch.Generator().manual_seed(0)
    sample = torch.randn(4000, 1, 1, 1, generator=draws, dtype=torch.float64) * installed.init_noise_sigma
    seeded = {"generator": draws} if "generator" in inspect.signature(installed.step).parameters else {}
    for timestep in installed.timesteps:
        seen = installed.scale_model_input(sample, timestep)
        sample = installed.step(predicted_v(noise, seen, float(timestep)), timestep, sample, **seeded).prev_sample
    assert float(sample.std()) == pytest.approx(DATA_STD, rel=0.06)


KEYED = [name for name in ROWS if name != "DPMSolverSDEScheduler" or is_torchsde_available()]


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("key", READERS)
def test_the_table_says_what_diffusers_classes_read(name: str, key: str) -> None:
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert (key in CLASSES[name].reads) == (key in known)
    for default, parameter in zip(CLASSES[name].betas, ("beta_start", "beta_end", "beta_schedule"), strict=True):
        assert parameter not in known or known[parameter].default == default


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CONTRADICTIONS = {
    "flow in VP": ("UniPCMultistepScheduler", {"shift": 3.0}, "shift is 3.0, .* a flow model's"),
    "flow in DDIM": ("DDIMScheduler", {"base_shift": 0.5}, "base_shift is 0.5, .* a flow model's"),
    "EDM in VP": ("EulerDiscreteScheduler", {"sigma_data": 0.5}, "sigma_data is 0.5, .*EDMEulerScheduler"),
    "Wuerstchen in VP": ("DDPMScheduler", {"scaler": 1.0}, "scaler is 1.0, .*DDPMWuerstchenScheduler"),
    "VP in flow": ("FlowMatchEulerDiscreteScheduler", SD, "beta_schedule is .*, .*UniPCMultistepScheduler"),
    "VP in EDM": ("EDMEulerScheduler", SD, "beta_schedule is .*, .*UniPCMultistepScheduler"),
    "flow in EDM": ("EDMEulerScheduler", FLOW, "use_flow_sigmas is True, .*FlowMatchEulerDiscreteScheduler"),
    "SVD in EDM": ("EDMEulerScheduler", MODELS["timestep_type"][1], r"EDMEulerScheduler.from_config\(.*sigma_data=1.0"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_model_of_another_family_is_refused_by_both_doors_in_the_same_words(case: str) -> None:
    name, config, match = CONTRADICTIONS[case]
    messages = []
    for door, given in (
        (from_config, {**config, "_class_name": name}),
        (bridge.noise_schedule_of, getattr(diffusers, name).from_config(config)),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            door(given)  # type: ignore[operator]
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("EulerDiscreteScheduler", {"use_flow_sigmas": True}, "ignores use_flow_sigmas .*use UniPCMultistepScheduler"),
        ("DDIMScheduler", {"use_flow_sigmas": True}, "ignores use_flow_sigmas .*use UniPCMultistepScheduler"),
        ("FlowMatchHeunDiscreteScheduler", {"invert_sigmas": True}, "ignores invert_sigmas .*use FlowMatchEuler"),
        ("UniPCMultistepScheduler", {**FLOW, "invert_sigmas": True}, "ignores invert_sigmas .*use FlowMatchEuler"),
    ],
)
def test_flow_models_need_a_class_that_knows_them(name: str, config: dict[str, Any], match: str) -> None:
    scheduler = getattr(diffusers, name).from_config(config)
    with pytest.raises(ValueError, match=match):
        bridge.with_schedule(scheduler, baseline("trailing", bridge.noise_schedule_of(scheduler), 4))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {**FLOW, **SD, "flow_shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"flow_shift": 3.0}),
        ("UniPCMultistepScheduler", {**FLOW, "shift": 3.0}),
    ],
)
def test_a_shift_under_the_other_class_s_name(name: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name).from_config(config)
    for noise in (bridge.noise_schedule_of(scheduler), from_config({**config, "_class_name": name})):
        assert noise.sigma(0.5) == pytest.approx(0.75)  # 3 s / (1 + 2 s)
