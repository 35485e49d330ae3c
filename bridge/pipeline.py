"""Run a diffusers pipeline as it is on some jobs: prompts, seeds, guidance, and images with a strength."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bridge.at_hand import guidance_call, usual_guidance
from bridge.schedulers.install import inner_pipelines
from hso_jax.checks import check_guidance, number
from hso_jax.noise import NoiseSchedule, from_level, lam_of_s, s_of_lam
from hso_jax.schedule import Schedule
from hso_jax.solvers.nonstationary import known

IMAGES = ("image", "mask_image", "control_image")
"""Arguments of pipelines that are one image, or one for each prompt."""

_SET_HERE = (
    "prompt", "class_labels", "num_inference_steps", "timesteps", "sigmas", "generator", "latents", "return_dict",
    "num_images_per_prompt", "num_videos_per_prompt",
)  # fmt: skip
_ONE_EACH = ("negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")


class PipelineJobs:
    """A pipeline with its networks, adapters and device, and the jobs that it samples in its own loop.

    `pipe` is left as it is, and shallow copies of it sample; `guidance` is w, `given` what the pipeline calls its
    prompt, `call` its further arguments.
    """

    def __init__(
        self,
        pipe: Any,
        jobs: Sequence[tuple[Any, int]],
        guidance: float | None,
        call: Mapping[str, Any],
        images: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Look at everything that can be wrong before any evaluation.

        Args:
            pipe: text or class to image (or video); with `images` also image to image.
            jobs: (prompt, seed) of each sample; seed s is the noise of `torch.Generator("cpu").manual_seed(s)`.
            guidance: w; the pipeline's own by default.
            call: further arguments of the pipeline's call; samples are latents unless `output_type` says otherwise.
            images: those of them that hold an image for each job; None where the pipeline may not start from one.

        Raises:
            ValueError: for arguments that the pipeline does not take.
        """
        self.pipe, self._jobs, self._images = pipe, list(jobs), images or {}
        self.given = _given_as(pipe, {**call, **self._images}, images is not None)
        self.guidance = usual_guidance(pipe)[0] if guidance is None else check_guidance(guidance)
        more = {} if guidance is None else guidance_call(pipe, self.guidance, call)
        self.call: Mapping[str, Any] = {"output_type": "latent", **call, **more}

    def copied(self) -> Any:
        """A shallow copy of the pipeline and of its inner ones, without progress bars: it may get another scheduler."""
        pipe = copy.copy(self.pipe)
        for name, part in inner_pipelines(pipe).items():
            setattr(pipe, name, copy.copy(part))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, pipe: Any, steps: int, rows: Sequence[int]) -> torch.Tensor:
        """[len(rows), ...] what a copy of the pipeline makes of these jobs, with gradients where they are enabled."""
        jobs = [self._jobs[row] for row in rows]
        # The noise comes from the CPU, so that every device has the same.
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in jobs]
        options = {k: _for_each(k, v, len(jobs)) for k, v in self.call.items()}
        options |= {k: [v[row] for row in rows] if len(rows) > 1 else v[rows[0]] for k, v in self._images.items()}
        if "prompt_embeds" not in self.call:
            options[self.given] = [prompt for prompt, _ in jobs]
        own = type(pipe).__call__
        call: Any = inspect.unwrap(own) if torch.is_grad_enabled() else own  # pipelines are under `no_grad`
        found = call(pipe, **options, num_inference_steps=steps, generator=generators, return_dict=False)[0]
        if not isinstance(found, (torch.Tensor, np.ndarray)):
            raise ValueError(f"{type(pipe).__name__} returned a {type(found).__name__}; use output_type='pt'")
        return torch.as_tensor(found)


def several(values: Iterable[Any], name: str) -> list[Any]:
    """The values. Raises ValueError for none, or for a text."""
    many = [] if isinstance(values, str) else list(values)
    if not many:
        raise ValueError(f"{name} is {values!r}; need a list with at least one")
    return many


def _given_as(pipe: Any, call: Mapping[str, Any], images: bool) -> str:
    """What the pipeline calls its prompt; ValueError for arguments that it does not take."""
    name, known = type(pipe).__name__, inspect.signature(pipe.__call__).parameters
    if "strength" in known and not images:
        raise ValueError(f"{name} starts from an image and skips nodes; use the text-to-image pipeline, or bridge.tune")
    if set_here := [key for key in call if key in _SET_HERE]:
        raise ValueError(f"{', '.join(set_here)}: set by the schedule, prompts or seeds; leave it out")
    if unknown := [key for key in call if key not in known]:
        raise ValueError(f"{name} does not take {', '.join(unknown)}; it takes: {', '.join(known)}")
    given = [key for key in ("prompt", "class_labels") if key in known]
    if not given:
        raise ValueError(f"{name} takes neither a prompt nor a class; use bridge.tune_denoiser")
    return given[0]


