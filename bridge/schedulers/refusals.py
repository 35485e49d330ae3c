"""The diffusers schedulers in which no schedule can be installed, and what to do instead.

Checked against diffusers 0.42.1; `tests/bridge/schedulers/test_bridge_refusals.py` goes through every class it has.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.schedulers.adapters import ROWS
from hso_jax.noise.from_config import REFUSED, unknown

_INVERSE = "it goes from data to noise, to invert an image; install the schedule in the sampler"
_SDE = "its predictor and corrector take the SDE's own thousands of even steps"

# Class -> why, and what to use.
INSTEAD: Mapping[str, str] = {
    **REFUSED,
    "DDIMInverseScheduler": f"{_INVERSE}, DDIMScheduler.from_config(scheduler.config)",
    "DPMSolverMultistepInverseScheduler": f"{_INVERSE}, DPMSolverMultistepScheduler.from_config(scheduler.config)",
    "RePaintScheduler": "it goes back and forth between levels; use DDPMScheduler.from_config(scheduler.config)",
    "ScoreSdeVeScheduler": f"{_SDE}; use EDMEulerScheduler with a model that is told log(sigma)/4",
    "ScoreSdeVpScheduler": f"{_SDE}; use DPMSolverMultistepScheduler",
    "UnCLIPScheduler": (
        "diffusers itself says to use DDPMScheduler: DDPMScheduler(beta_schedule='squaredcos_cap_v2', "
        "variance_type=..., prediction_type=...) with this config's values"
    ),
}


def unsupported(name: str) -> str:
    """Why no schedule can be installed in a class without a row, and what to use instead."""
    if name in INSTEAD:
        return f"{name} is not supported: {INSTEAD[name]}"
    return unknown(name, ROWS, {})
