"""What the nodes share: the inputs that all have, and a schedule as SIGMAS, alone or with its SAMPLER."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from hso_jax.schedule import Schedule

from .connected import Scaling, scaling_of
from .sampler import sample_own_nodes, sampler_options

_MOST_STEPS = 998  # a table of 1000 levels, its two ends aside
STEPS = {"default": 6, "min": 1, "max": 100, "tooltip": "model evaluations, as in BasicScheduler"}
DENOISE = {
    "default": 1.0,
    "min": 0.0,
    "max": 1.0,
    "step": 0.01,
    "tooltip": "as in BasicScheduler: the last steps of a schedule of int(steps / denoise) steps",
}
CHECK = "optional: your MODEL; sigmas that were not made for its noise are refused"
SAMPLER_OUT = "connect to the sampler of SamplerCustom, with the SIGMAS of this node"
SIGMAS_OUT = "steps + 1 noise levels: connect to the sigmas of SamplerCustom"


def slice_for(denoise: float, steps: int) -> int | None:
    """Steps to make a schedule for, so that its last `steps` begin at `denoise`; None for no sampling at all.

    The rule of ComfyUI's BasicScheduler: `int(steps / denoise)` in all, the last `steps + 1` sigmas kept.

    Raises:
        ValueError: for a denoise outside [0, 1], fewer than one step, or more in all than models have levels.
    """
    if not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise is {denoise}; need 0 to 1")
    if steps < 1:
        raise ValueError(f"steps is {steps}; need 1 or more")
    if denoise == 0.0:
        return None
    total = int(steps / denoise)
    if total > _MOST_STEPS:
        fixes = [f"at most {fewer} steps"] if (fewer := int(_MOST_STEPS * denoise)) else []
        if steps <= _MOST_STEPS:
            fixes.append(f"a denoise of {math.ceil(100 * steps / _MOST_STEPS) / 100:g} or more")
        raise ValueError(
            f"{steps} steps at denoise {denoise:g} are the end of a schedule of {total} steps, and models have "
            f"{_MOST_STEPS} levels for them; use {', or '.join(fixes)}"
        )
    return total


def levels(schedule: Schedule, steps: int, scaling: Scaling) -> np.ndarray:
    """[steps + 1] the schedule's last sigmas as ComfyUI's samplers take them, float64; 0 at the end of a clean one.

    Raises:
        ValueError: for a schedule that begins at pure noise, where ComfyUI knows no sigma for it.
    """
    sigmas = schedule.sampler_sigmas()[-(steps + 1) :]
    if schedule.kind == "flow" and scaling.noise != 1.0:
        sigmas = sigmas / (sigmas + scaling.noise * (1.0 - sigmas))
    sigmas = np.where(np.isposinf(sigmas), scaling.pure, sigmas)
    if not np.isfinite(sigmas).all():
        raise ValueError(
            f"the schedule ({schedule.model}, {schedule.method}) begins at pure noise, sigma = {sigmas[0]}; connect "
            "the MODEL to diffusion_model, and choose 'from MODEL' where a node has this choice"
        )
    return sigmas


def to_sigmas(schedule: Schedule | None, steps: int, diffusion_model: Any = None) -> torch.Tensor:
    """[steps + 1] `levels` as float32, written as the connected MODEL has them. Empty without a schedule."""
    if schedule is None:
        return torch.FloatTensor([])
    return torch.tensor(levels(schedule, steps, scaling_of(diffusion_model)), dtype=torch.float32)


def sigmas_alone(schedule: Schedule | None, steps: int, diffusion_model: Any = None) -> tuple[torch.Tensor]:
    """`to_sigmas` for a node without a SAMPLER.

    Raises:
        ValueError: for a schedule whose sigmas mean nothing without its coefficients, and as `levels`.
    """
    if schedule is not None and schedule.coefficients is not None:
        raise ValueError(
            f"the schedule ({schedule.method}) is a solver too, and its sigmas belong to its own coefficients; use HSO "
            "Sampler or HSO Sampler File, and connect both outputs"
        )
    return (to_sigmas(schedule, steps, diffusion_model),)


def sampler_and_sigmas(schedule: Schedule | None, steps: int, diffusion_model: Any = None) -> tuple[Any, torch.Tensor]:
    """A ComfyUI SAMPLER that takes the schedule's last steps, and their sigmas.

    Raises:
        ValueError: as `sampler_options` and `levels`.
    """
    import comfy.samplers

    if schedule is None:  # ComfyUI returns the latent as it is, whatever the sampler
        return comfy.samplers.KSAMPLER(sample_own_nodes, {"nodes": [], "coefficients": []}), to_sigmas(None, steps)
    scaling = scaling_of(diffusion_model)
    options = {**sampler_options(schedule, steps), "nodes": levels(schedule, steps, scaling).tolist()}
    if scaling.unscaled:
        options["unscaled"] = True
    sigmas = to_sigmas(schedule, steps, diffusion_model)
    return comfy.samplers.KSAMPLER(sample_own_nodes, options), sigmas
