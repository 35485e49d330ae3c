"""A schedule for the pipeline at hand, found and installed in one call."""

from __future__ import annotations

import sys
from typing import Any

from bridge.guidance import shipped, usual_guidance
from bridge.noise_of import noise_schedule_of, solver_of
from bridge.schedulers.installing import install
from hso_jax.methods import SolverError
from hso_jax.schedule import Schedule
from hso_jax.searches import search
from hso_jax.shelf.shipped import zoo

_OF_A_SOLVER = {"solver-error": ("solver", "guidance", "profile"), "zoo": ("solver", "guidance")}
"""Options that are the method's own."""


def optimize_pipeline(
    pipe: Any, nfe: int, *, end: str | None = None, image_seq_len: int = 4096, mu: float | None = None, **options: Any
) -> Schedule:
    """Find a schedule for a pipeline's own noise levels and install it, as `bridge.install` does.

    `method="solver-error"` finds it for the pipeline's solver and guidance weight; `method="zoo"` takes the shipped
    one, at once; `Measured(SamplingFitness.of_pipeline(pipe, prompts), budget=calls)` tunes it on the pipeline. A line
    on stderr says what was installed: for which N, solver and guidance.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        end: "clean" or "t_eps"; None leaves what the search's layout has. "t_eps" needs the interval layout,
            which it chooses unless `layout` says otherwise.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        **options: for `hso_jax.search` (`layout`, `method`, `seed`, ...); with the methods "solver-error" and "zoo"
            also `solver`, the scheduler's own unless given, and `guidance`, the pipeline's (with "zoo" the nearest
            shipped); and with "solver-error" `profile`, as `bridge.profile` measures it.

    Returns:
        The schedule, to save or to look at.

    Raises:
        ValueError: as `noise_schedule_of`, `search` and `install` do; the pipeline is then as it was.
    """
    why = "as asked"
    if end == "t_eps":
        options.setdefault("layout", "interval")
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    method = options.get("method")
    own = _OF_A_SOLVER.get(method, ()) if isinstance(method, str) else ()
    kind = {name: options.pop(name) for name in own if name in options}
    if own:
        kind["solver"] = kind.get("solver") or solver_of(pipe.scheduler)
        if kind.get("guidance") is None:
            weight = usual_guidance(pipe)
            kind["guidance"], why = shipped(noise, *weight) if method == "zoo" else weight
    if method == "zoo":
        schedule = zoo(noise, nfe, **kind)
    else:
        schedule = search(noise, nfe, **{**options, "method": SolverError(**kind)} if kind else options)
    if end is not None:
        schedule = schedule.with_end(end)
    install(pipe, schedule, noise=noise)
    print(_said(pipe, schedule, why), file=sys.stderr)
    return schedule


def _said(pipe: Any, schedule: Schedule, why: str) -> str:
    guidance = "any guidance" if schedule.guidance is None else f"guidance {schedule.guidance:g} ({why})"
    solver = "any solver" if schedule.solver == "any" else f"solver {schedule.solver}"
    return (
        f"{type(pipe).__name__}: installed a schedule of method {schedule.method!r} for N = {schedule.nfe}, {solver}, "
        f"{guidance}; call it with num_inference_steps={schedule.nfe}"
    )
