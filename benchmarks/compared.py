"""What every benchmark shares: the solvers under comparison, the nodes of converged samples, and two rules for flows.

The *converged samples* are what infinitely many steps make of the same noise. On the held-out mixtures (64 nodes,
UniPC-3, guidance 1 and 7.5) the nodes of `fine_schedule` have an RMSE of 0.005 and 0.006 on Stable Diffusion's noise
and 0.002 on SD3's; uniform in log-SNR has 0.005 and 0.007 on the former, trailing 0.012 and 0.019 on the latter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hso_jax import NoiseSchedule, Schedule

SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "unipc-2": "UniPC-2", "unipc-3": "UniPC-3"}
"""Name in `hso_jax.solvers` to title, in the order of the tables."""

COMPARED = ("ddim", "dpmpp-2m", "unipc-3")
"""The solvers that every study measures."""

UNIFORM_T = 0.7
"""Share of the converged samples' nodes that is spread evenly in t; the others are spread evenly in lam.

The networks' output oscillates in t (see `targets.Judged`), which nodes that are even in lam alone would miss."""

SHIFTS = {"flow-2": 2.0, "flow-3": 3.0}
"""Rule to shift, see `hso_jax.baselines.flow_time`."""


def scheduler_class(solver: str, flow: bool) -> str:
    """Name the diffusers class that takes a solver's steps, for a rectified flow or another model."""
    if solver == "ddim":
        return "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
    return "DPMSolverMultistepScheduler" if solver == "dpmpp-2m" else "UniPCMultistepScheduler"


def scheduler_config(solver: str, flow: bool) -> dict[str, Any]:
    """Say what the class's config must hold for the solver, whatever the model's own config says."""
    if solver == "ddim":
        return {}
    config: dict[str, Any] = {"solver_order": int(solver.rstrip("m")[-1])}
    if solver == "dpmpp-2m":
        config |= {"solver_type": "midpoint", "algorithm_type": "dpmsolver++"}
    else:
        config |= {"solver_type": "bh2", "predict_x0": True}
    return config | ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if flow else {})


def fine_schedule(noise: NoiseSchedule, nfe: int) -> Schedule:
    """Spread many nodes from the model's own end (t = 1) to its smallest level, to integrate the ODE with."""
    grid = np.linspace(float(noise.t_max), float(noise.t_min), 20 * nfe)
    lam = np.asarray(noise.lam(grid))
    shares = UNIFORM_T * np.linspace(0.0, 1.0, len(grid)) + (1.0 - UNIFORM_T) * (lam - lam[0]) / (lam[-1] - lam[0])
    t = np.interp(np.linspace(0.0, 1.0, nfe), shares, grid)
    t[0], t[-1] = 1.0, float(noise.t_min)
    return Schedule.from_t(noise, t)
