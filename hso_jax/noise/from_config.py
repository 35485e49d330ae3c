"""A noise schedule from a diffusers `scheduler_config.json`, without importing torch or diffusers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hso_jax.checks import MOST_LEVELS, brief, choice, flag, number, numbers, whole
from hso_jax.files import read_json
from hso_jax.noise import families, shifts
from hso_jax.noise.schedule import NoiseSchedule

_STABLE_DIFFUSION = (0.00085, 0.012, "scaled_linear")
_DDPM = (0.0001, 0.02, "linear")
_K_DIFFUSION = (0.00085, 0.012, "linear")
_RULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_ZERO, _SNR, _CONTINUOUS, _FLOW = "rescale_betas_zero_snr", "snr_shift_scale", "timestep_type", "use_flow_sigmas"
_INVERTED = "invert_sigmas"


class Known(NamedTuple):
    """What a scheduler class of diffusers takes from its config that decides the noise."""

    family: str  # of its noise where no key says otherwise: "vp", "flow", "edm" or one that is the class's own
    reads: tuple[str, ...] = ()  # which of `READERS` it looks at
    betas: tuple[float, float, str] = _DDPM  # "vp": beta_start, beta_end and beta_schedule where the config is silent
    rules: tuple[str, ...] = _RULES  # "vp": the `beta_schedule`s that it knows


def _of(names: str, *known: Any, **more: Any) -> dict[str, Known]:
    return {f"{name}Scheduler": Known(*known, **more) for name in names.split()}


CLASSES: Mapping[str, Known] = {
    **_of("CogVideoXDDIM CogVideoXDPM", "vp", (_ZERO, _SNR), _STABLE_DIFFUSION),
    **_of("DDIMInverse DDIMParallel DDIM EulerAncestralDiscrete", "vp", (_ZERO,)),
    **_of("DDPMParallel DDPM", "vp", (_ZERO,), rules=(*_RULES, "laplace", "sigmoid")),
    **_of("DEISMultistep DPMSolverMultistepInverse DPMSolverSinglestep SASolver", "vp", (_FLOW,)),
    **_of("DPMSolverMultistep UniPCMultistep", "vp", (_FLOW, _ZERO)),
    **_of("DPMSolverSDE KDPM2AncestralDiscrete KDPM2Discrete", "vp", (), _K_DIFFUSION),
    **_of("EulerDiscrete", "vp", (_ZERO, _CONTINUOUS)),
    **_of("HeunDiscrete", "vp", (), _K_DIFFUSION, (*_RULES, "exp")),
    **_of("LCM TCD", "vp", (_ZERO,), _STABLE_DIFFUSION),
    **_of("LMSDiscrete PNDM", "vp"),
    **_of("RePaint", "vp", rules=(*_RULES, "sigmoid")),
    **_of("UnCLIP", "vp", betas=(*_DDPM[:2], "squaredcos_cap_v2"), rules=("squaredcos_cap_v2",)),
    **_of("FlowMatchEulerDiscrete FlowMatchLCM", "flow", (_INVERTED,)),
    # The last two are Wan's and HiDream's own, which some of their configs name; diffusers has them under UniPC, DPM++.
    **_of("FlowMatchHeunDiscrete FlowDPMSolverMultistep FlowUniPCMultistep", "flow"),
    **_of("EDMDPMSolverMultistep EDMEuler", "edm"),
    **_of("CosineDPMSolverMultistep", "stable-audio"),
    **_of("DDPMWuerstchen", "wuerstchen"),
    **_of("ScoreSdeVe", "ve-sde"),
    **_of("ScoreSdeVp", "vp-sde"),
}
FLOW_CLASSES = tuple(name for name, known in CLASSES.items() if known.family == "flow")
# Keys of the noise that some classes alone look at -> one that does.
READERS: Mapping[str, str] = {
    _ZERO: "EulerDiscreteScheduler",
    _SNR: "CogVideoXDPMScheduler",
    _CONTINUOUS: "EulerDiscreteScheduler",
    _FLOW: "UniPCMultistepScheduler",
    _INVERTED: "FlowMatchEulerDiscreteScheduler",
}
_OF_FLOW = dict.fromkeys(
    ("shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift_terminal", _INVERTED, _FLOW),
    "a flow model's: use FlowMatchEulerDiscreteScheduler.from_config(config)",
)
_OF_VP = dict.fromkeys(
    ("beta_schedule", "trained_betas"), "a VP model's: use UniPCMultistepScheduler.from_config(config)"
)
# Family of a class -> keys that only models of other families have, and which class those need.
_FOREIGN: Mapping[str, Mapping[str, str]] = {
    "vp": {
        **_OF_FLOW,
        "sigma_data": "an EDM model's: use EDMEulerScheduler.from_config(config)",
        "scaler": "Wuerstchen's: use DDPMWuerstchenScheduler.from_config(config)",
    },
    "flow": _OF_VP,
    **{family: {**_OF_FLOW, **_OF_VP} for family in ("edm", "stable-audio", "wuerstchen")},
}

_TOKENS = "it samples tokens by their confidence, which have no noise levels: no schedule applies to its model"
_FLOW_EULER = "FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)"
_DISTILLED = (
    "its model is distilled, and knows only the levels and steps of this class; call it with num_inference_steps"
)

REFUSED: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": (
        "a consistency model knows only its own 40 levels; pass the pipeline integer `timesteps`, as in [22, 0]"
    ),
    "ConsistencyDecoderScheduler": "its decoder takes two fixed steps; install a schedule in the pipeline's scheduler",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": f"{_DISTILLED}, or sample a model that is not a flow map with {_FLOW_EULER}",
    "HeliosDMDScheduler": f"{_DISTILLED}, or the base model with UniPCMultistepScheduler",
    "HeliosScheduler": (
        "it changes the resolution between stages with levels of its own; for a single stage use "
        "UniPCMultistepScheduler(prediction_type='flow_prediction', use_flow_sigmas=True)"
    ),
    "IPNDMScheduler": "its levels are fixed by the cosine rule; use PNDMScheduler or DPMSolverMultistepScheduler",
    "KarrasVeScheduler": "it is deprecated, and its pipeline is gone; use EDMEulerScheduler",
    "LTXEulerAncestralRFScheduler": (
        f"it takes N + 1 sigmas as they are: pass schedule.sampler_sigmas().tolist() as `sigmas`; or use {_FLOW_EULER}"
    ),
    "MiniMaxH3Scheduler": "use FlowMatchEulerDiscreteScheduler(shift=scheduler.shift), the same solver",
    "PiflowScheduler": f"{_DISTILLED}, or the undistilled model with {_FLOW_EULER}",
    "RFD4ProteinaScheduler": "it rescales the score of two coupled flows by a rule of its own; it has no levels to set",
    "SCMScheduler": (
        "it takes its angles itself: pass `timesteps`, N + 1 values of arctan(ksigma / sigma_data) with a final 0, "
        "or sample the undistilled model with DPMSolverMultistepScheduler"
    ),
    "VQDiffusionScheduler": _TOKENS,
}
"""Class of diffusers whose noise is not read -> why, and what to use instead: its levels are no noise levels, or belong
to the class alone. `tests/bridge/test_bridge_noise_of.py` goes through every class of diffusers 0.42.1."""


def from_config(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    image_seq_len: int = 4096,
    mu: float | None = None,
    pipeline: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> NoiseSchedule:
    """The noise schedule of the model whose scheduler config this is.

    Keys that the config's class ignores, left there by the class that it was made from, are read: they describe the
    model.

    Args:
        config: the config as a mapping, the path of its JSON file, or a model's (or scheduler's) folder.
        image_seq_len: tokens of the image, for configs with `use_dynamic_shifting` (FLUX): 4096 is 1024 x 1024.
        mu: what the pipeline passes to a flow model's scheduler: the logarithm of the shift, or the shift itself where
            `time_shift_type` is "linear". It overrides the config's.
        pipeline: the pipeline's config, whose `_class_name` says by which rule mu follows from `image_seq_len`; by
            default the model folder's `model_index.json`.
        name: defaults to the folder's or the class's name.

    Raises:
        ValueError: for a path without a config (only regular files are opened), a file that is not a config, an unknown
            class or beta rule, a class that has no noise levels, keys of a model that the class cannot sample, or a
            value of a wrong type or out of range; the message names them.
    """
    if not isinstance(config, Mapping):
        if not isinstance(config, (str, os.PathLike)):
            raise ValueError(f"config is {brief(config)}; pass a mapping, or the path of a file or folder as a text")
        path = _config_file(Path(config))
        folder = path.parent.parent if path.parent.name == "scheduler" else path.parent
        name, config = name or folder.name or None, _read(path)
        indices = (folder / file for file in ("model_index.json", "modular_model_index.json"))
        pipeline = pipeline if pipeline is not None else next((_read(file) for file in indices if file.is_file()), None)
    cls = config.get("_class_name")
    if not isinstance(cls, str):
        keys = brief(", ".join(map(str, config)) or "none").strip("'")
        raise ValueError(f"the config has no `_class_name` (its keys: {keys})")
    if cls in REFUSED:
        raise ValueError(f"{cls} is not supported: {REFUSED[cls]}")
    if cls not in CLASSES:
        raise ValueError(unknown(cls, CLASSES, config))
    image_seq_len = whole("image_seq_len", image_seq_len, 1)
    try:
        family = _family(cls, config)
        if family == "flow":
            shift = _shift(cls, config, pipeline or {}, image_seq_len, mu)
            levels = config.get("num_train_timesteps", 1000)
            return families.flow(shift, num_train_timesteps=levels, name=name or cls)
        noise = _build(cls, family, config, name or cls)
        if mu is not None:
            raise ValueError(
                f"mu is the logarithm of a flow model's shift, but this is {noise.kind!r} noise: leave it out"
            )
        # Flow and EDM networks predict what their class says; the discrete ones name it, "epsilon" by default.
        named = config.get("prediction_type") if family == "vp" else None
        return noise if named is None else noise.with_prediction(named)
    except ValueError as error:
        raise ValueError(f"{cls}: {error}") from error


def ignored_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys of the model's noise that the config's class does not look at -> a class that does."""
    known, family = CLASSES[config["_class_name"]], _family(config["_class_name"], config)
    matter = {
        _ZERO: family == "vp" and config.get(_ZERO, False),
        _SNR: family == "vp" and config.get(_SNR, 1.0) != 1.0,
        _CONTINUOUS: family == "edm" and known.family == "vp",
        _FLOW: family == "flow" and known.family == "vp",
        _INVERTED: family == "flow" and config.get(_INVERTED, False),
    }
    return {key: READERS[key] for key, matters in matter.items() if matters and key not in known.reads}


