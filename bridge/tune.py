"""A schedule for the pipeline at hand, found and installed in one call."""

from __future__ import annotations

from typing import Any

from bridge.noise_of import noise_schedule_of
from bridge.schedulers import with_schedule
from bridge.solver_of import solver_of
from hso_jax.methods import SolverError
from hso_jax.schedule import Schedule
from hso_jax.searches import search
from hso_jax.shelf.shipped import zoo

_OF_A_SOLVER = ("solver-error", "zoo")


def optimize_pipeline(
    pipe: Any, nfe: int, *, end: str | None = None, image_seq_len: int = 4096, mu: float | None = None, **options: Any
) -> Schedule:
    """Find a schedule for a pipeline's own noise levels and install it: `pipe.scheduler` is replaced.

    `method="solver-error"` finds it for the pipeline's solver and for the guidance weight given; `method="zoo"` takes
    the shipped one, at once; `Measured(SamplingFitness.of_pipeline(pipe, prompts), budget=calls)` tunes it on it.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        end: "clean" or "t_eps"; None leaves what the search's layout has. "t_eps" needs the interval layout,
            which it chooses unless `layout` says otherwise.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        **options: for `hso_jax.search` (`layout`, `method`, `seed`, ...); with the methods "solver-error" and "zoo"
            also `solver`, the scheduler's own unless given, and `guidance`.

    Returns:
        The schedule, to save or to look at.

    Raises:
        ValueError: as `noise_schedule_of`, `search` and `with_schedule` do; the pipeline is then as it was.
    """
    if end == "t_eps":
        options.setdefault("layout", "interval")
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    method = options.get("method")
    kind = {name: options.pop(name) for name in ("solver", "guidance") if method in _OF_A_SOLVER and name in options}
    if method in _OF_A_SOLVER:
        kind["solver"] = kind.get("solver") or solver_of(pipe.scheduler)
    if method == "zoo":
        schedule = zoo(noise, nfe, **kind)
    else:
        schedule = search(noise, nfe, **{**options, "method": SolverError(**kind)} if kind else options)
    if end is not None:
        schedule = schedule.with_end(end)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    return schedule
