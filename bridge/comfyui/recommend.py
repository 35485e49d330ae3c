"""The node for most: which solver, which steps, from what is shipped."""

from __future__ import annotations

from typing import Any

import torch

from hso_jax.shipped.distilled import DISTILLATIONS, own_grid
from hso_jax.shipped.recommend import recommend
from hso_jax.shipped.zoo import MAX_NFE, NotInZooError

from .connected import FAMILIES, FROM_MODEL, chosen_noise, noise_of, scaling_of, usual_guidance
from .fallback import fitted
from .outputs import CHECK, DENOISE, SAMPLER_OUT, SIGMAS_OUT, STEPS, sampler_and_sigmas, slice_for, to_sigmas


class HsoRecommend:
    """`hso_jax.recommend`: the solver and the steps, from what is shipped alone."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("SAMPLER", "SIGMAS", "why")
    OUTPUT_TOOLTIPS = (SAMPLER_OUT, SIGMAS_OUT, "what was chosen and why, in words: connect to Preview Any")
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

    @classmethod
    def VALIDATE_INPUTS(cls, model: str = "") -> bool:
        """Graphs saved with a family that is no longer in the menu still run; other names the node itself refuses."""
        return True

    def get_sampler(
        self, model: str, steps: int, guidance: float, denoise: float, diffusion_model: Any = None
    ) -> tuple[Any, torch.Tensor, str]:
        """SAMPLER, SIGMAS and the reason; sigmas are empty at denoise 0.

        Raises:
            ValueError: for an unknown family, a MODEL that does not fit it, more steps than models have levels, or a
                guidance of 0 with no family to say what is usual.
        """
        total = slice_for(denoise, steps)
        noise = chosen_noise(model, diffusion_model)
        if total is None:
            return *sampler_and_sigmas(None, steps), "denoise is 0: no sampling"
        usual = usual_guidance(model, diffusion_model)
        weight = guidance or (0.0 if model == FROM_MODEL else usual or 0.0)
        if not weight:
            raise ValueError(
                f"guidance is 0 (the model's usual), which is known for a family only, not {FROM_MODEL!r}; "
                "set it to the cfg of your sampler"
            )
        # Euler and LCM of ComfyUI cannot sample a MODEL that nothing scales, and no such model is distilled.
        distilled = False if scaling_of(diffusion_model).unscaled else None
        try:
            found = recommend(noise, total, guidance=weight, usual=usual, distilled=distilled)
        except NotInZooError:
            schedule, why = fitted(noise, total, weight)
            return *sampler_and_sigmas(schedule, steps, diffusion_model), why
        if found.distilled is not None:
            own = noise if diffusion_model is None else noise_of(diffusion_model)  # with the shift of its patches
            sigmas = to_sigmas(own_grid(found.distilled, own, total), steps, diffusion_model)
            return own_sampler(found.distilled), sigmas, found.reason
        asked = "" if weight == found.guidance else f" The nearest guidance to {weight:g} that is shipped is taken."
        return *sampler_and_sigmas(found.schedule, steps, diffusion_model), found.reason + asked


def own_sampler(distilled: str) -> Any:
    """ComfyUI's SAMPLER for a distilled model's own grid."""
    import comfy.samplers

    return comfy.samplers.sampler_object(DISTILLATIONS[distilled].sampler)


_MODEL = f"the family: fine-tunes share its noise schedule. {FROM_MODEL!r} reads it from diffusion_model"
_GUIDANCE = "the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the family's usual one"