def _family(cls: str, config: Mapping[str, Any]) -> str:
    """The family of the model that the config was made for; a ValueError for a class that cannot sample it."""
    family = CLASSES[cls].family
    flow = flag(_FLOW, config.get(_FLOW, False)) or config.get("prediction_type") == "flow_prediction"
    if flow and family in ("vp", "flow"):
        return "flow"
    if config.get(_CONTINUOUS) == "continuous" and config.get("prediction_type") == "v_prediction":
        if family == "edm" and config.get("sigma_data", 0.5) != 1.0:
            raise ValueError(
                f"timestep_type 'continuous' is Stable Video Diffusion's, whose sigma_data is 1: use "
                f"{cls}.from_config(config, sigma_data=1.0)"
            )
        if family in ("vp", "edm"):
            return "edm"
    for key, why in _FOREIGN.get(family, {}).items():
        if config.get(key) is not None and config[key] is not False:
            raise ValueError(f"{key} is {brief(config[key])}, which this class ignores, and {why}")
    return family


def _build(cls: str, family: str, config: Mapping[str, Any], name: str) -> NoiseSchedule:
    """The noise of a family other than flow."""

    def values(**defaults: float) -> list[Any]:
        return [config.get(key, default) for key, default in defaults.items()]

    if family == "edm" and CLASSES[cls].family == "vp":  # as Stable Video Diffusion: EDM's model, told log(sigma)/4
        if config.get("sigma_min") is None or config.get("sigma_max") is None:
            raise ValueError(
                "timestep_type 'continuous' needs sigma_min and sigma_max in the config: "
                f"use {cls}.from_config(config, sigma_min=0.002, sigma_max=700.0) with the model's"
            )
        return families.edm(config["sigma_min"], config["sigma_max"], name=name)
    if family == "edm":
        return families.edm(*values(sigma_min=0.002, sigma_max=80.0, rho=7.0), name=name)
    if family == "stable-audio":  # EDM's noise, whose network is told 2/pi arctan(sigma); t is its own ramp
        rule = choice("sigma_schedule", config.get("sigma_schedule", "exponential"), ("exponential", "karras"))
        ends = values(sigma_min=0.3, sigma_max=500.0)
        noise = families.edm(*ends, *values(rho=7.0), name=name) if rule == "karras" else families.ve(*ends, name=name)
        return dataclasses.replace(noise, timestep_rule="arctan_ksigma").with_prediction("edm")
    if family == "wuerstchen":
        return families.clipped_cosine(*values(s=0.008, scaler=1.0), name=name)
    if family == "ve-sde":
        return families.ve(*values(sigma_min=0.01, sigma_max=1348.0), name=name)
    if family == "vp-sde":
        return families.linear_vp(*values(beta_min=0.1, beta_max=20.0), name=name)
    alphas_cumprod = np.cumprod(1.0 - _betas(cls, config))
    # CogVideoX scales the SNR of its training table.
    scale = config.get(_SNR, 3.0 if _SNR in CLASSES[cls].reads else 1.0)
    scale = number(_SNR, scale, low=0.0, high=1e6)
    alphas_cumprod = alphas_cumprod / (scale + (1.0 - scale) * alphas_cumprod)
    zero_snr = flag(_ZERO, config.get(_ZERO, False))
    return families.discrete(alphas_cumprod, rescale_betas_zero_snr=zero_snr, name=name)


