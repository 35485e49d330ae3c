"""Nodes for ComfyUI's SamplerCustom: a schedule by its name or from a file, as `SIGMAS`, or with its `SAMPLER`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from hso_jax import schedule_file
from hso_jax.baselines import BASELINES, baseline
from hso_jax.noise import PRESETS, NoiseSchedule
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.shelf.shipped import SOLVERS, zoo
from hso_jax.solvers import NONSTATIONARY

from .connected import FAMILIES, FROM_MODEL, Levels, chosen_noise, refuse_misfit
from .outputs import CHECK, DENOISE, STEPS, sampler_and_sigmas, sigmas_alone, slice_for
from .recommend import HsoRecommend

MODELS = (*FAMILIES, FROM_MODEL)
DEFAULT_MODEL = "sdxl"
SEARCHED = ("hso", "hso-dm-nonuni", "solver-error")  # hso_jax.METHODS, which needs JAX to be imported
SCHEDULERS = ("zoo", *SEARCHED, *BASELINES)
FILE_SOLVERS = tuple(dict.fromkeys(("any", *SOLVERS, NONSTATIONARY)))


class HsoScheduler:
    """A schedule for a model, a solver and a number of steps, shipped or searched; the same again takes no time."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES: tuple[str, ...] = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    DESCRIPTION = "Sigmas for a few steps. Leave method at zoo, and say which solver and which cfg you sample with."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        return {
            "required": {
                "model": (list(MODELS), {"default": DEFAULT_MODEL, "tooltip": _MODEL}),
                "steps": ("INT", STEPS),
                "layout": (list(LAYOUTS), {"tooltip": "node: ends at 0; interval: stops at one node more"}),
                "denoise": ("FLOAT", DENOISE),
                "method": (list(SCHEDULERS), {"default": "zoo", "tooltip": _METHOD}),
            },
            "optional": {
                "end": (["as layout", "clean"], {"tooltip": "clean: the interval layout's last node becomes 0"}),
                "image_seq_len": (
                    "INT",
                    {"default": 4096, "min": 1, "max": 1 << 20, "tooltip": "flux-dev: (width / 16) * (height / 16)"},
                ),
                "solver": (list(SOLVERS), {"default": "dpmpp-2m", "tooltip": _SOLVER}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": _GUIDANCE}),
                "diffusion_model": ("MODEL", {"tooltip": CHECK}),
            },
        }  # fmt: skip

    def get_sigmas(self, steps: int, **choices: Any) -> tuple[torch.Tensor]:
        """The sigmas; an empty tensor at denoise 0, as BasicScheduler has it. Raises ValueError as `chosen` does."""
        return sigmas_alone(self.chosen(steps=steps, **choices), steps)

    def chosen(
        self,
        model: str,
        steps: int,
        layout: str,
        denoise: float,
        method: str,
        end: str = "as layout",
        image_seq_len: int = 4096,
        solver: str = "dpmpp-2m",
        guidance: float = 0.0,
        diffusion_model: Any = None,
    ) -> Schedule | None:
        """The schedule of `int(steps / denoise)` steps; None at denoise 0.

        Raises:
            ValueError: for an unknown choice, more steps than fit the model's levels, or sigmas that do not fit the
                connected MODEL.
        """
        total = slice_for(denoise, steps)
        if end not in ("as layout", "clean"):
            raise ValueError(f"end is {end!r}; use 'as layout' or 'clean'")
        noise = chosen_noise(model, diffusion_model, image_seq_len)
        usual = PRESETS.get(model)
        weight, p = guidance or (usual.guidance if usual else None), usual.p if usual else 2.0  # p of latent models
        if total is None:
            return None
        if weight is None and method in ("zoo", "solver-error"):
            raise ValueError(
                f"guidance is 0 (the model's usual), which is known for a family only, not {FROM_MODEL!r}; "
                "set it to the cfg of your sampler"
            )
        asked = (total, layout, method, solver, float(weight or 1.0), p)
        key = (noise.kind, noise.name, noise.fingerprint(), *asked)
        if key not in _FOUND:
            _FOUND[key] = found(noise, *asked)
        schedule = _FOUND[key]
        return schedule.with_end("clean") if end == "clean" else schedule


