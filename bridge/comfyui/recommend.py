"""The node for most: which solver, which steps, from what is shipped."""

from __future__ import annotations

from typing import Any

import torch

from hso_jax.noise import PRESETS
from hso_jax.schedule import Schedule
from hso_jax.shelf.shipped import MAX_NFE, nearest_guidance, zoo

from .connected import FROM_MODEL, chosen_noise
from .outputs import CHECK, DENOISE, STEPS, sampler_and_sigmas, slice_for


class HsoRecommend:
    """The solver and the steps with the least predicted error, from the shipped schedules alone."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("SAMPLER", "SIGMAS", "why")
    FUNCTION = "get_sampler"
    DESCRIPTION = (
        "Sampler and sigmas for a few steps: connect both. Say your model's family and the cfg you sample with."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        guidance = {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": _GUIDANCE}
        return {
            "required": {
                "model": ([*PRESETS, FROM_MODEL], {"default": "sdxl", "tooltip": _MODEL}),
                "steps": ("INT", {**STEPS, "max": MAX_NFE}),
                "guidance": ("FLOAT", guidance),
                "denoise": ("FLOAT", DENOISE),
            },
            "optional": {"diffusion_model": ("MODEL", {"tooltip": CHECK})},
        }

    def get_sampler(
        self, model: str, steps: int, guidance: float, denoise: float, diffusion_model: Any = None
    ) -> tuple[Any, torch.Tensor, str]:
        """SAMPLER, SIGMAS and the reason; sigmas are empty at denoise 0.

        Raises:
            ValueError: for an unknown family, a MODEL that does not fit it, more steps than are shipped, a noise that
                no shipped schedule is for, or a guidance of 0 with no family to say what is usual.
        """
        total = slice_for(denoise, steps)
        noise = chosen_noise(model, diffusion_model)
        if total is None:
            return *sampler_and_sigmas(None, steps), "denoise is 0: no sampling"
        weight = guidance or (PRESETS[model].guidance if model in PRESETS else 0.0)
        if not weight:
            raise ValueError(
                f"guidance is 0 (the model's usual), which is known for a family only, not {FROM_MODEL!r}; "
                "set it to the cfg of your sampler"
            )
        if total > MAX_NFE:
            raise ValueError(
                f"{steps} steps at denoise {denoise:g} are the end of a schedule of {total} steps, and {MAX_NFE} are "
                f"shipped at most: use fewer steps, a larger denoise, or HSO Scheduler, which searches"
            )
        schedule = zoo(noise, total, guidance=nearest_guidance(noise, weight))
        return *sampler_and_sigmas(schedule, steps), reason(schedule, weight)


def reason(schedule: Schedule, guidance: float) -> str:
    """What is used and what it is better than, in one line."""
    asked = "" if guidance == schedule.guidance else f" (the nearest shipped to {guidance:g})"
    others = ", ".join(f"{name} {error:.3g}" for name, error in sorted(schedule.others.items(), key=lambda x: x[1]))
    return (
        f"N = {schedule.nfe} at guidance {schedule.guidance:g}{asked}: {schedule.solver}, predicted error "
        f"{schedule.error:.3g}; others at their best: {others}"
    )


_MODEL = f"the family: fine-tunes share its noise schedule. {FROM_MODEL!r} reads it from diffusion_model"
_GUIDANCE = "the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the family's usual one"
