"""The few methods of diffusers' classes that must be other than the parent's for a schedule to be exact."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from bridge.schedulers.levels import nearest


def own_methods(name: str, parent: Any, step: Any) -> dict[str, Any]:
    """The methods, by name, that the scheduled class of `diffusers.<name>` has beside those of every such class.

    Args:
        name: of the class.
        parent: diffusers' class.
        step: what every scheduled class has as its `step`.
    """
    if name == "CogVideoXDPMScheduler":
        return {"step": _cogvideox_dpm_step(parent)}
    if name == "PNDMScheduler":
        return {"step": _pndm_step(parent, step)}
    if name == "DDPMWuerstchenScheduler":
        return {"_alpha_cumprod": _alpha_cumprod(parent)}
    if name == "FlowMatchEulerDiscreteScheduler":
        return {"scale_noise": _scale_noise(parent), "step": _token_step(parent, step)}
    if name == "FlowMatchLCMScheduler":
        return {"scale_noise": _scale_noise(parent)}
    return {}


def _cogvideox_dpm_step(parent: Any) -> Any:
    """Its arguments stand in another order, and name two nodes."""

    @functools.wraps(parent.step)
    def step(
        self: Any,
        model_output: Any,
        old_pred_original_sample: Any,
        timestep: Any,
        timestep_back: Any,
        sample: Any,
        *args: Any,
        **options: Any,
    ) -> Any:
        row, seen = self._levels.shown(self, timestep)
        back = None if timestep_back is None else self._levels.shown(self, timestep_back)[0]
        view = object.__new__(type(self))  # the parent's step keeps nothing in the scheduler
        view.__dict__.update(self.__dict__, **seen)
        return parent.step(view, model_output, old_pred_original_sample, row, back, sample, *args, **options)

    return step


def _pndm_step(parent: Any, inherited: Any) -> Any:
    """Where img2img begins at the node that stands twice, the second evaluation is of a sample one level on: dropped.

    (A start at that node's second entry cannot be told from this one before the second call.)
    """

    @functools.wraps(parent.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        if self.counter != 1 or self._levels.place(timestep) != self._first_node:
            return inherited(self, model_output, timestep, sample, return_dict=return_dict)
        self.counter, self.cur_sample = 2, None
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)

    return step


def _alpha_cumprod(parent: Any) -> Any:
    """Wuerstchen computes its levels from t, in float32 and clipped (so that the end is never clean)."""

    @functools.wraps(parent._alpha_cumprod)
    def alpha_cumprod(self: Any, t: Any, device: Any) -> Any:
        levels = self._levels
        places = [nearest(levels.written["timesteps"], x) for x in t.flatten()]
        values = torch.from_numpy(levels.alphas[places] ** 2)
        return values.to(device=device, dtype=torch.float32 if torch.device(device).type == "mps" else torch.float64)

    return alpha_cumprod


def _token_step(parent: Any, inherited: Any) -> Any:
    """Where each token has its own timestep (LTX, SanaWM) the parent keeps the dtype of its sigmas, here float64."""

    @functools.wraps(parent.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        result = inherited(self, model_output, timestep, sample, *args, **options)
        if options.get("per_token_timesteps") is None:
            return result
        wide = torch.promote_types(sample.dtype, torch.float32)  # as the parent has it with float32 sigmas
        if isinstance(result, tuple):
            return (result[0].to(wide), *result[1:])
        result.prev_sample = result.prev_sample.to(wide)
        return result

    return step


def _scale_noise(parent: Any) -> Any:
    """With `invert_sigmas` the parent takes the data's share for the noise's."""

    @functools.wraps(parent.scale_noise)
    def scale_noise(self: Any, sample: Any, timestep: Any, noise: Any = None) -> Any:
        data, noise = (noise, sample) if self.config.invert_sigmas else (sample, noise)
        return parent.scale_noise(self, data, timestep, noise)

    return scale_noise
