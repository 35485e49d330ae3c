"""The error against the exact probability-flow solution falls at each solver's order as N doubles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from mixture import Model, denoise, exact, start

from bridge import sample, with_schedule
from bridge.sampling import levels
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")


def even(nfe: int) -> Schedule:
    """N + 1 nodes, evenly spaced in lam; stops at t = 0.1."""
    low, high = float(NOISE.lam(0.9)), float(NOISE.lam(0.1))
    t = NOISE.t_of_lam(np.linspace(low, high, nfe + 1))
    return Schedule.from_t(NOISE, t, layout="interval")


def slopes(errors: list[float]) -> list[float]:
    return [float(np.log2(a / b)) for a, b in pairwise(errors)]


# UniPC's order is one above its predictor's; at 3 the first steps, of lower order, hold it to 3 in the limit.
SOLVERS: list[tuple[str, dict[str, Any], float]] = [
    ("DDIMScheduler", {"clip_sample": False}, 1.0),
    ("EulerDiscreteScheduler", {}, 1.0),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, 1.0),
    ("DPMSolverMultistepScheduler", {}, 2.0),
    ("DPMSolverSinglestepScheduler", {}, 2.0),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}, 3.0),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, 2.0),  # as diffusers writes it; docs/bridge.md says why
    ("DEISMultistepScheduler", {}, 2.0),
    ("DEISMultistepScheduler", {"solver_order": 3}, 2.0),
    ("SASolverScheduler", {"tau_func": lambda t: 0}, 2.0),
    ("LMSDiscreteScheduler", {}, 2.0),
    ("PNDMScheduler", {"skip_prk_steps": True}, 2.0),
    ("HeunDiscreteScheduler", {}, 2.0),
    ("KDPM2DiscreteScheduler", {}, 2.0),
    ("UniPCMultistepScheduler", {"solver_order": 1}, 2.0),
    ("UniPCMultistepScheduler", {"solver_order": 2}, 3.0),
    ("UniPCMultistepScheduler", {"solver_order": 3}, 3.0),
]


@pytest.mark.parametrize(("name", "config", "order"), SOLVERS, ids=lambda x: x if isinstance(x, str) else "")
def test_diffusers_solver_has_its_order(name: str, config: dict[str, Any], order: float) -> None:
    errors = []
    for nfe in (30, 60, 120):
        schedule = even(nfe)
        scheduler = with_schedule(getattr(diffusers, name)(**SD, **config), schedule)
        scheduler.set_timesteps(nfe)
        first, last = levels(schedule)[0], levels(schedule)[-1]
        k = scheduler._row.k_scaled
        x = start() / first.alpha if k else start()
        model = Model("epsilon")
        for t, level in zip(scheduler.timesteps, cases.evaluations(scheduler, schedule), strict=True):
            x = scheduler.step(model(scheduler.scale_model_input(x, t), t, level), t, x).prev_sample
        errors.append(
            (x * last.alpha - exact(start(), schedule) if k else x - exact(start(), schedule)).abs().max().item()
        )
    assert slopes(errors)[-1] > order - 0.15, errors


@pytest.mark.parametrize(
    ("solver", "order"),
    [("ddim", 1), ("dpmpp-2m", 2), ("unipc-1", 2), ("unipc-2", 3), ("unipc-3", 3), ("unipc-3-bh1", 3), ("heun", 2)],
)
def test_plain_sampler_has_its_order(solver: str, order: float) -> None:
    errors = []
    for nfe in (30, 60, 120):
        x = sample(lambda x, level: denoise(x, level.alpha, level.sigma), even(nfe), start(), solver)
        errors.append((x - exact(start(), even(nfe))).abs().max().item())
    assert slopes(errors)[-1] > order - 0.15, errors
    assert torch.isfinite(x).all()
