"""`with_schedule` puts a schedule in a diffusers scheduler, and `install` in a pipeline.

The tables at the end are of the pipelines that use their scheduler in a way of their own. These were checked against
every pipeline of diffusers 0.42.1; `tests/bridge/test_pipelines_census.py` notices what a new one does, and
`docs/bridge-pipelines.md` has their table in words.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import json
import os
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin

from bridge.noise_of import adds_noise, check_pipeline, noise_schedule_of, solver_of
from bridge.schedulers import scheduled
from bridge.schedulers.nonstationary import NonstationaryScheduler
from bridge.schedulers.scheduled import NONSTATIONARY_CLASS, Installed, without_schedule
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
    been imported. For a schedule with coefficients, or one that was made for another solver than the scheduler's, the
    result is a `NonstationaryScheduler`, and a warning says so. The sigmas alone
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
    name = scheduled.supported_name(scheduler)
    if isinstance(schedule, Schedule) and (taken := as_taken(scheduler, schedule)).coefficients is not None:
        result = NonstationaryScheduler.from_schedule(scheduler, taken, noise=noise)
        if name != NONSTATIONARY_CLASS:
            warnings.warn(switched(scheduler, schedule), stacklevel=2)
        return result
    if name == NONSTATIONARY_CLASS:
        scheduler = without_schedule(scheduler)
        name = type(scheduler).__name__
    cls = scheduled.scheduled_class(name)
    noise = noise_schedule_of(scheduler) if noise is None else noise
    if not isinstance(schedule, Schedule):
        schedule = scheduled.schedule_from_list(noise, schedule)
    # Everything is copied but tensors, which schedulers replace and never write into; that is most of the time.
    result = copy.deepcopy(scheduler, {id(x): x for x in vars(scheduler).values() if isinstance(x, torch.Tensor)})
    result.__class__ = cls
    if not isinstance(scheduler, Installed):
        result.register_to_config(**{scheduled.REPLACED_KEY: {}})
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
    tuned = (schedule.origin.tuned or {}) if isinstance(schedule, Schedule) else {}
    weights = tuned.get("weights")
    if weights is not None and weights != fingerprint(pipe):
        warnings.warn(
            f"this schedule was tuned on other weights ({tuned.get('pipeline')}, {weights}) than this "
            f"{type(pipe).__name__} has; tune on these: bridge.tune(pipe, {schedule.nfe})",
            stacklevel=2,
        )


NETWORKS = ("unet", "transformer", "transformer_2", "prior", "denoiser")
"""Components of pipelines that are called in every step."""


def fingerprint(pipe: Any) -> str:
    """16 hexadecimal digits that tell a pipeline's weights, adapters included, from another's.

    It is made of every parameter's name, shape and first values, rounded to two digits. Half precision may change it
    where a value lies on the edge of a rounding: it is for a warning, not for proof.
    """
    digest = hashlib.sha256()
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        for key, value in sorted(network.named_parameters()) if isinstance(network, torch.nn.Module) else ():
            first = value.detach().flatten()[:8].float().cpu().tolist()
            digest.update(f"{name}.{key} {tuple(value.shape)} {[f'{x:.1e}' for x in first]}".encode())
    return digest.hexdigest()[:16]


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
            cls: Any = NonstationaryScheduler if name == NONSTATIONARY_CLASS else scheduled.scheduled_class(name)
            return cls.from_config(config)
    raise ValueError(f"{base} has no scheduler_config.json; pass a folder that save_pretrained wrote")


_TABLE = "it reads the training table at whole timesteps, and a schedule's are not whole"
_STAGES = "its stages step through distilled lists of their own; call it without a schedule"
_EDM = "it expects EDM's sigmas, 80 to 0.002, and a flow schedule has none of those; call it without a schedule"
_INVERTED = "it steps along the timesteps of its inversion"
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
    "LEditsPPPipelineStableDiffusion": f"{_INVERTED}; {_SD}",
    "LEditsPPPipelineStableDiffusionXL": f"{_INVERTED}; {_SD.replace('Pipeline', 'XLPipeline')}",
    "LTX2DFRPipeline": _STAGES,
    "LTX2DFRTemporalRefinePipeline": _STAGES,
    "LTXI2VLongMultiPromptPipeline": (
        "it leaves the last evaluation out; keep its LTXEulerAncestralRFScheduler and pass "
        "sigmas=schedule.sampler_sigmas().tolist()"
    ),
    "SanaWMLTX2Refiner": _STAGES,
    "StableDiffusionDiffEditPipeline": f"{_INVERTED}; {_SD.replace('Pipeline', 'InpaintPipeline')}",
    "StableDiffusionParadigmsPipeline": f"{_TABLE}; {_SD}",
    "StableDiffusionSAGPipeline": f"{_TABLE}; {_SD.replace('Pipeline', 'PAGPipeline')}",
    "TextToVideoZeroPipeline": f"{_TABLE}; use AnimateDiffPipeline",
    "TextToVideoZeroSDXLPipeline": f"{_TABLE}; use AnimateDiffSDXLPipeline",
}


class _Only(NamedTuple):
    schedulers: tuple[str, ...]
    why: str


_FLOW = "FlowMatchEulerDiscreteScheduler"
_COSMOS_1 = _Only(("EDMEulerScheduler",), "steps twice from each node")
_CASCADE = _Only(("DDPMWuerstchenScheduler",), "needs the ratio that only that class computes")

# Class -> the scheduler classes that it works with. Every other class samples garbage, fails or is lost on loading.
ONLY: Mapping[str, _Only] = {
    "BriaPipeline": _Only(
        (_FLOW, "DDIMScheduler", "EulerAncestralDiscreteScheduler"), "passes every other class levels of its own"
    ),
    "ChronoEditPipeline": _Only(("UniPCMultistepScheduler", _FLOW), "edits the predictions that the class keeps"),
    "CosmosTextToWorldPipeline": _COSMOS_1,
    "CosmosVideoToWorldPipeline": _COSMOS_1,
    "DDIMPipeline": _Only(("DDIMScheduler",), "makes a DDIMScheduler of any other when it is loaded"),
    "LongCatAudioDiTPipeline": _Only((_FLOW,), "replaces any other class when it is loaded"),
    "StableCascadeDecoderPipeline": _CASCADE,
    "StableCascadePriorPipeline": _CASCADE,
    "StableDiffusionLatentUpscalePipeline": _Only(
        ("EulerDiscreteScheduler",), "expects EDM's sigmas, of a sample that is x0 + sigma eps"
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
        if abs(own / start - 1.0) > 1e-3:  # a list's first sigma may be rounded
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
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    signature, seen = inspect.signature(scheduler.step), False  # type: ignore[attr-defined]
    for call in calls:
        if ast.unparse(call.func) == "self.scheduler.step":
            seen = True
            try:
                signature.bind(None, *call.args, **{word.arg: None for word in call.keywords if word.arg})
                return True
            except TypeError:
                pass
    return not seen
