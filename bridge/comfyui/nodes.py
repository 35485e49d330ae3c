"""Two nodes with a `SIGMAS` output, for ComfyUI's SamplerCustom: search a schedule, or read it from a file."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hso_jax import schedule_file
from hso_jax.baselines import BASELINES, baseline
from hso_jax.methods import Hso
from hso_jax.noise import PRESETS, preset
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import METHODS, search

MODELS = tuple(PRESETS)
DEFAULT_MODEL = "sdxl"
SCHEDULERS = (*METHODS, *BASELINES)
_MOST_STEPS = 1000


def slice_for(denoise: float, steps: int) -> int | None:
    """Steps to make a schedule for, so that its last `steps` begin at `denoise`; None for no sampling at all.

    The rule of ComfyUI's BasicScheduler: `int(steps / denoise)` in all, the last `steps + 1` sigmas kept.

    Raises:
        ValueError: for a denoise outside [0, 1] or fewer than one step.
    """
    if not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise is {denoise}; need 0 to 1")
    if steps < 1:
        raise ValueError(f"steps is {steps}; need 1 or more")
    if denoise == 0.0:
        return None
    total = int(steps / denoise)
    if total > _MOST_STEPS:
        raise ValueError(f"{steps} steps at denoise {denoise} are {total} in all; the most is {_MOST_STEPS}")
    return total


def to_sigmas(schedule: Schedule, steps: int) -> torch.Tensor:
    """[steps + 1] the schedule's last sigmas, float32; 0 at the end of a clean one."""
    return torch.tensor(schedule.sampler_sigmas()[-(steps + 1) :], dtype=torch.float32)


class HsoScheduler:
    """Searches a schedule for a model and a number of steps; the first run takes some seconds, the same again none."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form."""
        return {
            "required": {
                "model": (list(MODELS), {"default": DEFAULT_MODEL, "tooltip": "fine-tunes share its noise schedule"}),
                "steps": ("INT", {"default": 6, "min": 1, "max": 100, "tooltip": "model evaluations"}),
                "layout": (list(LAYOUTS), {"tooltip": "node: ends at 0; interval: stops at one node more"}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "method": (list(SCHEDULERS), {"tooltip": "hso, or a rule to compare with"}),
            },
            "optional": {
                "end": (["as layout", "clean"], {"tooltip": "clean: the interval layout's last node becomes 0"}),
                "image_seq_len": (
                    "INT",
                    {"default": 4096, "min": 1, "max": 1 << 20, "tooltip": "flux-dev: (width / 16) * (height / 16)"},
                ),
            },
        }  # fmt: skip

    def get_sigmas(
        self,
        model: str,
        steps: int,
        layout: str,
        denoise: float,
        method: str,
        end: str = "as layout",
        image_seq_len: int = 4096,
    ) -> tuple[torch.Tensor]:
        """The sigmas; an empty tensor at denoise 0, as BasicScheduler has it.

        Raises:
            ValueError: for an unknown choice, or more steps than fit the model's levels.
        """
        total = slice_for(denoise, steps)
        if total is None:
            return (torch.FloatTensor([]),)
        if end not in ("as layout", "clean"):
            raise ValueError(f"end is {end!r}; use 'as layout' or 'clean'")
        schedule = found(model, total, layout, method, image_seq_len)
        return (to_sigmas(schedule.with_end("clean") if end == "clean" else schedule, steps),)


class HsoScheduleFile:
    """Reads a schedule file that `hso-jax search` wrote; for models that are no preset, and for reproducible graphs."""

    CATEGORY = HsoScheduler.CATEGORY
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form."""
        return {
            "required": {
                "path": ("STRING", {"default": "schedules.json", "tooltip": "a schedule file on the server"}),
                "nfe": ("INT", {"default": 6, "min": 1, "max": 100, "tooltip": "model evaluations"}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            "optional": {"layout": (["any", *LAYOUTS], {"tooltip": "any: node where the file has both"})},
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, path: str, **_: Any) -> float:
        """The file's age, so that a file written anew is read anew; NaN, which is never equal, if there is none."""
        return os.path.getmtime(path) if os.path.isfile(path) else float("nan")

    def get_sigmas(self, path: str, nfe: int, denoise: float, layout: str = "any") -> tuple[torch.Tensor]:
        """The last `nfe + 1` sigmas of the file's schedule for `int(nfe / denoise)` evaluations.

        Raises:
            ValueError: if the file is none of ours or has no such schedule; the message lists what it has.
            OSError: if it cannot be read.
        """
        total = slice_for(denoise, nfe)
        if total is None:
            return (torch.FloatTensor([]),)
        every = schedule_file.load(Path(path))
        kept = [s for s in every if s.nfe == total and layout in ("any", s.layout)]
        if not kept:
            raise ValueError(
                f"{path} has no {total}-step schedule{_wanted(layout, nfe, denoise)}; it has {_have(every)}"
            )
        return (to_sigmas(min(kept, key=lambda s: (s.method != "hso", s.layout != "node")), nfe),)


NODE_CLASS_MAPPINGS = {"HsoScheduler": HsoScheduler, "HsoScheduleFile": HsoScheduleFile}
NODE_DISPLAY_NAME_MAPPINGS = {"HsoScheduler": "HSO Scheduler", "HsoScheduleFile": "HSO Schedule File"}


@functools.lru_cache(maxsize=256)
def found(model: str, nfe: int, layout: str, method: str, image_seq_len: int = 4096) -> Schedule:
    """A preset's schedule, remembered: a graph asks for the same one again and again.

    Raises:
        ValueError: for an unknown model, layout or method.
    """
    noise, p = preset(model, image_seq_len=image_seq_len), PRESETS[model].p
    if method in BASELINES:
        return baseline(method, noise, nfe, layout=layout, p=p)
    how = METHODS[method]
    if isinstance(how, Hso):
        how = dataclasses.replace(how, p=p, relax=True)
    return search(noise, nfe, layout=layout, method=how)


def _wanted(layout: str, nfe: int, denoise: float) -> str:
    where = "" if layout == "any" else f" of layout {layout}"
    return where if denoise == 1.0 else f"{where} (nfe {nfe} at denoise {denoise:g})"


def _have(every: Sequence[Schedule]) -> str:
    return ", ".join(dict.fromkeys(f"{s.nfe} {s.layout}" for s in every)) or "none"
