"""Nodes for ComfyUI's SamplerCustom: a schedule by its name or from a file, as `SIGMAS`, or with its `SAMPLER`."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hso_jax import optional_jax, schedule_file
from hso_jax.baselines import BASELINES, baseline
from hso_jax.noise import PRESETS, NoiseSchedule
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.shipped.distilled import DISTILLATIONS, own_grid
from hso_jax.shipped.recommend import recommend
from hso_jax.shipped.zoo import MAX_NFE, SOLVERS, NotInZooError, zoo
from hso_jax.solvers import NONSTATIONARY, canonical

from .model import (
    FAMILIES,
    FROM_MODEL,
    Levels,
    chosen_noise,
    fitted,
    levels_of,
    noise_of,
    refuse_misfit,
    usual_guidance,
)
from .sampler import sample_own_nodes, sampler_options

_MOST_STEPS = 998  # a table of 1000 levels, its two ends aside
SEARCHED = ("hso", "hso-dm-nonuni", "solver-error")  # hso_jax.searches.METHODS, which needs JAX to be imported
NEED_JAX = (*SEARCHED, "dm-nonuni")
METHODS = tuple(m for m in ("zoo", *SEARCHED, *BASELINES) if optional_jax.INSTALLED or m not in NEED_JAX)
COMFYUI_NAMES = {"ddim": "euler", "dpmpp-2m": "dpmpp_2m", "unipc-3": "uni_pc_bh2"}
MENU = tuple(COMFYUI_NAMES.get(solver, solver) for solver in SOLVERS)
"""The solvers that schedules are shipped for, as ComfyUI calls them; every other name of theirs is taken too."""

STEPS = {"default": 6, "min": 1, "max": 100, "tooltip": "model evaluations, as in BasicScheduler"}
_DENOISE = "as in BasicScheduler: the last steps of a schedule of int(steps / denoise) steps"
DENOISE = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": _DENOISE}
GUIDANCE = {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1}
MODEL = ("MODEL", {"tooltip": "optional: your MODEL. The node refuses sigmas that were not made for its noise"})
_FAMILY = f"the family: fine-tunes share its noise schedule. {FROM_MODEL!r} reads it from diffusion_model"
FAMILY = ([*FAMILIES, FROM_MODEL], {"default": "sdxl", "tooltip": _FAMILY})
_METHOD = (
    "zoo: the least solver error, shipped for 1 to 20 steps and the usual guidance; for others the node searches with "
    "JAX, and without JAX fits what is shipped; solver-error: always a search; hso: the paper's search; the others are "
    "rules to compare with"
)
_SOLVER = "for zoo and solver-error: the sampler that you connect (choose euler for ddim, too)"
_USUAL = "the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the family's usual one"
_PATH = "a schedule file: a whole path, or a name in ComfyUI's input, output or models folder"
SAMPLER_OUT = "connect to the sampler of SamplerCustom, with the SIGMAS of this node"
SIGMAS_OUT = "steps + 1 noise levels: connect to the sigmas of SamplerCustom"
_NO_GUIDANCE = (
    f"guidance is 0, which stands for a family's usual cfg; with {FROM_MODEL!r} none is known: set guidance to the cfg "
    "of your sampler"
)


def slice_for(denoise: float, steps: int) -> int | None:
    """Steps to make a schedule for, so that its last `steps` begin at `denoise`; None for no sampling at all.

    The rule of ComfyUI's BasicScheduler: `int(steps / denoise)` in all, the last `steps + 1` sigmas kept.
    """
    if not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise is {denoise}; need 0 to 1")
    if steps < 1:
        raise ValueError(f"steps is {steps}; need 1 or more")
    if denoise == 0.0:
        return None
    total = int(steps / denoise)
    if total > _MOST_STEPS:
        fixes = [f"at most {fewer} steps"] if (fewer := int(_MOST_STEPS * denoise)) else []
        if steps <= _MOST_STEPS:
            fixes.append(f"a denoise of {math.ceil(100 * steps / _MOST_STEPS) / 100:g} or more")
        raise ValueError(
            f"{steps} steps at denoise {denoise:g} are the end of a schedule of {total} steps, and models have "
            f"{_MOST_STEPS} levels for them; use {', or '.join(fixes)}"
        )
    return total


def levels(schedule: Schedule, steps: int, diffusion_model: Any = None) -> np.ndarray:
    """[steps + 1] the schedule's last sigmas as ComfyUI has them for the connected MODEL; 0 at a clean end."""
    sigmas, own = schedule.sampler_sigmas()[-(steps + 1) :], levels_of(diffusion_model)
    if schedule.kind == "flow" and own.noise_scale != 1.0:
        sigmas = sigmas / (sigmas + own.noise_scale * (1.0 - sigmas))
    sigmas = np.where(np.isposinf(sigmas), own.pure_noise, sigmas)
    if not np.isfinite(sigmas).all():
        raise ValueError(
            f"the schedule ({schedule.model}, {schedule.method}) begins at pure noise, sigma = {sigmas[0]}; connect "
            "the MODEL to diffusion_model, and choose 'from MODEL' where a node has this choice"
        )
    return sigmas


