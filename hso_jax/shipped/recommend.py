"""`recommend`: of everything that is shipped, what to use for a model, a number of steps and a guidance weight."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from hso_jax import solvers
from hso_jax.baselines import baseline
from hso_jax.checks import check_guidance, check_nfe, choice
from hso_jax.noise import NoiseSchedule, named
from hso_jax.schedule import Schedule
from hso_jax.shipped.distilled import DISTILLATIONS, FEW_STEP, MOST_STEPS, named_in, own_grid
from hso_jax.shipped.zoo import CHOICES, HSO, RULES, SOLVERS, entries, nearest_guidance, rule_errors, schedule_of

GAIN = 0.1
"""Share of the best known solver's error that coefficients of their own must save to be recommended. What they save on
the problems they may lose on a network (docs/nonstationary.md); a known solver loses less. Not fitted to anything."""

SHIPPED = "solver-error"
"""What a solver's own shipped schedule is called beside the rules."""

OWN = "own"
"""Solver of a distilled model: the one it is used with."""

_ROUNDING = 1e-3  # of the shipped errors
_AT_END = 1e-3  # in t: a training level


class CurrentSampling(NamedTuple):
    """What a pipeline samples with before anything is changed."""

    solver: str  # as in `Recommendation`; the scheduler's class where it is another one
    nodes: str  # a rule's name, the method of an installed schedule, or "its own" for a grid that is no rule's
    error: float | None  # predicted; None where it is not known


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to use, and what it is compared with. Errors are predicted: of samples of the reference problems.

    Attributes:
        schedule: nodes, and coefficients where the solver is "nonstationary".
        solver: "ddim" (Euler), "dpmpp-2m", "unipc-2", "unipc-3" or "nonstationary"; "own" for distilled models.
        guidance: weight that the errors are for: of those shipped the nearest to the one that was asked for.
        asked: weight that was asked for; 1 is without guidance.
        error: predicted; None for distilled models, whose errors nothing here predicts.
        errors: by solver, then by what the nodes are: "solver-error" (the solver's own shipped ones), "hso" and the
            usual rules ("trailing", "karras", "ays", "beta", ...).
        choices: of `errors` each solver's own nodes, and what has less error and may be taken.
        distilled: the kind of distillation, or None.
        told_by: how the distillation is known, in words.
        usual: where the weight is from, in words, if it was not asked for.
        before: what the pipeline has now; None where there is none.
        loras: names of active LoRAs, which do not tell whether they distil the model.
    """

    schedule: Schedule
    solver: str
    guidance: float
    asked: float
    error: float | None = None
    errors: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    distilled: str | None = None
    told_by: str = ""
    usual: str = ""
    before: CurrentSampling | None = None
    loras: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """Share of `error` that the best solver would save, where the solver was given; 0 where it is the best."""
        if self.error is None:
            return 0.0
        return max(0.0, 1.0 - _least(self.choices[_best_solver(self.choices)])[1] / self.error)

    @property
    def reason(self) -> str:
        """All this in words."""
        return " ".join([*_of_loras(self), *_now(self), *(_of_distilled(self) if self.distilled else _of_errors(self))])

    @property
    def nfe(self) -> int:
        """N."""
        return self.schedule.nfe

    @property
    def method(self) -> str:
        """Where the nodes are from: "solver-error", "hso", a rule's name, or "own-..." of a distilled model."""
        return self.schedule.method

    def __repr__(self) -> str:
        error = "" if self.error is None else f", predicted error {self.error:.3g}"
        return f"<Recommendation {self.schedule.model}: N = {self.nfe}, {self.method} with {self.solver}{error}>"


def recommend(
    model: str | NoiseSchedule,
    nfe: int,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    distilled: str | bool | None = None,
    usual: float | None = None,
) -> Recommendation:
    """The best of everything shipped by predicted error, at once: nothing is searched or compiled.

    Compared are each known solver with its own schedule (`zoo`), with HSO's (shown, not taken) and with every usual
    rule (taken if it begins at the model's noise end), and coefficients of their own, which are taken where they save a
    tenth of the best known solver's error or more.

    Args:
        model: a preset's name or a noise schedule.
        nfe: N in 1..20.
        guidance: w of classifier-free guidance; by default the model's usual one for a preset, else 1. 0 and 1 are
            without guidance. Embedded guidance (FLUX) is none: its weight here is 1.
        solver: "ddim" (Euler), "dpmpp-2m", "unipc-2", "unipc-3" by any of their names
            (`hso_jax.solvers.canonical`), "nonstationary"; by default the best.
        distilled: a key of `hso_jax.shipped.distilled.DISTILLATIONS` ("lightning", "lcm", ...): such a model gets its
            own grid. False says that it is none. By default the name decides, and N and guidance: at most 8 steps
            without guidance, asked for at a model that is used with it.
        usual: the weight that the model is used with, if it is no preset's.

    Raises:
        ValueError: for an unknown model, solver or distillation, N outside 1..20, or a noise schedule that nothing is
            shipped for; the message says how to search instead.
    """
    noise, facts = named(model)
    check_nfe(nfe)
    usual = facts.guidance if usual is None else usual
    asked = check_guidance(guidance, usual)
    if solver is not None:
        solver = solvers.canonical(solver, CHOICES)
    kind, told_by = _distillation(noise.name, nfe, asked, usual, distilled)
    if kind is not None:
        return Recommendation(own_grid(kind, noise, nfe), OWN, asked, asked, distilled=kind, told_by=told_by)
    weight = nearest_guidance(noise, asked)
    shipped = entries(noise, nfe, weight, solver)
    errors = {
        name: {SHIPPED: shipped[name]["error"], **rule_errors(noise, nfe, weight, name)}
        for name in CHOICES
        if name in shipped
    }
    choices = _choices(noise, nfe, errors)
    taken = solver if solver in choices else _best_solver(choices)  # coefficients are left out where they gain nothing
    nodes, error = _least(choices[taken])
    if nodes == SHIPPED:
        schedule = schedule_of(noise, nfe, weight, taken, shipped)
    else:
        found = baseline(nodes, noise, nfe)
        origin = dataclasses.replace(found.origin, solver=taken, guidance=weight)
        schedule = dataclasses.replace(found.with_scores(error=error), origin=origin)
    return Recommendation(schedule, taken, weight, asked, error, errors, choices)


def _choices(noise: NoiseSchedule, nfe: int, errors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """For each solver its own nodes, and what has less error and may be taken.

    Nodes that begin below the model's noise end are predicted to be better than they were on trained networks, where
    they cost up to 1.8 times the error without guidance and 2.5 times with it (docs/results/solver-error.md): they are
    not taken, be they HSO's (all but its single one) or a rule's.
    """

    @functools.cache
    def allowed(nodes: str) -> bool:
        return nodes != HSO and baseline(nodes, noise, nfe).t[0] >= float(noise.t_max) - _AT_END

    return {
        solver: {
            n: e for n, e in rows.items() if n == SHIPPED or (e < (1.0 - _ROUNDING) * rows[SHIPPED] and allowed(n))
        }
        for solver, rows in errors.items()
    }


def _least(rows: Mapping[str, float]) -> tuple[str, float]:
    """The nodes with the least error, and that error."""
    name = min(rows, key=rows.__getitem__)
    return name, rows[name]


def _best_known(choices: Mapping[str, Mapping[str, float]]) -> str:
    return min(SOLVERS, key=lambda s: _least(choices[s])[1])


def _best_solver(choices: Mapping[str, Mapping[str, float]]) -> str:
    """The best known solver, but for coefficients of their own that gain `GAIN` over it."""
    known = _best_known(choices)
    own = choices.get(solvers.NONSTATIONARY, {}).get(SHIPPED, math.inf)
    return solvers.NONSTATIONARY if own <= (1.0 - GAIN) * _least(choices[known])[1] else known


def _distillation(
    name: str, nfe: int, guidance: float, usual: float, said: str | bool | None
) -> tuple[str | None, str]:
    """The distillation's key and how it is known; None for models that are not distilled."""
    if said is False:
        return None, ""
    if said is True:
        return FEW_STEP, "you say that it is distilled"
    if said is not None:
        return choice("distilled", said, DISTILLATIONS), "you say so"
    if (found := named_in([name])) is not None:
        return found[0], f"its name is {found[1]}"
    if guidance <= 1.0 < usual and nfe <= MOST_STEPS:
        return FEW_STEP, (
            f"N = {nfe} without guidance is usual for distilled models only; if this is {name} itself, which is used "
            f"with guidance {usual:g}, say distilled=False"
        )
    return None, ""


def _now(found: Recommendation) -> list[str]:
    """What the pipeline has now, and whether that has more error. Predictions order choices: no gain is told."""
    if (now := found.before) is None:
        return []
    line = f"The pipeline now uses {now.solver} with {now.nodes}"
    if found.distilled:
        return [f"{line}."]
    if now.error is None or found.error is None:
        return [f"{line}; the error of that is not predicted."]
    order = "less" if found.error < now.error else "no less"
    return [f"{line}: predicted error {now.error:.3g}. The recommendation has {order} by prediction."]


def _of_distilled(found: Recommendation) -> list[str]:
    entry = DISTILLATIONS[str(found.distilled)]
    lines = [f"This counts as a distilled model ({entry.words}): {found.told_by}."]
    if entry.levels and found.nfe not in entry.levels:
        have = ", ".join(map(str, entry.levels))
        lines.append(f"Its published levels are for N = {have}; for N = {found.nfe} these are a guess.")
    lines.append("Keep the scheduler and the guidance that the model comes with.")
    return [*lines, "It was trained on a few levels, so levels found for the undistilled model do not suit it."]


def _of_errors(found: Recommendation) -> list[str]:
    """What is used, what it gains over what, and what speaks for another solver."""
    assert found.error is not None
    rows, taken = found.errors[found.solver], found.choices[found.solver]
    nodes = "its own shipped schedule" if found.method == SHIPPED else f"the nodes of {found.method}"
    near = "" if found.asked == found.guidance else f" (of those shipped the nearest to {found.asked:g})"
    at = f"N = {found.nfe} and guidance {found.guidance:g}{near}"
    lines = [f"Use {found.solver} with {nodes}: predicted error {found.error:.3g} at {at}."]
    known, best = _best_known(found.choices), _best_solver(found.choices)
    compared = found.solver
    if found.solver == solvers.NONSTATIONARY:
        compared = known
        lines.append(f"The best known solver, {known}, has {_least(found.choices[known])[1]:.3g}.")
    elif solvers.NONSTATIONARY in found.errors and best == found.solver:
        free = found.errors[solvers.NONSTATIONARY][SHIPPED]
        lines.append(f"Coefficients of their own would have {free:.3g}: not enough gain to justify the risk.")
    rules = {name: error for name, error in found.errors[compared].items() if name in RULES}
    if rules:
        first = min(rules, key=rules.__getitem__)
        told = dict.fromkeys((first, *(name for name in ("trailing", "karras", "ays", "beta-t") if name in rules)))
        lines.append(f"Usual rules with {compared}: {', '.join(f'{name} {rules[name]:.3g}' for name in told)}.")
    else:
        lines.append("The errors of the usual rules are not known for this noise schedule.")
    if late := {n: e for n, e in rows.items() if n not in taken and e < (1.0 - _ROUNDING) * _least(taken)[1]}:
        name, error = _least(late)
        lines.append(
            f"By prediction {name} has {error:.3g}, but it begins below the noise end, which costs more on trained "
            "networks."
        )
    if found.gain > 0.0:
        lines.append(f"By prediction {best} has less: {_least(found.choices[best])[1]:.3g}.")
    if found.usual:
        lines.append(f"Guidance {found.asked:g}: {found.usual}.")
    return lines


def _of_loras(found: Recommendation) -> list[str]:
    """Few steps and a LoRA that may be the reason for them: only the caller knows."""
    if not found.loras or found.nfe > MOST_STEPS:
        return []
    names = ", ".join(found.loras)
    unnamed = all(re.fullmatch(r"(default(_\d+)?)?", name) for name in found.loras)  # diffusers' own names
    return [
        f"{'An unnamed LoRA' if unnamed else 'A LoRA'} is active ({names}). If it distils the model to few steps, say "
        "so by `distilled=` (distilled='lightning', ...); if not, distilled=False."
    ]
