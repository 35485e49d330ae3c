"""A noise schedule from a diffusers `scheduler_config.json`, without importing torch or diffusers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hso_jax.checks import MOST_LEVELS, brief, choice, flag, json_object, number, numbers, whole
from hso_jax.noise import rectified_flow, variance_exploding, variance_preserving
from hso_jax.noise.noise_schedule import NoiseSchedule

FLOW_CLASSES = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
OTHER_CLASSES = (
    "CosineDPMSolverMultistepScheduler",
    "DDPMWuerstchenScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
)
_STABLE_DIFFUSION = (0.00085, 0.012, "scaled_linear")
_DDPM = (0.0001, 0.02, "linear")
_KATHERINE = (0.00085, 0.012, "linear")
# What a discrete VP class assumes where its config is silent: beta_start, beta_end, beta_schedule.
VP_CLASSES = {
    "CogVideoXDDIMScheduler": _STABLE_DIFFUSION,
    "CogVideoXDPMScheduler": _STABLE_DIFFUSION,
    "DDIMInverseScheduler": _DDPM,
    "DDIMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDPMScheduler": _DDPM,
    "DEISMultistepScheduler": _DDPM,
    "DPMSolverMultistepInverseScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverSDEScheduler": _KATHERINE,
    "DPMSolverSinglestepScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "HeunDiscreteScheduler": _KATHERINE,
    "KDPM2AncestralDiscreteScheduler": _KATHERINE,
    "KDPM2DiscreteScheduler": _KATHERINE,
    "LCMScheduler": _STABLE_DIFFUSION,
    "LMSDiscreteScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "SASolverScheduler": _DDPM,
    "TCDScheduler": _STABLE_DIFFUSION,
    "UniPCMultistepScheduler": _DDPM,
}
KNOWN_CLASSES = sorted([*VP_CLASSES, *FLOW_CLASSES, *EDM_CLASSES, *OTHER_CLASSES])


def from_config(
    config: Mapping[str, Any] | str | os.PathLike[str], *, image_seq_len: int = 4096, name: str | None = None
) -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler config describes.

    Args:
        config: the config as a mapping, the path of its JSON file, or a model's (or scheduler's) folder.
        image_seq_len: tokens of the image, for configs with `use_dynamic_shifting` (FLUX): 4096 is 1024 x 1024.
        name: defaults to the folder's or the class's name.

    Raises:
        ValueError: for a path without a config (only regular files are opened), a file that is not a config, an unknown
            class or beta rule, or a value of a wrong type or out of range; the message names them.
    """
    if not isinstance(config, Mapping):
        if not isinstance(config, (str, os.PathLike)):
            raise ValueError(f"config is {brief(config)}; pass a mapping, or the path of a file or folder as a text")
        path = _config_file(Path(config))
        name = name or (path.parent.parent.name if path.parent.name == "scheduler" else path.parent.name) or None
        config = _read(path)
    cls = config.get("_class_name")
    if not isinstance(cls, str):
        keys = brief(", ".join(map(str, config)) or "none").strip("'")
        raise ValueError(f"the config has no `_class_name` (its keys: {keys})")
    try:
        noise = _build(cls, config, whole("image_seq_len", image_seq_len, 1), name or cls)
        # Flow and EDM networks predict what their class says; the discrete ones name it, "epsilon" by default.
        named = config.get("prediction_type") if cls in VP_CLASSES and noise.kind == "vp" else None
        return noise if named is None else noise.with_prediction(named)
    except ValueError as error:
        raise error if cls not in KNOWN_CLASSES else ValueError(f"{cls}: {error}") from error


