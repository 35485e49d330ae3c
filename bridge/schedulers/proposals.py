"""What a pipeline, or its caller, proposes to `set_timesteps`, against the schedule that is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from hso_jax.checks import rounding
from hso_jax.schedule import Schedule

# The first s that pipelines propose for pure noise is 0.999 or 1.
_NOISE = 0.95
Array = np.ndarray[Any, Any]


def check(schedule: Schedule, steps: Any, timesteps: Any, sigmas: Any) -> str | None:
    """One rule for the number of steps, timesteps and sigmas that `set_timesteps` is given.

    Their number must be the schedule's N. Values equal to the schedule's, to rounding, are its own. For VP and VE
    models other values are an error: no diffusers pipeline of such a model proposes any, so they are the caller's.
    Pipelines of flow models nearly all propose some, and nothing tells theirs from a caller's: the schedule replaces
    them. The even grid from pure noise, which most propose, says nothing of anyone's wish; about others there is a
    notice. A list that starts lower (Stable Audio 3's `init_noise_level`, LTX-2's second stage) says how much noise the
    pipeline put on its data, so the schedule must start there.

    Args:
        schedule: the installed one.
        steps: `num_inference_steps` or None; without any of the three, the schedule's N is meant.
        timesteps: [N] or None.
        sigmas: [N], or [N + 1] equal to the schedule's own with its end, or None.

    Returns:
        The notice, or None.

    Raises:
        ValueError: naming both numbers, or both lists, and what to do.
    """
    near = 1e-3 if schedule.kind == "ve" else 1.0
    given: dict[str, tuple[Array, Array, float]] = {}
    if timesteps is not None:
        given["timesteps"] = _values(timesteps), np.asarray(schedule.timesteps), near
    if sigmas is not None:
        given["sigmas"] = _values(sigmas), schedule.sampler_sigmas()[: schedule.nfe], 0.0
    for found in (steps, *(_number(schedule, name, x) for name, (x, _, _) in given.items())):
        if found is not None and int(found) != schedule.nfe:
            if schedule.end == "t_eps" and schedule.method == "custom" and int(found) == schedule.nfe + 1:
                raise ValueError(
                    f"num_inference_steps is {found}, but the installed schedule has {schedule.nfe} evaluations and "
                    "stops at the list's last sigma: append a final 0 to the list to evaluate there too"
                )
            raise ValueError(
                f"num_inference_steps is {found}, but the installed schedule has {schedule.nfe} evaluations: "
                f"call the pipeline with num_inference_steps={schedule.nfe}, or install a schedule made for {found}"
            )
    for name, (values, own, tolerance) in given.items():
        proposed = values[: schedule.nfe]
        if _near(proposed, own, tolerance):
            continue
        both = f"{name} {_short(proposed)} differ from those of the installed schedule, {_short(own)}"
        if schedule.kind != "flow":
            raise ValueError(f"{both}; leave the argument out, or install another schedule")
        if name == "sigmas" and proposed[-1] < proposed[0] < _NOISE and abs(proposed[0] - own[0]) > 0.01:
            raise ValueError(
                f"the pipeline noised its data to s = {proposed[0]:.4g}, but the installed schedule starts "
                f"at {own[0]:.4g}: install one whose first sigma is {proposed[0]:.4g}"
            )
        if not _is_even(proposed, 1.0 if name == "sigmas" else float(schedule.num_train_timesteps)):
            return (
                f"{both}, which is used. If you passed them, leave the argument out, or install them with "
                "with_schedule; if you did not, they are the pipeline's own and have no effect"
            )
    return None


def _values(proposed: Any) -> Array:
    return np.asarray([float(x) for x in proposed])


def _number(schedule: Schedule, name: str, proposed: Array) -> int:
    """N + 1 sigmas may be the schedule's own with its end, or a proposal for one step more."""
    own = schedule.sampler_sigmas()
    with_end = name == "sigmas" and len(proposed) == len(own) and _near(proposed, own, 0.0)
    return schedule.nfe if with_end else len(proposed)


def _near(proposed: Array, own: Array, tolerance: float) -> bool:
    """Whether they are the schedule's own but for the digits that were left out."""
    rounded = np.minimum(rounding(proposed), 0.01 * np.abs(own))
    return bool((np.abs(proposed - own) <= 1e-3 * np.abs(own) + np.maximum(rounded, tolerance)).all())


def _is_even(proposed: Array, top: float) -> bool:
    """Whether it is a linspace from pure noise to 1/N or less; whole timesteps are off by up to 1 in 1000."""
    count = len(proposed)
    line = np.linspace(proposed[0], proposed[-1], count)
    near = 2e-3 * top
    starts, ends = proposed[0] >= 0.99 * top, proposed[-1] <= top / count + near
    return bool(starts and ends and np.abs(proposed - line).max() <= near)


def _short(values: Array) -> str:
    """At most eight of them, to four digits."""
    shown = [f"{x:.4g}" for x in values]
    return f"[{', '.join(shown if len(shown) <= 8 else [*shown[:6], '...', shown[-1]])}]"
