"""The weight of classifier-free guidance at which a pipeline runs unless its caller says otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hso_jax.noise import NoiseSchedule
from hso_jax.shipped.zoo import nearest_guidance

# Pipelines that write guidance as cond + scale (cond - uncond): their scale is w - 1.
ADDING = ("ZImage", "Krea2", "Cosmos2", "CosmosTextToWorld", "CosmosVideoToWorld")


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
        weight = float(default) + type(pipe).__name__.startswith(ADDING)
        return max(weight, 1.0), f"the pipeline's default {name}"
    return 1.0, "the pipeline names no weight"


def guidance_call(pipe: Any, weight: float, call: Mapping[str, Any]) -> dict[str, float]:
    """The argument by which a pipeline runs at a weight w.

    Args:
        pipe: a pipeline.
        weight: w; 1 is without guidance.
        call: its further arguments, which must not have that one.

    Raises:
        ValueError: if it has, or the pipeline guides by no second evaluation.
    """
    known = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    for name in ("true_cfg_scale", "guidance_scale"):
        if name not in known or (name == "guidance_scale" and _takes_guidance(pipe)):
            continue
        if name in call:
            raise ValueError(f"{name} is {call[name]!r} and guidance {weight!r}; leave one out")
        return {name: weight - type(pipe).__name__.startswith(ADDING)}
    if weight != 1.0:
        raise ValueError(f"guidance is {weight!r}; {type(pipe).__name__} has no classifier-free guidance: leave it out")
    return {}


def shipped(noise: NoiseSchedule, weight: float, why: str) -> tuple[float, str]:
    """Of the weights for which schedules of this model are shipped the nearest; as given where none is."""
    nearest = nearest_guidance(noise, weight)
    return nearest, why if nearest == weight else f"shipped; the nearest to {weight:g}, {why}"


def _takes_guidance(pipe: Any) -> bool:
    for name in ("transformer", "unet"):
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
            return True
        if "guidance_embeds" in config:  # FLUX.1-schnell: the network was distilled, and takes no weight at all
            return not hasattr(type(pipe), "do_classifier_free_guidance")
    return False
