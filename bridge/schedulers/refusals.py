"""The diffusers schedulers in which no schedule can be installed, and what to do instead.

Checked against diffusers 0.42.1; `tests/bridge/schedulers/test_bridge_refusals.py` goes through every class it has.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.schedulers.adapters import ROWS

_TOKENS = "it samples tokens by their confidence, which have no noise levels: no schedule applies to its model"
_FLOW_EULER = "FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)"
_INVERSE = "it goes from data to noise, to invert an image; install the schedule in the sampler"
_SDE = "its predictor and corrector take the SDE's own thousands of even steps"
_DISTILLED = (
    "its model is distilled, and knows only the levels and steps of this class; call it with num_inference_steps"
)

# Class -> why, and what to use.
INSTEAD: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": (
        "a consistency model knows only its own 40 levels; pass the pipeline integer `timesteps`, as in [22, 0]"
    ),
    "ConsistencyDecoderScheduler": "its decoder takes two fixed steps; install a schedule in the pipeline's scheduler",
    "DDIMInverseScheduler": f"{_INVERSE}, DDIMScheduler.from_config(scheduler.config)",
    "DPMSolverMultistepInverseScheduler": f"{_INVERSE}, DPMSolverMultistepScheduler.from_config(scheduler.config)",
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
    "RePaintScheduler": "it goes back and forth between levels; use DDPMScheduler.from_config(scheduler.config)",
    "SCMScheduler": (
        "it takes its angles itself: pass `timesteps`, N + 1 values of arctan(ksigma / sigma_data) with a final 0, "
        "or sample the undistilled model with DPMSolverMultistepScheduler"
    ),
    "ScoreSdeVeScheduler": f"{_SDE}; use EDMEulerScheduler with a model that is told log(sigma)/4",
    "ScoreSdeVpScheduler": f"{_SDE}; use DPMSolverMultistepScheduler",
    "UnCLIPScheduler": (
        "diffusers itself says to use DDPMScheduler: DDPMScheduler(beta_schedule='squaredcos_cap_v2', "
        "variance_type=..., prediction_type=...) with this config's values"
    ),
    "VQDiffusionScheduler": _TOKENS,
}


def unsupported(name: str) -> str:
    """Why no schedule can be installed in a class without a row, and what to use instead."""
    if name in INSTEAD:
        return f"{name} is not supported: {INSTEAD[name]}"
    return f"{name} is not supported; supported schedulers: {', '.join(ROWS)}"
