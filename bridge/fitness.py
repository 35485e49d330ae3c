"""A fitness for `hso_jax.search`: how far few-step samples are from the converged ones with the same noise."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bridge.noise_of import noise_schedule_of
from bridge.schedulers.install import inner_pipelines, install
from bridge.schedulers.rows import ROWS
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.ends import noise_end_t
from hso_jax.schedule import Schedule

Draw = Callable[[Schedule], torch.Tensor]
"""Samples [n, ...] at a schedule, from the same noise whatever the schedule."""

Metric = Callable[[torch.Tensor, torch.Tensor], Any]
"""(samples, converged samples) -> a number, the smaller the better."""

TEACHER_NFE = 100
_TWICE = ("pairs", "midpoints", "middles", "ancestral")
_SET_HERE = (
    "prompt", "class_labels", "num_inference_steps", "timesteps", "sigmas", "generator", "latents", "return_dict",
    "num_images_per_prompt", "num_videos_per_prompt",
)  # fmt: skip
_ONE_EACH = ("negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")


def rmse(samples: torch.Tensor, teacher: torch.Tensor) -> float:
    """Root-mean-square difference over all samples and their entries."""
    return float((samples.double() - teacher.double()).square().mean().sqrt())


class SamplingFitness:
    """Judges a schedule by the samples that a sampler makes with it; pass it to `hso_jax.search` as `fitness`.

    The samples are compared with converged ones, made once by the same sampler in many steps from the same noise. That
    means something for deterministic samplers; with a stochastic one use a metric that compares sets of samples.

    Attributes:
        noise: the noise schedule to search with.
        teacher: [n, ...] the converged samples, on the CPU.
        teacher_calls: evaluations of the network they took, on top of a search's budget.
        settings: what the judgements depend on, for a search's checkpoint.
    """

    def __init__(
        self,
        draw: Draw,
        noise: NoiseSchedule,
        *,
        teacher_nfe: int = TEACHER_NFE,
        metric: Metric = rmse,
        evaluations: Callable[[int], int] = int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the converged samples.

        Args:
            draw: samples at a schedule, always from the same noise; called without gradients.
            noise: the model's noise schedule.
            teacher_nfe: steps of the converged samples. Their error is a few hundredths of a 4-step sampler's at 100.
            metric: of (samples, converged samples).
            evaluations: of the network, that a sample with N steps takes; N by default.
            settings: JSON values that tell `draw` from another (prompts, seeds, ...), so that a checkpoint made with
                another is refused.

        Raises:
            ValueError: for a bad teacher_nfe, or if `draw` returns no tensor, or numbers that are not finite.
        """
        if isinstance(teacher_nfe, bool) or not isinstance(teacher_nfe, int) or teacher_nfe < 2:
            raise ValueError(f"teacher_nfe is {teacher_nfe!r}; need a whole number of at least 2, better 50 or more")
        self.noise, self._draw, self._metric, self._evaluations = noise, draw, metric, evaluations
        self.teacher = self._samples(converged(noise, teacher_nfe))
        if not torch.isfinite(self.teacher).all():
            raise ValueError(f"the converged samples ({teacher_nfe} steps) are not finite; try a lower solver order")
        self.teacher_calls = self.calls(teacher_nfe)
        name = getattr(metric, "__qualname__", type(metric).__qualname__)
        self.settings = {**(settings or {}), "teacher_nfe": teacher_nfe, "metric": name}

    @classmethod
    def of_pipeline(
        cls,
        pipe: Any,
        prompts: Sequence[Any],
        *,
        seeds: Iterable[int] = range(8),
        batch: int = 8,
        teacher_nfe: int = TEACHER_NFE,
        metric: Metric = rmse,
        **call: Any,
    ) -> SamplingFitness:
        """Judge by a diffusers pipeline as it is now: its networks, its scheduler's solver, its device.

        The pipeline is left as it is: a shallow copy samples, with a copy of the scheduler. The converged samples are
        made with the pipeline's own progress bar, the judgements without.

        Args:
            pipe: text to image (or video), or class to image; not one that starts from an image.
            prompts: texts, or classes for a pipeline that takes `class_labels`.
            seeds: each prompt is sampled with each; seed s is the noise of `torch.Generator("cpu").manual_seed(s)`.
            batch: samples a call of the pipeline.
            teacher_nfe: as in the constructor.
            metric: as in the constructor; of latents, unless `output_type` says otherwise.
            **call: further arguments of the pipeline, such as guidance_scale, height, width, negative_prompt.

        Raises:
            ValueError: for bad arguments, or a scheduler that `with_schedule` refuses; naming what to do instead.
        """
        jobs = [(prompt, int(seed)) for prompt in several(prompts, "prompts") for seed in several(seeds, "seeds")]
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch is {batch!r}; need a whole number of at least 1")
        given = given_as(pipe, call)
        noise = noise_schedule_of(pipe)
        draw = PipelineDraw(copy.copy(pipe), jobs, batch, given, {"output_type": "latent", **call})
        settings = {
            "pipeline": type(pipe).__name__,
            "solver": type(pipe.scheduler).__name__,
            "scheduler": {k: str(v) for k, v in pipe.scheduler.config.items() if not k.startswith(("_", "hso_"))},
            "prompts": [str(prompt) for prompt, _ in jobs],
            "seeds": [seed for _, seed in jobs],
            **{name: value for name, value in call.items() if isinstance(value, (str, int, float, type(None)))},
        }
        row = ROWS.get(type(pipe.scheduler).__name__)  # None is refused by `with_schedule`
        fitness = cls(
            draw,
            noise,
            teacher_nfe=teacher_nfe,
            metric=metric,
            evaluations=functools.partial(_evaluations, row.layout if row else "plain"),
            settings=settings,
        )
        fitness._draw = dataclasses.replace(draw, quiet=True)
        return fitness

    def __call__(self, schedule: Schedule) -> float:
        """The metric of the samples at the schedule; NaN where they are.

        Raises:
            ValueError: if there are not as many as converged ones, or of another shape; as `with_schedule`.
        """
        samples = self._samples(schedule)
        if samples.shape != self.teacher.shape:
            raise ValueError(f"draw returned {tuple(samples.shape)} now, {tuple(self.teacher.shape)} before")
        return float(self._metric(samples, self.teacher))

    def calls(self, nfe: int) -> int:
        """Evaluations of the network that one judgement at N takes: samples times N.

        For schedulers that evaluate twice a step, samples times 2N, which is one a sample too many at a clean end. With
        guidance the two predictions, with and without the prompt, are one evaluation.
        """
        return len(self.teacher) * int(self._evaluations(nfe))

    def _samples(self, schedule: Schedule) -> torch.Tensor:
        with torch.no_grad():
            samples = self._draw(schedule)
        if not isinstance(samples, torch.Tensor) or samples.dim() == 0:
            raise ValueError(f"draw returned a {type(samples).__name__}; need a tensor [samples, ...]")
        return samples.detach().cpu()