def to_sigmas(schedule: Schedule | None, steps: int, diffusion_model: Any = None) -> torch.Tensor:
    """[steps + 1] `levels` as float32. Empty without a schedule."""
    found = [] if schedule is None else levels(schedule, steps, diffusion_model).tolist()
    return torch.tensor(found, dtype=torch.float32)


def sampler_and_sigmas(schedule: Schedule | None, steps: int, diffusion_model: Any = None) -> tuple[Any, torch.Tensor]:
    """A ComfyUI SAMPLER that takes the schedule's last steps, and their sigmas."""
    import comfy.samplers

    options: dict[str, Any] = {"nodes": [], "coefficients": []}
    if schedule is not None:  # else ComfyUI returns the latent as it is, whatever the sampler
        nodes = levels(schedule, steps, diffusion_model).tolist()
        options = {**sampler_options(schedule, steps), "nodes": nodes}
        if levels_of(diffusion_model).unscaled:
            options["unscaled"] = True
    return comfy.samplers.KSAMPLER(sample_own_nodes, options), to_sigmas(schedule, steps, diffusion_model)


class HsoRecommend:
    """`hso_jax.recommend`: the solver and the steps, from what is shipped alone."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("SAMPLER", "SIGMAS", "why")
    OUTPUT_TOOLTIPS = (SAMPLER_OUT, SIGMAS_OUT, "what was chosen and why, in words: connect to Preview Any")
    FUNCTION = "get_sampler"
    DESCRIPTION = (
        "Sampler and sigmas for a few steps: connect both. Say your model's family and the cfg you sample with."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        return {
            "required": {
                "model": FAMILY,
                "steps": ("INT", {**STEPS, "max": MAX_NFE}),
                "guidance": ("FLOAT", {**GUIDANCE, "tooltip": _USUAL}),
                "denoise": ("FLOAT", DENOISE),
            },
            "optional": {"diffusion_model": MODEL},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str = "") -> bool:
        """Graphs saved with a family that is no longer in the menu still run; other names the node itself refuses."""
        return True

    def get_sampler(
        self, model: str, steps: int, guidance: float, denoise: float, diffusion_model: Any = None
    ) -> tuple[Any, torch.Tensor, str]:
        """SAMPLER, SIGMAS and the reason; sigmas are empty at denoise 0."""
        total = slice_for(denoise, steps)
        noise = chosen_noise(model, diffusion_model)
        if total is None:
            return *sampler_and_sigmas(None, steps), "denoise is 0: no sampling"
        usual = usual_guidance(model, diffusion_model)
        weight = guidance or (0.0 if model == FROM_MODEL else usual or 0.0)
        if not weight:
            raise ValueError(_NO_GUIDANCE)
        # Euler and LCM of ComfyUI cannot sample a MODEL that nothing scales, and no such model is distilled.
        distilled = False if levels_of(diffusion_model).unscaled else None
        try:
            found = recommend(noise, total, guidance=weight, usual=usual, distilled=distilled)
        except NotInZooError:
            schedule, why = fitted(noise, total, weight)
            return *sampler_and_sigmas(schedule, steps, diffusion_model), why
        if found.distilled is not None:
            import comfy.samplers

            sampler = comfy.samplers.sampler_object(DISTILLATIONS[found.distilled].sampler)
            own = noise if diffusion_model is None else noise_of(diffusion_model)  # with the shift of its patches
            return sampler, to_sigmas(own_grid(found.distilled, own, total), steps, diffusion_model), found.reason
        return *sampler_and_sigmas(found.schedule, steps, diffusion_model), found.reason


class _Sigmas:
    """A node that gives the sigmas of the schedule that its method `chosen` chooses."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES: tuple[str, ...] = ("SIGMAS",)
    OUTPUT_TOOLTIPS: tuple[str, ...] = (SIGMAS_OUT,)
    FUNCTION = "get_sigmas"
    STEPS = "steps"  # the input with N
    chosen: Any

    def get_sigmas(self, **inputs: Any) -> tuple[torch.Tensor]:
        """The sigmas; an empty tensor at denoise 0, as BasicScheduler has it."""
        schedule = self.chosen(**inputs)
        if schedule is not None and schedule.coefficients is not None:
            raise ValueError(
                f"the schedule ({schedule.method}) has solver coefficients, and its sigmas work only with them; use "
                "HSO Sampler or HSO Sampler File, and connect both outputs"
            )
        return (to_sigmas(schedule, inputs[self.STEPS], inputs.get("diffusion_model")),)


