"""`with_schedule`: a diffusers scheduler that samples at exactly the given noise levels."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin

from bridge.fingerprint import warn_of_other_weights
from bridge.noise_of import adds_noise, check_pipeline, noise_schedule_of, solver_of
from bridge.schedulers.checks import check_use
from bridge.schedulers.nonstationary import NonstationaryScheduler
from bridge.schedulers.scheduled import (
    NONSTATIONARY_CLASS,
    REPLACED_KEY,
    Installed,
    schedule_from_list,
    scheduled_class,
    supported_name,
    without_schedule,
)
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule, in_coefficients
from hso_jax.solvers import SOLVERS

HEUN_OF = {("heun", "vp"): "HeunDiscreteScheduler", ("heun-flow", "flow"): "FlowMatchHeunDiscreteScheduler"}
"""The classes of the solvers with two evaluations a step."""


def with_schedule(scheduler: Any, schedule: Schedule | Any, *, noise: NoiseSchedule | None = None) -> Any:
    """A copy of the scheduler that samples at the schedule; `scheduler` itself is left as it is.

    Use it as `pipe.scheduler = with_schedule(pipe.scheduler, schedule)`, then call the pipeline with
    `num_inference_steps=schedule.nfe`. The result is an instance of the scheduler's class, and it is saved, copied
    and rebuilt (`from_config` of its own class) with the schedule. A saved pipeline loads again once `bridge` has
    been imported. A schedule with coefficients is a solver too, and so is one that was made for another solver than the
    scheduler's: the result is then a `NonstationaryScheduler`, and a warning says so. The sigmas alone
    (`schedule.sampler_sigmas()`) keep the scheduler's own steps.

    Args:
        scheduler: an unmodified diffusers scheduler of a supported class (`docs/bridge.md`), or a result of this.
        schedule: a `Schedule`; or a list of N + 1 sigmas as `Schedule.sampler_sigmas` gives them: ksigma for VP and
            VE models, s for flow models, from noise to the end, which is 0 (clean) or where sampling stops.
        noise: the scheduler's `noise_schedule_of`, where that has been read already.

    Raises:
        ValueError: for an unsupported class or setting, or a schedule that is not for this model; the message says
            what to do instead.
    """
    name = supported_name(scheduler)
    if isinstance(schedule, Schedule) and (taken := as_taken(scheduler, schedule)).coefficients is not None:
        result = NonstationaryScheduler.from_schedule(scheduler, taken, noise=noise)
        if name != NONSTATIONARY_CLASS:
            warnings.warn(switched(scheduler, schedule), stacklevel=2)
        return result
    if name == NONSTATIONARY_CLASS:
        scheduler = without_schedule(scheduler)
        name = type(scheduler).__name__
    cls = scheduled_class(name)
    noise = noise_schedule_of(scheduler) if noise is None else noise
    if not isinstance(schedule, Schedule):
        schedule = schedule_from_list(noise, schedule)
    # Everything is copied but tensors, which schedulers replace and never write into; that is most of the time.
    result = copy.deepcopy(scheduler, {id(x): x for x in vars(scheduler).values() if isinstance(x, torch.Tensor)})
    result.__class__ = cls
    if not isinstance(scheduler, Installed):
        result.register_to_config(**{REPLACED_KEY: {}})
    result._adopt(schedule, noise)
    return result


def as_taken(scheduler: Any, schedule: Schedule) -> Schedule:
    """The schedule as a scheduler can take it: one for another solver than the scheduler's as coefficients."""
    if schedule.coefficients is not None or schedule.solver not in SOLVERS:
        return schedule
    check_solver(scheduler, schedule.solver, schedule.kind)
    return schedule if schedule.solver == own_solver(scheduler) else in_coefficients(schedule)


def check_solver(scheduler: Any, solver: str, kind: str) -> None:
    """Raises ValueError where a solver has two evaluations a step, which no coefficients describe, but in its class."""
    if solver not in SOLVERS or SOLVERS[solver].calls == 1 or solver == own_solver(scheduler):
        return
    name = type(without_schedule(scheduler)).__name__
    cls = HEUN_OF.get((solver, kind))
    way = f"first set pipe.scheduler = diffusers.{cls}.from_config(pipe.scheduler.config)" if cls else "use unipc-2"
    raise ValueError(f"{name} cannot take the steps of solver {solver!r}, which evaluate twice: {way}")


