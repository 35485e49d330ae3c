"""Which of `hso_jax.solvers` a diffusers scheduler is."""

from __future__ import annotations

from typing import Any

from hso_jax.solvers import SOLVERS

FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")
HEUN = {"HeunDiscreteScheduler": "heun", "FlowMatchHeunDiscreteScheduler": "heun-flow"}


def solver_of(scheduler: Any) -> str:
    """The key of `hso_jax.solvers.SOLVERS` whose steps this scheduler takes.

    Raises:
        ValueError: for one that none of them is (stochastic ones, DEIS, LMS, PNDM, singlestep ones); the message
            names it and what to pass instead.
    """
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    config = scheduler.config
    if names & set(FIRST_ORDER):
        return "ddim"
    if found := names & set(HEUN):
        return HEUN[found.pop()]
    name = ""
    if "UniPCMultistepScheduler" in names:
        name = f"unipc-{config.solver_order}" + ("" if config.solver_type == "bh2" else f"-{config.solver_type}")
    elif "DPMSolverMultistepScheduler" in names and config.algorithm_type == "dpmsolver++":
        order = config.solver_order
        name = "ddim" if order == 1 else f"dpmpp-{order}m" if config.solver_type == "midpoint" else ""
    if name not in SOLVERS:
        kind = type(scheduler).__name__
        raise ValueError(
            f"{kind} is none of the solvers whose error can be searched on; pass solver= {', '.join(SOLVERS)}"
        )
    return name
