"""`tune`: nodes and coefficients that a model's own samples are best with, for a few thousand of its evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch

from bridge.pipeline import several
from bridge.sampling import converged
from bridge.tuning import gits, models, search
from bridge.tuning.candidates import Candidate, candidates, is_rule
from bridge.tuning.coordinates import Coordinates, with_coefficients
from bridge.tuning.judge import Error, Judge, Made, Score, ScoreJudge, SpentError, batches, targets
from bridge.tuning.models import Model, steps_of
from bridge.tuning.race import Measured, race
from hso_jax import solvers
from hso_jax.checkpoint import Checkpoint
from hso_jax.checks import brief, check_guidance, check_nfe, choice, count, number
from hso_jax.compiling import under_jax_defaults
from hso_jax.lane import Lane
from hso_jax.noise import NoiseSchedule, check_noise
from hso_jax.schedule import Origin, Schedule, versions
from hso_jax.searches import search as search_without_model
from hso_jax.shipped.zoo import shipped_guidance
from hso_jax.solver_error_levels import check_room, start_of
from hso_jax.solver_error_method import SolverError

BUDGET, TEACHER_STEPS, SCORES = 5000, 48, 60
SCORED = "scores"
"""How `tune_score` searches."""

WAYS = ("auto", "differences", "gradients", "comparisons", "gits")

RACE = 1 / 4
"""Share of the budget that is left after the converged samples, and goes into the choice of starts."""

STARTS = 3
"""Candidates that the search begins with, the best first, while the budget lasts."""

FEWEST_SCORES = 10
"""Of `tune_score`: candidates that are scored before the search."""

MOST_SAMPLES, LEAST_SAMPLES, LEAST_RACE = 64, 4, 10
PATIENCE = 4
"""Better points in a row that are not better on the samples kept apart, before the search ends."""

Progress = Callable[[int, int, float | None], None]
"""Called with (evaluations so far, budget, least validation error so far)."""


class TuneOptions(TypedDict, total=False):
    """Keywords that the functions here share; `tune` says what each of them is."""

    solver: str
    budget: int
    teacher_steps: int
    samples: int | None
    by: str
    start: Schedule | None
    detail: float
    error: Error | None
    checkpoint: str | os.PathLike[str] | None
    progress: Progress | None
    improved: Callable[[Schedule], None] | None


class Options(NamedTuple):
    """What a call asks for."""

    nfe: int
    solver: str = solvers.NONSTATIONARY
    budget: int = BUDGET
    teacher_steps: int = TEACHER_STEPS
    samples: Any = None
    batch: int = 1
    by: str = "auto"
    start: Schedule | None = None
    detail: float = 0.0
    error: Error | None = None
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    improved: Callable[[Schedule], None] | None = None

    @property
    def kept_apart(self) -> int:
        """Samples that the search does not see."""
        return max(self.samples // 2, 2)


class Tuned(NamedTuple):
    """A schedule that was tuned on a model, and what it is worth there.

    Errors are root mean squares over the samples that were kept apart (or the caller's own error of them).

    Attributes:
        schedule: the best on those samples; it is saved and installed as any other.
        error: its error.
        start: the candidate that the search began with, or "given"; with what its budget had left it began with the
            next ones as well.
        start_error: that one's; `error` is never above it.
        rule, rule_error: the best of the usual rules that were measured, and its error; `error` is never above it.
        evaluations: of the network, each of a single sample, those of the converged samples included.
        by: "differences", "gradients", "comparisons", "gits" or "scores".
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
        what = "score {:.4g}" if self.by == SCORED else "error {:.4g} on samples kept apart"
        text = (
            f"N = {self.schedule.nfe}, {self.schedule.solver}: {what.format(self.error)}, "
            f"{self.start_error:.4g} at the start ({self.start}), {gain:.0%} less; "
            f"{self.rule_error:.4g} by the best rule ({self.rule}); {self.evaluations} evaluations, by {self.by}"
        )
        return "; ".join((text, *self.notes))


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
        start: a schedule to begin with; by default the best candidates of `choose` on the samples to tune on, one
            after another while the budget lasts.
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
    options = _checked(
        Options(nfe, solver, budget, teacher_steps, samples, batch, by, start, detail, error, seed, checkpoint,
                progress, improved)
    )  # fmt: skip
    texts = several(prompts, "prompts")
    jobs, facts = models.jobs_of(pipe, texts, drawn(len(texts), options), guidance, call)
    return _run(models.PipelineModel(jobs), options, facts)


def tune_denoiser(
    denoiser: Callable[..., torch.Tensor],
    noise: NoiseSchedule,
    nfe: int,
    *,
    latents: torch.Tensor,
    condition: torch.Tensor | None = None,
    guidance: float = 1.0,
    batch: int = 16,
    **options: Unpack[TuneOptions],
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
        batch: samples a call of the denoiser.
        **options: solver, budget, teacher_steps, samples, by, start, detail, error, checkpoint, progress and
            improved, as for `tune`.

    Raises:
        ValueError: as `tune`, or for too few latents.
    """
    check_noise(noise)
    models.check_latents(latents)
    asked = _checked(Options(nfe, batch=batch, **options), latents[0].numel())
    needed = asked.samples + asked.kept_apart
    model, facts = models.denoiser_model(denoiser, noise, latents, condition, guidance, needed)
    return _run(model, asked, facts)


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
    _check_start(start, check_nfe(nfe))
    budget, weight = count("budget", budget, FEWEST_SCORES), check_guidance(guidance)
    options = Options(
        nfe, solvers.canonical(solver, solvers.EVERY), budget, 0, 0, by=SCORED, start=start, checkpoint=checkpoint,
        progress=progress, improved=improved,
    )  # fmt: skip
    name = getattr(score, "__qualname__", type(score).__qualname__)
    nothing = models.DenoiserModel(lambda *_: torch.empty(0), noise, torch.empty(0), weight)  # the score samples
    return _run(nothing, options, {"model": noise.name, "score": name}, score)


def _samples_for(budget: int, teacher_steps: int, unknowns: int = 0, numbers: int = 10**6) -> int:
    """Samples to tune on by default: they and the half as many kept apart take a sixth of the budget to converge.

    10 for 5,000 evaluations and 48 steps: a few samples say enough of a few dozen numbers, and more of them leave less
    for the steps. Samples of few numbers are as many as have twice the numbers that are searched, for at most a third
    of the budget.
    """
    some = min(max(budget // (10 * teacher_steps), LEAST_SAMPLES), MOST_SAMPLES)
    return max(some, min(-(-2 * unknowns // numbers), 2 * budget // (9 * teacher_steps)))


def _checked(asked: Options, numbers: int = 10**6) -> Options:
    """The options, for samples of so many numbers; `samples` is chosen where it is None. Raises ValueError."""
    nfe, solver = check_nfe(asked.nfe), solvers.canonical(asked.solver, solvers.EVERY)
    budget, steps = count("budget", asked.budget, 1), count("teacher_steps", asked.teacher_steps, 8, 1000)
    if nfe >= steps:
        raise ValueError(f"nfe is {nfe} and teacher_steps {steps}; the converged samples need many more steps")
    some = asked.samples
    if some is None:
        unknowns = nfe - 1 + (3 * nfe if solver == solvers.NONSTATIONARY else 0)
        some = _samples_for(budget, steps, unknowns, numbers)
    options = asked._replace(
        solver=solver,
        samples=count("samples", some, 2, 10**5),
        batch=count("batch", asked.batch, 1),
        by=choice("by", asked.by, WAYS),
        detail=number("detail", asked.detail, low=-10.0, high=10.0),
    )
    some, apart = options.samples, options.kept_apart
    _check_start(options.start, nfe)
    count("seed", options.seed, 0, 2**31 - 1 - some - apart)
    if options.error is not None:
        if not callable(options.error):
            raise ValueError(f"error is {options.error!r}; need a function of (samples, converged samples)")
        if options.detail:
            raise ValueError(
                "error and detail are both given; a function of yours weighs as it likes: leave detail out"
            )
        if options.by == "differences":
            raise ValueError(
                "by='differences' needs the residuals of samples; use 'gradients' or 'comparisons' with error="
            )
    least = (some + apart) * steps + (LEAST_RACE + some + 2 * apart) * nfe
    if budget < least:
        raise ValueError(
            f"budget is {budget}; {some} samples to tune on and {apart} kept apart take {least} evaluations before the "
            "search begins: give a larger budget, fewer samples or fewer teacher_steps"
        )
    return options


def _check_start(start: Any, nfe: int) -> None:
    if start is not None and not (isinstance(start, Schedule) and start.nfe == nfe and start.end == "clean"):
        raise ValueError(f"start is {start!r}; need a Schedule with N = {nfe} and a last step to clean data")


def drawn(prompts: int, options: Options) -> list[tuple[int, int]]:
    """(prompt, seed) of the samples to tune on, then of those kept apart, whose prompts the others do not have."""
    own = apart = range(prompts)
    if prompts >= 3:
        cut = max(prompts * options.kept_apart // (options.samples + options.kept_apart), 1)
        own, apart = own[:-cut], own[-cut:]
    chosen = [own[k % len(own)] for k in range(options.samples)]
    chosen += [apart[k % len(apart)] for k in range(options.kept_apart)]
    return [(prompt, options.seed + k) for k, prompt in enumerate(chosen)]


@under_jax_defaults
def _run(model: Model, options: Options, facts: Mapping[str, Any], score: Score | None = None) -> Tuned:
    """Tune on a model, or by a score of schedules; `facts` go into the result's file. Raises as `tune`."""
    part, start = model.part, options.start
    check_room(Lane(part.whole, options.nfe))
    steps, base = models.taken_steps(model, options.nfe), start_of(model.guidance)
    if start is not None and start.coefficients is None and start.solver in solvers.SOLVERS:
        base = start.solver
    Coordinates.of(part.noise, steps, options.solver, base)  # refuses what cannot be
    if start is not None and start.noise != part.whole.fingerprint():
        raise ValueError(f"start is for {start.model}, the model's noise is {part.whole.name}'s")
    arguments = _arguments(options, model, facts)
    start = None if start is None else _named(part.cut(start), options.solver, base)
    options = options._replace(start=start)

    def tell(spent: int) -> None:
        if options.progress is not None:
            options.progress(spent, options.budget, None)

    def tuned(model: Model) -> Tuned:
        with Checkpoint(options.checkpoint, arguments) as file:
            if score is not None:
                judge: Judge = ScoreJudge(score, model, file.records("judgements"), options.budget)
                return _Tuning(judge, model, options, base, None, facts).run()
            some, apart, costed = options.samples, options.kept_apart, options.samples if options.by == "gits" else 0
            made = targets(model, file, batches(options.batch, some, apart), options.teacher_steps, costed, tell)
            judge = Judge(
                model, file.records("judgements"), made.samples, budget=options.budget, batch=options.batch,
                spent=(some + apart) * options.teacher_steps, error=options.error, detail=options.detail,
            )  # fmt: skip
            return _Tuning(judge, model, options, base, made, facts).run()

    return models.together(model, tuned)


def _named(schedule: Schedule, solver: str, base: str) -> Schedule:
    """A start with the solver that it is judged with: the one that is asked for, else its own, else the base."""
    if schedule.coefficients is not None:
        return schedule
    known = schedule.solver if solver == solvers.NONSTATIONARY else solvers.canonical(solver)
    known = known if known in solvers.SOLVERS else base
    return dataclasses.replace(schedule, origin=dataclasses.replace(schedule.origin, solver=known))


class _Tuning:
    """One call's search."""

    def __init__(
        self, judge: Judge, model: Model, options: Options, base: str, made: Made | None, facts: Mapping[str, Any]
    ) -> None:
        self._judge, self._model, self._options, self._base = judge, model, options, base
        self._made, self._facts = made, facts
        self._noise, self._steps = model.part.noise, model.part.steps(options.nfe)
        self._rows = range(options.samples)
        self._apart = range(options.samples, options.samples + options.kept_apart)
        self._history: list[tuple[int, float, float]] = []
        self._best: tuple[Schedule, float]
        self._behind = 0

    def run(self) -> Tuned:
        """From the start's choice to the report."""
        starts, rule = self._starts()
        start, begin = starts[0].name, starts[0].schedule
        start_error, rule_error = (self._judge.value(m.schedule, self._apart) for m in (starts[0], rule))
        self._take(begin, start_error)
        if rule_error < start_error:  # as good a start, and never worse than any rule
            self._take(rule.schedule, rule_error)
        by = self._options.by
        if by == "auto":
            by = "differences" if self._judge.squares else "gradients"
        for one in starts:  # the others with what the budget has left
            self._behind = 0
            with contextlib.suppress(SpentError):
                if by == "gits":
                    self._gits()
                    break
                by = self._search(by, self._place(one.schedule))
        self._tell()
        best, error = self._best
        if not math.isfinite(error):
            raise ValueError("no schedule's error (or score) was finite; give a start whose samples are")
        errors = (self._shown(x) for x in (error, start_error, rule_error))
        figures = dict(zip(("error", "start_error", "rule_error"), errors, strict=True))
        schedule = self._schedule(best, error, by=by, start=start, rule=rule.name, **figures)
        spent, history, notes = self._judge.evaluations, tuple(self._history), tuple(self._judge.notes)
        return Tuned(
            schedule, start=start, rule=rule.name, evaluations=spent, by=by, history=history, notes=notes, **figures
        )

    def _starts(self) -> tuple[list[Measured], Measured]:
        """What the search begins with, the best first; and the best rule."""
        options, noise, solver = self._options, self._noise, self._options.solver
        known = None if solver == solvers.NONSTATIONARY else solver
        every = candidates(noise, self._steps, self._model.guidance, known)
        if options.start is None and not shipped_guidance(noise):
            how = SolverError(solver, self._model.guidance, compare=())
            found = search_without_model(noise, self._steps, method=how)
            every.insert(0, Candidate("search", _named(found, solver, self._base)))
        rows, budget = self._rows, int(RACE * (options.budget - self._judge.evaluations))
        if options.by == SCORED:
            rows, budget = range(1), max(FEWEST_SCORES - 1, budget) * self._steps
            every = [Candidate(name, self._taken(schedule)) for name, schedule in every]
        ranked = race(self._judge, every, rows, max(budget, LEAST_RACE * self._steps))
        rule = next((m for m in ranked if is_rule(m.name)), ranked[0])
        if options.start is not None:
            return [Measured("given", options.start, np.zeros(0))], rule
        return ranked[:STARTS], rule

    def _place(self, schedule: Schedule) -> np.ndarray:
        """The schedule as a point, in coordinates of its own."""
        self._judge.coordinates = Coordinates.at(schedule, self._noise, self._options.solver, self._base)
        return self._judge.coordinates.point(schedule)

    def _search(self, by: str, z: np.ndarray) -> str:
        """How it was searched at last: gradients give way to what needs none where they cannot be had."""
        judge = self._judge
        if not len(z):
            return by
        curvature = search.reference_curvature(judge.coordinates, z, self._model.guidance)
        if by == "gradients":
            try:
                search.gradients(judge, z, curvature, self._rows, self._seen)
                return by
            except (MemoryError, ValueError) as trouble:
                if self._options.by == "gradients" and not isinstance(trouble, MemoryError):
                    raise
                by = "differences" if judge.squares else "comparisons"
                judge.notes.append(f"no gradients ({trouble}): by {by}")
                free, z = judge.coordinates.free, self._place(self._best[0])
                if judge.coordinates.free != free:  # the best is an earlier start's, in other coordinates
                    return self._search(by, z)
        search_by = search.differences if by == "differences" else search.comparisons
        with contextlib.suppress(SpentError):
            search_by(judge, z, curvature, self._rows, self._seen)
        return by

    def _gits(self) -> None:
        """The nodes by dynamic programming; the solver is the one that the coefficients deviate from."""
        assert self._made is not None and self._made.costs is not None
        grid = converged(self._noise, self._options.teacher_steps)
        chosen = grid.t[gits.best_path(self._made.costs, self._steps, gits.COEFFICIENT)]
        known = self._base if self._options.solver == solvers.NONSTATIONARY else self._options.solver
        origin = Origin(method="gits", solver=solvers.canonical(known))
        z = self._place(Schedule.from_t(self._noise, chosen, origin=origin))
        self._seen(z, self._judge.value(z, self._rows))

    def _seen(self, z: np.ndarray, value: float) -> bool:
        """Judge a better point by the samples kept apart."""
        apart, allowed = self._judge.value(z, self._apart), self._judge.coordinates.allowed(z)
        self._history.append((self._judge.evaluations, self._shown(value), self._shown(apart)))
        if allowed and (apart < self._best[1] or not np.isfinite(self._best[1])):
            origin = Origin(method="tuned", solver=self._judge.coordinates.solver)
            self._take(self._judge.coordinates.schedule(z, origin), apart)
            self._behind = 0
        else:
            self._behind += 1
        self._tell()
        return self._behind >= PATIENCE

    def _take(self, schedule: Schedule, value: float) -> None:
        schedule = self._taken(schedule)
        self._best = schedule, value
        if self._options.improved is not None:
            self._options.improved(self._schedule(schedule, value, error=self._shown(value)))

    def _taken(self, schedule: Schedule) -> Schedule:
        return with_coefficients(schedule, self._noise, self._options.solver, self._base)

    def _tell(self) -> None:
        if self._options.progress is not None:
            best = self._shown(self._best[1]) if self._best[1] < math.inf else None
            self._options.progress(self._judge.evaluations, self._options.budget, best)

    def _shown(self, value: float) -> float:
        """An error as people read it."""
        return math.exp(value) if self._judge.squares else value

    def _schedule(self, schedule: Schedule, value: float, **found: str | float) -> Schedule:
        """With what it was tuned on, and what was found."""
        options = self._options
        many = {"teacher_steps": options.teacher_steps, "samples": options.samples} if options.samples else {}
        known = {k: v for k, v in found.items() if v != "" and (isinstance(v, str) or math.isfinite(v))}
        figures = {k: v if isinstance(v, str) else float(f"{v:.6g}") for k, v in known.items()}
        tuned = {"budget": options.budget, **many, "evaluations": self._judge.evaluations, **figures}
        solver = solvers.NONSTATIONARY if schedule.coefficients is not None else schedule.solver
        if options.solver != solvers.NONSTATIONARY:
            solver = solvers.canonical(options.solver)
        schedule = dataclasses.replace(schedule, origin=Origin(method="tuned", solver=solver))
        facts = {**self._facts, **tuned}
        return models.labelled(self._model, schedule, options.nfe, options.seed, facts).with_scores(
            fitness=self._shown(value)
        )


def _arguments(options: Options, model: Model, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint is compared by."""
    start, error = options.start, options.error
    names = (
        "solver", "budget", "teacher_steps", "samples", "kept_apart", "batch", "by", "start", "detail", "error",
        "seed", "nfe",
    )  # fmt: skip
    return {
        **{name: getattr(options, name) for name in names},
        "start": None if start is None else steps_of([start]),
        "error": None if error is None else getattr(error, "__qualname__", type(error).__qualname__),
        "noise": model.part.noise.fingerprint(),
        "guidance": model.guidance,
        "torch": torch.__version__,
        "versions": versions(),  # of the schedules that are shipped, too
        **facts,
    }
