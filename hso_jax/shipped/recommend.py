"""`recommend`: of everything that is shipped, what to use for a model, a number of steps and a guidance weight."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from hso_jax import solvers
from hso_jax.baselines import baseline
from hso_jax.checks import check_guidance, check_nfe, choice
from hso_jax.noise import NoiseSchedule, named
from hso_jax.schedule import Schedule
from hso_jax.shipped.distilled import DISTILLATIONS, FEW_STEP, MOST_STEPS, named_in, own_grid
from hso_jax.shipped.expected_gain import Expected, expected_gain, free_pays
from hso_jax.shipped.zoo import CHOICES, HSO, RULES, entries, nearest_guidance, rule_errors, schedule_of

USUAL = {"vp": ("dpmpp-2m", "trailing"), "flow": ("ddim", "trailing"), "ve": ("dpmpp-2m", "karras")}
"""By kind of noise, the solver and the rule that most pipelines and user interfaces sample with."""

PREFERRED, MARGIN = "unipc-3", 0.1
"""Without guidance this solver is taken unless another is predicted to have a tenth less error. Where predictions were
alike, UniPC-3 had .86 of DPM++ 2M's error on six networks of images, on which this was chosen; with guidance 4 it had
1.0 to 1.4 on three of them."""

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
        guidance: weight that the errors are for: the shipped one that is nearest to the one that was asked for.
        asked: weight that was asked for; 1 is without guidance.
        error: predicted; None for distilled models, whose errors nothing here predicts.
        errors: by solver, then by what the nodes are: "solver-error" (the solver's own shipped ones), "hso" and the
            usual rules ("trailing", "karras", "ays", "beta", ...).
        choices: of `errors` each solver's own nodes, and what has less error and may be taken.
        distilled: the kind of distillation, or None.
        told_by: how the distillation is known, in words.
        best_rule: solver and rule with the least error; None where no rule's error is known.
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
    best_rule: tuple[str, str] | None = None
    usual: str = ""
    before: CurrentSampling | None = None
    loras: tuple[str, ...] = ()

    @property
    def compared_with(self) -> CurrentSampling | None:
        """What the pipeline has now, or else what such models usually have; None for distilled models."""
        if self.before is not None or self.distilled is not None:
            return self.before
        solver, rule = USUAL[self.schedule.kind]
        return CurrentSampling(solver, rule, self.errors[solver].get(rule))

    @property
    def expected(self) -> Expected | None:
        """What this is expected to leave of the error of `compared_with`; None where that is no rule of known error."""
        other = self.compared_with
        if self.error is None or other is None or other.error is None or other.nodes not in RULES:
            return None
        return None if self.is_there else expected_gain(self.error, other.error, self.solver)

    @property
    def is_there(self) -> bool:
        """Whether `compared_with` is the same as what is recommended."""
        other = self.compared_with
        return other is not None and (other.solver, other.nodes) == (self.solver, self.method)

    @property
    def better(self) -> str | None:
        """The solver that has less error by prediction, where the solver was given."""
        best = None if self.error is None else _best_solver(self.choices, self.nfe, self.guidance)
        return best if best is not None and _least(self.choices[best])[1] < (self.error or 0.0) else None

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
    rule (taken if it begins at the model's noise end), and coefficients of their own, which are taken only at those N
    where trained networks gained by them.

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
    late = _late(noise, nfe, {nodes for rows in errors.values() for nodes in rows})
    choices = {
        name: {n: e for n, e in rows.items() if n == SHIPPED or (e < (1 - _ROUNDING) * rows[SHIPPED] and n not in late)}
        for name, rows in errors.items()
    }
    # The zoo leaves coefficients out where they gain nothing.
    taken = solver if solver in choices else _best_solver(choices, nfe, weight)
    nodes, error = _least(choices[taken])
    if nodes == SHIPPED:
        schedule = schedule_of(noise, nfe, weight, taken, shipped)
    else:
        found = baseline(nodes, noise, nfe)
        origin = dataclasses.replace(found.origin, solver=taken, guidance=weight)
        schedule = dataclasses.replace(found.with_scores(error=error), origin=origin)
    rules = {(s, n): e for s, rows in errors.items() for n, e in rows.items() if n in RULES and n not in late}
    best_rule = min(rules, key=rules.__getitem__, default=None)
    return Recommendation(schedule, taken, weight, asked, error, errors, choices, best_rule=best_rule)


def _late(noise: NoiseSchedule, nfe: int, nodes: Collection[str]) -> set[str]:
    """Those of the nodes that begin below the model's noise end, all of HSO's among them.

    They are not taken: on trained networks they cost up to 1.8 times the error without guidance and 2.5 times with it,
    where the predictions say that they are better (docs/results/solver-error.md).
    """
    end = float(noise.t_max) - _AT_END
    return {n for n in nodes if n == HSO or (n != SHIPPED and baseline(n, noise, nfe).t[0] < end)}


def _least(rows: Mapping[str, float]) -> tuple[str, float]:
    """The nodes with the least error, and that error."""
    name = min(rows, key=rows.__getitem__)
    return name, rows[name]


def _best_solver(choices: Mapping[str, Mapping[str, float]], nfe: int, guidance: float) -> str:
    """The solver with the least error by prediction, but for `MARGIN`.

    Coefficients of their own are taken only where trained networks gained by them.
    """
    errors = {s: _least(rows)[1] for s, rows in choices.items() if s != solvers.NONSTATIONARY or free_pays(nfe)}
    if guidance <= 1.0:
        errors[PREFERRED] *= 1.0 - MARGIN
    return min(errors, key=errors.__getitem__)


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
    return [] if found.before is None else [f"The pipeline now uses {found.before.solver} with {found.before.nodes}."]


def _of_distilled(found: Recommendation) -> list[str]:
    entry = DISTILLATIONS[str(found.distilled)]
    lines = [f"This counts as a distilled model ({entry.words}): {found.told_by}."]
    if entry.levels and found.nfe not in entry.levels:
        have = ", ".join(map(str, entry.levels))
        lines.append(f"Its published levels are for N = {have}; for N = {found.nfe} these are a guess.")
    lines.append("Keep the scheduler and the guidance that the model comes with.")
    return [*lines, "It was trained on a few levels, so levels found for the undistilled model do not suit it."]


def _of_errors(found: Recommendation) -> list[str]:
    """What is used, what it is expected to gain, and what speaks for another solver."""
    nodes = "its own shipped schedule" if found.method == SHIPPED else f"the nodes of {found.method}"
    near = "" if found.asked == found.guidance else f" (the nearest to {found.asked:g} that is shipped)"
    lines = [f"Use {found.solver} with {nodes}, for N = {found.nfe} and guidance {found.guidance:g}{near}."]
    if found.usual:
        lines.append(f"Guidance {found.asked:g}: {found.usual}.")
    lines += _of_gain(found)
    free = found.errors.get(solvers.NONSTATIONARY, {}).get(SHIPPED, math.inf)
    if found.better is not None:
        lines.append(f"By prediction {found.better} has less error.")
    elif not free_pays(found.nfe) and found.error is not None and free <= found.error:
        lines.append(
            "Free coefficients (nonstationary) have the least error by prediction, but trained networks gained nothing "
            f"by them near N = {found.nfe}."
        )
    return lines


def _of_gain(found: Recommendation) -> list[str]:
    """What is expected to be gained over what, and what would tell for sure."""
    gain, other, usual = found.expected, found.compared_with, found.before is None
    sure = "To know what your model gains, choose by measuring or tune."
    if found.is_there:
        return ["That is the usual choice." if usual else "That is what the pipeline has.", sure]
    if gain is None or other is None:
        return [f"What that gains over {'the usual rules' if usual else 'what the pipeline has'} is not known.", sure]
    whose = "the usual" if usual else "the pipeline's"
    if gain.ratio >= 1.0:
        sure = "So choose by measuring or tune before you change anything."
    return [gain.words(f"{whose} {other.solver} with {other.nodes}"), sure]


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
