"""Models that were distilled to a few steps: how they are told, and the grid that each was trained on.

Such a network does not follow the flow of its noise schedule: it was trained to jump between a few levels of its own,
and the best levels for it are those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hso_jax.files import read_json
from hso_jax.noise import NoiseSchedule
from hso_jax.origin import Origin
from hso_jax.schedule import Schedule

MOST_STEPS = 8
"""That models are distilled to, and that anyone samples without guidance where a model is made for it."""

LCM_LEVELS = 50
"""Of the training levels, evenly spaced, those that LCM and TCD know (diffusers' `original_inference_steps`)."""


class Distillation(NamedTuple):
    """A way that models are distilled.

    Attributes:
        words: the name, as people write it.
        anywhere: how a model or a LoRA of it is called, in any part of its name.
        alone: the same, where letters on either side would make it another word.
        classes: diffusers schedulers that serve no other model.
        grid: "trailing" or "lcm".
        source: where the grid is published.
    """

    words: str
    anywhere: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    grid: str = "trailing"
    source: str = ""


FEW_STEP = "few-step"
"""The key of a distillation of which nothing more is known."""

DISTILLATIONS = {
    "lightning": Distillation("Lightning", ("lightning",), source="arXiv 2402.13929: Euler, trailing"),
    "turbo": Distillation("Turbo", ("turbo",), source="arXiv 2311.17042; sdxl-turbo scheduler config: trailing"),
    "schnell": Distillation("Schnell", ("schnell",), source="FLUX.1-schnell: 1, 1 - 1/N, ..., 1/N"),
    "lcm": Distillation(
        "LCM", (), ("lcm",), ("LCMScheduler", "FlowMatchLCMScheduler"), "lcm", "arXiv 2310.04378; LCMScheduler"
    ),
    "tcd": Distillation("TCD", (), ("tcd",), ("TCDScheduler",), "lcm", "arXiv 2402.19159; TCDScheduler"),
    "hyper": Distillation("Hyper", ("hypersd",), ("hyper",), source="arXiv 2404.13686: DDIM, trailing"),
    "dmd": Distillation("DMD", (), ("dmd", "dmd2"), source="arXiv 2405.14867: 999, 749, 499, 249"),
    FEW_STEP: Distillation("few-step", source="nearly all of the above: trailing"),
    "lightx2v": Distillation(
        "LightX2V", ("lightx2v", "causvid"), source="arXiv 2412.07772: even in t before the shift"
    ),
}
"""By key; what a name says is looked for in this order."""


def named_in(names: Iterable[str]) -> tuple[str, str] | None:
    """The key of the distillation that a model's, a file's or a LoRA's name tells, and that name."""
    for name in names:
        text = name.lower()
        for key, kind in DISTILLATIONS.items():
            alone = any(re.search(rf"(?<![a-z]){word}(?![a-z])", text) for word in kind.alone)
            if alone or any(word in text for word in kind.anywhere):
                return key, name
    return None


def of_class(scheduler_class: str) -> str | None:
    """The key of the distillation that a diffusers scheduler serves alone."""
    return next((key for key, kind in DISTILLATIONS.items() if scheduler_class in kind.classes), None)


def of_folder(path: Path) -> str | None:
    """The key of the distillation that a diffusers folder or a scheduler's config tells, by its name and its files."""
    folder = path if path.is_dir() else path.parent
    for file in (path, folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if (found := of_class(str(_entry(file, "_class_name")))) is not None:
            return found
    if _entry(folder / "unet" / "config.json", "time_cond_proj_dim") is not None:
        return "lcm"  # the network takes the guidance weight, as LCM's do
    told = [path.resolve().name, str(_entry(folder / "model_index.json", "_name_or_path") or "")]
    named = named_in(told)
    return None if named is None else named[0]


def _entry(file: Path, key: str) -> object:
    """An entry of a JSON file; None where there is no such file or entry."""
    if not file.is_file():
        return None
    try:
        document = read_json(file)
    except (OSError, ValueError):
        return None
    return document.get(key) if isinstance(document, dict) else None


def own_grid(kind: str, noise: NoiseSchedule, nfe: int) -> Schedule:
    """The grid that a model of this distillation was trained on, or samples with, as a `Schedule`.

    Raises:
        ValueError: for more steps than the grid has levels.
    """
    if DISTILLATIONS[kind].grid == "lcm" and noise.kind == "vp" and noise.num_train_timesteps >= LCM_LEVELS:
        if nfe > LCM_LEVELS:
            raise ValueError(f"nfe is {nfe}; {DISTILLATIONS[kind].words} has {LCM_LEVELS} levels")
        levels = noise.num_train_timesteps
        grid = np.arange(LCM_LEVELS, 0, -1) * (levels // LCM_LEVELS)
        t = grid[np.floor(np.linspace(0, LCM_LEVELS, nfe, endpoint=False)).astype(int)] / levels
    else:
        t = 1.0 - np.arange(nfe) / nfe
    return Schedule.from_t(noise, np.minimum(t, float(noise.t_max)), origin=Origin(method=f"own-{kind}"))
