"""`recommend`: what to use in the pipeline at hand, from what is shipped."""

from __future__ import annotations

import dataclasses
from typing import Any

import hso_jax
from bridge.at_hand import active_loras, before, distillation_of, own_levels
from bridge.guidance import usual_guidance
from bridge.noise_of import check_pipeline, noise_schedule_of
from bridge.schedulers.pipelines import check_use
from bridge.schedulers.plain import without_schedule
from hso_jax.noise import NoiseSchedule, flow
from hso_jax.shipped.distilled import of_class
from hso_jax.shipped.recommend import Recommendation


def recommend(
    pipe: Any,
    nfe: int,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    distilled: str | bool | None = None,
    image_seq_len: int = 4096,
    mu: float | None = None,
    noise: NoiseSchedule | None = None,
) -> Recommendation:
    """What to use in a pipeline, as `hso_jax.recommend`, beside what the pipeline has now; nothing is installed.

    Read from the pipeline: its noise schedule and prediction type, its shift, its solver, the rule that its scheduler
    spaces levels by, and its usual guidance (1 where guidance is an input of the network, as in FLUX).

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: N in 1..20.
        guidance: w; by default the pipeline's usual one. 0 and 1 are without guidance.
        solver: to keep one: `bridge.solver_of(pipe.scheduler)` is the pipeline's; by default the best.
        distilled: as in `hso_jax.recommend`; by default what the scheduler, the configs, the names of the pipeline and
            its active LoRAs, or N and guidance say. A LoRA without a telling name is not guessed at: `reason` names it.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        noise: the pipeline's `noise_schedule_of`, where that has been read already.

    Raises:
        ValueError: as `noise_schedule_of` and `hso_jax.recommend` do, and for a pipeline that no schedule works in.
    """
    check_pipeline(pipe, "bridge.recommend")
    check_use(pipe)
    told = distillation_of(pipe) if distilled is None else None
    if noise is None:
        # SCMScheduler's angles are rectified flow's levels without a shift; no schedule is installed in it.
        scm = type(pipe.scheduler).__name__ == "SCMScheduler"
        noise = flow(1.0) if scm else noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    usual, why = usual_guidance(pipe)
    found = hso_jax.recommend(
        noise, nfe, guidance=guidance, solver=solver, distilled=told[0] if told else distilled, usual=usual
    )
    at_hand = before(pipe, noise, nfe)
    at_hand = at_hand._replace(error=found.errors.get(at_hand.solver, {}).get(at_hand.nodes))
    found = dataclasses.replace(found, before=at_hand, usual=why if guidance is None else "")
    if distilled is None and told is None:
        return dataclasses.replace(found, loras=tuple(active_loras(pipe)))
    if told is None:
        return found
    own = own_levels(pipe, noise, nfe, told[0]) if of_class(type(without_schedule(pipe.scheduler)).__name__) else None
    return dataclasses.replace(found, told_by=told[1], schedule=own or found.schedule)