class HsoScheduleFile:
    """Reads a schedule file that `hso-jax search` wrote; for models that are no preset, and for reproducible graphs."""

    CATEGORY = HsoScheduler.CATEGORY
    RETURN_TYPES: tuple[str, ...] = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    DESCRIPTION = "Sigmas from a file that `hso-jax search -o FILE` or `hso-jax zoo -o FILE` wrote."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        return {
            "required": {
                "path": ("STRING", {"default": "schedules.json", "tooltip": "a schedule file on the server"}),
                "nfe": ("INT", STEPS),
                "denoise": ("FLOAT", DENOISE),
            },
            "optional": {
                "layout": (["any", *LAYOUTS], {"tooltip": "any: node where the file has both"}),
                "method": ("STRING", {"default": "any", "tooltip": "needed where the file has several: hso, ..."}),
                "solver": (list(FILE_SOLVERS), {"tooltip": "needed where the file has schedules for several"}),
                "guidance": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: any; else as the file's"},
                ),
                "diffusion_model": ("MODEL", {"tooltip": CHECK}),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, path: str = "", **_: Any) -> float:
        """The file's age, so that a file written anew is read anew; NaN, which is never equal, if there is none."""
        return os.path.getmtime(path) if path and os.path.isfile(path) else float("nan")

    def get_sigmas(self, nfe: int, **choices: Any) -> tuple[torch.Tensor]:
        """The sigmas; an empty tensor at denoise 0. Raises ValueError and OSError as `chosen` does."""
        return sigmas_alone(self.chosen(nfe=nfe, **choices), nfe)

    def chosen(
        self,
        path: str,
        nfe: int,
        denoise: float,
        layout: str = "any",
        method: str = "any",
        solver: str = "any",
        guidance: float = 0.0,
        diffusion_model: Any = None,
    ) -> Schedule | None:
        """The file's schedule for `int(nfe / denoise)` evaluations; None at denoise 0.

        Raises:
            ValueError: if the file is none of ours, has no such schedule or several; the message lists them. If the
                schedule does not fit the connected MODEL.
            OSError: if it cannot be read.
        """
        total = slice_for(denoise, nfe)
        if not path.strip():
            raise ValueError("path is empty; give the schedule file that `hso-jax search -o FILE` wrote")
        if total is None:
            return None
        every = schedule_file.load(Path(path))
        options = {"layout": layout, "method": method.strip() or "any", "solver": solver}
        asked: dict[str, Any] = {name: None if value == "any" else value for name, value in options.items()}
        try:
            found = schedule_file.select(every, nfe=total, guidance=guidance or None, **asked)
        except ValueError as error:
            part = "" if denoise == 1.0 else f" (nfe {nfe} at denoise {denoise:g} is the end of {total} evaluations)"
            raise ValueError(f"{path}{part}: {error}") from error
        if diffusion_model is not None:
            refuse_misfit(_levels_of_schedule(found), diffusion_model, found)
        return found


class HsoSampler(HsoScheduler):
    """As HsoScheduler, with the SAMPLER that the schedule is made for."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "get_sampler"
    DESCRIPTION = "Sampler and sigmas for a few steps: connect both. Say which solver and which cfg you sample with."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """HsoScheduler's, and one more solver."""
        inputs = super().INPUT_TYPES()
        inputs["optional"]["solver"] = (list(FILE_SOLVERS[1:]), inputs["optional"]["solver"][1])
        return inputs

    def get_sampler(self, steps: int, **choices: Any) -> tuple[Any, torch.Tensor]:
        """Both; sigmas are empty at denoise 0. Raises ValueError as `chosen`, or for a method made for no solver."""
        return sampler_and_sigmas(self.chosen(steps=steps, **choices), steps)