def _build(cls: str, config: Mapping[str, Any], image_seq_len: int, name: str) -> NoiseSchedule:
    def real(key: str, default: float) -> float:
        return number(key, config.get(key, default))

    if cls in FLOW_CLASSES or (cls in VP_CLASSES and _is_flow(config)):
        shift = _shift(config, "shift" if cls in FLOW_CLASSES else "flow_shift", image_seq_len)
        return rectified_flow.flow(shift, num_train_timesteps=config.get("num_train_timesteps", 1000), name=name)
    if cls in EDM_CLASSES:
        return variance_exploding.edm(real("sigma_min", 0.002), real("sigma_max", 80.0), real("rho", 7.0), name=name)
    if cls == "CosineDPMSolverMultistepScheduler":
        return _stable_audio(config, name)
    if cls == "DDPMWuerstchenScheduler":
        return variance_preserving.clipped_cosine(real("s", 0.008), real("scaler", 1.0), name=name)
    if cls == "ScoreSdeVeScheduler":
        return variance_exploding.ve(real("sigma_min", 0.01), real("sigma_max", 1348.0), name=name)
    if cls == "ScoreSdeVpScheduler":
        return variance_preserving.linear_vp(real("beta_min", 0.1), real("beta_max", 20.0), name=name)
    if cls not in VP_CLASSES:
        raise ValueError(f"scheduler class {brief(cls)} is not known; known classes: {', '.join(KNOWN_CLASSES)}")
    alphas_cumprod = np.cumprod(1.0 - _betas(cls, config))
    # CogVideoX scales the SNR of its training table.
    scale = config.get("snr_shift_scale", 1.0 if not cls.startswith("CogVideoX") else 3.0)
    scale = number("snr_shift_scale", scale, low=0.0, high=1e6)
    alphas_cumprod = alphas_cumprod / (scale + (1.0 - scale) * alphas_cumprod)
    zero_snr = flag("rescale_betas_zero_snr", config.get("rescale_betas_zero_snr", False))
    return variance_preserving.discrete(alphas_cumprod, rescale_betas_zero_snr=zero_snr, name=name)


def _stable_audio(config: Mapping[str, Any], name: str) -> NoiseSchedule:
    """EDM's noise of Stable Audio Open, whose network is told 2/pi arctan(sigma); t is its own ramp."""
    low, high, rho = (
        number(key, config.get(key, default))
        for key, default in (("sigma_min", 0.3), ("sigma_max", 500.0), ("rho", 7.0))
    )
    rule = config.get("sigma_schedule", "exponential")
    choice("sigma_schedule", rule, ("exponential", "karras"))
    if rule == "karras":
        noise = variance_exploding.edm(low, high, rho, name=name)
    else:
        noise = variance_exploding.ve(low, high, name=name)
    return dataclasses.replace(noise, timestep_rule="arctan_ksigma").with_prediction("edm")


def _is_flow(config: Mapping[str, Any]) -> bool:
    return flag("use_flow_sigmas", config.get("use_flow_sigmas", False)) or (
        config.get("prediction_type") == "flow_prediction"
    )


def _betas(cls: str, config: Mapping[str, Any]) -> np.ndarray:
    trained = config.get("trained_betas")
    if trained is None:
        start, end, rule = VP_CLASSES[cls]
        return variance_preserving.beta_table(
            config.get("beta_schedule", rule),
            config.get("beta_start", start),
            config.get("beta_end", end),
            config.get("num_train_timesteps", 1000),
        )
    table = numbers("trained_betas", trained)
    if table.ndim != 1 or not 2 <= len(table) <= MOST_LEVELS:
        raise ValueError(f"trained_betas is {brief(trained)}; need null or a flat list of 2 to {MOST_LEVELS} numbers")
    variance_preserving.check_open_unit(table, "trained_betas", last=1.0)
    return table


def _shift(config: Mapping[str, Any], static: str, image_seq_len: int) -> float:
    if not flag("use_dynamic_shifting", config.get("use_dynamic_shifting", False)):
        return number(static, config.get(static, 1.0), low=0.0, need="a positive number")
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift", "time_shift_type")
    given = {k: config[k] for k in keys if config.get(k) is not None}
    return rectified_flow.dynamic_shift(image_seq_len, **given)


def _config_file(path: Path) -> Path:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, a zero byte in it
        raise ValueError(f"{brief(str(path))} is no path that can be read ({error})") from error
    if not exists:
        raise ValueError(f"{path} does not exist; pass a scheduler_config.json, a model folder or a preset's name")
    if not is_folder:
        return path
    for candidate in (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"):
        if candidate.exists():
            return candidate
    raise ValueError(f"{path} has no scheduler/scheduler_config.json; pass a diffusers model folder or the file")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(path, "a scheduler config")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
