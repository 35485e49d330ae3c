"""The node for most: which solver, which steps, from what is shipped."""

from __future__ import annotations

from typing import Any

import torch

from hso_jax.distilled import DISTILLATIONS
from hso_jax.noise import PRESETS
from hso_jax.recommendation import recommend
from hso_jax.shelf.shipped import MAX_NFE

from .connected import FAMILIES, FROM_MODEL, chosen_noise
from .outputs import CHECK, DENOISE, STEPS, sampler_and_sigmas, slice_for, to_sigmas


class HsoRecommend:
    """`hso_jax.recommend`: the solver and the steps, from what is shipped alone."""

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
                "model": ([*FAMILIES, FROM_MODEL], {"default": "sdxl", "tooltip": _MODEL}),
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
        found = recommend(noise, total, guidance=weight, usual=PRESETS[model].guidance if model in PRESETS else None)
        asked = "" if weight == found.guidance else f" The nearest guidance to {weight:g} that is shipped is taken."
        if found.distilled is None:
            return *sampler_and_sigmas(found.schedule, steps), found.reason + asked
        return own_sampler(found.distilled), to_sigmas(found.schedule, steps), found.reason


def own_sampler(distilled: str) -> Any:
    """ComfyUI's SAMPLER for a distilled model's own grid."""
    import comfy.samplers

    return comfy.samplers.sampler_object(DISTILLATIONS[distilled].sampler)


_MODEL = f"the family: fine-tunes share its noise schedule. {FROM_MODEL!r} reads it from diffusion_model"
_GUIDANCE = "the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the family's usual one"
