"""What a pipeline has now: its solver and its levels, in the words of `hso_jax`; and whether its model is distilled."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bridge.noise_of import solver_of
from bridge.schedulers.plain import without_schedule
from bridge.schedulers.scheduled import Installed
from hso_jax.baselines import baseline, inapplicable
from hso_jax.distilled import named_in, of_class
from hso_jax.noise import NoiseSchedule
from hso_jax.recommendation import Before
from hso_jax.shelf.predicted import RULES

_EVEN = ("StableDiffusion3",)  # pipelines that leave FlowMatch's own grid to it, evenly spaced between its ends
_OWN = "its own"


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
    """The key of the distillation that a pipeline's scheduler, network or names tell, and how it is told."""
    scheduler = without_schedule(pipe.scheduler)
    if (kind := of_class(type(scheduler).__name__)) is not None:
        return kind, f"its scheduler is {type(scheduler).__name__}"
    unet = getattr(getattr(pipe, "unet", None), "config", None) or {}
    if unet.get("time_cond_proj_dim") is not None:
        return "lcm", "its network takes the guidance weight as an input"
    transformer = getattr(getattr(pipe, "transformer", None), "config", None) or {}
    if type(pipe).__name__.startswith("Flux") and transformer.get("guidance_embeds") is False:
        return "schnell", "its network takes no guidance"
    found = named_in(_names(pipe))
    return None if found is None else (found[0], f"it names {found[1]}")


def _names(pipe: Any) -> Iterator[str]:
    """What the pipeline, its networks and their LoRAs are called."""
    for part in (pipe, getattr(pipe, "unet", None), getattr(pipe, "transformer", None)):
        config = getattr(part, "config", None) or {}
        yield str(getattr(part, "name_or_path", None) or config.get("_name_or_path") or "")
        active = getattr(part, "active_adapters", None)
        for name, lora in (getattr(part, "peft_config", None) or {}).items():
            if not callable(active) or name in active():
                yield name
                yield str(getattr(lora, "base_model_name_or_path", None) or "")


def _solver(scheduler: Any) -> str:
    try:
        return solver_of(scheduler)
    except ValueError:
        return type(scheduler).__name__


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
        if not type(pipe).__name__.startswith(_EVEN):
            call = {**call, "sigmas": np.linspace(1.0, 1.0 / nfe, nfe)}
    scheduler.set_timesteps(**call)
    return np.asarray(scheduler.timesteps.cpu(), np.float64)
