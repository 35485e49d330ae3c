"""`profile`: the spectrum of a pipeline's samples and the size of its network's error, from some trajectories."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bridge.noise_of import noise_schedule_of, solver_of
from bridge.pipeline import PipelineJobs, several
from bridge.sampling import Level, converged, levels
from bridge.schedulers.install import install
from bridge.schedulers.nonstationary import conversion
from bridge.schedulers.rows import ROWS
from hso_jax import solvers
from hso_jax.checks import count
from hso_jax.noise import NoiseSchedule
from hso_jax.problems.model_error import measure_eta
from hso_jax.problems.product import from_components
from hso_jax.profile import FEWEST, Profile, spectrum_of
from hso_jax.schedule import versions

STEPS = 32
"""Of a trajectory: its end is then within a few hundredths of a 4-step sampler's error of the converged one."""

BUDGET = 3000

Progress = Callable[[int, int], None]


def profile(
    pipe: Any,
    *,
    prompts: Sequence[Any] = ("",),
    guidance: float | None = None,
    budget: int = BUDGET,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
    **call: Any,
) -> Profile:
    """Measure a pipeline as it is now: its networks, its scheduler's solver, its device; it is left as it is.

    budget // steps samples are made, as many of each prompt. Their ends give the spectrum (`profile_of`); how the data
    predictions of one prompt vary at the noise end gives eta (`hso_jax.problems.eta`). It is None where the noise end
    already knows much of the data, as that of Stable Diffusion does: the default of the prediction type then holds.

    Args:
        pipe: text to image (or video), or class to image, with a deterministic scheduler that evaluates once a step.
        prompts: texts, or classes for a pipeline that takes `class_labels`; a few that are typical. The spectrum is
            that of all their samples together; the empty text by default.
        guidance: w; the pipeline's own by default. Guided samples vary less than the data: measure at 1 what you
            search for several weights.
        budget: evaluations of the network at most. With guidance the two predictions are one evaluation.
        steps: of a trajectory.
        seed: sample k starts at the noise of `torch.Generator("cpu").manual_seed(seed + k)`.
        batch: samples a call of the pipeline, at least 2.
        progress: called with (evaluations so far, evaluations in all) after each step.
        **call: further arguments of the pipeline, such as height, width, negative_prompt.

    Raises:
        ValueError: before any evaluation for bad arguments, a budget that gives fewer than 16 samples or 2 of a prompt,
            or a scheduler that will not do; for samples that are not finite.
    """
    every = several(prompts, "prompts")
    each = count("budget", budget, 1) // count("steps", steps, 8, 1000) // len(every)
    if each < (least := max(2, -(-FEWEST // len(every)))):
        raise ValueError(
            f"budget is {budget}: {each} samples of {steps} evaluations for each of {len(every)} prompts; need at "
            f"least {least} of each, a budget of {least * len(every) * steps}"
        )
    count("batch", batch, 2), count("seed", seed, 0, 2**31 - 1 - each * len(every))
    drawn = [(prompt, seed + p * each + k) for p, prompt in enumerate(every) for k in range(each)]
    jobs = PipelineJobs(pipe, drawn, guidance, {**call, "output_type": "latent"})
    if jobs.given != "prompt" and every == [""]:
        raise ValueError(f"prompts is {prompts!r}; {type(pipe).__name__} takes classes: give some, prompts=[0, 1, ...]")
    noise = noise_schedule_of(pipe)
    _check_scheduler(pipe.scheduler)
    watch = _Watch([prompt for prompt, _ in drawn], batch, noise, steps, progress)
    sampled = jobs.copied()
    install(sampled, watch.schedule)
    watch.attach(sampled.scheduler)
    with torch.no_grad():
        for first in range(0, len(drawn), batch):
            jobs.sample(sampled, steps, range(first, min(first + batch, len(drawn))))
    names = {"pipeline": type(pipe).__name__, "solver": type(pipe.scheduler).__name__}
    return watch.profile(jobs.guidance, prompts=[str(prompt) for prompt in every], seed=seed, **names)


def _check_scheduler(scheduler: Any) -> None:
    """Raises ValueError unless it follows the probability flow with one evaluation a step."""
    name = type(scheduler).__name__
    for flag in ("invert_sigmas", "stochastic_sampling"):
        if scheduler.config.get(flag):
            raise ValueError(f"{name} has {flag}=True, with which a pipeline cannot be measured")
    try:
        once = solvers.SOLVERS[solver_of(scheduler)].calls == 1
    except ValueError:
        once = False
    if not once:
        raise ValueError(
            f"{name} does not follow the probability flow with one evaluation a step; for the measurement use another, "
            "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)"
        )


class _Watch:
    """Sees every step of a pipeline's trajectories: keeps their ends, and how the data predictions vary on the way."""

    def __init__(
        self, prompts: Sequence[Any], batch: int, noise: NoiseSchedule, steps: int, progress: Progress | None
    ) -> None:
        self.schedule = converged(noise, steps)
        self._prompts, self._batch, self._noise, self._progress = prompts, batch, noise, progress
        self._levels: list[Level] = levels(self.schedule)[:-1]
        self._squares, self._freedom = np.zeros(steps), np.zeros(steps)
        self._ends: list[np.ndarray] = []
        self._calls = self._evaluations = 0

    def attach(self, scheduler: Any) -> None:
        """From now on every `step` of a scheduler is seen."""
        step = scheduler.step

        @functools.wraps(step)  # pipelines look into its signature
        def seen(model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
            result = step(model_output, timestep, sample, *args, **options)
            self._see(scheduler, model_output, sample, result[0])
            return result

        scheduler.step = seen

    def _see(self, scheduler: Any, output: torch.Tensor, sample: torch.Tensor, after: torch.Tensor) -> None:
        steps = len(self._levels)
        part, node = divmod(self._calls, steps)
        prompts = self._prompts[part * self._batch : (part + 1) * self._batch]
        if len(sample) < len(prompts) or output.shape != sample.shape:
            raise ValueError(
                f"the pipeline steps with samples {tuple(sample.shape)} and outputs {tuple(output.shape)}; need "
                f"{len(prompts)} samples, and an output for each of their entries"
            )
        self._calls += 1
        self._evaluations += len(prompts)
        # Some pipelines (DiT) step with every sample twice under guidance, the second time the same.
        output, sample, after = (x[: len(prompts)] for x in (output, sample, after))
        found = _data_prediction(scheduler, self._noise, self._levels[node], output.float(), sample.float()).flatten(1)
        for prompt in dict.fromkeys(prompts):
            own = found[[i for i, other in enumerate(prompts) if other == prompt]]
            self._squares[node] += float((own - own.mean(0)).square().sum())
            self._freedom[node] += len(own) - 1
        if node == steps - 1:
            self._ends.extend(after.float().flatten(1).cpu().numpy())
        if self._progress is not None:
            self._progress(self._evaluations, len(self._prompts) * steps)

    def profile(self, guidance: float, **how: Any) -> Profile:
        """What the trajectories say; ValueError if they are not all there, or not finite."""
        ends = np.array(self._ends, np.float64)
        if len(ends) != len(self._prompts) or not np.isfinite(self._squares).all():
            raise ValueError(
                f"{len(ends)} of {len(self._prompts)} trajectories were seen to their end, or they are not finite; try "
                "another scheduler or dtype"
            )
        deviations, total, dimension = spectrum_of(ends)
        own = ends.copy()
        distinct = list(dict.fromkeys(self._prompts))
        for prompt in distinct:
            rows = [i for i, other in enumerate(self._prompts) if other == prompt]
            own[rows] -= own[rows].mean(0)
        own *= np.sqrt((len(own) - 1) / (len(own) - len(distinct)))  # each mean takes a degree of freedom
        noise, prediction = self._noise, self._noise.prediction
        variances = (self._squares / np.maximum(self._freedom, 1)).tolist()
        eta = measure_eta(
            self.schedule.lams.tolist(), variances, from_components(*spectrum_of(own)), total, prediction, guidance
        )
        told = {"from": "trajectories", "samples": len(ends), "steps": len(self._levels)}
        told |= {"evaluations": self._evaluations, "noise": noise.fingerprint(), "model": noise.name}
        measured = {**told, "versions": versions(), **how}
        ends_of_model = (noise.noise_end, noise.data_end)
        return Profile(deviations, total, dimension, prediction, *eta, ends_of_model, guidance, measured)


def _data_prediction(
    scheduler: Any, noise: NoiseSchedule, level: Level, output: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    """The prediction of clean data [B, ...] at a level, from what a pipeline hands to its scheduler's `step`."""
    config = {"prediction_type": "flow_prediction", **scheduler.config}
    k_scaled = noise.kind != "flow" and ROWS[type(scheduler).__name__].k_scaled
    if k_scaled and hasattr(scheduler, "precondition_outputs"):
        kind, alpha, sigma = "ve", 1.0, level.sigma
    else:  # other VE models are scaled as VP: x0 + ksigma eps is 1/alpha times a sample of variance 1
        kind = "vp" if noise.kind == "ve" else noise.kind
        scale = math.hypot(level.alpha, level.sigma) if kind == "vp" else 1.0
        alpha, sigma = level.alpha / scale, level.sigma / scale
        sample = sample * alpha if k_scaled else sample
    _, skip, out = conversion(alpha, sigma, kind, config)
    return skip * sample + out * output
