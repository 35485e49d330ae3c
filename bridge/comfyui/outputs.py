"""What the nodes share: the inputs that all have, and a schedule as SIGMAS, alone or with its SAMPLER."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from hso_jax.schedule import Schedule

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
CHECK = "optional: the sigmas are refused if they were not made for this model's noise"


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


def to_sigmas(schedule: Schedule | None, steps: int) -> torch.Tensor:
    """[steps + 1] the schedule's last sigmas, float32; 0 at the end of a clean one. Empty without a schedule.

    Raises:
        ValueError: for one that begins at an infinite sigma, which ComfyUI would make NaN of.
    """
    if schedule is None:
        return torch.FloatTensor([])
    sigmas = schedule.sampler_sigmas()[-(steps + 1) :]
    if not np.isfinite(sigmas).all():
        raise ValueError(
            f"the schedule ({schedule.model}, {schedule.method}) begins at pure noise, sigma = {sigmas[0]}, where "
            "ComfyUI's samplers cannot; for a model of zero terminal SNR connect its MODEL and choose 'from MODEL'"
        )
    return torch.tensor(sigmas, dtype=torch.float32)


def sigmas_alone(schedule: Schedule | None, steps: int) -> tuple[torch.Tensor]:
    """`to_sigmas` for a node without a SAMPLER.

    Raises:
        ValueError: for a schedule whose sigmas mean nothing without its coefficients, and as `to_sigmas`.
    """
    if schedule is not None and schedule.coefficients is not None:
        raise ValueError(
            f"the schedule ({schedule.method}) is a solver too, and its sigmas belong to its own coefficients; use HSO "
            "Sampler or HSO Sampler File, and connect both outputs"
        )
    return (to_sigmas(schedule, steps),)


def sampler_and_sigmas(schedule: Schedule | None, steps: int) -> tuple[Any, torch.Tensor]:
    """A ComfyUI SAMPLER that takes the schedule's last steps, and their sigmas.

    Raises:
        ValueError: as `sampler_options` and `to_sigmas`.
    """
    import comfy.samplers

    if schedule is None:  # ComfyUI returns the latent as it is, whatever the sampler
        return comfy.samplers.KSAMPLER(sample_own_nodes, {"nodes": [], "coefficients": []}), to_sigmas(None, steps)
    sigmas = to_sigmas(schedule, steps)
    return comfy.samplers.KSAMPLER(sample_own_nodes, sampler_options(schedule, steps)), sigmas
