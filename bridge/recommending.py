"""`recommend`: what to use in the pipeline at hand, from what is shipped."""

from __future__ import annotations

import dataclasses
from typing import Any

from bridge.at_hand import before, distillation_of
from bridge.guidance import usual_guidance
from bridge.noise_of import noise_schedule_of, solver_of
from bridge.schedulers.pipelines import check_pipeline
from hso_jax import recommendation
from hso_jax.exports import in_coefficients
from hso_jax.noise import NoiseSchedule
from hso_jax.recommendation import Before, Recommendation
from hso_jax.schedule import Schedule


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
        guidance: w; by default the pipeline's usual one. Without guidance it is 1.
        solver: to keep one: `bridge.solver_of(pipe.scheduler)` is the pipeline's; by default the best.
        distilled: as in `hso_jax.recommend`; by default what the scheduler, the network, the names of the pipeline and
            its LoRAs, or N and guidance say.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        noise: the pipeline's `noise_schedule_of`, where that has been read already.

    Raises:
        ValueError: as `noise_schedule_of` and `hso_jax.recommend` do, and for a pipeline that no schedule works in.
    """
    check_pipeline(pipe)
    if noise is None:
        noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    usual, why = usual_guidance(pipe)
    told = distillation_of(pipe) if distilled is None else None
    found = recommendation.recommend(
        noise, nfe, guidance=guidance, solver=solver, distilled=told[0] if told else distilled, usual=usual
    )
    at_hand = before(pipe, noise, nfe)
    at_hand = at_hand._replace(error=found.errors.get(at_hand.solver, {}).get(at_hand.nodes))
    reason = found.reason.replace("you say so", told[1]) if told else f"{_now(at_hand, found)} {found.reason}"
    if guidance is None and not found.distilled:
        reason += f" Guidance {usual:g}: {why}."
    return dataclasses.replace(found, before=at_hand, reason=reason)


def to_install(pipe: Any, found: Recommendation) -> Schedule:
    """The recommended schedule as the pipeline can take it: another solver than its own as coefficients."""
    if found.schedule.coefficients is None and found.solver != own_solver(pipe):
        return in_coefficients(found.schedule)
    return found.schedule


def own_solver(pipe: Any) -> str | None:
    """The solver of a pipeline's scheduler; None where it is none that is known."""
    try:
        return solver_of(pipe.scheduler)
    except ValueError:
        return None


def _now(at_hand: Before, found: Recommendation) -> str:
    """What the pipeline has now, and what of its error is saved."""
    if at_hand.error is None or found.error is None:
        return f"Now: {at_hand.solver} with {at_hand.nodes}, whose error is not predicted."
    saved = 1.0 - found.error / at_hand.error
    now = f"Now: {at_hand.solver} with {at_hand.nodes}, predicted error {at_hand.error:.3g}"
    return f"{now}; what follows has {saved:.0%} less:"
