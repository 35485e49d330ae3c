"""A schedule for the pipeline at hand, found and installed in one call."""

from __future__ import annotations

import sys
from typing import Any

from bridge.guidance import shipped, usual_guidance
from bridge.noise_of import noise_schedule_of
from bridge.schedulers import install
from bridge.solver_of import solver_of
from hso_jax.schedule import Schedule
from hso_jax.search import search
from hso_jax.zoo import zoo


def optimize_pipeline(
    pipe: Any, nfe: int, *, end: str | None = None, image_seq_len: int = 4096, mu: float | None = None, **options: Any
) -> Schedule:
    """Find a schedule for a pipeline's own noise levels and install it, as `bridge.install` does.

    `method="reference"` finds it for the pipeline's solver and guidance weight; `method="zoo"` takes the shipped one,
    at once; `fitness=SamplingFitness.of_pipeline(pipe, prompts), budget=calls` tunes it on the pipeline. A line on
    stderr says what was installed: for which N, solver and guidance.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        end: "clean" or "t_eps"; None leaves what the search's layout has. "t_eps" needs the interval layout,
            which it chooses unless `layout` says otherwise.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        **options: for `hso_jax.search.search` (`layout`, `method`, `seed`, ...), or for `hso_jax.zoo` (`guidance`).
            `solver` is the scheduler's own unless given, `guidance` the pipeline's (with "zoo" the nearest shipped).

    Returns:
        The schedule, to save or to look at.

    Raises:
        ValueError: as `noise_schedule_of`, `search` and `install` do; the pipeline is then as it was.
    """
    why = "as asked"
    if end == "t_eps":
        options.setdefault("layout", "interval")
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    if options.get("method") in ("reference", "zoo"):
        options["solver"] = options.get("solver") or solver_of(pipe.scheduler)
        if options.get("guidance") is None:
            weight = usual_guidance(pipe)
            options["guidance"], why = shipped(noise, *weight) if options["method"] == "zoo" else weight
    if options.get("method") == "zoo":
        schedule = zoo(noise, nfe, **{name: value for name, value in options.items() if name != "method"})
    else:
        schedule = search(noise, nfe, **options)
    if end is not None:
        schedule = schedule.with_end(end)
    install(pipe, schedule)
    print(_said(pipe, schedule, why), file=sys.stderr)
    return schedule


def _said(pipe: Any, schedule: Schedule, why: str) -> str:
    guidance = "any guidance" if schedule.guidance is None else f"guidance {schedule.guidance:g} ({why})"
    solver = "any solver" if schedule.solver == "any" else f"solver {schedule.solver}"
    return (
        f"{type(pipe).__name__}: installed a schedule of method {schedule.method!r} for N = {schedule.nfe}, {solver}, "
        f"{guidance}; call it with num_inference_steps={schedule.nfe}"
    )
