"""`choose`: of everything that needs no search, what a model's own samples are best with, by a thousand evaluations."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import torch

from bridge.at_hand import current_schedule
from bridge.pipeline import several
from bridge.tuning.candidates import Candidate, candidates, is_rule, known_solvers
from bridge.tuning.judge import Judge, batches, targets
from bridge.tuning.models import (
    Model,
    denoiser_model,
    jobs_of,
    labelled,
    pipeline_model,
    steps_of,
    taken_steps,
    together,
)
from bridge.tuning.race import Measured, interval, race
from hso_jax import solvers
from hso_jax.checkpoint import Checkpoint
from hso_jax.checks import check_nfe, count
from hso_jax.compiling import under_jax_defaults
from hso_jax.files import MARK
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule

BUDGET = 1200
"""For one N; each further N adds two thirds of it, because the converged samples serve all."""

TEACHER_STEPS = 32
TEACHER_SHARE = 1 / 3
"""Of the budget, for the converged samples at most."""

LEAST_SAMPLES, MOST_SAMPLES = 4, 32
WIDTH = 12
"""Candidates that even the smallest budget looks at."""

AS_IT_IS = "as it is"
Progress = Callable[[int, int, float | None], None]
"""Called with (evaluations so far, budget, least error so far or None)."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What was measured of a model, and the best of it.

    Attributes:
        measured: by N, the candidates that were measured, the best first; their errors are of the first noises.
        schedules: by N, the best schedule.
        current: by N, what the pipeline had before, measured on all noises; None where that is unknown or noisy.
        evaluations: of the network, each of a single sample, those of the converged samples included.
        samples: converged samples that there are.
        teacher_steps: of the converged samples.
    """

    measured: Mapping[int, Sequence[Measured]]
    schedules: Mapping[int, Schedule]
    current: Mapping[int, Measured | None]
    evaluations: int
    samples: int
    teacher_steps: int

    @property
    def schedule(self) -> Schedule:
        """The best, where one N was asked for."""
        (found,) = self.schedules.values()
        return found

    def rule(self, nfe: int) -> Measured | None:
        """The best usual rule with any solver that was measured."""
        return next((m for m in self.measured[nfe] if is_rule(m.name)), None)

    def against(self, nfe: int) -> dict[str, tuple[float, float, float]]:
        """The best one's error over that of the current schedule and of the best rule, each with an interval of 80%."""
        best, found = self.measured[nfe][0], {}
        if (now := self.current[nfe]) is not None:
            found[f"the pipeline {now.name}"] = interval(best, now)
        if (rule := self.rule(nfe)) is not None:
            found[f"the best rule, {rule.name}"] = interval(best, rule)
        return found

    def table(self, nfe: int, most: int = 12) -> str:
        """The first candidates, their errors and the noises that these are of."""
        rows = self.measured[nfe][:most]
        width = max(len(m.name) for m in rows)
        lines = [f"{m.name:{width}}  {m.error:<7.4g}  {len(m.errors)}" for m in rows]
        lines.insert(0, f"{'':{width}}  error    noises")
        if (left := len(self.measured[nfe]) - len(rows)) > 0:
            lines.append(f"and {left} more on fewer noises")
        return "\n".join(lines)

    def __str__(self) -> str:
        parts = []
        for nfe, found in self.measured.items():
            ratios = [
                f"{ratio:.2f} of the error of {what} (80% interval {low:.2f} to {high:.2f})"
                for what, (ratio, low, high) in self.against(nfe).items()
                if math.isfinite(ratio) and what.split(", ")[-1] != found[0].name
            ]
            parts.append("; ".join([f"N = {nfe}: {found[0].name}, error {found[0].error:.4g}", *ratios]))
        how = f"{self.evaluations} evaluations, {self.samples} converged samples of {self.teacher_steps} steps"
        return "\n".join([*parts, f"Measured: {how}."])

    def plain(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rows: dict[str, Any] = {}
        for nfe, found in self.measured.items():
            rows[str(nfe)] = [{"name": m.name, "error": m.error, "noises": len(m.errors)} for m in found]
        ratios = {str(nfe): {k: list(v) for k, v in self.against(nfe).items()} for nfe in self.measured}
        how = {"evaluations": self.evaluations, "samples": self.samples, "teacher_steps": self.teacher_steps}
        return {**how, "measured": rows, "ratios": ratios}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the errors of the first candidates as a PNG, a panel an N."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(self.measured), figsize=(6 * len(self.measured), 5), squeeze=False)
        for axis, (nfe, found) in zip(axes[0], self.measured.items(), strict=True):
            rows = [m for m in found if math.isfinite(m.error)][:20][::-1]
            axis.barh([m.name for m in rows], [m.error for m in rows], color="tab:blue")
            axis.set(title=f"N = {nfe}", xlabel="root-mean-square error to the converged samples", xscale="log")
            axis.tick_params(labelsize=7)
        figure.tight_layout()
        figure.savefig(Path(path), dpi=150, metadata={"Software": MARK})
        plt.close(figure)


class ChooseOptions(TypedDict, total=False):
    """Keywords that the functions here share; `choose` says what each of them is."""

    solver: str | None
    budget: int | None
    teacher_steps: int
    samples: int | None


class _Plan(NamedTuple):
    """What a call asks for; checked, its numbers are all there."""

    nfes: Any
    solver: str | None = None
    budget: Any = None
    teacher_steps: int = TEACHER_STEPS
    samples: Any = None
    batch: int = 1
    seed: int = 0


def _checked(plan: _Plan) -> _Plan:
    nfe, _, budget, _, samples, batch, seed = plan
    nfes = tuple(dict.fromkeys(check_nfe(n) for n in (several(nfe, "nfe") if isinstance(nfe, Iterable) else [nfe])))
    steps = count("teacher_steps", plan.teacher_steps, 8, 1000)
    if max(nfes) >= steps:
        raise ValueError(f"nfe is {max(nfes)} and teacher_steps {steps}; converged samples need many more steps")
    whole = round(BUDGET * (1 + 2 * (len(nfes) - 1) / 3)) if budget is None else count("budget", budget, 1)
    some = min(max(int(TEACHER_SHARE * whole) // steps, LEAST_SAMPLES), MOST_SAMPLES)
    some = some if samples is None else count("samples", samples, 2, 10**5)
    least = some * steps + sum(nfes) * (WIDTH + 4 * some)
    if whole < least:
        raise ValueError(
            f"budget is {whole}; {some} converged samples of {steps} steps and {WIDTH} candidates for N = "
            f"{', '.join(map(str, nfes))} take {least} evaluations: give a larger budget, fewer samples or fewer "
            "teacher_steps"
        )
    name = None if plan.solver is None else solvers.canonical(plan.solver, solvers.EVERY)
    known_solvers(name)
    return _Plan(nfes, name, whole, steps, some, count("batch", batch, 1), count("seed", seed, 0, 2**31 - 1 - some))


def choose(
    pipe: Any,
    nfe: int | Sequence[int],
    *,
    prompts: Sequence[Any] = ("",),
    guidance: float | None = None,
    solver: str | None = None,
    budget: int | None = None,
    teacher_steps: int = TEACHER_STEPS,
    samples: int | None = None,
    batch: int = 8,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **call: Any,
) -> Chosen:
    """Measure on a diffusers pipeline what is best for N evaluations: the zoo's schedules and every rule and solver.

    Some noises are sampled with `teacher_steps` steps. Every candidate is run on the first of these noises, the best
    third on twice as many, and so on: the one with the least root-mean-square error on all of them is the best. The
    pipeline is left as it is: `bridge.install(pipe, chosen.schedule)`, or `optimize_pipeline(pipe, 6, prompts=[...])`.

    Args:
        pipe: as for `tune`.
        nfe: N, or several, which share the converged samples.
        prompts: texts, or classes for a pipeline that takes `class_labels`; typical ones, used in turn.
        guidance: w; the pipeline's own by default.
        solver: the only one to be considered; by default all that the pipeline takes.
        budget: evaluations of the network at most, the converged samples' included; one of a batch counts as many as
            it has samples, guidance does not double them. By default 1,200 for one N, 800 more for each further one.
        teacher_steps: of the converged samples.
        samples: converged samples; by default as many as a third of the budget makes, 4 to 32.
        batch: samples a call of the pipeline; processes of a `torch.distributed` group share them.
        seed: sample k starts at the noise of `torch.Generator("cpu").manual_seed(seed + k)`.
        checkpoint: file that every measurement is written to, and that the same call resumes from, to the same bytes.
        progress: called with (evaluations so far, budget, least error so far or None).
        **call: further arguments of the pipeline, as for `tune`.

    Raises:
        ValueError: before any evaluation, for bad arguments, a model that is distilled for its scheduler, or a budget
            that is too small; for a checkpoint of another call, or in use.
    """
    plan = _checked(_Plan(nfe, solver, budget, teacher_steps, samples, batch, seed))
    texts = several(prompts, "prompts")
    drawn = [(k % len(texts), seed + k) for k in range(plan.samples)]
    jobs, facts = jobs_of(pipe, texts, drawn, guidance, call)
    model = pipeline_model(jobs)
    now = {n: current_schedule(pipe, model.part.whole, n) for n in plan.nfes}
    return _chosen(model, plan, facts, now, checkpoint, progress)


def choose_denoiser(
    denoiser: Callable[..., torch.Tensor],
    noise: NoiseSchedule,
    nfe: int | Sequence[int],
    *,
    latents: torch.Tensor,
    condition: torch.Tensor | None = None,
    guidance: float = 1.0,
    batch: int = 16,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ChooseOptions],
) -> Chosen:
    """Measure as `choose` does, on a model outside diffusers: a function that predicts the clean data.

    Args:
        denoiser: as for `tune_denoiser`, as noise, condition, guidance and batch.
        noise: the model's noise schedule.
        nfe: N, or several.
        latents: [n, ...] standard normal, at least as many as converged samples are made.
        condition: [n, ...].
        guidance: w.
        batch: samples a call.
        checkpoint: as for `choose`, as progress and the options.
        progress: likewise.
        **options: solver, budget, teacher_steps and samples.

    Raises:
        ValueError: as `choose`, or for too few latents.
    """
    plan = _checked(_Plan(nfe, batch=batch, **options))
    model, facts = denoiser_model(denoiser, noise, latents, condition, guidance, plan.samples)
    return _chosen(model, plan, facts, dict.fromkeys(plan.nfes), checkpoint, progress)


@under_jax_defaults
def _chosen(
    model: Model, plan: _Plan, facts: Mapping[str, Any], now: Mapping[int, Schedule | None],
    checkpoint: str | os.PathLike[str] | None, progress: Progress | None,
) -> Chosen:  # fmt: skip
    part, rows = model.part, range(plan.samples)
    lists = {n: _candidates(model, plan, n, now[n]) for n in plan.nfes}
    asked = {"choose": plan._asdict(), "noise": part.noise.fingerprint(), "guidance": model.guidance}
    asked |= {"candidates": {str(n): [c.name for c in found] for n, found in lists.items()}, "torch": torch.__version__}
    asked["steps"] = {str(n): steps_of([c.schedule for c in found]) for n, found in lists.items()}

    def search(model: Model) -> Chosen:
        told = [math.inf]

        def tell(evaluations: int) -> None:
            if progress is not None:
                progress(evaluations, plan.budget, told[0] if told[0] < math.inf else None)

        def seen(best: Measured) -> None:
            told[0] = best.error
            tell(judge.evaluations)

        with Checkpoint(checkpoint, {**asked, **facts}) as file:
            made = targets(model, file, batches(plan.batch, plan.samples), plan.teacher_steps, made=tell)
            spent = plan.samples * plan.teacher_steps
            records = file.records("errors")
            judge = Judge(model, records, made.samples, budget=plan.budget, spent=spent, batch=plan.batch)
            measured, current, left = {}, {}, sum(plan.nfes)
            for n, found in lists.items():
                share = (plan.budget - judge.evaluations) * n // left
                left -= n
                begin, own = judge.evaluations, None
                if found[0].name.startswith(AS_IT_IS):  # on all noises: it is what the best is compared with
                    own = Measured(*found[0], judge.errors(found[0].schedule, rows))
                rest = share - (judge.evaluations - begin)
                ranked = race(judge, found[1:] if own else found, rows, rest, seen, is_rule)
                if own is not None:
                    ranked = sorted([own, *ranked], key=lambda m: (-len(m.errors), m.mean))
                measured[n], current[n] = ranked, own
        schedules = {n: _told(model, found[0], n, plan, judge.evaluations, facts) for n, found in measured.items()}
        return Chosen(measured, schedules, current, judge.evaluations, plan.samples, plan.teacher_steps)

    return together(model, search)


def _candidates(model: Model, plan: _Plan, nfe: int, now: Schedule | None) -> list[Candidate]:
    """What is measured for one N; first what the pipeline has now, where that is known."""
    part, solver = model.part, model.solver or plan.solver
    if plan.solver not in (None, solver):
        raise ValueError(f"solver is {plan.solver!r}; this pipeline works with its own alone, {solver!r}")
    found = candidates(part.noise, taken_steps(model, nfe), model.guidance, solver)
    if now is None:
        return found
    return [Candidate(f"{AS_IT_IS} ({now.method} with {now.solver})", part.cut(now)), *found]


def _told(model: Model, best: Measured, nfe: int, plan: _Plan, evaluations: int, facts: Mapping[str, Any]) -> Schedule:
    """The best one's schedule of N, with what it was chosen on."""
    found = {"chosen": best.name, "error": float(f"{best.error:.6g}"), "noises": len(best.errors)}
    found |= {"budget": plan.budget, "teacher_steps": plan.teacher_steps, "samples": plan.samples}
    return labelled(model, best.schedule, nfe, plan.seed, {**facts, **found, "evaluations": evaluations})
