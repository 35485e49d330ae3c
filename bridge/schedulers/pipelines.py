"""The pipelines that use their scheduler in a way of their own, and which schedulers with a schedule they can take.

Checked against every pipeline of diffusers 0.42.1; `tests/bridge/test_pipelines_census.py` notices what a new one does.
`docs/bridge-pipelines.md` is this table in words, with those that work as they are.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

_SAME = 1e-3  # a list's first sigma may be rounded
_TABLE = "it reads the training table at whole timesteps, and a schedule's are not whole"
_STAGES = "its stages step through distilled lists of their own; call it without a schedule"
_SD = "use StableDiffusionPipeline with the same components"

# Class -> why no schedule can be installed, and what to use.
REFUSED: Mapping[str, str] = {
    "Cosmos2TextToImagePipeline": "it reads sigmas as EDM's, 80 to 0.002, which no flow schedule is; call it without",
    "Cosmos2VideoToWorldPipeline": "it reads sigmas as EDM's, 80 to 0.002, which no flow schedule is; call it without",
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
_CASCADE = _Only(("DDPMWuerstchenScheduler",), "tells its network the ratio which that class alone has")

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
    """Raise unless a call of the pipeline is known to work with this scheduler, before it is replaced.

    Args:
        pipe: a diffusers pipeline, or whatever has a `scheduler`.
        scheduler: one with a schedule; None to look at the pipeline alone.

    Raises:
        ValueError: naming the pipeline's class, what it does and what to use instead.
    """
    check_class(type(pipe), scheduler)
    name = type(pipe).__name__
    if name.startswith("LTX2") and getattr(pipe, "audio_scheduler", None) is not None:
        raise ValueError(
            f"{name} has an audio_scheduler, which would stay at levels that its network is not told; set "
            "pipe.audio_scheduler = None, and sound takes the schedule too"
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
