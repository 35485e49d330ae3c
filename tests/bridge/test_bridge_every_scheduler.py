"""Every scheduler class of the installed diffusers: both doors read the same noise, or refuse in the same words."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from cases import SD
from diffusers import SchedulerMixin
from diffusers.utils import is_torchsde_available

from bridge import noise_schedule_of
from bridge.schedulers.adapters import ROWS
from bridge.schedulers.refusals import INSTEAD
from hso_jax import from_config
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.families import BETA_RULES
from hso_jax.noise.from_config import CLASSES, REFUSED

NEED = {
    "AmusedScheduler": {"mask_token_id": 7},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 7},
}
WAN_S_OWN = {"FlowDPMSolverMultistepScheduler", "FlowUniPCMultistepScheduler"}  # in no version of diffusers


def _every_class() -> dict[str, type]:
    """The scheduler classes of the whole package, its pipelines and what is deprecated included."""
    root, found = Path(diffusers.__file__).parent, {}
    for file in root.rglob("*.py"):
        if names := re.findall(r"^class (\w*Scheduler)\(.*SchedulerMixin", file.read_text(), re.M):
            module = importlib.import_module(".".join(["diffusers", *file.relative_to(root).with_suffix("").parts]))
            found.update({name: getattr(module, name) for name in names})
    return found


EVERY = _every_class()
if not is_torchsde_available():
    for needs in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        EVERY.pop(needs)


def by_both(scheduler: Any) -> list[NoiseSchedule | str]:
    """What the two doors make of a scheduler: of the config that it saves, and of itself."""
    found: list[NoiseSchedule | str] = []
    for door, given in ((from_config, json.loads(scheduler.to_json_string())), (noise_schedule_of, scheduler)):
        try:
            found.append(door(given))  # type: ignore[operator]
        except ValueError as error:
            found.append(str(error))
    return found


def test_every_class_is_in_one_table() -> None:
    assert len(EVERY) > 50
    assert set(EVERY) <= set(CLASSES) | set(REFUSED) and not set(CLASSES) & set(REFUSED)
    assert set(CLASSES) <= set(ROWS) | set(INSTEAD) | WAN_S_OWN
    assert all(issubclass(cls, SchedulerMixin) for cls in EVERY.values())


@pytest.mark.parametrize("name", EVERY)
def test_both_doors_say_the_same(name: str) -> None:
    by_path, at_hand = by_both(EVERY[name](**NEED.get(name, {})))
    if name in REFUSED:
        assert by_path == at_hand == f"{name} is not supported: {REFUSED[name]}"
    else:
        assert isinstance(by_path, NoiseSchedule) and isinstance(at_hand, NoiseSchedule)
        assert by_path.fingerprint() == at_hand.fingerprint() and by_path.prediction == at_hand.prediction


def lams(scheduler: Any) -> np.ndarray:
    bar = scheduler.alphas_cumprod.double().numpy()
    return np.asarray(0.5 * np.log(bar / (1 - bar)))


OF_VP = [name for name in EVERY if name in CLASSES and CLASSES[name].family == "vp"]


@pytest.mark.parametrize("rule", [*BETA_RULES, "cosine"])
@pytest.mark.parametrize("name", OF_VP)
def test_each_class_knows_the_beta_rules_that_diffusers_gives_it(name: str, rule: str) -> None:
    config = {"beta_schedule": rule}
    try:
        scheduler = EVERY[name](**config)
    except (NotImplementedError, ValueError):
        with pytest.raises(ValueError, match=f"{name}: beta_schedule is '{rule}'; use one of"):
            from_config({**config, "_class_name": name})
        return
    noise = from_config({**config, "_class_name": name})
    t = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(noise.lam(t), lams(scheduler), atol=2e-3)
    assert noise_schedule_of(scheduler).fingerprint() == noise.fingerprint()


# Keys and values as configs have them; each class takes those that it knows.
OFTEN: dict[str, dict[str, Any]] = {
    "rescaled": {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "trained": {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
    "few levels": {**SD, "num_train_timesteps": 100},
    "SNR shift": {**SD, "snr_shift_scale": 2.0, "rescale_betas_zero_snr": True},
    "clipped": {**SD, "clip_sample": True, "thresholding": True, "sample_max_value": 3.0},
    "spaced": {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing", "steps_offset": 1},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "shift": 3.0},
    "stretched": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "shift_terminal": 0.1, "shift": 2.0},
    "from data to noise": {"invert_sigmas": True, "shift": 2.0},
    "dynamic": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True},
    "EDM": {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "rho": 5.0, "interpolation_type": "log_linear"},
    "SVD": {
        **SD,
        "timestep_type": "continuous",
        "prediction_type": "v_prediction",
        "sigma_min": 0.002,
        "sigma_max": 700.0,
        "sigma_data": 1.0,
    },
}


@pytest.mark.parametrize("case", OFTEN)
@pytest.mark.parametrize("name", [name for name in EVERY if name in CLASSES])
def test_both_doors_read_what_configs_often_say(name: str, case: str) -> None:
    known = inspect.signature(EVERY[name].__init__).parameters
    given = {key: value for key, value in OFTEN[case].items() if key in known}
    if name == "UnCLIPScheduler":  # it knows one rule
        given.pop("beta_schedule", None)
    by_path, at_hand = by_both(EVERY[name](**given))
    if isinstance(by_path, str) or isinstance(at_hand, str):
        assert by_path == at_hand
    else:
        assert by_path.fingerprint() == at_hand.fingerprint() and by_path.prediction == at_hand.prediction


def test_a_class_derived_from_diffusers_is_read_as_that_one() -> None:
    class Mine(diffusers.DDIMScheduler):  # type: ignore[misc]
        pass

    assert noise_schedule_of(Mine(**SD)).fingerprint() == noise_schedule_of(diffusers.DDIMScheduler(**SD)).fingerprint()


def test_a_shift_that_was_set_by_hand_is_read() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(7.0)
    assert noise_schedule_of(scheduler).ksigma(0.5) == pytest.approx(7.0)


@pytest.mark.parametrize("name", sorted(WAN_S_OWN))
def test_wan_s_and_hidream_s_own_classes(name: str) -> None:
    noise = from_config({"_class_name": name, "shift": 3.0, "prediction_type": "flow_prediction"})
    assert noise.kind == "flow" and noise.ksigma(0.5) == pytest.approx(3.0)