class HsoSamplerFile(HsoScheduleFile):
    """As HsoScheduleFile, with the SAMPLER that the schedule is made for: its own coefficients, if it has any."""

    CATEGORY = HsoSampler.CATEGORY
    RETURN_TYPES = HsoSampler.RETURN_TYPES
    FUNCTION = "get_sampler"
    DESCRIPTION = "Sampler and sigmas from a file that hso-jax wrote: connect both."

    def get_sampler(self, nfe: int, **choices: Any) -> tuple[Any, torch.Tensor]:
        """Both; sigmas are empty at denoise 0. Raises ValueError and OSError as `chosen`."""
        return sampler_and_sigmas(self.chosen(nfe=nfe, **choices), nfe)


NODE_CLASS_MAPPINGS = {
    "HsoRecommend": HsoRecommend,
    "HsoScheduler": HsoScheduler,
    "HsoScheduleFile": HsoScheduleFile,
    "HsoSampler": HsoSampler,
    "HsoSamplerFile": HsoSamplerFile,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HsoRecommend": "HSO Recommend",
    "HsoScheduler": "HSO Scheduler",
    "HsoScheduleFile": "HSO Schedule File",
    "HsoSampler": "HSO Sampler",
    "HsoSamplerFile": "HSO Sampler File",
}
_FOUND: dict[tuple[Any, ...], Schedule] = {}  # a search takes seconds, and a graph asks again when its model is patched
_MODEL = f"the family: fine-tunes share its noise schedule. {FROM_MODEL!r} reads it from diffusion_model"
_METHOD = (
    "zoo: least solver error, shipped for 1 to 20 steps and usual guidance, else searched as solver-error; "
    "solver-error: always searched; hso: the paper's; the others are rules to compare with"
)
_SOLVER = "zoo, solver-error: ddim for euler and ddim, dpmpp-2m for dpmpp_2m, unipc-3 for uni_pc_bh2"
_GUIDANCE = "zoo, solver-error: the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the usual"


def found(noise: NoiseSchedule, nfe: int, layout: str, method: str, solver: str, guidance: float, p: float) -> Schedule:
    """The schedule that a method has for a noise schedule: shipped, searched or by a rule.

    Raises:
        ValueError: for an unknown layout, method or solver, or a rule that does not fit the noise.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    if method in BASELINES:
        return baseline(method, noise, nfe, layout=layout, p=p)
    if method == "zoo" and layout == "node" and (shipped := _shipped(noise, nfe, solver, guidance)):
        return shipped
    try:
        from hso_jax.hso import Hso
        from hso_jax.searches import METHODS, search
        from hso_jax.solver_error_method import SolverError
    except ImportError as error:
        raise ValueError(
            f"{method} for {nfe} steps, layout {layout} and guidance {guidance:g} is not shipped, and a search needs "
            f"JAX, which this Python has not ({error}): pip install jax, or use HSO Recommend"
        ) from error
    if method in ("zoo", "solver-error"):
        return search(noise, nfe, layout=layout, method=SolverError(solver, guidance))
    how = METHODS[method]
    assert isinstance(how, Hso)
    return search(noise, nfe, layout=layout, method=dataclasses.replace(how, p=p, relax=True))


def _shipped(noise: NoiseSchedule, nfe: int, solver: str, guidance: float) -> Schedule | None:
    try:
        return zoo(noise, nfe, solver, guidance=guidance)
    except ValueError:  # not shipped; what is wrong and not just rare, the search refuses as well
        return None


def _levels_of_schedule(schedule: Schedule) -> Levels:
    sigmas = schedule.sampler_sigmas()[: schedule.nfe]
    who = f"{schedule.model}, {schedule.method}"
    return Levels(who, schedule.kind == "flow", float(sigmas[-1]), float(sigmas[0]))
