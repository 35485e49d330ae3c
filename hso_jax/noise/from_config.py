"""A noise schedule from a diffusers `scheduler_config.json`, without importing torch or diffusers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hso_jax.noise import rectified_flow, variance_exploding, variance_preserving
from hso_jax.noise.noise_schedule import NoiseSchedule

FLOW_CLASSES = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
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


def from_config(
    config: Mapping[str, Any] | str | os.PathLike[str], *, image_seq_len: int = 4096, name: str | None = None
) -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler config describes.

    Args:
        config: the config as a mapping, the path of its JSON file, or a model's (or scheduler's) folder.
        image_seq_len: tokens of the image, for configs with `use_dynamic_shifting` (FLUX): 4096 is 1024 x 1024.
        name: defaults to the folder's or the class's name.

    Raises:
        ValueError: for a path without a config, a file that is not a config, an unknown class or beta rule, or
            values out of range; the message names them.
    """
    if not isinstance(config, Mapping):
        path = _config_file(Path(config))
        name = name or (path.parent.parent.name if path.parent.name == "scheduler" else path.parent.name) or None
        config = _read(path)
    cls = config.get("_class_name")
    if not isinstance(cls, str):
        raise ValueError(f"the config has no `_class_name` (its keys: {', '.join(map(str, config)) or 'none'})")
    name = name or cls
    try:
        noise = _build(cls, config, image_seq_len, name)
    except TypeError as error:
        raise ValueError(f"{cls}: a value in the config has the wrong type ({error})") from error
    # Flow and EDM networks predict what their class says; the discrete ones name it, "epsilon" by default.
    named = config.get("prediction_type") if cls in VP_CLASSES and noise.kind == "vp" else None
    return noise if named is None else noise.with_prediction(named)


def _build(cls: str, config: Mapping[str, Any], image_seq_len: int, name: str) -> NoiseSchedule:
    levels = config.get("num_train_timesteps", 1000)
    flow_sigmas = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if cls in FLOW_CLASSES:
        return rectified_flow.flow(_shift(config, "shift", image_seq_len), num_train_timesteps=levels, name=name)
    if cls in EDM_CLASSES:
        sigma_min, sigma_max = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
        return variance_exploding.edm(sigma_min, sigma_max, config.get("rho", 7.0), name=name)
    if cls == "ScoreSdeVeScheduler":
        return variance_exploding.ve(config.get("sigma_min", 0.01), config.get("sigma_max", 1348.0), name=name)
    if cls == "ScoreSdeVpScheduler":
        return variance_preserving.linear_vp(config.get("beta_min", 0.1), config.get("beta_max", 20.0), name=name)
    if cls not in VP_CLASSES:
        known = sorted([*VP_CLASSES, *FLOW_CLASSES, *EDM_CLASSES, "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
        raise ValueError(f"scheduler class {cls!r} is not known; known classes: {', '.join(known)}")
    if flow_sigmas:
        return rectified_flow.flow(_shift(config, "flow_shift", image_seq_len), num_train_timesteps=levels, name=name)
    start, end, rule = VP_CLASSES[cls]
    betas = config.get("trained_betas")
    if betas is None:
        start, end = config.get("beta_start", start), config.get("beta_end", end)
        betas = variance_preserving.beta_table(config.get("beta_schedule", rule), start, end, levels)
    else:
        betas = _numbers(betas, "trained_betas")
    alphas_cumprod = np.cumprod(1.0 - betas)
    # CogVideoX scales the SNR of its training table.
    scale = config.get("snr_shift_scale", 1.0 if not cls.startswith("CogVideoX") else 3.0)
    alphas_cumprod = alphas_cumprod / (scale + (1.0 - scale) * alphas_cumprod)
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    return variance_preserving.discrete(alphas_cumprod, rescale_betas_zero_snr=zero_snr, name=name)


def _shift(config: Mapping[str, Any], static: str, image_seq_len: int) -> float:
    if not config.get("use_dynamic_shifting"):
        return config.get(static, 1.0)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift", "time_shift_type")
    given = {k: config[k] for k in keys if config.get(k) is not None}
    return rectified_flow.dynamic_shift(image_seq_len, **given)


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a list of numbers ({error})") from error
    variance_preserving.check_open_unit(table, what, last=1.0)
    return table


def _config_file(path: Path) -> Path:
    if path.is_dir():
        for candidate in (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"):
            if candidate.is_file():
                return candidate
        raise ValueError(f"{path} has no scheduler/scheduler_config.json; pass a diffusers model folder or the file")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; pass a scheduler_config.json, a model folder or a preset's name")
    return path


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable JSON file ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a JSON {type(config).__name__}, not a scheduler config")
    return config