def _betas(cls: str, config: Mapping[str, Any]) -> np.ndarray:
    trained = config.get("trained_betas")
    if trained is None:
        start, end, rule = CLASSES[cls].betas
        return families.beta_table(
            choice("beta_schedule", config.get("beta_schedule", rule), CLASSES[cls].rules),
            config.get("beta_start", start),
            config.get("beta_end", end),
            config.get("num_train_timesteps", 1000),
        )
    table = numbers("trained_betas", trained)
    if table.ndim != 1 or not 2 <= len(table) <= MOST_LEVELS:
        raise ValueError(f"trained_betas is {brief(trained)}; need null or a flat list of 2 to {MOST_LEVELS} numbers")
    families.check_open_unit(table, "trained_betas", last=1.0)
    return table


def _shift(
    cls: str, config: Mapping[str, Any], pipeline: Mapping[str, Any], image_seq_len: int, mu: float | None
) -> float:
    rule = config.get("time_shift_type", "exponential")
    if mu is not None:
        return shifts.shift_of_mu(mu, rule)
    if flag("use_dynamic_shifting", config.get("use_dynamic_shifting", False)):
        return shifts.shift_of_mu(shifts.pipeline_mu(pipeline, config, image_seq_len), rule)
    key, other = ("shift", "flow_shift") if CLASSES[cls].family == "flow" else ("flow_shift", "shift")
    if config.get(key, 1.0) == 1.0 and config.get(other) is not None:  # the key of the class that it was made from
        key = other
    shift = number(key, config.get(key, 1.0), low=0.0, need="a positive number")
    return shift * shifts.grid_shift(pipeline, image_seq_len)


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
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a scheduler config: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}, not a scheduler config")
    return found


def unknown(name: str, known: Iterable[str], config: Mapping[str, Any]) -> str:
    """What to say of a class that is in no table: the known class whose name is nearest, or one of its model's kind."""
    import difflib  # only where something is wrong

    near = difflib.get_close_matches(name[:100], list(known), 1)
    flow = "flow" in name.lower() or "shift" in config or config.get("prediction_type") == "flow_prediction"
    kind = "FlowMatchEulerDiscrete" if flow else "EDMEuler" if "sigma_data" in config else "DDPM"
    near = near or [f"{kind}Scheduler"]
    return f"scheduler class {brief(name)} is not known; the nearest that is: {near[0]}"
