"""What tuning is asked for, checked, before any evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

from bridge.tuning.judging import Error
from hso_jax.checks import check_nfe, choice, count, number
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule
from hso_jax.solvers import EVERY, NONSTATIONARY, canonical

BUDGET, TEACHER_STEPS = 5000, 48
WAYS = ("auto", "differences", "gradients", "comparisons", "gits")
RULES = ("trailing", "karras", "beta-t", "uniform-lam", "ays", "ays-sdxl")
"""Rules that are judged beside the start; the best of them is the start where it is better than what is shipped."""

MOST_SAMPLES, LEAST_SAMPLES = 64, 4
FIRST = 8
"""Samples that starts are compared on."""


class Options(NamedTuple):
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


def samples_for(budget: int, teacher_steps: int, unknowns: int = 0, numbers: int = 10**6) -> int:
    """Samples to tune on by default: they and the half as many kept apart take a sixth of the budget to converge.

    10 for 5,000 evaluations and 48 steps: a few samples say enough of a few dozen numbers, and more of them leave less
    for the steps. Samples of few numbers are as many as have twice the numbers that are searched, for at most a third
    of the budget.
    """
    some = min(max(budget // (10 * teacher_steps), LEAST_SAMPLES), MOST_SAMPLES)
    return max(some, min(-(-2 * unknowns // numbers), 2 * budget // (9 * teacher_steps)))


def checked(
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
    numbers: int = 10**6,
) -> Options:
    """What both functions have in common, for samples of so many numbers. Raises ValueError as they do."""
    check_nfe(nfe)
    solver = canonical(solver, EVERY)
    budget, steps = count("budget", budget, 1), count("teacher_steps", teacher_steps, 8, 1000)
    if nfe >= steps:
        raise ValueError(f"nfe is {nfe} and teacher_steps {steps}; the converged samples need many more steps")
    unknowns = nfe - 1 + (3 * nfe if solver == NONSTATIONARY else 0)
    some = samples_for(budget, steps, unknowns, numbers) if samples is None else count("samples", samples, 2, 10**5)
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
    least = (some + apart) * steps + (min(some, FIRST) * (len(RULES) + 4) + 2 * apart) * nfe
    least += some * nfe if by == "gits" else 0
    if budget < least:
        raise ValueError(
            f"budget is {budget}; {some} samples to tune on and {apart} kept apart take {least} evaluations before the "
            "search begins: give a larger budget, fewer samples or fewer teacher_steps"
        )
    batch, seed = count("batch", batch, 1), count("seed", seed, 0, 2**31 - 1 - some - apart)
    return Options(solver, budget, steps, some, apart, batch, by, start, profile, detail, error, seed)


def jobs(prompts: list[Any], options: Options) -> list[tuple[Any, int]]:
    """(prompt, seed) of the samples to tune on, then of those kept apart, whose prompts the others do not have."""
    own = apart = prompts
    if len(prompts) >= 3:
        cut = max(len(prompts) * options.kept_apart // (options.samples + options.kept_apart), 1)
        own, apart = prompts[:-cut], prompts[-cut:]
    chosen = [own[k % len(own)] for k in range(options.samples)]
    chosen += [apart[k % len(apart)] for k in range(options.kept_apart)]
    return [(prompt, options.seed + k) for k, prompt in enumerate(chosen)]
