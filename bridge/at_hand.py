"""What a pipeline has now: its solver and levels, its guidance, its LoRAs, and whether it was distilled."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np

from bridge.noise_of import solver_of
from bridge.schedulers.scheduled import Installed, without_schedule
from hso_jax.baselines import baseline, inapplicable
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.distilled import named_in, of_class, of_configs, t_of_s
from hso_jax.shipped.recommend import CurrentSampling
from hso_jax.shipped.zoo import RULES
from hso_jax.solvers import NONSTATIONARY, SOLVERS

_OWN = "its own"
_NETWORKS = ("unet", "transformer", "transformer_2")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Pipelines that take `sigmas` and leave FlowMatch's own grid to it where there are none, and those that give it some
# of their own without taking any.
_EVEN = ("StableDiffusion3", "LuminaP", "Sana", "HiDream", "CogView4", "GlmImage", "JoyImage", "AnyFlow", "Kandinsky6")
_GIVES = ("Bria", "ErnieImage", "LTXPipeline", "LTXImageToVideo")
# Pipelines that write guidance as cond + scale (cond - uncond): their scale is w - 1.
_ADDING = ("ZImage", "Krea2", "Cosmos2", "CosmosTextToWorld", "CosmosVideoToWorld")


def current_sampling(pipe: Any, noise: NoiseSchedule, nfe: int) -> CurrentSampling:
    """The solver and the nodes that a pipeline samples with now."""
    scheduler = pipe.scheduler
    if isinstance(scheduler, Installed):
        installed = scheduler.schedule
        nodes = installed.method if installed.nfe == nfe else f"{installed.method} for N = {installed.nfe}"
        return CurrentSampling(installed.solver if installed.solver != "any" else _solver(scheduler), nodes, None)
    return CurrentSampling(_solver(scheduler), rule_of(pipe, noise, nfe), None)


def current_schedule(pipe: Any, noise: NoiseSchedule, nfe: int) -> Schedule | None:
    """The levels and the solver that a pipeline samples N steps with now; None where they are not known.

    They are not for schedulers that add noise or evaluate twice a step.
    """
    scheduler = pipe.scheduler
    now = current_sampling(pipe, noise, nfe)
    if now.solver not in (*SOLVERS, NONSTATIONARY) or getattr(SOLVERS.get(now.solver), "calls", 1) > 1:
        return None
    if isinstance(scheduler, Installed):
        found = scheduler.schedule if scheduler.schedule.nfe == nfe else None
    elif now.nodes != _OWN:
        found = baseline(now.nodes, noise, nfe)
    else:
        found = None if noise.kind == "ve" else own_levels(pipe, noise, nfe, "levels")
    if found is None or found.coefficients is not None:
        return found
    return dataclasses.replace(found, origin=dataclasses.replace(found.origin, solver=now.solver))


def _solver(scheduler: Any) -> str:
    try:
        return solver_of(scheduler)
    except ValueError:
        return type(scheduler).__name__


def rule_of(pipe: Any, noise: NoiseSchedule, nfe: int) -> str:
    """The rule whose levels a pipeline's scheduler takes for N steps; "its own" where it is none of `RULES`."""
    try:
        theirs = _timesteps(pipe, noise, nfe)
    except Exception:  # some classes take fewer steps than asked for, or insist on arguments of their own
        return _OWN
    found: list[tuple[float, str]] = []
    for rule in RULES:
        if inapplicable(rule, noise) is not None:
            continue
        try:
            ours = np.asarray(baseline(rule, noise, nfe).timesteps)
        except ValueError:  # too little room for the rule
            continue
        if ours.shape == theirs.shape:
            found.append((float(np.abs(ours - theirs).max()), rule))
    off, nearest = min(found, default=(math.inf, _OWN))
    # What rounding to training levels makes of a timestep; FlowMatch shifts the end of its own grid twice.
    near = (0.01 if noise.kind == "flow" else 0.0015) * noise.num_train_timesteps
    if noise.kind == "ve" or noise.num_train_timesteps == 1:
        near = 0.01
    return nearest if off <= near else _OWN


def own_levels(pipe: Any, noise: NoiseSchedule, nfe: int, kind: str) -> Schedule | None:
    """The levels that a distilled pipeline's own scheduler takes; None where it takes none for so many steps."""
    try:
        told = _timesteps(pipe, noise, nfe)
        if len(told) != nfe:  # SCMScheduler's angles and their end
            return None
        levels = noise.num_train_timesteps
        t = t_of_s(noise, told / levels) if noise.kind == "flow" else (told + 1.0) / levels
        return Schedule.from_t(noise, np.clip(t, noise.t_min, noise.t_max), origin=Origin(method=f"own-{kind}"))
    except Exception:  # as in `rule_of`
        return None


def _timesteps(pipe: Any, noise: NoiseSchedule, nfe: int) -> np.ndarray:
    """[N] what the network would be told, by a copy of the scheduler."""
    scheduler = copy.deepcopy(pipe.scheduler)
    known = inspect.signature(scheduler.set_timesteps).parameters
    call: dict[str, Any] = {"num_inference_steps": nfe}
    if noise.kind == "flow" and "sigmas" in known and "FlowMatch" in type(scheduler).__name__:
        if scheduler.config.get("use_dynamic_shifting"):
            call["mu"] = -float(noise.lam(0.5))
            if scheduler.config.get("time_shift_type") == "linear":
                call["mu"] = math.exp(call["mu"])
        name = type(pipe).__name__
        takes = "sigmas" in inspect.signature(getattr(diffusers, name, type(pipe)).__call__).parameters
        if name.startswith(_GIVES) or (takes and not name.startswith(_EVEN)):  # 1, 1 - 1/N, ..., 1/N, to be shifted
            call["sigmas"] = np.linspace(1.0, 1.0 / nfe, nfe)
    scheduler.set_timesteps(**call)
    return np.asarray(scheduler.timesteps.cpu(), np.float64)


