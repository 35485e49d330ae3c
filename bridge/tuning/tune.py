"""`tune`: nodes and coefficients that a model's own samples are best with, for a few thousand of its evaluations."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.fitness import converged, several
from bridge.sampling import Level
from bridge.tuning import searching
from bridge.tuning.coordinates import Coordinates, Table, table_at
from bridge.tuning.curvature import reference_curvature
from bridge.tuning.fingerprint import fingerprint
from bridge.tuning.judging import Error, Judge, SpentError
from bridge.tuning.models import DenoiserModel, Model, PipelineModel
from hso_jax import solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.checks import check_nfe, choice, count, number
from hso_jax.files import write_whole
from hso_jax.lane import Lane
from hso_jax.methods import SolverError
from hso_jax.methods.solver_error.coefficients import start_of
from hso_jax.methods.solver_error.lanes import check_room
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.noise_schedule import check_noise
from hso_jax.origin import Origin
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule, versions
from hso_jax.searches import search
from hso_jax.shelf.shipped import zoo
from hso_jax.upper.checkpoint import Checkpoint

BUDGET, TEACHER_STEPS = 5000, 48
WAYS = ("auto", "differences", "gradients", "comparisons")
RULES = ("trailing", "karras", "beta-t", "uniform-lam", "ays")
"""Rules that are judged beside the start; the best of them is the start where it is better than what is shipped."""

RULE_SOLVER = "dpmpp-2m"
"""Rules are judged with it where the coefficients are free."""

TEACHER_SOLVER = "dpmpp-2m"
MOST_SAMPLES, LEAST_SAMPLES = 64, 4
PATIENCE = 4
"""Better points in a row that are not better on the samples kept apart, before the search ends."""

Progress = Callable[[int, int, float | None], None]
"""Called with (evaluations so far, budget, least validation error so far)."""


class Tuned(NamedTuple):
    """A schedule that was tuned on a model, and what it is worth there.

    Errors are root mean squares over the samples that were kept apart (or the caller's own error of them).

    Attributes:
        schedule: the best on those samples; it is saved and installed as any other.
        error: its error.
        start: what the search began with: "zoo", "search", "given", or a rule's name.
        start_error: that one's; `error` is never above it.
        rule, rule_error: the best of the usual rules, and its error.
        evaluations: of the network, each of a single sample, those of the converged samples included.
        by: "differences", "gradients" or "comparisons".
        history: (evaluations, error on the tuning samples, error on those kept apart) of each better point.
        notes: what was done otherwise than asked, in words.
    """

    schedule: Schedule
    error: float
    start: str
    start_error: float
    rule: str
    rule_error: float
    evaluations: int
    by: str
    history: tuple[tuple[int, float, float], ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        gain = 1.0 - self.error / self.start_error if self.start_error > 0 else 0.0
        text = (
            f"N = {self.schedule.nfe}, {self.schedule.solver}: error {self.error:.4g} on samples kept apart, "
            f"{self.start_error:.4g} at the start ({self.start}), {gain:.0%} less; "
            f"{self.rule_error:.4g} by the best rule ({self.rule}); {self.evaluations} evaluations, by {self.by}"
        )
        return "; ".join((text, *self.notes))


class _Options(NamedTuple):
    """Of both functions, checked."""

    solver: str
    budget: int
    teacher_steps: int
    samples: int
    kept_apart: int
    batch: int
    by: str
    start: Schedule | None
    profile: Profile | None
    detail: float
    error: Error | None
    seed: int


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
        pipe: text or class to image (or video); it is left as it is. Install with `bridge.install(pipe, schedule)`.
        nfe: N.
        prompts: texts, or classes for a pipeline that takes `class_labels`; typical ones.
        guidance: w; the pipeline's own by default.
        solver: "nonstationary" tunes coefficients too; a known solver of one evaluation a step ("unipc-3",
            "dpmpp-2m", "ddim", ...) keeps its own.
        budget: evaluations of the network at most, the converged samples' included; one of a batch counts as many as
            it has samples, guidance does not double them, and a gradient counts as `judging.GRADIENT` = 3.
        teacher_steps: of the converged samples.
        samples: to tune on, and half as many to keep apart; by default as the budget allows, `samples_for`.
        batch: samples a call of the pipeline.
        by: "differences" of the samples (Gauss-Newton, needs no gradients), "gradients" through the pipeline's own
            loop, "comparisons" of a number; "auto" is "differences", and for an `error` of yours "gradients" where it
            has any, else "comparisons".
        start: a schedule to begin with; by default the best of the zoo's (or of a search, for models whose noise is
            not shipped) and of the usual rules.
        profile: of the model, whose problems then stand for it in the search of a start and in the curvature.
        detail: the error of a spatial frequency weighs its variance^-detail; 0 is the plain error of the latents.
        error: (samples, converged samples) -> a number, the smaller the better, in place of the root-mean-square
            error; called with at most `batch` samples, and its values are averaged. A function of images needs
            `output_type="pt"`.
        seed: sample k starts at the noise of `torch.Generator("cpu").manual_seed(seed + k)`.
        checkpoint: file that every judgement is written to, and that the same call resumes from, to the same bytes;
            the budget may then be larger. The converged samples lie beside it, in `CHECKPOINT.samples.npz`.
        progress: see `Progress`.
        improved: called with each schedule that is the best so far, the start first.
        **call: further arguments of the pipeline, such as height, width, negative_prompt.

    Returns:
        A `Tuned`; its schedule's `origin.tuned` says what it was tuned on.

    Raises:
        ValueError: before any evaluation, for bad arguments, a model that is distilled for its scheduler, a budget
            that is too small; for a checkpoint of another call, or in use.
    """
    options = _checked(solver, budget, teacher_steps, samples, batch, by, start, profile, detail, error, seed, nfe)
    jobs = _jobs(several(prompts, "prompts"), options)
    model = PipelineModel(pipe, jobs, guidance, call)
    told = {
        **model.told,
        "weights": fingerprint(pipe),
        "prompts": _sha([str(prompt) for prompt, _ in jobs]),
        "seeds": f"{seed}..{seed + len(jobs) - 1}",
    }
    return _tune(model, nfe, options, told, checkpoint, progress, improved)


def tune_denoiser(
    denoiser: Callable[[torch.Tensor, Level], torch.Tensor],
    noise: NoiseSchedule,
    nfe: int,
    *,
    latents: torch.Tensor,
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
        denoiser: `(x, level) -> x0`. For `by="gradients"` it is differentiable in x and in the level's entries, which
            then are tensors.
        noise: the model's noise schedule.
        nfe: N.
        latents: [n, ...] standard normal, at least as many as are tuned on and kept apart.
        guidance: w that the denoiser has; starts are chosen for it.
        solver: as for `tune`, as all below.
        budget: evaluations at most.
        teacher_steps: of the converged samples.
        samples: to tune on.
        batch: samples a call of the denoiser.
        by: how it is searched.
        start: a schedule to begin with.
        profile: of the model.
        detail: weight of fine detail.
        error: in place of the root-mean-square error.
        checkpoint: file to resume from.
        progress: see `Progress`.
        improved: called with each schedule that is the best so far.

    Returns:
        As `tune`.

    Raises:
        ValueError: as `tune`, or for too few latents.
    """
    check_noise(noise)
    options = _checked(solver, budget, teacher_steps, samples, batch, by, start, profile, detail, error, 0, nfe)
    needed = options.samples + options.kept_apart
    if not isinstance(latents, torch.Tensor) or latents.dim() < 2 or len(latents) < needed:
        shape = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(
            f"latents is {shape}; need a tensor of {needed} or more samples, or give samples= and a budget"
        )
    model = DenoiserModel(denoiser, noise, latents[:needed], number("guidance", guidance, low=0.0, closed=True))
    told = {**model.told, "latents": _sha([latents[:needed].double().cpu().numpy().tobytes().hex()])}
    return _tune(model, nfe, options, told, checkpoint, progress, improved)


def samples_for(budget: int, teacher_steps: int) -> int:
    """Samples to tune on by default: they and the half as many kept apart take a sixth of the budget to converge.

    10 for 5,000 evaluations and 48 steps: a few samples say enough of a few dozen numbers, and more of them leave less
    for the steps.
    """
    return min(max(budget // (10 * teacher_steps), LEAST_SAMPLES), MOST_SAMPLES)


def _checked(
    solver: str,
    budget: Any,
    teacher_steps: Any,
    samples: Any,
    batch: Any,
    by: Any,
    start: Any,
    profile: Any,
    detail: Any,
    error: Any,
    seed: Any,
    nfe: Any,
) -> _Options:
    check_nfe(nfe)
    budget, steps = count("budget", budget, 1), count("teacher_steps", teacher_steps, 8, 1000)
    if nfe >= steps:
        raise ValueError(f"nfe is {nfe} and teacher_steps {steps}; the converged samples need many more steps")
    some = samples_for(budget, steps) if samples is None else count("samples", samples, 2, 10**5)
    apart = max(some // 2, 2)
    choice("by", by, WAYS)
    if start is not None and not (isinstance(start, Schedule) and start.nfe == nfe and start.end == "clean"):
        raise ValueError(f"start is {start!r}; need a Schedule with N = {nfe} and a last step to clean data")
    if profile is not None and not isinstance(profile, Profile):
        raise ValueError(f"profile is {profile!r}; need a Profile: bridge.profile(pipe), Profile.load(path)")
    detail = number("detail", detail, low=-10.0, high=10.0)
    if error is not None:
        if not callable(error):
            raise ValueError(f"error is {error!r}; need a function of (samples, converged samples)")
        if detail:
            raise ValueError(
                "error and detail are both given; a function of yours weighs as it likes: leave detail out"
            )
        if by == "differences":
            raise ValueError(
                "by='differences' needs the residuals of samples; use 'gradients' or 'comparisons' with error="
            )
    least = (some + apart) * steps + (min(some, 8) * (len(RULES) + 1) + 2 * apart) * nfe
    if budget < least:
        raise ValueError(
            f"budget is {budget}; {some} samples to tune on and {apart} kept apart take {least} evaluations before the "
            "search begins: give a larger budget, fewer samples or fewer teacher_steps"
        )
    batch, seed = count("batch", batch, 1), count("seed", seed, 0, 2**31 - 1 - some - apart)
    return _Options(solver, budget, steps, some, apart, batch, by, start, profile, detail, error, seed)


def _jobs(prompts: list[Any], options: _Options) -> list[tuple[Any, int]]:
    """(prompt, seed) of the samples to tune on, then of those kept apart, whose prompts the others do not have."""
    own = apart = prompts
    if len(prompts) >= 3:
        cut = max(len(prompts) * options.kept_apart // (options.samples + options.kept_apart), 1)
        own, apart = prompts[:-cut], prompts[-cut:]
    chosen = [own[k % len(own)] for k in range(options.samples)]
    chosen += [apart[k % len(apart)] for k in range(options.kept_apart)]
    return [(prompt, options.seed + k) for k, prompt in enumerate(chosen)]


def _tune(
    model: Model,
    nfe: int,
    options: _Options,
    told: Mapping[str, Any],
    checkpoint: str | os.PathLike[str] | None,
    progress: Progress | None,
    improved: Callable[[Schedule], None] | None,
) -> Tuned:
    noise = model.noise
    check_room(Lane(noise, nfe))
    coordinates = Coordinates.of(noise, nfe, options.solver, _base(options, model.guidance))
    if options.start is not None and options.start.noise != noise.fingerprint():
        raise ValueError(f"start is for {options.start.model}, the model's noise is {noise.name}'s")
    if options.profile is not None:
        options.profile.check_noise(noise)
    arguments = _arguments(options, model, nfe, told)
    with Checkpoint(checkpoint, arguments) as file:
        targets = _targets(model, options, file, progress)
        records = file.search("judgements", {}, _fault)
        judge = Judge(
            model,
            coordinates,
            targets,
            error=options.error,
            detail=options.detail,
            batch=options.batch,
            budget=options.budget,
            evaluations=len(targets) * options.teacher_steps,
            records=records,
        )
        return _Tuning(judge, coordinates, model, options, told, progress, improved).run()


def _base(options: _Options, guidance: float) -> str:
    start = options.start
    if start is not None and start.coefficients is None and start.solver in solvers.SOLVERS:
        return start.solver
    return start_of(guidance)


class _Tuning:
    """One call's search."""

    def __init__(
        self,
        judge: Judge,
        coordinates: Coordinates,
        model: Model,
        options: _Options,
        told: Mapping[str, Any],
        progress: Progress | None,
        improved: Callable[[Schedule], None] | None,
    ) -> None:
        self._judge, self._coordinates, self._model, self._options = judge, coordinates, model, options
        self._told, self._progress, self._improved = told, progress, improved
        self._rows = range(options.samples)
        self._apart = range(options.samples, options.samples + options.kept_apart)
        self._history: list[tuple[int, float, float]] = []
        self._best: tuple[np.ndarray, float] = np.zeros(0), math.inf
        self._behind = 0

    def run(self) -> Tuned:
        """From the start's choice to the report."""
        start, z, rule, table = self._start()
        start_error = self._judge.value(z, self._apart)
        rule_error = self._judge.value(table, self._apart)
        self._take(z, start_error)
        by = self._options.by
        if by == "auto":
            by = "differences" if self._judge.squares else "gradients"
        if len(z):
            curvature = reference_curvature(self._coordinates, z, self._model.guidance, self._options.profile)
            by = self._search(by, z, curvature)
        self._tell()
        schedule = self._schedule(*self._best, by, start, start_error, rule, rule_error)
        return Tuned(
            schedule,
            self._shown(self._best[1]),
            start,
            self._shown(start_error),
            rule,
            self._shown(rule_error),
            self._judge.evaluations,
            by,
            tuple(self._history),
            tuple(self._judge.notes),
        )

    def _start(self) -> tuple[str, np.ndarray, str, Table]:
        """What the search begins with, its point, and the best rule with its table."""
        options, noise, nfe = self._options, self._model.noise, self._coordinates.nfe
        some = self._rows[:8]
        solver = RULE_SOLVER if options.solver == solvers.NONSTATIONARY else self._coordinates.solver
        rules = {
            name: baseline(name, noise, nfe) for name in RULES if name in BASELINES and not inapplicable(name, noise)
        }
        tables = {name: table_at(noise, schedule, solver) for name, schedule in rules.items()}
        values = {name: self._judge.value(table, some) for name, table in tables.items()}
        rule = min(values, key=lambda name: values[name] if np.isfinite(values[name]) else math.inf)
        given, schedule = ("given", options.start) if options.start is not None else self._shipped()
        z = self._coordinates.point(schedule)
        value = self._judge.value(z, some)
        if options.start is None and not value <= values[rule]:
            named = dataclasses.replace(rules[rule], origin=Origin(method=rule, solver=solver))
            return rule, self._coordinates.point(named), rule, tables[rule]
        return given, z, rule, tables[rule]

    def _shipped(self) -> tuple[str, Schedule]:
        """The zoo's schedule for the nearest weight, or a search's where the noise is not shipped."""
        noise, nfe, guidance = self._model.noise, self._coordinates.nfe, self._model.guidance
        if self._options.profile is None:
            try:
                return "zoo", zoo(noise, nfe, self._coordinates.solver, guidance=nearest_guidance(noise, guidance))
            except ValueError:  # not shipped
                pass
        how = SolverError(self._coordinates.solver, guidance, compare=(), profile=self._options.profile)
        return "search", search(noise, nfe, method=how)

    def _search(self, by: str, z: np.ndarray, curvature: np.ndarray) -> str:
        """How it was searched at last: gradients give way to what needs none where they cannot be had."""
        try:
            if by == "gradients":
                try:
                    searching.gradients(self._judge, z, curvature, self._rows, self._seen)
                    return by
                except (MemoryError, ValueError) as trouble:
                    if self._options.by == "gradients" and not isinstance(trouble, MemoryError):
                        raise
                    by = "differences" if self._judge.squares else "comparisons"
                    self._judge.notes.append(f"no gradients ({trouble}): by {by}")
                    z = self._best[0]
            if by == "differences":
                searching.differences(self._judge, z, curvature, self._rows, self._seen)
            else:
                searching.comparisons(self._judge, z, curvature, self._rows, self._seen)
        except SpentError:
            pass
        return by

    def _seen(self, z: np.ndarray, value: float) -> bool:
        """Judge a better point by the samples kept apart."""
        apart = self._judge.value(z, self._apart)
        self._history.append((self._judge.evaluations, self._shown(value), self._shown(apart)))
        if apart < self._best[1]:
            self._take(z, apart)
            self._behind = 0
        else:
            self._behind += 1
        self._tell()
        return self._behind >= PATIENCE

    def _take(self, z: np.ndarray, value: float) -> None:
        self._best = np.array(z), value
        if self._improved is not None:
            self._improved(self._schedule(z, value, "", "", math.nan, "", math.nan))

    def _tell(self) -> None:
        if self._progress is not None:
            best = self._best[1]
            self._progress(
                self._judge.evaluations, self._options.budget, self._shown(best) if best < math.inf else None
            )

    def _shown(self, value: float) -> float:
        """An error as people read it."""
        return math.exp(value) if self._judge.squares else value

    def _schedule(
        self, z: np.ndarray, value: float, by: str, start: str, start_error: float, rule: str, rule_error: float
    ) -> Schedule:
        figures = {"error": value, "start_error": start_error, "rule_error": rule_error}
        told = {
            **{
                k: v if isinstance(v, (str, int, float)) else json.dumps(v, sort_keys=True)
                for k, v in self._told.items()
            },
            **{"by": by, "start": start, "rule": rule, "budget": self._options.budget},
            **{"teacher_steps": self._options.teacher_steps, "samples": self._options.samples},
            "evaluations": self._judge.evaluations,
            **{k: float(f"{self._shown(v):.6g}") for k, v in figures.items() if math.isfinite(v)},
        }
        origin = Origin(
            method="tuned",
            solver=self._coordinates.solver,
            guidance=self._model.guidance,
            seed=self._options.seed,
            versions=versions(),
            tuned={k: v for k, v in told.items() if v != ""},
        )
        return self._coordinates.schedule(z, origin).with_scores(fitness=self._shown(value))


def nearest_guidance(noise: NoiseSchedule, guidance: float) -> float:
    """Of the weights that the zoo has for a model the nearest; the weight itself where it has none."""
    from hso_jax.shelf.shipped import shipped_guidance

    return min(shipped_guidance(noise), key=lambda w: abs(w - guidance), default=guidance)


def _arguments(options: _Options, model: Model, nfe: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint is compared by: all but the budget, where the number of samples does not follow from it."""
    start, profile, error = options.start, options.profile, options.error
    own = options._replace(budget=0, start=None, profile=None, error=None)._asdict()
    return {
        **own,
        "nfe": nfe,
        "noise": model.noise.fingerprint(),
        "guidance": model.guidance,
        "start": None if start is None else _sha([start.t.tobytes().hex(), repr(start.coefficients)]),
        "profile": None if profile is None else _sha([profile.to_json()]),
        "error": None if error is None else getattr(error, "__qualname__", type(error).__qualname__),
        "torch": torch.__version__,
        **told,
    }


def _targets(model: Model, options: _Options, file: Checkpoint, progress: Progress | None) -> torch.Tensor:
    """The converged samples [count, ...] on the CPU, from beside the checkpoint or made now."""
    kept = file.search("teacher", {}, _fault)
    beside = None if file.path is None else file.path.with_name(f"{file.path.name}.samples.npz")
    if kept.done and beside is not None and beside.exists():
        with np.load(beside) as found:
            samples = found["samples"]
        if _digest(samples) == kept.done[0]["sha256"]:
            return torch.from_numpy(samples)
        raise ValueError(f"{beside} is not what checkpoint {file.path} was made with; remove both, or put it back")
    samples = _converge(model, options, progress)
    if beside is not None:
        content = io.BytesIO()
        np.savez(content, samples=samples)
        write_whole(beside, content.getvalue())
    digest = _digest(samples)
    if kept.done and kept.done[0]["sha256"] != digest:
        raise ValueError(f"the converged samples are not those of checkpoint {file.path}: the model has changed")
    if not kept.done:
        kept.add({"sha256": digest})
    return torch.from_numpy(samples)


@torch.no_grad()
def _converge(model: Model, options: _Options, progress: Progress | None) -> np.ndarray:
    table = table_at(model.noise, converged(model.noise, options.teacher_steps), TEACHER_SOLVER)
    plain, parts = Table(*(x.tolist() for x in table)), []
    for first in range(0, model.count, options.batch):
        rows = range(first, min(first + options.batch, model.count))
        parts.append(model.run(plain, rows).cpu())
        if progress is not None:
            progress(rows.stop * options.teacher_steps, options.budget, None)
    samples = torch.cat(parts).numpy()
    if not np.isfinite(samples).all():
        raise ValueError(f"the converged samples ({options.teacher_steps} steps) are not finite; try another dtype")
    return samples


def _fault(record: Any) -> str | None:
    return None if isinstance(record, dict) else f" is {record!r}, not an object"


def _sha(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def _digest(samples: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()
