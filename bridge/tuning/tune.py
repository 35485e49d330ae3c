"""`tune`: nodes and coefficients that a model's own samples are best with, for a few thousand of its evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bridge.pipeline import IMAGES, PipelineJobs, image_for_each, several
from bridge.schedulers.install import fingerprint
from bridge.tuning.models import DenoiserModel, PipelineModel
from bridge.tuning.options import (
    BUDGET,
    FEWEST_SCORES,
    SCORED,
    SCORES,
    TEACHER_STEPS,
    Error,
    Options,
    Progress,
    Score,
    Tuned,
    check_start,
    checked,
    jobs,
)
from bridge.tuning.run import run, sha
from hso_jax import solvers
from hso_jax.checks import brief, check_guidance, check_nfe, count
from hso_jax.noise import NoiseSchedule, check_noise
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule


def tune(
    pipe: Any,
    nfe: int,
    *,
    prompts: Sequence[Any] = ("",),
    guidance: float | None = None,
    solver: str = solvers.NONSTATIONARY,
    budget: int = BUDGET,
    teacher_steps: int = TEACHER_STEPS,
    samples: int | None = None,
    batch: int = 8,
    by: str = "auto",
    start: Schedule | None = None,
    profile: Profile | None = None,
    detail: float = 0.0,
    error: Error | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    improved: Callable[[Schedule], None] | None = None,
    **call: Any,
) -> Tuned:
    """Tune a schedule of N evaluations on a diffusers pipeline as it is: weights, adapters, device, conditioning.

    A few samples are made with `teacher_steps` steps; nodes and coefficients are then moved so that N steps end as near
    to these as they can. Samples (and prompts, if there are three or more) are split: the search sees some, the result
    is the best on the others, and never worse there than its start.

    Args:
        pipe: text or class to image (or video), image to image, inpainting; it is left as it is. Install with
            `bridge.install(pipe, schedule)`.
        nfe: N; of N steps a pipeline with `strength` takes the last, which are tuned for this strength.
        prompts: texts, or classes for a pipeline that takes `class_labels`; typical ones.
        guidance: w; the pipeline's own by default.
        solver: "nonstationary" tunes coefficients too; a known solver of one evaluation a step ("unipc-3",
            "dpmpp-2m", "ddim", ...) keeps its own.
        budget: evaluations of the network at most, the converged samples' included; one of a batch counts as many as
            it has samples, guidance does not double them, and a gradient counts as 3.
        teacher_steps: of the converged samples.
        samples: to tune on, and half as many to keep apart; by default as the budget allows, `samples_for`.
        batch: samples a call of the pipeline; processes of a `torch.distributed` group share them.
        by: "differences" of the samples (Gauss-Newton, needs no gradients), "gradients" through the pipeline's own
            loop, "comparisons" of a number, or "gits" (arXiv 2405.11326: nodes alone, from the converged samples'
            trajectories, no search); "auto" is "differences", and for an `error` of yours "gradients" where it has
            any, else "comparisons".
        start: a schedule to begin with; by default the best of the zoo's (or of a search, for models whose noise is
            not shipped), of a search with a profile of the converged samples, and of the usual rules; then, with what
            is left of the budget, the others.
        profile: of the model, whose problems then stand for it in the search of a start and in the curvature.
        detail: the error of a spatial frequency weighs its variance^-detail; 0 is the plain error of the latents.
        error: (samples, converged samples) -> a number, the smaller the better, in place of the root-mean-square
            error; called with at most `batch` samples, and its values are averaged. A function of images needs
            `output_type="pt"`.
        seed: sample k starts at the noise of `torch.Generator("cpu").manual_seed(seed + k)`.
        checkpoint: file that every judgement is written to, and that the same call resumes from, to the same bytes. The
            converged samples lie beside it, in `CHECKPOINT.samples.npz`. To spend more later, give the schedule that
            was found as `start`.
        progress: called with (evaluations so far, budget, least error so far on the samples kept apart, or None).
        improved: called with each schedule that is the best so far, the start first.
        **call: further arguments of the pipeline, such as height, width, negative_prompt, strength; image, mask_image
            and control_image are one image, or a list with one for each prompt.

    Returns:
        A `Tuned`; its schedule's `origin.tuned` says what it was tuned on.

    Raises:
        ValueError: before any evaluation, for bad arguments, a model that is distilled for its scheduler, a budget
            that is too small; for a checkpoint of another call, or in use.
    """
    options = Options(
        nfe=nfe, solver=solver, budget=budget, teacher_steps=teacher_steps, samples=samples, batch=batch, by=by,
        start=start, profile=profile, detail=detail, error=error, seed=seed, checkpoint=checkpoint, progress=progress,
        improved=improved,
    )  # fmt: skip
    options, texts = checked(options), several(prompts, "prompts")
    places = jobs(range(len(texts)), options)
    drawn = [(texts[i], own_seed) for i, own_seed in places]
    given = {k: image_for_each(call.pop(k), len(texts), k) for k in IMAGES if call.get(k) is not None}
    images = {k: [v[i] for i, _ in places] for k, v in given.items()}
    model = PipelineModel(PipelineJobs(pipe, drawn, guidance, call, images))
    facts = {
        **model.facts,
        "weights": fingerprint(pipe),
        "prompts": sha([str(prompt) for prompt, _ in drawn]),
        **{k: sha([_image_text(image) for image in v]) for k, v in given.items()},
        "seeds": f"{seed}..{seed + len(drawn) - 1}",
    }
    return run(model, options, facts)


def tune_denoiser(
    denoiser: Callable[..., torch.Tensor],
    noise: NoiseSchedule,
    nfe: int,
    *,
    latents: torch.Tensor,
    condition: torch.Tensor | None = None,
    guidance: float = 1.0,
    solver: str = solvers.NONSTATIONARY,
    budget: int = BUDGET,
    teacher_steps: int = TEACHER_STEPS,
    samples: int | None = None,
    batch: int = 16,
    by: str = "auto",
    start: Schedule | None = None,
    profile: Profile | None = None,
    detail: float = 0.0,
    error: Error | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    improved: Callable[[Schedule], None] | None = None,
) -> Tuned:
    """Tune on a model outside diffusers: a function that predicts the clean data, as `bridge.sample` takes it.

    Args:
        denoiser: `(x, level) -> x0`, or `(x, level, condition) -> x0`; level is a `bridge.Level`. For
            `by="gradients"` it is differentiable in x and in the level's entries, which then are tensors.
        noise: the model's noise schedule.
        nfe: N.
        latents: [n, ...] standard normal, at least as many as are tuned on and kept apart.
        condition: [n, ...] what the denoiser is given for each of the latents, such as their classes.
        guidance: w that the denoiser has; starts are chosen for it.
        solver: as for `tune`, as all below.
        budget: as for `tune`.
        teacher_steps: as for `tune`.
        samples: as for `tune`.
        batch: samples a call of the denoiser.
        by: as for `tune`.
        start: as for `tune`.
        profile: as for `tune`.
        detail: as for `tune`.
        error: as for `tune`.
        checkpoint: as for `tune`.
        progress: as for `tune`.
        improved: as for `tune`.

    Returns:
        As `tune`.

    Raises:
        ValueError: as `tune`, or for too few latents.
    """
    check_noise(noise)
    if not isinstance(latents, torch.Tensor) or latents.dim() < 2 or not latents[0].numel():
        raise ValueError(f"latents is {brief(latents)}; need a tensor [n, ...] of standard normal numbers")
    options = Options(
        nfe=nfe, solver=solver, budget=budget, teacher_steps=teacher_steps, samples=samples, batch=batch, by=by,
        start=start, profile=profile, detail=detail, error=error, checkpoint=checkpoint, progress=progress,
        improved=improved,
    )  # fmt: skip
    options = checked(options, latents[0].numel())
    needed = options.samples + options.kept_apart
    if len(latents) < needed:
        raise ValueError(f"latents has {len(latents)} samples; give {needed}, or samples={len(latents) * 2 // 3}")
    if condition is not None and not (isinstance(condition, torch.Tensor) and len(condition) >= needed):
        raise ValueError(f"condition is {brief(condition)}; need a tensor with an entry for each of {needed} latents")
    weight = check_guidance(guidance)
    model = DenoiserModel(denoiser, noise, latents[:needed], weight, None if condition is None else condition[:needed])
    facts = {**model.facts, "latents": _tensor_sha(latents[:needed])}
    if condition is not None:
        facts["condition"] = _tensor_sha(condition[:needed])
    return run(model, options, facts)


def tune_score(
    score: Score,
    noise: NoiseSchedule,
    nfe: int,
    *,
    solver: str = solvers.NONSTATIONARY,
    guidance: float = 1.0,
    budget: int = SCORES,
    start: Schedule | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    improved: Callable[[Schedule], None] | None = None,
) -> Tuned:
    """Tune by any number for a schedule: a reward model's of your sampler's images, a distance of features, a person's.

    Args:
        score: schedule -> a number, the smaller the better; what is not finite is the worst. It samples as it likes,
            such as `bridge.install(pipe, schedule)` and `pipe(...)`, and is asked once for each distinct schedule. What
            it raises passes through.
        noise: the model's noise schedule.
        nfe: N.
        solver: "nonstationary" hands the score schedules with coefficients; a known solver moves the nodes alone.
        guidance: w that the score samples with; starts are chosen for it.
        budget: scores at most; a dozen go to the usual rules and the start.
        start: a schedule to begin with; by default the zoo's, or the best of the usual rules.
        checkpoint: file that every score is written to, and that the same call resumes from, to the same bytes.
        progress: called with (scores so far, budget, least score so far).
        improved: called with each schedule that is the best so far, the start first.

    Returns:
        As `tune`; its errors are scores.

    Raises:
        ValueError: before any score, for bad arguments, or for a checkpoint of another call, or in use; for a score
            that is no number.
    """
    check_noise(noise)
    if not callable(score):
        raise ValueError(f"score is {brief(score)}; give a function of a schedule that returns a number")
    check_start(start, check_nfe(nfe))
    budget, weight = count("budget", budget, FEWEST_SCORES), check_guidance(guidance)
    options = Options(nfe, solvers.canonical(solver, solvers.EVERY), budget, by=SCORED, start=start)
    options = options._replace(checkpoint=checkpoint, progress=progress, improved=improved)
    name = getattr(score, "__qualname__", type(score).__qualname__)
    nothing = DenoiserModel(lambda *_: torch.empty(0), noise, torch.empty(0), weight)  # the score samples
    return run(nothing, options, {"model": noise.name, "score": name}, score)


def _tensor_sha(values: torch.Tensor) -> str:
    return sha([values.double().cpu().numpy().tobytes().hex()])


def _image_text(value: Any) -> str:
    """What tells one image from another, for a digest."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.shape} {array.dtype} {array.tobytes().hex()}"