def usual_guidance(pipe: Any) -> tuple[float, str]:
    """The pipeline's default weight w (1 where it guides by no second evaluation), and how that is known.

    `guidance_scale` is the weight, except where the network takes it as an input (FLUX, HunyuanVideo, LCM): those
    evaluate once, and guide as others do only by `true_cfg_scale`.
    """
    call = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    for name in ("true_cfg_scale", "guidance_scale"):
        default = call[name].default if name in call else None
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        if name == "guidance_scale" and _takes_guidance(pipe):
            return 1.0, "its guidance_scale is an input of the network, not classifier-free guidance"
        weight = float(default) + type(pipe).__name__.startswith(_ADDING)
        return max(weight, 1.0), f"the pipeline's default {name}"
    return 1.0, "the pipeline names no weight"


def guidance_call(pipe: Any, weight: float, call: Mapping[str, Any]) -> dict[str, float]:
    """The argument by which a pipeline runs at a weight w (1 is without guidance).

    ValueError if its further arguments, `call`, have that one, or if it guides by no second evaluation.
    """
    known = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    for name in ("true_cfg_scale", "guidance_scale"):
        if name not in known or (name == "guidance_scale" and _takes_guidance(pipe)):
            continue
        if name in call:
            raise ValueError(f"{name} is {call[name]!r} and guidance {weight!r}; leave one out")
        return {name: weight - type(pipe).__name__.startswith(_ADDING)}
    if weight != 1.0:
        raise ValueError(f"guidance is {weight!r}; {type(pipe).__name__} has no classifier-free guidance: leave it out")
    return {}


def _takes_guidance(pipe: Any) -> bool:
    for name in ("transformer", "unet"):
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
            return True
        if "guidance_embeds" in config:  # FLUX.1-schnell: the network was distilled, and takes no weight at all
            return not hasattr(type(pipe), "do_classifier_free_guidance")
    return False


def distillation_of(pipe: Any) -> tuple[str, str] | None:
    """The key of the distillation that a pipeline's scheduler, configs or names tell, and how it is told."""
    scheduler = without_schedule(pipe.scheduler)
    if (kind := of_class(type(scheduler).__name__)) is not None:
        return kind, f"its scheduler is {type(scheduler).__name__}"
    index = {"_class_name": type(pipe).__name__, **_config(pipe)}
    networks = [_config(network) for network in _networks(pipe)]
    for config in networks or [{}]:
        if (kind := of_configs(index, config)) is not None:
            lcm = config.get("time_cond_proj_dim") is not None
            return kind, "its network takes the guidance weight as an input" if lcm else "its config says so"
    flux1 = re.match(r"Flux(?!\d)", type(pipe).__name__)  # FLUX.2's base models have no embedded guidance either
    if flux1 and any(config.get("guidance_embeds") is False for config in networks):
        return "schnell", "its network takes no guidance"
    names = [*map(_name, (pipe, *_networks(pipe))), index["_class_name"]]
    found = named_in(_lora_names(pipe) if index.get("is_distilled") is False else [*names, *_lora_names(pipe)])
    return None if found is None else (found[0], f"it names {found[1]}")


def active_loras(pipe: Any) -> list[str]:
    """The names of the LoRAs that change what a pipeline's networks predict: active ones, and those fused into them.

    diffusers keeps no file's name: an adapter is called "default_0" unless its loader was told otherwise. One that is
    disabled, has weight 0 or is in a text encoder alone does not count.
    """
    names = [name for network in _networks(pipe) for name in _active(network)]
    parts = [getattr(pipe, name, None) for name in (*_NETWORKS, *_TEXT_ENCODERS)]
    loaded = {name for part in parts for name in getattr(part, "peft_config", None) or ()}
    fused = getattr(pipe, "fused_loras", None) or getattr(pipe, "_merged_adapters", None) or ()
    return list(dict.fromkeys([*names, *(name for name in sorted(fused) if name not in loaded)]))


def _networks(pipe: Any) -> list[Any]:
    return [network for name in _NETWORKS if (network := getattr(pipe, name, None)) is not None]


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", None) or {}


def _name(part: Any) -> str:
    return str(getattr(part, "name_or_path", None) or _config(part).get("_name_or_path") or "")


def _lora_names(pipe: Any) -> list[str]:
    """What the active LoRAs are called, and the models that they were made for."""
    configs = {n: c for network in _networks(pipe) for n, c in (getattr(network, "peft_config", None) or {}).items()}
    names = active_loras(pipe)
    return [*names, *(str(getattr(configs.get(name), "base_model_name_or_path", None) or "") for name in names)]


def _active(network: Any) -> list[str]:
    """The adapters of a network that are not disabled, with a weight that is not 0."""
    loaded = list(getattr(network, "peft_config", None) or {})
    modules = network.modules() if callable(getattr(network, "modules", None)) else ()
    layers = [m for m in modules if hasattr(m, "disable_adapters") and hasattr(m, "merged_adapters")]  # peft's
    if layers:
        return [name for name in loaded if any(_acts(layer, name) for layer in layers)]
    active = getattr(network, "active_adapters", None)
    if not callable(active):
        return loaded
    try:
        names = active()
    except ValueError:  # nothing is loaded any more
        return []
    return [name for name in loaded if name in ([names] if isinstance(names, str) else names or ())]


def _acts(layer: Any, name: str) -> bool:
    if layer.disable_adapters or name not in (*layer.active_adapters, *layer.merged_adapters):
        return False
    return bool(getattr(layer, "scaling", {}).get(name, 0.0) != 0.0)
