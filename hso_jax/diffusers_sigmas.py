"""What to pass as a diffusers pipeline's `sigmas=`, so that its scheduler arrives at given levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hso_jax.checks import number
from hso_jax.noise.rectified_flow import Lengths, pipeline_mu, shift_of_mu

# Their `set_timesteps` shifts the sigmas it is given, and appends 0.
SHIFTING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
# It takes N + 1 sigmas as they are.
VERBATIM = ("EulerDiscreteScheduler", "LTXEulerAncestralRFScheduler")
_INSTALL = "use bridge.with_schedule(scheduler, schedule), which needs no argument"
_SPACING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_TERMINAL_TOLERANCE = 1e-5


def diffusers_sigmas(
    levels: np.ndarray, kind: str, scheduler: Any, *, mu: float | None = None, image_seq_len: int | None = None
) -> np.ndarray:
    """See `Schedule.diffusers_sigmas`; `levels` and `kind` are the schedule's `sampler_sigmas()` and `kind`."""
    pipeline = {"_class_name": type(scheduler).__name__, **(getattr(scheduler, "config", None) or {})}
    scheduler = getattr(scheduler, "scheduler", scheduler)
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"need a diffusers scheduler or pipeline, got {type(scheduler).__name__}")
    # A class that carries a schedule bears the name of diffusers' own.
    name = type(scheduler).__name__
    if name not in (*SHIFTING, *VERBATIM):
        raise ValueError(f"{name} takes no sigmas that it would follow exactly; {_INSTALL}")
    if (name != "EulerDiscreteScheduler") != (kind == "flow"):
        raise ValueError(f"the schedule is for noise of kind {kind!r}, which is not what {name} samples; {_INSTALL}")
    if on := [flag for flag in _SPACING if config.get(flag)]:
        raise ValueError(f"{name}: {on[0]} would replace the sigmas; switch it off, or {_INSTALL}")
    if name in VERBATIM:
        return np.array(levels)
    if config.get("use_flow_sigmas"):  # left there by another class's config
        raise ValueError(f"{name}: pipelines drop `sigmas` where the config has use_flow_sigmas; {_INSTALL}")
    if levels[-1] != 0.0:
        raise ValueError(f"{name} always goes on to sigma 0; use schedule.with_end('clean'), or {_INSTALL}")
    values = levels[:-1]
    terminal = config.get("shift_terminal")
    if terminal and abs(float(values[-1]) - terminal) > _TERMINAL_TOLERANCE:
        raise ValueError(
            f"{name}: shift_terminal stretches any sigmas until the last is {terminal}, and the schedule's is "
            f"{values[-1]:.6g}; set it to None, or {_INSTALL}"
        )
    if config.get("use_dynamic_shifting"):
        if mu is not None and image_seq_len is not None:
            raise ValueError("mu and image_seq_len both name the shift; give one of them")
        if mu is None:
            mu = _mu(name, config, pipeline, image_seq_len, len(values))
        shift = shift_of_mu(mu, config.get("time_shift_type", "exponential"))
    else:
        shift = number(
            "shift", getattr(scheduler, "shift", config.get("shift", 1.0)), low=0.0, need="a positive number"
        )
    return values / (shift - (shift - 1.0) * values)


def _mu(
    name: str, config: Mapping[str, Any], pipeline: Mapping[str, Any], image_seq_len: int | None, nfe: int
) -> float:
    """What the pipeline passes to its scheduler; a shift that is the same at every size needs no size."""
    same = config.get("base_shift") is not None and config.get("base_shift") == config.get("max_shift")
    if image_seq_len is None and not (same and config.get("time_shift_type") != "linear"):
        raise ValueError(
            f"{name}'s shift follows the image's size: pass image_seq_len (4096 for 1024 x 1024 pixels in FLUX), "
            "or the mu that the pipeline computes"
        )
    return pipeline_mu(pipeline, {**config, "_class_name": name}, image_seq_len or Lengths().base_image_seq_len, nfe)
