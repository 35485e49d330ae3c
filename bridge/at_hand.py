"""What a pipeline has now: its solver and its levels, in the words of `hso_jax`; and whether its model is distilled."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np

from bridge.noise_of import solver_of
from bridge.schedulers.plain import without_schedule
from bridge.schedulers.scheduled import Installed
from hso_jax.baselines import baseline, inapplicable
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.distilled import named_in, of_class, of_configs, t_of_s
from hso_jax.shipped.recommend import Before
from hso_jax.shipped.zoo import RULES

# Pipelines that take `sigmas` and leave FlowMatch's own grid to it where there are none, and those that give it some
# of their own without taking any.
_EVEN = ("StableDiffusion3", "LuminaP", "Sana", "HiDream", "CogView4", "GlmImage", "JoyImage", "AnyFlow", "Kandinsky6")
_GIVES = ("Bria", "ErnieImage", "LTXPipeline", "LTXImageToVideo")
_OWN = "its own"
_NETWORKS = ("unet", "transformer", "transformer_2")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def before(pipe: Any, noise: NoiseSchedule, nfe: int) -> Before:
    """The solver and the nodes that a pipeline samples with now."""
    scheduler = pipe.scheduler
    if isinstance(scheduler, Installed):
        installed = scheduler.schedule
        nodes = installed.method if installed.nfe == nfe else f"{installed.method} for N = {installed.nfe}"
        return Before(installed.solver if installed.solver != "any" else _solver(scheduler), nodes, None)
    return Before(_solver(scheduler), rule_of(pipe, noise, nfe), None)


def rule_of(pipe: Any, noise: NoiseSchedule, nfe: int) -> str:
    """The rule whose levels a pipeline's scheduler takes for N steps; "its own" where it is none of `RULES`.

    Levels may differ from the rule's by the rounding to training levels.
    """
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
    return nearest if off <= _near(noise) else _OWN


def _near(noise: NoiseSchedule) -> float:
    """What rounding to training levels makes of a timestep; FlowMatch shifts the end of its own grid twice."""
    if noise.kind == "ve" or noise.num_train_timesteps == 1:
        return 0.01
    return (0.01 if noise.kind == "flow" else 0.0015) * noise.num_train_timesteps


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


def own_levels(pipe: Any, noise: NoiseSchedule, nfe: int, kind: str) -> Schedule | None:
    """The levels that a distilled pipeline's own scheduler takes; None where it takes none for so many steps."""
    try:
        told = _timesteps(pipe, noise, nfe)
        levels = noise.num_train_timesteps
        t = t_of_s(noise, told / levels) if noise.kind == "flow" else (told + 1.0) / levels
        return Schedule.from_t(noise, np.clip(t, noise.t_min, noise.t_max), origin=Origin(method=f"own-{kind}"))
    except Exception:  # as in `rule_of`
        return None


def _networks(pipe: Any) -> list[Any]:
    return [network for name in _NETWORKS if (network := getattr(pipe, name, None)) is not None]


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", None) or {}


def _name(part: Any) -> str:
    """What a pipeline or a network is called."""
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
    names = [names] if isinstance(names, str) else list(names or ())
    return [name for name in loaded if name in names]


def _acts(layer: Any, name: str) -> bool:
    if layer.disable_adapters or name not in (*layer.active_adapters, *layer.merged_adapters):
        return False
    return bool(getattr(layer, "scaling", {}).get(name, 0.0) != 0.0)


def _solver(scheduler: Any) -> str:
    try:
        return solver_of(scheduler)
    except ValueError:
        return type(scheduler).__name__


def _gives_sigmas(pipe: Any) -> bool:
    """Whether a pipeline gives its FlowMatch scheduler 1, 1 - 1/N, ..., 1/N, to be shifted."""
    name = type(pipe).__name__
    takes = "sigmas" in inspect.signature(getattr(diffusers, name, type(pipe)).__call__).parameters
    return name.startswith(_GIVES) or (takes and not name.startswith(_EVEN))


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
        if _gives_sigmas(pipe):
            call = {**call, "sigmas": np.linspace(1.0, 1.0 / nfe, nfe)}
    scheduler.set_timesteps(**call)
    return np.asarray(scheduler.timesteps.cpu(), np.float64)