def _for_each(name: str, value: Any, samples: int) -> Any:
    """An argument; a text or embedding that stands for one prompt, for each sample."""
    if name in _ONE_EACH and isinstance(value, str):
        return [value] * samples
    one = "embeds" in name and isinstance(value, torch.Tensor) and len(value) == 1
    return value.repeat(samples, *[1] * (value.dim() - 1)) if one else value


def image_for_each(value: Any, prompts: int, name: str) -> list[Any]:
    """An image for each prompt, from one or as many; ValueError for another number of images."""
    many = isinstance(value, (list, tuple))
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 4 and len(value) > 1:
        many, value = True, [value[i : i + 1] for i in range(len(value))]
    if many and len(value) not in (1, prompts):
        raise ValueError(f"{name} has {len(value)} images for {prompts} prompts; give one, or one for each prompt")
    images = list(value) if many else [value]
    return images * prompts if len(images) == 1 else images


@dataclasses.dataclass(frozen=True)
class ImageToImage:
    """The steps of a schedule that a pipeline takes: all of them unless it starts from an image.

    Such a pipeline noises its image to the level that `strength` says, and takes a schedule's last steps. `whole` is
    the model's noise schedule, `noise` the part from that level on; `taken` says how many steps of N (None: all).
    """

    whole: NoiseSchedule
    noise: NoiseSchedule
    taken: Callable[[int], int] | None = None

    @classmethod
    def of(cls, pipe: Any, noise: NoiseSchedule, call: Mapping[str, Any]) -> ImageToImage:
        """Of a pipeline and its call's arguments; ValueError for a strength, or a pipeline, that will not do.

        The image is noised to t = strength, whatever N: where the model's own default schedule begins in many steps.
        """
        parameter = inspect.signature(type(pipe).__call__).parameters.get("strength")
        if parameter is None:
            return cls(noise, noise)
        strength = number("strength", call.get("strength", parameter.default), low=0.0)
        if strength > 1.0:
            raise ValueError(f"strength is {strength!r}; use at most 1, such as 0.6")
        part = from_level(noise, float(noise.lam(strength))) if strength < 1.0 else noise
        taken = functools.partial(_taken, type(pipe), strength)
        taken(2)  # refuses what cannot be told
        return cls(noise, part, taken)

    def steps(self, nfe: int) -> int:
        """How many steps of N are taken."""
        return nfe if self.taken is None else self.taken(nfe)

    def inference_steps(self, steps: int) -> int:
        """The least N of which so many steps are taken."""
        nfe = steps
        while self.steps(nfe) < steps:
            nfe += 1
        return nfe

    def cut(self, schedule: Schedule) -> Schedule:
        """The steps of a whole schedule that are taken, the first node moved to where they begin."""
        if self.taken is None:
            return schedule
        steps = self.steps(schedule.nfe)
        lams = np.maximum(schedule.lams[: schedule.nfe][-steps:], self.noise.noise_end)
        lams[0] = self.noise.noise_end
        coefficients = None if schedule.coefficients is None else schedule.coefficients[-steps:]
        if coefficients is not None:  # what no prediction is there for has no weight
            coefficients = np.where(known(*coefficients.shape), coefficients, 0.0)
        return Schedule.from_lams(self.noise, lams, origin=schedule.origin, coefficients=coefficients)

    def joined(self, schedule: Schedule, nfe: int) -> Schedule:
        """A whole schedule of N steps, whose last are these; those before, which are not taken, are even in s."""
        if self.taken is None:
            return schedule
        before = nfe - schedule.nfe
        s = np.linspace(float(s_of_lam(self.whole.noise_end)), float(s_of_lam(self.noise.noise_end)), before + 1)
        lams = np.concatenate([lam_of_s(s[:-1]), schedule.lams[: schedule.nfe]])
        coefficients = schedule.coefficients
        if coefficients is not None:
            coefficients = np.concatenate([np.zeros((before, coefficients.shape[1])), coefficients])
        if before:
            lams[0] = self.whole.noise_end
        return Schedule.from_lams(self.whole, lams, origin=schedule.origin, coefficients=coefficients)


def _taken(kind: type, strength: float, nfe: int) -> int:
    """Steps of N that a kind of pipeline takes: Stable Diffusion's rounds these, others those that are left out."""
    ask = getattr(kind, "get_timesteps", None)
    steps = torch.arange(nfe, 0, -1)
    scheduler = types.SimpleNamespace(timesteps=steps, order=1, set_begin_index=lambda _: None)
    told = {"num_inference_steps": nfe, "timesteps": steps, "strength": strength, "device": "cpu"}
    try:
        taken = {k: v for k, v in told.items() if k in inspect.signature(ask).parameters}  # type: ignore[arg-type]
        return len(ask(types.SimpleNamespace(scheduler=scheduler), **taken)[0])  # type: ignore[misc]
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{kind.__name__} does not say which steps it takes at a strength ({error}); tune with the text-to-image "
            "pipeline"
        ) from None