class _Sampler(_Sigmas):
    """As `_Sigmas`, with the SAMPLER that the schedule is made for."""

    CATEGORY = HsoRecommend.CATEGORY
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    OUTPUT_TOOLTIPS = (SAMPLER_OUT, SIGMAS_OUT)
    FUNCTION = "get_sampler"

    def get_sampler(self, **inputs: Any) -> tuple[Any, torch.Tensor]:
        """Both; sigmas are empty at denoise 0."""
        return sampler_and_sigmas(self.chosen(**inputs), inputs[self.STEPS], inputs.get("diffusion_model"))


_FOUND: dict[tuple[Any, ...], Schedule] = {}  # a search takes seconds, and a graph asks again when its model is patched


class HsoScheduler(_Sigmas):
    """A schedule for a model, a solver and a number of steps, shipped or searched; the same again takes no time."""

    DESCRIPTION = "Sigmas for a few steps. Leave method at zoo, and say which solver and which cfg you sample with."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        size = {"default": 4096, "min": 1, "max": 1 << 20, "tooltip": "flux-dev: (width / 16) * (height / 16)"}
        weight = (
            "zoo, solver-error: the cfg you sample with (1 where guidance is an input of the model: FLUX); 0: the usual"
        )
        return {
            "required": {
                "model": FAMILY,
                "steps": ("INT", STEPS),
                "layout": (list(LAYOUTS), {"tooltip": "node: ends at 0; interval: stops at one node more"}),
                "denoise": ("FLOAT", DENOISE),
                "method": (list(METHODS), {"default": "zoo", "tooltip": _METHOD}),
            },
            "optional": {
                "end": (["as layout", "clean"], {"tooltip": "clean: the interval layout's last node becomes 0"}),
                "image_seq_len": ("INT", size),
                "solver": (list(MENU), {"default": "dpmpp_2m", "tooltip": _SOLVER}),
                "guidance": ("FLOAT", {**GUIDANCE, "tooltip": weight}),
                "diffusion_model": MODEL,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str = "", method: str = "", solver: str = "") -> bool:
        """Graphs saved with a choice that is no longer in a menu still run; what has none the node itself refuses."""
        return True

    def chosen(
        self,
        model: str,
        steps: int,
        layout: str,
        denoise: float,
        method: str,
        end: str = "as layout",
        image_seq_len: int = 4096,
        solver: str = "dpmpp_2m",
        guidance: float = 0.0,
        diffusion_model: Any = None,
    ) -> Schedule | None:
        """The schedule of `int(steps / denoise)` steps; None at denoise 0."""
        total = slice_for(denoise, steps)
        if end not in ("as layout", "clean"):
            raise ValueError(f"end is {end!r}; use 'as layout' or 'clean'")
        noise = chosen_noise(model, diffusion_model, image_seq_len)
        usual = PRESETS.get(model)
        weight, p = guidance or (usual.guidance if usual else None), usual.p if usual else 2.0  # p of latent models
        if total is None:
            return None
        if weight is None and method in ("zoo", "solver-error"):
            raise ValueError(_NO_GUIDANCE)
        asked = (total, layout, method, solver, float(weight or 1.0), p)
        key = (noise.kind, noise.name, noise.fingerprint(), *asked)
        if key not in _FOUND:
            _FOUND[key] = found(noise, *asked)
        return _FOUND[key].with_end("clean") if end == "clean" else _FOUND[key]


def found(noise: NoiseSchedule, nfe: int, layout: str, method: str, solver: str, guidance: float, p: float) -> Schedule:
    """The schedule that a method has for a noise schedule: shipped, searched or by a rule."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    if method not in ("zoo", *SEARCHED, *BASELINES):
        raise ValueError(f"method {method!r} does not exist; choose zoo")
    if method in NEED_JAX and not optional_jax.INSTALLED:
        raise ValueError(
            f"method is {method!r}, and a search needs JAX, which is not installed in this Python; choose zoo"
        )
    if method in BASELINES:
        return baseline(method, noise, nfe, layout=layout, p=p)
    if method == "zoo" and layout == "node":
        try:
            return zoo(noise, nfe, solver, guidance=guidance)
        except ValueError:  # not shipped; what is wrong and not just rare, the search refuses as well
            pass
    if not optional_jax.INSTALLED:
        if layout != "node":
            raise ValueError(f"layout is {layout!r}, for which nothing is shipped without JAX; choose layout node")
        schedule, why = fitted(noise, nfe, guidance, None if solver == NONSTATIONARY else solver)
        logging.getLogger(__name__).info("HSO Scheduler: %s", why)
        return schedule
    from hso_jax.hso import Hso
    from hso_jax.searches import METHODS, search
    from hso_jax.solver_error_method import SolverError

    if method in ("zoo", "solver-error"):
        return search(noise, nfe, layout=layout, method=SolverError(solver, guidance))
    how = METHODS[method]
    assert isinstance(how, Hso)
    return search(noise, nfe, layout=layout, method=dataclasses.replace(how, p=p, relax=True))


class HsoScheduleFile(_Sigmas):
    """Reads a schedule file that `hso-jax search` wrote; for models that are no preset, and for reproducible graphs."""

    DESCRIPTION = "Sigmas from a file that `hso-jax search -o FILE` or `hso-jax zoo -o FILE` wrote."
    STEPS = "nfe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's form. Saved graphs know widgets by their place: new ones come last."""
        several = "needed where the file has several"
        return {
            "required": {
                "path": ("STRING", {"default": "schedules.json", "tooltip": _PATH}),
                "nfe": ("INT", STEPS),
                "denoise": ("FLOAT", DENOISE),
            },
            "optional": {
                "layout": (["any", *LAYOUTS], {"tooltip": "any: node where the file has both"}),
                "method": ("STRING", {"default": "any", "tooltip": f"{several}: hso, ..."}),
                "solver": (["any", *MENU, NONSTATIONARY], {"tooltip": several}),
                "guidance": ("FLOAT", {**GUIDANCE, "tooltip": "0: any; otherwise the guidance that the file has"}),
                "diffusion_model": MODEL,
            },
        }

    @classmethod
    def IS_CHANGED(cls, path: str = "", **_: Any) -> float:
        """The file's age, so that a file written anew is read anew; NaN, which is never equal, if there is none."""
        try:
            return os.path.getmtime(found_file(path))
        except (OSError, ValueError):
            return math.nan

    @classmethod
    def VALIDATE_INPUTS(cls, solver: str = "") -> bool:
        """A solver's other names, which older graphs have, are taken too; what is none the node itself refuses."""
        return True

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
        """The file's schedule for `int(nfe / denoise)` evaluations; None at denoise 0."""
        total = slice_for(denoise, nfe)
        if not path.strip():
            raise ValueError("path is empty; give the schedule file that `hso-jax search -o FILE` wrote")
        if total is None:
            return None
        every = schedule_file.load(found_file(path))
        solver = solver if solver == "any" else canonical(solver, (*SOLVERS, NONSTATIONARY))
        options = {"layout": layout, "method": method.strip() or "any", "solver": solver}
        asked: dict[str, Any] = {name: None if value == "any" else value for name, value in options.items()}
        try:
            found = schedule_file.select(every, nfe=total, guidance=guidance or None, **asked)
        except ValueError as error:
            part = "" if denoise == 1.0 else f" (nfe {nfe} at denoise {denoise:g} is the end of {total} evaluations)"
            raise ValueError(f"{path}{part}: {error}") from error
        if diffusion_model is not None:
            sigmas = found.sampler_sigmas()[: found.nfe]
            ends = float(sigmas[-1]), float(sigmas[0])
            refuse_misfit(Levels(f"{found.model}, {found.method}", found.kind == "flow", *ends), diffusion_model, found)
        return found


def found_file(path: str) -> Path:
    """The file of that path; a relative one is looked for where the server runs, and in ComfyUI's own folders."""
    name = Path(path.strip().strip('"')).expanduser()
    folders = [Path.cwd()]
    try:
        import folder_paths

        folders += map(Path, (folder_paths.get_input_directory(), folder_paths.get_output_directory()))
        folders.append(Path(folder_paths.models_dir))
    except ImportError:  # outside ComfyUI
        pass
    places = [name] if name.is_absolute() else [folder / name for folder in folders]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place.parent) for place in places)
    raise FileNotFoundError(f"there is no file {name.name} in {looked}; copy it there, or give its whole path")