def own_solver(scheduler: Any) -> str | None:
    """The solver whose steps a scheduler takes without a schedule; None where it is none that is known."""
    plain = without_schedule(scheduler) if isinstance(scheduler, NonstationaryScheduler) else scheduler
    try:
        return solver_of(plain)
    except ValueError:
        return None


def switched(scheduler: Any, schedule: Schedule) -> str:
    """The warning that `NonstationaryScheduler` takes the place of a scheduler."""
    plain = without_schedule(scheduler)
    known = schedule.solver in SOLVERS
    why = f"is for solver {schedule.solver!r}" if known else "has coefficients of its own"
    lost = ", which adds noise at each step; this adds none" if adds_noise(plain) else ""
    return (
        f"the schedule {why}: {NONSTATIONARY_CLASS} takes its steps in place of {type(plain).__name__}{lost}; "
        "bridge.without_schedule(scheduler) goes back"
    )


def install(pipe: Any, schedule: Schedule | Any, *, noise: NoiseSchedule | None = None) -> None:
    """Install a schedule in a pipeline, and in the pipelines that it is made of: `pipe.scheduler` is replaced.

    A pipeline made of others (VisualCloze, the combined ones of Kandinsky and StableCascade) samples by *their*
    schedulers, which `pipe.scheduler = ...` does not reach.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        schedule: as for `with_schedule`.
        noise: likewise.

    Raises:
        ValueError: as `with_schedule` and `replace_scheduler` do; the pipeline is then as it was.

    Warns of a schedule that was tuned (`bridge.tune`) on other weights.
    """
    check_pipeline(pipe, "bridge.install")
    check_use(pipe)
    replace_scheduler(pipe, with_schedule(pipe.scheduler, schedule, noise=noise))
    if isinstance(schedule, Schedule):
        warn_of_other_weights(pipe, schedule)


def replace_scheduler(pipe: Any, scheduler: Any) -> None:
    """Give a pipeline a scheduler, and those of its inner pipelines that sample with the same model.

    An inner pipeline whose scheduler the outer one holds under another name (a prior's `prior_scheduler`) samples
    another model; it keeps its own, and a warning names it. ValueError where one scheduler serves two models, so that
    it cannot be replaced for one alone, and as `check_use` raises it.
    """
    inner = inner_pipelines(pipe)
    others = {id(part) for name, part in vars(pipe).items() if name != "scheduler" and isinstance(part, SchedulerMixin)}
    if inner and id(pipe.scheduler) in others:
        raise ValueError(
            f"the models of {' and '.join(inner)} share one scheduler object; give each its own, "
            "copy.deepcopy(scheduler), when the pipeline is built"
        )
    kept = [name for name, part in inner.items() if id(part.scheduler) in others]
    parts = [pipe, *(part for name, part in inner.items() if name not in kept)]
    for part in parts if isinstance(scheduler, Installed) else ():
        check_use(part, scheduler)
    if kept:
        warnings.warn(
            f"{' and '.join(kept)} of {type(pipe).__name__} samples another model, and keeps its "
            f"{type(inner[kept[0]].scheduler).__name__}",
            stacklevel=3,
        )
    for part in parts:
        part.scheduler = scheduler


def inner_pipelines(pipe: Any) -> dict[str, Any]:
    """The pipelines that a pipeline is made of, by the names that it calls them."""
    return {
        name: part for name, part in vars(pipe).items() if isinstance(getattr(part, "scheduler", None), SchedulerMixin)
    }


def load_scheduler(folder: str | os.PathLike[str]) -> Any:
    """A scheduler from a folder it was saved to (or a pipeline's folder), with its schedule; never from the network.

    Raises:
        ValueError: if the folder has no scheduler config, or it holds no schedule.
    """
    base = Path(folder)
    for file in (base / "scheduler_config.json", base / "scheduler" / "scheduler_config.json"):
        if file.is_file():
            config = json.loads(file.read_text())
            name = str(config.get("_class_name"))
            cls: Any = NonstationaryScheduler if name == NONSTATIONARY_CLASS else scheduled_class(name)
            return cls.from_config(config)
    raise ValueError(f"{base} has no scheduler_config.json; pass a folder that save_pretrained wrote")
