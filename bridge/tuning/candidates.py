"""What may be installed for N evaluations without a search: the zoo's schedules, and every rule with every solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bridge.tuning.coordinates import coefficients_at
from hso_jax import solvers
from hso_jax.baselines import BASELINES
from hso_jax.noise import NoiseSchedule, lam_of_s, preset, s_of_lam
from hso_jax.noise.presets import PRESETS
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.zoo import CHOICES, MAX_NFE, nearest_guidance, shipped_guidance, zoo, zoo_key
from hso_jax.solver_error_levels import older_of

RULE_SOLVERS = ("dpmpp-2m", "unipc-3", "ddim")
"""Solvers that every rule is tried with."""

FLOW_SHIFTS = (1.0, 2.0, 3.0, 5.0)
"""Equal steps of a rectified flow's time with these shifts are four rules more (arXiv 2403.03206, eq. 23)."""


NEAR = 0.03
"""In lam, and in coefficients: what differs by less is not measured twice."""


class Candidate(NamedTuple):
    """A schedule for a solver, and what it is called."""

    name: str
    schedule: Schedule


def flow_time(noise: NoiseSchedule, nfe: int, shift: float) -> Schedule:
    """N equal steps of a rectified flow's time, for a model of any kind: s = sigma/(alpha + sigma) is that time."""
    u = 1.0 - np.arange(nfe) / nfe
    lams = lam_of_s(float(s_of_lam(noise.noise_end)) * shift * u / (1.0 + (shift - 1.0) * u))
    lams[0] = noise.noise_end
    return Schedule.from_lams(noise, lams, origin=Origin(method=f"flow-{shift:g}"))


def rules(noise: NoiseSchedule, nfe: int) -> Iterator[Schedule]:
    """The levels of every rule; the tables of Align Your Steps for models of other kinds too, by sigma/alpha."""
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
    own = zoo_key(noise)
    kin = {zoo_key(p): p for p in map(preset, reversed(PRESETS))}
    order = sorted(kin, key=lambda key: key != own)
    for key in order:
        model = noise if key == own else kin[key]
        near = nearest_guidance(model, guidance)
        for weight in shipped_guidance(model):
            if key != own and weight != near:
                continue
            for solver in asked:
                try:
                    found = zoo(model, nfe, solver, guidance=weight)
                except ValueError:  # not shipped for this N
                    continue
                if found.solver != solver:  # a known one where coefficients gain nothing
                    continue
                whose = "zoo" if key == own else f"zoo of {model.name}"
                yield Candidate(f"{whose} at w = {weight:g} with {solver}", moved(found, model, noise))


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
    """The known solvers that rules are tried with, where one is asked for or none.

    Raises:
        ValueError: for a solver of two evaluations a step.
    """
    if name is None:
        return RULE_SOLVERS
    if name == solvers.NONSTATIONARY:
        return ()
    older_of(name)
    return (name,)


def is_rule(name: str) -> bool:
    """Whether a candidate of this name is a usual rule with some solver."""
    return not name.startswith(("zoo", "as it is"))


def candidates(noise: NoiseSchedule, nfe: int, guidance: float, solver: str | None = None) -> list[Candidate]:
    """Everything that needs no search, for one solver or for all; of two that are nearly the same only the first."""
    known = known_solvers(solver)
    asked = CHOICES if solver is None else (solver,)
    found = list(zoo_schedules(noise, nfe, guidance, asked))
    for rule in rules(noise, nfe):
        for name in known:
            origin = dataclasses.replace(rule.origin, solver=solvers.canonical(name))
            found.append(Candidate(f"{rule.method} with {name}", dataclasses.replace(rule, origin=origin)))
    kept: list[Candidate] = []
    steps: list[np.ndarray] = []
    for candidate in found:
        schedule = candidate.schedule
        own = np.column_stack([np.maximum(schedule.lams[:nfe], -9.0), coefficients_at(schedule, schedule.solver)])
        if not any(np.abs(own - other).max() <= NEAR for other in steps):
            kept.append(candidate)
            steps.append(own)
    return kept
