"""The solvers that schedules are compared under: their titles, and the diffusers scheduler that takes their steps."""

from __future__ import annotations

from typing import Any

SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "unipc-2": "UniPC-2", "unipc-3": "UniPC-3"}
"""Name, as in `hso_jax.solvers`, to title, in the order of the tables."""

COMPARED = ("ddim", "dpmpp-2m", "unipc-3")
"""Those that every study measures."""


def scheduler_class(solver: str, flow: bool) -> str:
    """The name of the diffusers class, for a rectified flow or another model."""
    if solver == "ddim":
        return "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
    return "DPMSolverMultistepScheduler" if solver == "dpmpp-2m" else "UniPCMultistepScheduler"


def scheduler_config(solver: str, flow: bool) -> dict[str, Any]:
    """What the class's config must say for the solver, whatever the model's own config says."""
    if solver == "ddim":
        return {}
    config: dict[str, Any] = {"solver_order": int(solver.rstrip("m")[-1])}
    if solver == "dpmpp-2m":
        config |= {"solver_type": "midpoint", "algorithm_type": "dpmsolver++"}
    else:
        config |= {"solver_type": "bh2", "predict_x0": True}
    return config | ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if flow else {})
