"""The table of diffusers schedulers: how a schedule is put into each class, and why it cannot be put into the others.

`check_fits` holds a schedule against a row and a scheduler's config. Checked against diffusers 0.42.1. `docs/bridge.md`
is this table in words; a test goes through every class it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hso_jax.noise import NoiseSchedule
from hso_jax.noise.from_config import REFUSED, ignored_keys, unknown
from hso_jax.schedule import Schedule

Array = np.ndarray[Any, Any]
_GENERAL = "UniPCMultistepScheduler"  # what to switch to where a class does not know the model's prediction
TABLES = ("table", "plms")
"""The layouts in which the nodes become a small training table."""
SPACING_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_VP = ("epsilon", "sample", "v_prediction")
_FLOW = ("flow_prediction",)
_BOTH = (*_VP, *_FLOW)
_NO_SAMPLE = ("epsilon", "v_prediction")


def _nothing(config: Mapping[str, Any], schedule: Schedule) -> Any:
    return None


class Row(NamedTuple):
    """How a schedule is put into one scheduler class.

    Attributes:
        layout: how nodes become `timesteps` and `sigmas`. "plain": one each. "pairs": inner nodes twice (Heun).
            "midpoints", "ancestral": the solver's own level between two nodes (KDPM2). "table": the nodes become a
            small training table through which the parent's fixed stride is one row. "plms": such a table with the
            second node evaluated twice. "grid": the parent's own integer `timesteps`. "middles": as "pairs", where the
            solver computes the level between two nodes itself. "times": nodes and end as times.
        predictions: the `prediction_type`s that the parent's `step` handles.
        log_snr: the solver works with differences of log-SNR, so lam must be finite, and a step to sigma 0 must be of
            first order (`lower_order_nums` lowers it).
        k_scaled: the sample is x0 + sigma eps, and the pipeline scales noise by `init_noise_sigma`.
        needs_mu: the parent's `set_timesteps` insists on `mu` for `use_dynamic_shifting`.
        ends_at_level_0: the parent's last step goes to training level 0, and must be shown that it is clean.
        snaps: a timestep that is a whole number but for rounding is told as that (SASolver's tau looks at it).
        own_order: `step` counts its order from the schedule's start, not from where img2img began (LMS).
        clean_sigma: the last sigma of a clean end; not 0 where the formula has no value, only a limit, there.
        overrides: config entries that the schedule's end needs.
        refuse: why a schedule cannot be honoured, and what works instead; None if it can.
    """

    layout: str = "plain"
    predictions: tuple[str, ...] = _VP
    log_snr: bool = False
    k_scaled: bool = False
    needs_mu: bool = False
    ends_at_level_0: bool = False
    snaps: bool = False
    own_order: bool = False
    clean_sigma: Callable[[Mapping[str, Any]], float] = lambda config: 0.0
    overrides: Callable[[Mapping[str, Any], Schedule], Mapping[str, Any] | None] = _nothing
    refuse: Callable[[Mapping[str, Any], Schedule], str | None] = _nothing


# exp(-h) of the last step is then below the rounding of float64: the first-order step returns the predicted x0.
_TINY = 1e-16


def _full_order(config: Mapping[str, Any], schedule: Schedule) -> Mapping[str, Any] | None:
    """A step to t_eps > 0 keeps its order; by default diffusers lowers it for N < 15, whatever sigma it goes to."""
    if schedule.end == "clean":
        return None
    wanted = {"lower_order_final": False, "euler_at_final": False, "final_sigmas_type": "sigma_min"}
    return {key: value for key, value in wanted.items() if key in config}


def _singlestep(config: Mapping[str, Any], schedule: Schedule) -> Mapping[str, Any]:
    """The orders of single steps must add up to N; `lower_order_final` alone can fill the rest (the parent's rule)."""
    if schedule.end == "clean":
        return {"lower_order_final": True}
    uneven = schedule.nfe % config["solver_order"] != 0
    return {"lower_order_final": uneven, "final_sigmas_type": "sigma_min"}


def _refuse_dpm(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    kind = config["algorithm_type"]
    if kind == "sde-dpmsolver" and schedule.end == "clean":
        return (
            "algorithm_type 'sde-dpmsolver' leaves noise of the last level in a step to sigma 0; "
            "use 'sde-dpmsolver++' or an end 't_eps'"
        )
    if kind == "sde-dpmsolver" and config["solver_order"] > 2:
        why = "algorithm_type 'sde-dpmsolver' has no third order in diffusers"
        return f"{why}; use solver_order=2 or 'sde-dpmsolver++'"
    if not kind.endswith("++") and config["prediction_type"] == "flow_prediction":
        return "noise-prediction algorithms do not know 'flow_prediction'; use algorithm_type='dpmsolver++'"
    return None


def _refuse_sa(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    if config["algorithm_type"] != "noise_prediction":
        return None
    if config["prediction_type"] == "flow_prediction":
        return "algorithm_type 'noise_prediction' does not know 'flow_prediction'; use 'data_prediction'"
    tau = config["tau_func"] or (lambda t: 1 if 200 <= t <= 800 else 0)  # the parent's default
    if schedule.end == "clean" and tau(round(float(schedule.timesteps[-1]), 4)) != 0:
        return (
            "algorithm_type 'noise_prediction' leaves noise of the last level in a step to sigma 0 where tau > 0; "
            "use 'data_prediction', a tau_func that is 0 there, or an end 't_eps'"
        )
    return None


def _refuse_cosine_dpm(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    return "its stochastic algorithm has no third order; use solver_order=2" if config["solver_order"] > 2 else None


def _refuse_edm_dpm(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    return _refuse_cosine_dpm(config, schedule) if config["algorithm_type"] == "sde-dpmsolver++" else None


def _refuse_unipc(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    if config.get("solver_p") is not None:
        return "solver_p is a scheduler with levels of its own, which cannot follow the schedule; use solver_p=None"
    if not config["predict_x0"] and config["prediction_type"] == "flow_prediction":
        return "predict_x0=False does not know 'flow_prediction'; use predict_x0=True"
    return None


def _refuse_flow(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    why = "with invert_sigmas its stochastic step mistakes data for noise; use stochastic_sampling=False"
    return why if config.get("invert_sigmas") and config["stochastic_sampling"] else None


def _refuse_flow_lcm(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    if config.get("invert_sigmas"):
        return (
            "with invert_sigmas its step mistakes data for noise; use invert_sigmas=False, or for Mochi "
            "FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)"
        )
    entries = len(config["scale_factors"] or ())
    if entries and entries + 1 != schedule.nfe:
        return f"scale_factors has {entries} entries, for {entries + 1} steps; the schedule has {schedule.nfe}"
    return None


def _refuse_pndm(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    why = "the Runge-Kutta start evaluates between the schedule's levels, four times a step; use skip_prk_steps=True"
    return None if config["skip_prk_steps"] else why


def distillation_grid(config: Mapping[str, Any]) -> np.ndarray:
    """The integer timesteps [original_inference_steps], rising, on which an LCM or TCD model was distilled."""
    steps = int(config["original_inference_steps"])
    return np.arange(1, steps + 1) * (int(config["num_train_timesteps"]) // steps) - 1


def _refuse_off_grid(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    grid = distillation_grid(config)
    nearest = grid[np.abs(schedule.timesteps[:, None] - grid).argmin(axis=1)]
    if np.abs(nearest - schedule.timesteps).max() > 1e-3:
        offered = sorted({int(x) for x in nearest}, reverse=True)
        return (
            "a distilled model knows only the levels of its distillation grid, and the schedule's "
            f"{np.round(schedule.timesteps, 2).tolist()} are not on it; the nearest are {offered}: "
            "Schedule.from_t(noise_schedule_of(scheduler), "
            f"[(i + 1) / {config['num_train_timesteps']} for i in {offered}])"
        )
    if schedule.end != "clean":
        return "its last step always goes to clean data; use schedule.with_end('clean')"
    return None


def _refuse_tcd(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    if schedule.timesteps[-1] < 0.5:
        return "it cannot be evaluated at training level 0, where its last step ends; leave that node out"
    return _refuse_off_grid(config, schedule)


_DPM = Row(
    predictions=_BOTH,
    log_snr=True,
    clean_sigma=lambda config: _TINY if config["algorithm_type"] == "dpmsolver" else 0.0,
    overrides=_full_order,
    refuse=_refuse_dpm,
)
_EDM_DPM = Row(predictions=_NO_SAMPLE, log_snr=True, k_scaled=True, overrides=_full_order, refuse=_refuse_edm_dpm)
_ADAMS = Row(predictions=_BOTH, log_snr=True, clean_sigma=lambda config: _TINY, overrides=_full_order)

ROWS: Mapping[str, Row] = {
    "CogVideoXDDIMScheduler": Row("table"),
    "CogVideoXDPMScheduler": Row("table"),
    "CosineDPMSolverMultistepScheduler": _EDM_DPM._replace(refuse=_refuse_cosine_dpm),
    "DDIMParallelScheduler": Row("table"),
    "DDIMScheduler": Row("table"),
    "DDPMParallelScheduler": Row("table"),
    "DDPMScheduler": Row("table"),
    "DDPMWuerstchenScheduler": Row("times", predictions=("epsilon",)),
    "DEISMultistepScheduler": _ADAMS,
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverSDEScheduler": Row("middles", predictions=_NO_SAMPLE, k_scaled=True),
    "DPMSolverSinglestepScheduler": _DPM._replace(overrides=_singlestep),
    "EDMDPMSolverMultistepScheduler": _EDM_DPM,
    "EDMEulerScheduler": Row(predictions=_NO_SAMPLE, k_scaled=True),
    "EulerAncestralDiscreteScheduler": Row(predictions=_NO_SAMPLE, k_scaled=True),
    "EulerDiscreteScheduler": Row(k_scaled=True),
    "FlowMatchEulerDiscreteScheduler": Row(predictions=_FLOW, needs_mu=True, refuse=_refuse_flow),
    "FlowMatchHeunDiscreteScheduler": Row("pairs", predictions=_FLOW),
    "FlowMatchLCMScheduler": Row(predictions=_FLOW, needs_mu=True, refuse=_refuse_flow_lcm),
    "HeunDiscreteScheduler": Row("pairs", k_scaled=True),
    "KDPM2AncestralDiscreteScheduler": Row("ancestral", predictions=_NO_SAMPLE, k_scaled=True),
    "KDPM2DiscreteScheduler": Row("midpoints", predictions=_NO_SAMPLE, k_scaled=True),
    "LCMScheduler": Row("grid", refuse=_refuse_off_grid),
    "LMSDiscreteScheduler": Row(k_scaled=True, own_order=True),
    "PNDMScheduler": Row("plms", predictions=_NO_SAMPLE, refuse=_refuse_pndm),
    "SASolverScheduler": _ADAMS._replace(snaps=True, refuse=_refuse_sa),
    "TCDScheduler": Row("grid", ends_at_level_0=True, refuse=_refuse_tcd),
    "UniPCMultistepScheduler": Row(
        predictions=_BOTH,
        log_snr=True,
        needs_mu=True,
        clean_sigma=lambda config: 0.0 if config["predict_x0"] and config["solver_type"] == "bh2" else _TINY,
        overrides=_full_order,
        refuse=_refuse_unipc,
    ),
}

_INVERSE = "it goes from data to noise, to invert an image; install the schedule in the sampler"
_SDE = "its predictor and corrector take the SDE's own thousands of even steps"

# Class -> why, and what to use.
INSTEAD: Mapping[str, str] = {
    **REFUSED,
    "DDIMInverseScheduler": f"{_INVERSE}, DDIMScheduler.from_config(scheduler.config)",
    "DPMSolverMultistepInverseScheduler": f"{_INVERSE}, DPMSolverMultistepScheduler.from_config(scheduler.config)",
    "RePaintScheduler": "it goes back and forth between levels; use DDPMScheduler.from_config(scheduler.config)",
    "ScoreSdeVeScheduler": f"{_SDE}; use EDMEulerScheduler with a model that is told log(sigma)/4",
    "ScoreSdeVpScheduler": f"{_SDE}; use DPMSolverMultistepScheduler",
    "UnCLIPScheduler": (
        "diffusers itself says to use DDPMScheduler: DDPMScheduler(beta_schedule='squaredcos_cap_v2', "
        "variance_type=..., prediction_type=...) with this config's values"
    ),
}


def check_supported(name: Any) -> str:
    """The name of a class in the table. Raises ValueError for any other, with what to use instead."""
    if isinstance(name, str) and name in ROWS:
        return name
    raise ValueError(f"{name} is not supported: {INSTEAD[name]}" if name in INSTEAD else unknown(str(name), ROWS, {}))


def told_timesteps(schedule: Schedule, row: Row) -> Array:
    """[N] timesteps of the nodes in float32, as networks embed them."""
    steps = np.asarray(schedule.timesteps, np.float32)
    if not row.snaps:
        return steps
    whole = np.rint(steps)  # a timestep of 200 that was computed in float32 is 199.99998
    return np.where(np.abs(steps - whole) < 1e-4, whole, steps)


def check_fits(scheduler: Any, schedule: Schedule, row: Row, noise: NoiseSchedule) -> None:
    """Raise ValueError, naming a way that works, unless the scheduler can sample exactly at the schedule."""
    name, config = type(scheduler).__name__, scheduler.config
    prediction = config.get("prediction_type", row.predictions[0])
    flows = prediction == "flow_prediction"
    instead = f"; use {_GENERAL}.from_config(scheduler.config)" if prediction in ROWS[_GENERAL].predictions else ""
    if prediction not in row.predictions:
        known = ", ".join(row.predictions)
        raise ValueError(f"{name} cannot sample with prediction_type {prediction!r}, only with {known}{instead}")
    if flows and config.get("use_flow_sigmas") is False:
        raise ValueError(
            f"{name} needs use_flow_sigmas=True for prediction_type 'flow_prediction'; otherwise it scales noise as "
            f"VP: use {name}.from_config(scheduler.config, use_flow_sigmas=True)"
        )
    if flows and config.get("sigma_data") is not None:
        raise ValueError(
            f"{name} has the sigma_data that Cosmos-Predict2's pipelines write: they expect EDM's sigmas, 80 to 0.002, "
            "and a flow schedule has none of those; call the pipeline without a schedule"
        )
    for key, reader in ignored_keys({**config, "_class_name": name}).items() if name in ROWS else ():
        # The installed levels are the model's whatever the class ignores, where its steps allow.
        as_table = key == "timestep_type" and row.layout in TABLES
        if key in ("use_flow_sigmas", "invert_sigmas") or row.layout in ("grid", "times") or as_table:
            raise ValueError(
                f"{name} ignores {key} of its config, which the model needs; use {reader}.from_config(scheduler.config)"
            )
        warnings.warn(
            f"{name} ignores {key} of its config: without a schedule its levels are not the model's; {reader} reads it",
            stacklevel=4,
        )
    if why := _misfit(f"this {name}'s model", schedule, noise):
        raise ValueError(f"{why}; make one for it: noise_schedule_of(scheduler) has its noise schedule")
    if np.isinf(schedule.sigmas[0]) and prediction == "epsilon":
        raise ValueError(
            f"{name}: the schedule starts at pure noise, where predicted noise does not determine the data; "
            "start below t = 1, or use a model of v_prediction"
        )
    if why := row.refuse(config, schedule):
        raise ValueError(f"{name}: {why}")
    steps = told_timesteps(schedule, row)
    if len(equal := np.flatnonzero(~(np.diff(steps) < 0))):
        i = int(equal[0])
        raise ValueError(f"timesteps {i} and {i + 1} are both {steps[i]} in float32; use fewer or a larger d_min")


def _misfit(own: str, schedule: Schedule, noise: NoiseSchedule) -> str | None:
    """Why a schedule is not for this noise, if it is not."""
    made_for = f"(model {schedule.model!r})"
    if schedule.kind != noise.kind:
        return f"the schedule {made_for} is for noise of kind {schedule.kind!r}, but {own} is {noise.kind!r}"
    if schedule.kind == "ve":  # what the network is told follows from sigma alone; only the range can be wrong
        low, high = float(noise.ksigma(0.0)), float(noise.ksigma(1.0))
        if schedule.sigmas[-1] < low * (1 - 1e-6) or schedule.sigmas[0] > high * (1 + 1e-6):
            found = f"[{schedule.sigmas[-1]:.6g}, {schedule.sigmas[0]:.6g}]"
            return f"the schedule's sigmas {found} leave [{low:.6g}, {high:.6g}], the range of {own}"
        known = np.asarray(noise.timestep(noise.t_of_lam(schedule.lams[: schedule.nfe])))
        if np.allclose(schedule.timesteps, known, rtol=1e-3, atol=1e-3):
            return None
        return (
            f"the schedule {made_for} tells the network {np.round(schedule.timesteps, 4).tolist()}, where {own} "
            f"is told {np.round(known, 4).tolist()}"
        )
    if schedule.num_train_timesteps != noise.num_train_timesteps:
        return (
            f"the schedule {made_for} counts timesteps to {schedule.num_train_timesteps}, but {own} to "
            f"{noise.num_train_timesteps}"
        )
    # A flow model is told sigma itself: a schedule made at one shift is as valid at any other.
    if schedule.kind == "flow" or schedule.noise == noise.fingerprint():
        return None
    inside = np.isfinite(schedule.lams)
    off = np.abs(np.asarray(noise.lam(schedule.t)) - schedule.lams)[inside]
    # A float32 training table gives lam to about 1e-4 where alphas_cumprod is near 1; other models are off by 0.1.
    if not off.size or off.max() <= 1e-3:
        return None
    i = int(np.flatnonzero(inside)[off.argmax()])
    return (
        f"the schedule {made_for} is for other noise levels: at t = {schedule.t[i]:.6g} it has sigma "
        f"{schedule.sigmas[i]:.6g}, where {own} has {float(noise.ksigma(schedule.t[i])):.6g}"
    )
