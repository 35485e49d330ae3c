"""What may be installed for N evaluations without a search: the zoo's schedules, and every rule with every solver."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bridge.tuning.coordinates import coefficients_at
from hso_jax import solvers
from hso_jax.baselines import BASELINES, flow_time
from hso_jax.noise import NoiseSchedule, preset
from hso_jax.noise.presets import PRESETS
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.zoo import CHOICES, MAX_NFE, Key, nearest_guidance, shipped_guidance, zoo, zoo_key
from hso_jax.solver_error_levels import older_of

RULE_SOLVERS = ("unipc-3", "dpmpp-2m", "ddim")
"""Solvers that every rule is tried with."""

FIRST_RULES = (
    "beta-t", "flow-2", "trailing", "ays", "ays-sdxl", "flow-3", "sgm-uniform", "leading", "karras", "ays-svd",
)  # fmt: skip
"""Rules that were the best with some solver on a network by others; they come first, for small budgets."""

FIRST_SOLVERS = (solvers.NONSTATIONARY, "unipc-3", "dpmpp-2m", "unipc-2", "ddim")

FLOW_SHIFTS = (1.0, 2.0, 3.0, 5.0)
"""Equal steps of a rectified flow's time with these shifts are four rules more (arXiv 2403.03206, eq. 23)."""

FIRST_SIGMA = 5.4
"""Sigma/alpha of the first of N nodes over N, as learned schedules have it where the noise end is far."""

FARTHEST = 80.0
"""Sigma/alpha that rules of sigma begin at where the noise end is pure noise, or nearly so."""

NEAR = 0.03
"""In lam, and in coefficients: what differs by less is not measured twice."""


class Candidate(NamedTuple):
    """A schedule for a solver, and what it is called."""

    name: str
    schedule: Schedule


def rules(noise: NoiseSchedule, nfe: int) -> Iterator[Schedule]:
    """The levels of every rule; Align Your Steps for models of other kinds too, by sigma/alpha."""
    for name, rule in BASELINES.items():
        try:
            yield Schedule.from_t(noise, rule(noise, nfe, "node"), origin=Origin(method=name))
        except ValueError:  # too little room for the rule's levels
            continue
    yield from (flow_time(noise, nfe, shift) for shift in FLOW_SHIFTS)


def zoo_schedules(
    noise: NoiseSchedule, nfe: int, guidance: float, asked: Iterable[str] = CHOICES
) -> Iterator[Candidate]:
    """Every schedule of the zoo for the nearest weight, the model's own first, then those of other models.

    What was found for another model's noise is moved into this one's range: its nodes beyond the noise end go, the
    first one to the end. Which of them suits this network only a measurement can say.
    """
    if nfe > MAX_NFE:
        return
    own, kin = zoo_key(noise), {zoo_key(p): p for p in map(preset, reversed(list(PRESETS)))}

    def far(key: Key) -> tuple[bool, float]:
        (noisy, clean, unbounded), (own_noisy, own_clean, own_unbounded) = key, own
        noisy, own_noisy = (-8.0 if end is None else max(end, -8.0) for end in (noisy, own_noisy))
        return key != own, abs(noisy - own_noisy) + abs(clean - own_clean) + (unbounded != own_unbounded)

    models = [noise if key == own else kin[key] for key in sorted(kin, key=far)]
    pairs = [  # of each model that is shipped the nearest weight first
        (model, weight)
        for model in models
        if (some := shipped_guidance(model))
        for weight in dict.fromkeys((nearest_guidance(model, guidance), *some))
    ]
    solvers_first = [(solver, pair) for solver in FIRST_SOLVERS for pair in pairs[1:]]
    for solver, (model, weight) in [*((s, pairs[0]) for s in FIRST_SOLVERS), *solvers_first]:
        if solver not in asked:
            continue
        try:
            found = zoo(model, nfe, solver, guidance=weight)
        except ValueError:  # not shipped for this N
            continue
        if found.solver == solver:  # else a known one, where coefficients gain nothing
            whose = "zoo" if model is noise else f"zoo of {model.name}"
            yield Candidate(f"{whose} at w = {weight:g} with {solver}", moved(found, model, noise))


def powers(noise: NoiseSchedule, nfe: int) -> Iterator[Schedule]:
    """Karras' rule from other first nodes to other last ones: where learned schedules of other models begin and end."""
    for far in (True, False):
        first = min(float(np.exp(-noise.noise_end)), FARTHEST) if far else FIRST_SIGMA * nfe
        for last in (0.1, 0.3):
            for rho in (2.0, 7.0):
                lams = -rho * np.log(np.linspace(first ** (1 / rho), last ** (1 / rho), nfe))
                lams[0] = noise.noise_end if far else lams[0]
                name = f"power-{rho:g} from {'the noise end' if far else f'{first:.3g}'} to {last:g}"
                if lams[0] >= noise.noise_end and (nfe == 1 or lams[0] < lams[1]):
                    yield Schedule.from_lams(noise, lams, origin=Origin(method=name))


def moved(schedule: Schedule, model: NoiseSchedule, noise: NoiseSchedule) -> Schedule:
    """A schedule of one model in the range of another's noise."""
    if model is noise:
        return schedule
    lams = np.array(schedule.lams[: schedule.nfe])
    at_end = lams[0] <= model.noise_end + 1e-6
    floor = np.linspace(0.0, 1e-2 * (len(lams) - 1), len(lams)) + max(noise.noise_end, -8.0)
    lams = np.clip(np.maximum(lams, floor), None, noise.data_end)
    lams[0] = noise.noise_end if at_end else max(lams[0], noise.noise_end)
    return Schedule.from_lams(noise, lams, origin=schedule.origin, coefficients=schedule.coefficients)


def known_solvers(name: str | None) -> tuple[str, ...]:
    """The known solvers that rules are tried with; ValueError for a solver of two evaluations a step."""
    if name is None:
        return RULE_SOLVERS
    if name == solvers.NONSTATIONARY:
        return ()
    older_of(name)
    return (name,)


def is_rule(name: str) -> bool:
    """Whether a candidate of this name is a usual rule with some solver."""
    return not name.startswith(("zoo", "as it is", "power"))


def candidates(noise: NoiseSchedule, nfe: int, guidance: float, solver: str | None = None) -> list[Candidate]:
    """Everything that needs no search, for one solver or for all; of two that are nearly the same only the first."""
    known = known_solvers(solver)
    asked = CHOICES if solver is None else (solver,)
    ranked = sorted(rules(noise, nfe), key=lambda rule: [*FIRST_RULES, rule.method].index(rule.method))
    of_rules = []
    for rule, name in [*itertools.product(ranked, known), *itertools.product(powers(noise, nfe), known[:2])]:
        origin = dataclasses.replace(rule.origin, solver=solvers.canonical(name))
        of_rules.append(Candidate(f"{rule.method} with {name}", dataclasses.replace(rule, origin=origin)))
    in_turn = itertools.zip_longest(zoo_schedules(noise, nfe, guidance, asked), of_rules)
    kept: list[Candidate] = []
    steps: list[np.ndarray] = []
    for candidate in filter(None, itertools.chain(*in_turn)):
        schedule = candidate.schedule
        own = np.column_stack([np.maximum(schedule.lams[:nfe], -9.0), coefficients_at(schedule, schedule.solver)])
        if not any(np.abs(own - other).max() <= NEAR for other in steps):
            kept.append(candidate)
            steps.append(own)
    return kept
