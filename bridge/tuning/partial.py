"""Image-to-image: a pipeline noises its image to the level that `strength` says, and takes a schedule's last steps."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hso_jax.checks import number
from hso_jax.noise import NoiseSchedule, from_level, lam_of_s, s_of_lam
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule

IMAGES = ("image", "mask_image", "control_image")
"""Arguments of pipelines that are one image, or one for each prompt."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The steps that a pipeline takes of a schedule; all of them unless it starts from an image.

    Attributes:
        whole: the model's noise schedule.
        noise: the part of it that is sampled: from the level that the image is noised to.
        taken: how many steps of N are taken.
    """

    whole: NoiseSchedule
    noise: NoiseSchedule
    taken: Callable[[int], int] | None = None

    @classmethod
    def of(cls, pipe: Any, noise: NoiseSchedule, call: Mapping[str, Any]) -> Part:
        """Of a pipeline and the arguments that it is called with.

        The image is noised to t = strength, whatever N: where the model's own default schedule begins in many steps.

        Raises:
            ValueError: for a strength outside (0, 1], or a pipeline that keeps to itself which steps it takes.
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
        coefficients = None if schedule.coefficients is None else schedule.coefficients[-steps:].copy()
        if coefficients is not None:
            for row in range(min(steps, coefficients.shape[1])):  # what no prediction is there for
                coefficients[row, row:] = 0.0
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

    def profile(self, profile: Profile | None) -> Profile | None:
        """A profile of the model as one of this part."""
        if profile is None or self.taken is None:
            return profile
        return dataclasses.replace(profile, ends=(self.noise.noise_end, self.noise.data_end))


def _taken(kind: type, strength: float, nfe: int) -> int:
    """Steps of N that a kind of pipeline takes: Stable Diffusion's rounds these, others those that are left out."""
    ask = getattr(kind, "get_timesteps", None)
    steps = torch.arange(nfe, 0, -1)
    scheduler = types.SimpleNamespace(timesteps=steps, order=1, set_begin_index=lambda _: None)
    told = {"num_inference_steps": nfe, "timesteps": steps, "strength": strength, "device": "cpu"}
    try:
        known = {k: v for k, v in told.items() if k in inspect.signature(ask).parameters}  # type: ignore[arg-type]
        return len(ask(types.SimpleNamespace(scheduler=scheduler), **known)[0])  # type: ignore[misc]
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{kind.__name__} does not say which steps it takes at a strength ({error}); tune with the text-to-image "
            "pipeline"
        ) from None


def for_each(value: Any, prompts: int, name: str) -> list[Any]:
    """An image for each prompt, from one or as many.

    Raises:
        ValueError: for another number of images.
    """
    several = isinstance(value, (list, tuple))
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 4 and len(value) > 1:
        several, value = True, [value[i : i + 1] for i in range(len(value))]
    if several and len(value) not in (1, prompts):
        raise ValueError(f"{name} has {len(value)} images for {prompts} prompts; give one, or one for each prompt")
    images = list(value) if several else [value]
    return images * prompts if len(images) == 1 else images


def image_text(value: Any) -> str:
    """What tells one image from another, for a digest."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.shape} {array.dtype} {array.tobytes().hex()}"


def of_rows(images: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
    """The arguments that hold images, for these samples."""
    return {k: [v[row] for row in rows] if len(rows) > 1 else v[rows[0]] for k, v in images.items()}
