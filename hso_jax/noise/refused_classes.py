"""The scheduler classes of diffusers whose noise is not read, and what to use instead.

Their levels are no noise levels, or belong to the class alone. Checked against diffusers 0.42.1:
`tests/bridge/test_bridge_noise_of.py` goes through every class it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hso_jax.checks import brief

_TOKENS = "it samples tokens by their confidence, which have no noise levels: no schedule applies to its model"
_FLOW_EULER = "FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)"
_DISTILLED = (
    "its model is distilled, and knows only the levels and steps of this class; call it with num_inference_steps"
)

# Class -> why, and what to use.
REFUSED: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": (
        "a consistency model knows only its own 40 levels; pass the pipeline integer `timesteps`, as in [22, 0]"
    ),
    "ConsistencyDecoderScheduler": "its decoder takes two fixed steps; install a schedule in the pipeline's scheduler",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": f"{_DISTILLED}, or sample a model that is not a flow map with {_FLOW_EULER}",
    "HeliosDMDScheduler": f"{_DISTILLED}, or the base model with UniPCMultistepScheduler",
    "HeliosScheduler": (
        "it changes the resolution between stages with levels of its own; for a single stage use "
        "UniPCMultistepScheduler(prediction_type='flow_prediction', use_flow_sigmas=True)"
    ),
    "IPNDMScheduler": "its levels are fixed by the cosine rule; use PNDMScheduler or DPMSolverMultistepScheduler",
    "KarrasVeScheduler": "it is deprecated, and its pipeline is gone; use EDMEulerScheduler",
    "LTXEulerAncestralRFScheduler": (
        f"it takes N + 1 sigmas as they are: pass schedule.sampler_sigmas().tolist() as `sigmas`; or use {_FLOW_EULER}"
    ),
    "MiniMaxH3Scheduler": "use FlowMatchEulerDiscreteScheduler(shift=scheduler.shift), the same solver",
    "PiflowScheduler": f"{_DISTILLED}, or the undistilled model with {_FLOW_EULER}",
    "RFD4ProteinaScheduler": "it rescales the score of two coupled flows by a rule of its own; it has no levels to set",
    "SCMScheduler": (
        "it takes its angles itself: pass `timesteps`, N + 1 values of arctan(ksigma / sigma_data) with a final 0, "
        "or sample the undistilled model with DPMSolverMultistepScheduler"
    ),
    "VQDiffusionScheduler": _TOKENS,
}


def unknown(name: str, known: Iterable[str], config: Mapping[str, Any]) -> str:
    """What to say of a class that is in no table: the known class whose name is nearest, or one of its model's kind."""
    import difflib  # only where something is wrong

    near = difflib.get_close_matches(name[:100], list(known), 1)
    if not near and ("flow" in name.lower() or "shift" in config or config.get("prediction_type") == "flow_prediction"):
        near = ["FlowMatchEulerDiscreteScheduler"]
    elif not near:
        near = ["EDMEulerScheduler" if "sigma_data" in config else "DDPMScheduler"]
    return f"scheduler class {brief(name)} is not known; the nearest that is: {near[0]}"
