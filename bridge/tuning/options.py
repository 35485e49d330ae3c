"""What tuning is asked for, checked before any evaluation; and what it says, while it runs and in the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hso_jax.checks import check_nfe, choice, count, number
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule
from hso_jax.solvers import EVERY, NONSTATIONARY, canonical

BUDGET, TEACHER_STEPS, SCORES = 5000, 48, 60
SCORED = "scores"
"""How `tune_score` searches."""

WAYS = ("auto", "differences", "gradients", "comparisons", "gits")
RULES = ("trailing", "karras", "beta-t", "uniform-lam", "ays", "ays-sdxl")
"""Rules that are judged beside the start; the best of them is the start where it is better than what is shipped."""

FEWEST_SCORES = len(RULES) + 4
"""Of `tune_score`: of the rules, with other solvers, and of the start."""

MOST_SAMPLES, LEAST_SAMPLES = 64, 4
FIRST = 8
"""Samples that starts are compared on."""

Error = Callable[[torch.Tensor, torch.Tensor], Any]
"""(samples, converged samples) [n, ...] -> a number, the smaller the better."""

Score = Callable[[Schedule], Any]
"""Schedule -> a number, the smaller the better."""

Progress = Callable[[int, int, float | None], None]
"""Called with (evaluations so far, budget, least validation error so far)."""


class Options(NamedTuple):
    """What a call asks for; `tune` says what each of them is. Public functions make one, and everything is given it."""

    nfe: int
    solver: str
    budget: int
    teacher_steps: int = 0
    samples: Any = 0
    batch: int = 1
    by: str = "auto"
    start: Schedule | None = None
    profile: Profile | None = None
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


def samples_for(budget: int, teacher_steps: int, unknowns: int = 0, numbers: int = 10**6) -> int:
    """Samples to tune on by default: they and the half as many kept apart take a sixth of the budget to converge.

    10 for 5,000 evaluations and 48 steps: a few samples say enough of a few dozen numbers, and more of them leave less
    for the steps. Samples of few numbers are as many as have twice the numbers that are searched, for at most a third
    of the budget.
    """
    some = min(max(budget // (10 * teacher_steps), LEAST_SAMPLES), MOST_SAMPLES)
    return max(some, min(-(-2 * unknowns // numbers), 2 * budget // (9 * teacher_steps)))


def checked(asked: Options, numbers: int = 10**6) -> Options:
    """The options, for samples of so many numbers; `samples` is chosen where it is None. Raises ValueError."""
    nfe, solver = check_nfe(asked.nfe), canonical(asked.solver, EVERY)
    budget, steps = count("budget", asked.budget, 1), count("teacher_steps", asked.teacher_steps, 8, 1000)
    if nfe >= steps:
        raise ValueError(f"nfe is {nfe} and teacher_steps {steps}; the converged samples need many more steps")
    some = asked.samples
    if some is None:
        unknowns = nfe - 1 + (3 * nfe if solver == NONSTATIONARY else 0)
        some = samples_for(budget, steps, unknowns, numbers)
    options = asked._replace(
        solver=solver,
        budget=budget,
        teacher_steps=steps,
        samples=count("samples", some, 2, 10**5),
        by=choice("by", asked.by, WAYS),
        detail=number("detail", asked.detail, low=-10.0, high=10.0),
    )
    check_start(options.start, nfe)
    if options.profile is not None and not isinstance(options.profile, Profile):
        raise ValueError(f"profile is {options.profile!r}; need a Profile: bridge.profile(pipe), Profile.load(path)")
    if options.error is not None:
        _check_error(options)
    some, apart = options.samples, options.kept_apart
    least = (some + apart) * steps + (min(some, FIRST) * (len(RULES) + 4) + 2 * apart) * nfe
    least += some * nfe if options.by == "gits" else 0
    if budget < least:
        raise ValueError(
            f"budget is {budget}; {some} samples to tune on and {apart} kept apart take {least} evaluations before the "
            "search begins: give a larger budget, fewer samples or fewer teacher_steps"
        )
    seed = count("seed", options.seed, 0, 2**31 - 1 - some - apart)
    return options._replace(batch=count("batch", options.batch, 1), seed=seed)


def check_start(start: Any, nfe: int) -> None:
    """Raises ValueError for a start that is given and will not do."""
    if start is not None and not (isinstance(start, Schedule) and start.nfe == nfe and start.end == "clean"):
        raise ValueError(f"start is {start!r}; need a Schedule with N = {nfe} and a last step to clean data")


def _check_error(options: Options) -> None:
    if not callable(options.error):
        raise ValueError(f"error is {options.error!r}; need a function of (samples, converged samples)")
    if options.detail:
        raise ValueError("error and detail are both given; a function of yours weighs as it likes: leave detail out")
    if options.by == "differences":
        raise ValueError(
            "by='differences' needs the residuals of samples; use 'gradients' or 'comparisons' with error="
        )


def jobs(prompts: Sequence[Any], options: Options) -> list[tuple[Any, int]]:
    """(prompt, seed) of the samples to tune on, then of those kept apart, whose prompts the others do not have."""
    own = apart = prompts
    if len(prompts) >= 3:
        cut = max(len(prompts) * options.kept_apart // (options.samples + options.kept_apart), 1)
        own, apart = prompts[:-cut], prompts[-cut:]
    chosen = [own[k % len(own)] for k in range(options.samples)]
    chosen += [apart[k % len(apart)] for k in range(options.kept_apart)]
    return [(prompt, options.seed + k) for k, prompt in enumerate(chosen)]


class Tuned(NamedTuple):
    """A schedule that was tuned on a model, and what it is worth there.

    Errors are root mean squares over the samples that were kept apart (or the caller's own error of them).

    Attributes:
        schedule: the best on those samples; it is saved and installed as any other.
        error: its error.
        start: what the search began with: "zoo", "search", "profile", "given", or a rule's name; with what its budget
            had left it began with the others as well.
        start_error: that one's; `error` is never above it.
        rule, rule_error: the best of the usual rules, and its error.
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
