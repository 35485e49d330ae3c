"""The diffusers scheduler behind one with a schedule, and what of it can carry one."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers import SchedulerMixin

from bridge.schedulers.adapters import ROWS
from bridge.schedulers.refusals import unsupported
from bridge.schedulers.scheduled import REPLACED_KEY, SCHEDULE_KEY, Installed
from hso_jax.checks import level_list
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Origin, Schedule
from hso_jax.solvers import NONSTATIONARY

NONSTATIONARY_CLASS = "NonstationaryScheduler"


def without_schedule(scheduler: Any) -> Any:
    """A plain diffusers scheduler, with the config from before a schedule was installed.

    What the schedule had replaced in it, the rules that space levels (`use_karras_sigmas`, ...) included, is back, and
    so is the class where `NonstationaryScheduler` stands for another.
    """
    if not isinstance(scheduler, Installed):
        return scheduler
    plain = plain_of(scheduler.config, type(scheduler).__name__)
    if "alphas_cumprod" in vars(scheduler):  # someone may have set it to what no config says
        plain.alphas_cumprod = scheduler.alphas_cumprod  # type: ignore[attr-defined]
    return plain


def plain_of(config: Any, class_name: str) -> Any:
    """The plain scheduler of a config, maybe with a schedule, that belongs to a class of that name."""
    kept = plain_config(config)
    own = kept.get("_class_name") if class_name == NONSTATIONARY_CLASS else class_name
    return getattr(diffusers, own or class_name).from_config(kept)


def plain_config(config: Any) -> dict[str, Any]:
    """The config as it was before a schedule was installed."""
    replaced = dict(config.get(REPLACED_KEY) or {})
    if "_class_name" in replaced:
        return replaced
    return {key: value for key, value in {**config, **replaced}.items() if key not in (SCHEDULE_KEY, REPLACED_KEY)}


def supported_name(scheduler: Any) -> str:
    """The name of the scheduler's class. Raises ValueError, saying what to pass, unless it is one of diffusers' own."""
    cls = type(scheduler)
    if isinstance(getattr(scheduler, "scheduler", None), SchedulerMixin):
        raise ValueError(
            f"{cls.__name__} is a pipeline: pass pipe.scheduler, as in pipe.scheduler = with_schedule(pipe.scheduler, "
            "schedule); or use install(pipe, schedule)"
        )
    if issubclass(cls, Installed) or getattr(diffusers, cls.__name__, None) is cls:
        return cls.__name__
    parent = next((base.__name__ for base in cls.__mro__ if base.__name__ in ROWS), None)
    nearest = f"; the nearest that is supported: {parent}.from_config(scheduler.config)" if parent else ""
    raise ValueError(
        f"{cls.__module__}.{cls.__name__} is not a scheduler class of diffusers, and its step may differ{nearest}"
    )


def check_supported(name: Any) -> str:
    """The name of a class in the table. Raises ValueError for any other, with what to use instead."""
    if not isinstance(name, str) or name not in ROWS:
        raise ValueError(unsupported(str(name)))
    return name


def schedule_from_list(noise: NoiseSchedule, sigmas: Any, coefficients: Any = None) -> Schedule:
    """A schedule from N + 1 sigmas in diffusers' convention for such noise; see `with_schedule`.

    Raises:
        ValueError: for a list that is too short, not falling, not finite or outside the model's range.
    """
    values = level_list("sigmas", sigmas)
    if values.size < 2:
        raise ValueError(f"sigmas is {values.tolist()}; need N + 1 values, the last of them the end (append a final 0)")
    if noise.kind == "flow":
        if values[0] > 1 + 1e-6:
            raise ValueError(
                f"s = {values[0]:.9g} is above 1; a flow model's sigmas are s in (0, 1], or 0 at the end: of timesteps "
                f"pass t / {max(noise.num_train_timesteps, 1000)}"
            )
        values = np.minimum(values, 1.0)
        with np.errstate(divide="ignore"):
            values = values / (1.0 - values)
    free = {} if coefficients is None else {"origin": Origin(solver=NONSTATIONARY), "coefficients": coefficients}
    return Schedule.from_sigmas(noise, values, end="clean" if values[-1] == 0.0 else "t_eps", **free)
