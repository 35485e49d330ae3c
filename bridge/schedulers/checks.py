"""Whether a schedule and a scheduler belong together; says so before anything is sampled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from bridge.schedulers.adapters import ROWS, SPACING_FLAGS, Row
from bridge.schedulers.levels import TABLES, told
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.from_config import ignored_keys
from hso_jax.schedule import Schedule

# A float32 training table gives lam to about 1e-4 where alphas_cumprod is near 1; other models are off by 0.1 and more.
_LAM_TOLERANCE = 1e-3
_MAKE = "make one for it: noise_schedule_of(scheduler) has its noise schedule"
# What to switch to where a class does not know the model's prediction.
_GENERAL = "UniPCMultistepScheduler"


def check_fits(scheduler: Any, schedule: Schedule, row: Row, noise: NoiseSchedule) -> None:
    """Raise unless the scheduler, with this noise schedule, can sample exactly at the schedule.

    Raises:
        ValueError: naming the scheduler, what is wrong and what to do instead.
    """
    name, config = type(scheduler).__name__, scheduler.config
    prediction = config.get("prediction_type", row.predictions[0])
    if prediction not in row.predictions:
        instead = f"; use {_GENERAL}.from_config(scheduler.config)" if prediction in ROWS[_GENERAL].predictions else ""
        raise ValueError(
            f"{name} cannot sample with prediction_type {prediction!r}, only with {', '.join(row.predictions)}{instead}"
        )
    if prediction == "flow_prediction" and config.get("use_flow_sigmas") is False:
        raise ValueError(
            f"{name}: prediction_type 'flow_prediction' needs use_flow_sigmas=True; without, it scales noise as VP: "
            f"use {name}.from_config(scheduler.config, use_flow_sigmas=True)"
        )
    if prediction == "flow_prediction" and config.get("sigma_data") is not None:
        raise ValueError(
            f"{name} has the sigma_data that Cosmos-Predict2's pipelines write: they read its sigmas as EDM's, 80 to "
            "0.002, which no flow schedule is; call the pipeline without a schedule"
        )
    if name in ROWS:
        _check_keys(name, config, row)
    _check_noise(name, schedule, noise)
    if np.isinf(schedule.sigmas[0]) and prediction == "epsilon":
        raise ValueError(
            f"{name}: the schedule starts at pure noise, where a model that predicts noise says nothing of the data; "
            "start below t = 1, or use a model of v_prediction"
        )
    if reason := row.refuse(config, schedule):
        raise ValueError(f"{name}: {reason}")
    steps = told(schedule, row)
    if not np.all(np.diff(steps) < 0):
        i = int(np.flatnonzero(~(np.diff(steps) < 0))[0])
        raise ValueError(f"timesteps {i} and {i + 1} are both {steps[i]} in float32; use fewer or a larger d_min")


def entries(config: Mapping[str, Any], schedule: Schedule, row: Row) -> dict[str, Any]:
    """The config entries that the schedule needs: those of its end, and every rule that spaces levels switched off."""
    off = {flag: False for flag in SPACING_FLAGS if config.get(flag)}
    return {**off, **(row.overrides(config, schedule) or {})}


def say_switched_off(name: str, replaced: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Warn of spacing rules that a schedule has just switched off; not again when it is installed again."""
    if flags := [flag for flag in SPACING_FLAGS if flag in replaced and flag not in before]:
        warnings.warn(
            f"{name}: the schedule replaces {' and '.join(flags)}, now switched off; "
            "bridge.without_schedule(scheduler) puts them back",
            stacklevel=4,
        )


def _check_keys(name: str, config: Mapping[str, Any], row: Row) -> None:
    """Keys of the model's noise that the class ignores: the installed levels are the model's, where its steps allow."""
    for key, reader in ignored_keys({**config, "_class_name": name}).items():
        as_table = key == "timestep_type" and row.layout in TABLES
        if key in ("use_flow_sigmas", "invert_sigmas") or row.layout in ("grid", "times") or as_table:
            raise ValueError(
                f"{name} ignores {key} of its config, which the model needs; use {reader}.from_config(scheduler.config)"
            )
        warnings.warn(
            f"{name} ignores {key} of its config: its own levels, without the schedule, are not the model's; {reader} "
            "reads it",
            stacklevel=5,
        )


def _check_noise(name: str, schedule: Schedule, noise: NoiseSchedule) -> None:
    if schedule.kind != noise.kind:
        raise ValueError(
            f"the schedule is for noise of kind {schedule.kind!r} (model {schedule.model!r}), but this {name}'s is "
            f"{noise.kind!r}; {_MAKE}"
        )
    if schedule.kind == "ve":  # what the network is told follows from sigma alone; only the range can be wrong
        low, high = float(noise.ksigma(0.0)), float(noise.ksigma(1.0))
        if schedule.sigmas[-1] < low * (1 - 1e-6) or schedule.sigmas[0] > high * (1 + 1e-6):
            found = f"[{schedule.sigmas[-1]:.6g}, {schedule.sigmas[0]:.6g}]"
            raise ValueError(
                f"the schedule's sigmas {found} leave [{low:.6g}, {high:.6g}], the range of this {name}'s model; "
                f"{_MAKE}"
            )
        known = np.asarray(noise.timestep(noise.t_of_lam(schedule.lams[: schedule.nfe])))
        if not np.allclose(schedule.timesteps, known, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"the schedule tells the network {np.round(schedule.timesteps, 4).tolist()} "
                f"(model {schedule.model!r}), where this {name}'s model is told {np.round(known, 4).tolist()}; {_MAKE}"
            )
        return
    if schedule.num_train_timesteps != noise.num_train_timesteps:
        raise ValueError(
            f"the schedule counts timesteps to {schedule.num_train_timesteps} (model {schedule.model!r}), "
            f"but this {name}'s model to {noise.num_train_timesteps}; {_MAKE}"
        )
    # A flow model is told sigma itself: a schedule made at one shift is as valid at any other.
    if schedule.kind == "flow" or schedule.noise == noise.fingerprint():
        return
    inside = np.isfinite(schedule.lams)
    off = np.abs(np.asarray(noise.lam(schedule.t)) - schedule.lams)[inside]
    if off.size and not off.max() <= _LAM_TOLERANCE:
        i = int(np.flatnonzero(inside)[off.argmax()])
        raise ValueError(
            f"the schedule is for other noise levels (model {schedule.model!r}): at t = {schedule.t[i]:.6g} it has "
            f"sigma {schedule.sigmas[i]:.6g}, where this {name}'s model has "
            f"{float(noise.ksigma(schedule.t[i])):.6g}; {_MAKE}"
        )