def converged(noise: NoiseSchedule, nfe: int) -> Schedule:
    """Many nodes from the model's noisiest level to its cleanest, at equal steps of the mean of t and lam.

    Equal steps of lam alone suit high orders, of t first order; half of each is within a factor two of the better.
    """
    grid = np.linspace(float(noise.t_max), float(noise.t_min), 20 * max(nfe, 100))
    lams = np.asarray(noise.lam(grid))
    way = (lams - lams[0]) / (lams[-1] - lams[0]) + (grid[0] - grid) / (grid[0] - grid[-1])
    t = np.interp(np.linspace(0.0, 2.0, nfe), way, grid)
    t[0] = noise_end_t(noise)
    return Schedule.from_t(noise, t)


@dataclasses.dataclass(frozen=True)
class PipelineDraw:
    """Samples of a pipeline, for each of some (prompt, seed).

    Attributes:
        pipe: copied for each set of samples.
        jobs: what to sample.
        batch: how many at once.
        given: what the pipeline calls its prompt.
        call: its further arguments.
        quiet: without its progress bar.
        watch: called with the scheduler that the schedule was installed in.
    """

    pipe: Any
    jobs: Sequence[tuple[Any, int]]
    batch: int
    given: str
    call: Mapping[str, Any]
    quiet: bool = False
    watch: Callable[[Any], None] | None = None

    def __call__(self, schedule: Schedule) -> torch.Tensor:
        """The samples [n, ...] on the CPU. Raises ValueError for what is no tensor, and as `install`."""
        pipe = copy.copy(self.pipe)
        for name, part in inner_pipelines(pipe).items():
            setattr(pipe, name, copy.copy(part))
        install(pipe, schedule)
        if self.watch is not None:
            self.watch(pipe.scheduler)
        if self.quiet:
            pipe.set_progress_bar_config(disable=True)
        return torch.cat([self._part(pipe, schedule.nfe, i) for i in range(0, len(self.jobs), self.batch)])

    def _part(self, pipe: Any, nfe: int, first: int) -> torch.Tensor:
        jobs = self.jobs[first : first + self.batch]
        # The noise comes from the CPU, so that every device has the same.
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in jobs]
        call = {**self.call, **texts_for(self.call, len(jobs)), self.given: [prompt for prompt, _ in jobs]}
        result = pipe(**call, num_inference_steps=nfe, generator=generators, return_dict=False)[0]
        if not isinstance(result, (torch.Tensor, np.ndarray)):
            raise ValueError(f"{type(pipe).__name__} returned a {type(result).__name__}; try output_type='pt'")
        return torch.as_tensor(result).cpu()


def _evaluations(layout: str, nfe: int) -> int:
    """Of a scheduler whose row has this layout, at N; the larger of the two ends' for those that evaluate twice."""
    return 2 * nfe if layout in _TWICE else nfe + (layout == "plms" and nfe > 1)


def texts_for(call: Mapping[str, Any], samples: int) -> dict[str, list[str]]:
    """Those texts of a call that a pipeline takes one of for each sample."""
    return {k: [v] * samples for k, v in call.items() if k in _ONE_EACH and isinstance(v, str)}


def several(values: Iterable[Any], name: str) -> list[Any]:
    """The values. Raises ValueError for none, or for a text."""
    many = [] if isinstance(values, str) else list(values)
    if not many:
        raise ValueError(f"{name} is {values!r}; need a list with at least one")
    return many


def given_as(pipe: Any, call: Mapping[str, Any], images: bool = False) -> str:
    """What the pipeline calls its prompt.

    Raises:
        ValueError: if it takes none, or not these arguments, or starts from an image unless `images` may be.
    """
    name = type(pipe).__name__
    known = inspect.signature(pipe.__call__).parameters
    if "strength" in known and not images:
        raise ValueError(f"{name} starts from an image and skips nodes; use the text-to-image pipeline, or bridge.tune")
    if set_here := [key for key in call if key in _SET_HERE]:
        raise ValueError(f"{', '.join(set_here)}: set by the schedule, prompts or seeds; leave it out")
    if unknown := [key for key in call if key not in known]:
        raise ValueError(f"{name} does not take {', '.join(unknown)}; it takes: {', '.join(known)}")
    given = [key for key in ("prompt", "class_labels") if key in known]
    if not given:
        raise ValueError(f"{name} takes neither a prompt nor a class; use SamplingFitness(draw, noise)")
    return given[0]
