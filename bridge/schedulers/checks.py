"""Whether a schedule, a scheduler and a pipeline belong together: said before anything is sampled.

`check_fits` looks at a scheduler's config and noise, `check_proposal` at what a pipeline or its caller asks of
`set_timesteps`, `check_use` at the pipelines that use their scheduler in a way of their own. These were checked against
every pipeline of diffusers 0.42.1; `tests/bridge/test_pipelines_census.py` notices what a new one does, and
`docs/bridge-pipelines.md` has their table in words.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bridge.schedulers.rows import ROWS, SPACING_FLAGS, TABLES, Row, told_timesteps
from hso_jax.checks import rounding
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.from_config import ignored_keys
from hso_jax.schedule import Schedule

Array = np.ndarray[Any, Any]
# A float32 training table gives lam to about 1e-4 where alphas_cumprod is near 1; other models are off by 0.1 and more.
_LAM_TOLERANCE = 1e-3
_MAKE = "make one for it: noise_schedule_of(scheduler) has its noise schedule"
# What to switch to where a class does not know the model's prediction.
_GENERAL = "UniPCMultistepScheduler"


def check_fits(scheduler: Any, schedule: Schedule, row: Row, noise: NoiseSchedule) -> None:
    """Raise ValueError, naming a way that works, unless the scheduler can sample exactly at the schedule."""
    name, config = type(scheduler).__name__, scheduler.config
    prediction = config.get("prediction_type", row.predictions[0])
    if prediction not in row.predictions:
        instead = f"; use {_GENERAL}.from_config(scheduler.config)" if prediction in ROWS[_GENERAL].predictions else ""
        raise ValueError(
            f"{name} cannot sample with prediction_type {prediction!r}, only with {', '.join(row.predictions)}{instead}"
        )
    if prediction == "flow_prediction" and config.get("use_flow_sigmas") is False:
        raise ValueError(
            f"{name}: prediction_type 'flow_prediction' needs use_flow_sigmas=True; otherwise it scales noise as VP: "
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
            f"{name}: the schedule starts at pure noise, where predicted noise does not determine the data; "
            "start below t = 1, or use a model of v_prediction"
        )
    if reason := row.refuse(config, schedule):
        raise ValueError(f"{name}: {reason}")
    steps = told_timesteps(schedule, row)
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
            f"{name} ignores {key} of its config: without a schedule its levels are not the model's; {reader} reads it",
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


# The first s that pipelines propose for pure noise is 0.999 or 1.
_NOISE = 0.95


def check_proposal(schedule: Schedule, steps: Any, timesteps: Any, sigmas: Any) -> str | None:
    """One rule for the number of steps, timesteps and sigmas that `set_timesteps` is given.

    Their number must be the schedule's N. Values equal to the schedule's, to rounding, are its own. For VP and VE
    models other values are an error: no diffusers pipeline of such a model proposes any, so they are the caller's.
    Pipelines of flow models nearly all propose some, and nothing tells theirs from a caller's: the schedule replaces
    them. The even grid from pure noise, which most propose, says nothing of anyone's wish; about others there is a
    notice. A list that starts lower (Stable Audio 3's `init_noise_level`, LTX-2's second stage) says how much noise the
    pipeline put on its data, so the schedule must start there.

    Without `steps`, `timesteps` [N] and `sigmas` ([N], or [N + 1] equal to the schedule's own with its end) N is meant.
    Returns the notice, or None; raises ValueError.
    """
    near = 1e-3 if schedule.kind == "ve" else 1.0
    given: dict[str, tuple[Array, Array, float]] = {}
    if timesteps is not None:
        given["timesteps"] = _values(timesteps), np.asarray(schedule.timesteps), near
    if sigmas is not None:
        given["sigmas"] = _values(sigmas), schedule.sampler_sigmas()[: schedule.nfe], 0.0
    for count in (steps, *(_number(schedule, name, x) for name, (x, _, _) in given.items())):
        if count is not None and int(count) != schedule.nfe:
            if schedule.end == "t_eps" and schedule.method == "custom" and int(count) == schedule.nfe + 1:
                raise ValueError(
                    f"num_inference_steps is {count}, but the installed schedule has {schedule.nfe} evaluations and "
                    "stops at the list's last sigma: append a final 0 to the list to evaluate there too"
                )
            raise ValueError(
                f"num_inference_steps is {count}, but the installed schedule has {schedule.nfe} evaluations: "
                f"call the pipeline with num_inference_steps={schedule.nfe}, or install a schedule made for {count}"
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


_SAME = 1e-3  # a list's first sigma may be rounded
_TABLE = "it reads the training table at whole timesteps, and a schedule's are not whole"
_STAGES = "its stages step through distilled lists of their own; call it without a schedule"
_EDM = "it reads sigmas as EDM's, 80 to 0.002, which no flow schedule is; call it without a schedule"
_SD = "use StableDiffusionPipeline with the same components"

# Class -> why no schedule can be installed, and what to use.
REFUSED: Mapping[str, str] = {
    "Cosmos2TextToImagePipeline": _EDM,
    "Cosmos2VideoToWorldPipeline": _EDM,
    "CycleDiffusionPipeline": f"{_TABLE}; {_SD.replace('Pipeline', 'Img2ImgPipeline')}",
    "HeliosPyramidDistilledModularPipeline": _STAGES,
    "HeliosPyramidModularPipeline": _STAGES,
    "HeliosPyramidPipeline": _STAGES,
    "KandinskyImg2ImgPipeline": (
        "it noises its image to a level of its own, which no node is; use KandinskyV22Img2ImgPipeline"
    ),
    "LEditsPPPipelineStableDiffusion": f"it steps along the timesteps of its inversion; {_SD}",
    "LEditsPPPipelineStableDiffusionXL": (
        "it steps along the timesteps of its inversion; use StableDiffusionXLPipeline with the same components"
    ),
    "LTX2DFRPipeline": _STAGES,
    "LTX2DFRTemporalRefinePipeline": _STAGES,
    "LTXI2VLongMultiPromptPipeline": (
        "it leaves the last evaluation out; keep its LTXEulerAncestralRFScheduler and pass "
        "sigmas=schedule.sampler_sigmas().tolist()"
    ),
    "SanaWMLTX2Refiner": _STAGES,
    "StableDiffusionDiffEditPipeline": (
        "it steps along the timesteps of its inversion; use StableDiffusionInpaintPipeline with the same components"
    ),
    "StableDiffusionParadigmsPipeline": f"{_TABLE}; {_SD}",
    "StableDiffusionSAGPipeline": f"{_TABLE}; use StableDiffusionPAGPipeline with the same components",
    "TextToVideoZeroPipeline": f"{_TABLE}; use AnimateDiffPipeline",
    "TextToVideoZeroSDXLPipeline": f"{_TABLE}; use AnimateDiffSDXLPipeline",
}


class _Only(NamedTuple):
    schedulers: tuple[str, ...]
    why: str


_COSMOS_1 = _Only(("EDMEulerScheduler",), "steps twice from each node")
_CASCADE = _Only(("DDPMWuerstchenScheduler",), "needs the ratio that only that class computes")

# Class -> the scheduler classes that it works with. Every other class samples garbage, fails or is lost on loading.
ONLY: Mapping[str, _Only] = {
    "BriaPipeline": _Only(
        ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"),
        "passes every other class levels of its own",
    ),
    "ChronoEditPipeline": _Only(
        ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"), "edits the predictions that the class keeps"
    ),
    "CosmosTextToWorldPipeline": _COSMOS_1,
    "CosmosVideoToWorldPipeline": _COSMOS_1,
    "DDIMPipeline": _Only(("DDIMScheduler",), "makes a DDIMScheduler of any other when it is loaded"),
    "LongCatAudioDiTPipeline": _Only(
        ("FlowMatchEulerDiscreteScheduler",), "replaces any other class when it is loaded"
    ),
    "StableCascadeDecoderPipeline": _CASCADE,
    "StableCascadePriorPipeline": _CASCADE,
    "StableDiffusionLatentUpscalePipeline": _Only(
        ("EulerDiscreteScheduler",), "reads sigmas as EDM's, of a sample that is x0 + sigma eps"
    ),
}


def check_use(pipe: Any, scheduler: Any = None) -> None:
    """Raise ValueError unless a call of the pipeline works with this scheduler; None stands for any."""
    check_class(type(pipe), scheduler)
    name = type(pipe).__name__
    if name.startswith("LTX2") and getattr(pipe, "audio_scheduler", None) is not None:
        raise ValueError(
            f"{name} has an audio_scheduler, which does not follow the schedule; set "
            "pipe.audio_scheduler = None, and the sound follows it too"
        )


def check_class(cls: type, scheduler: Any = None) -> None:
    """As `check_use`, of a pipeline that was not loaded."""
    names = [base.__name__ for base in cls.__mro__]
    for name in names:
        if name in REFUSED:
            raise ValueError(f"{cls.__name__} cannot sample at a schedule: {REFUSED[name]}")
    if scheduler is None:
        return
    given = type(scheduler).__name__
    for name in names:
        if name in ONLY and given not in ONLY[name].schedulers:
            raise ValueError(
                f"{cls.__name__} {ONLY[name].why}, so {given} does not work in it: use {ONLY[name].schedulers[0]} and "
                "a schedule without coefficients"
            )
    if ONLY.get(names[0]) is _COSMOS_1:
        start, own = float(scheduler.config.sigma_max), float(scheduler.schedule.sigmas[0])
        if abs(own / start - 1.0) > _SAME:
            raise ValueError(
                f"{cls.__name__} starts at its config's sigma_max, {start:g}, and the schedule at {own:g}: use one "
                f"whose first sigma is {start:g}"
            )
    if not _steps(cls, type(scheduler)):
        raise ValueError(
            f"{cls.__name__} calls step with arguments that {given} does not have: use the scheduler class that the "
            "model came with, and a schedule without coefficients"
        )


def _steps(cls: type, scheduler: type) -> bool:
    """Whether the class's code has a call of `self.scheduler.step` that this scheduler takes, or none that is seen."""
    owner = next((base for base in cls.__mro__ if "__call__" in vars(base)), cls)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # a class without a file
        return True
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.scheduler.step"
    ]
    signature = inspect.signature(scheduler.step)  # type: ignore[attr-defined]
    return not calls or any(_binds(signature, call) for call in calls)


def _binds(signature: inspect.Signature, call: ast.Call) -> bool:
    try:
        signature.bind(None, *call.args, **{word.arg: None for word in call.keywords if word.arg})
    except TypeError:
        return False
    return True