class HsoSampler(_Sampler, HsoScheduler):
    """As HsoScheduler, with the SAMPLER that the schedule is made for."""

    DESCRIPTION = "Sampler and sigmas for a few steps: connect both. Say which solver and which cfg you sample with."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """HsoScheduler's, and one more solver; of the methods those that are made for a solver."""
        inputs = super().INPUT_TYPES()
        inputs["optional"]["solver"] = ([*MENU, NONSTATIONARY], inputs["optional"]["solver"][1])
        for_solvers = [method for method in METHODS if method in ("zoo", "solver-error")]
        inputs["required"]["method"] = (for_solvers, inputs["required"]["method"][1])
        return inputs


class HsoSamplerFile(_Sampler, HsoScheduleFile):
    """As HsoScheduleFile, with the SAMPLER that the schedule is made for: its own coefficients, if it has any."""

    DESCRIPTION = "Sampler and sigmas from a file that hso-jax wrote: connect both."


_NODES: tuple[type, ...] = (HsoRecommend, HsoScheduler, HsoScheduleFile, HsoSampler, HsoSamplerFile)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HsoRecommend": "HSO Recommend",
    "HsoScheduler": "HSO Scheduler",
    "HsoScheduleFile": "HSO Schedule File",
    "HsoSampler": "HSO Sampler",
    "HsoSamplerFile": "HSO Sampler File",
}
