"""Schedules that only studies compare: the paper's, and those behind two defaults of the solver-error method.

The paper's are without a spacing, of one level alone, and another model's; the two defaults are the weight of fine
detail and the place of the first node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.methods import registry
from benchmarks.methods.registry import Inapplicable, Prepared
from benchmarks.networks.records import noise_of
from hso_jax import Box, Hso, NoiseSchedule, Schedule, SolverError, search
from hso_jax.error import DETAIL
from hso_jax.schedule import Origin

OTHER = {"fashion-eps": "fashion-v", "fashion-v": "fashion-eps"}
"""Models whose schedules are exchanged: the same data and the same kind of model, another noise schedule."""

DM_NONUNI_END = 1e-3  # where DM-NonUni's schedules stop in t, see `hso_jax.baselines`


def prepare(
    method: str, subject: Any, solver: str, nfe: int, *, seed: int = 0, real: np.ndarray | None = None
) -> Prepared:
    """`registry.prepare`, for the methods there and those of `ABLATIONS` (their seconds include compilation).

    Raises:
        Inapplicable: where the method has no schedule for the model.
        ValueError: for an unknown method.
    """
    if method not in ABLATIONS:
        return registry.prepare(method, subject, solver, nfe, seed=seed, real=real)
    begin = time.perf_counter()
    schedule = ABLATIONS[method](subject, solver, nfe, seed)
    return Prepared(schedule, time.perf_counter() - begin, 0)


def no_spacing(subject: Any, solver: str, nfe: int, seed: int) -> Schedule:
    """HSO on MEP alone: neither the constraint nor the penalty (the paper's "without penalty")."""
    return search(subject.noise, nfe, seed=seed, method=Hso(spacing_as="penalty", gamma=0.0))


def penalty(subject: Any, solver: str, nfe: int, seed: int) -> Schedule:
    """HSO with the spacing as a penalty of the fitness: the paper's SPF to the letter."""
    return search(subject.noise, nfe, seed=seed, method=Hso(spacing_as="penalty"))


def mep_only(subject: Any, solver: str, nfe: int, seed: int) -> Schedule:
    """The lower level on MEP between DM-NonUni's ends, without an upper level (the paper's "+ MEP")."""
    noise = subject.noise
    t_max, t_eps = float(noise.t_max), max(float(noise.t_min), DM_NONUNI_END)
    box = Box(t_eps=(t_eps, t_eps), t_max=(t_max, t_max))
    return search(noise, nfe, seed=seed, method=Hso(spacing=0.0, box=box))


def of_other(method: str) -> Callable[[Any, str, int, int], Schedule]:
    """`method`, searched for the other noise schedule; its timesteps are then used on this model."""

    def take(subject: Any, solver: str, nfe: int, seed: int) -> Schedule:
        if subject.name not in OTHER:
            raise Inapplicable(f"{subject.name} has no model to exchange schedules with")
        other = noise_of(OTHER[subject.name])
        how = SolverError(solver, subject.guidance) if method == "solver-error" else Hso(relax=True)
        return at_times(subject.noise, search(other, nfe, method=how, seed=seed))

    return take


def with_option(**options: Any) -> Callable[[Any, str, int, int], Schedule]:
    """The solver-error method with other options than its defaults."""

    def take(subject: Any, solver: str, nfe: int, seed: int) -> Schedule:
        how = SolverError(solver, subject.guidance, compare=(), **options)
        return search(subject.noise, nfe, method=how, seed=seed)

    return take


def at_times(noise: NoiseSchedule, schedule: Schedule) -> Schedule:
    """The timesteps of another model's schedule, as someone copies them."""
    return Schedule.from_t(
        noise, np.clip(schedule.t, float(noise.t_min), 1.0), origin=Origin(method=f"{schedule.method}-other")
    )


DETAILS = {x: "solver-error" if x == DETAIL else f"detail-{x:g}" for x in (0.0, 0.25, 0.5, 1.0)}
"""Exponents that are compared, and the method that has each."""

FREE_FIRST = "solver-error-free"

ABLATIONS: Mapping[str, Callable[[Any, str, int, int], Schedule]] = {
    "hso-no-spacing": no_spacing,
    "hso-penalty": penalty,
    "mep-only": mep_only,
    "hso-other": of_other("hso"),
    "solver-error-other": of_other("solver-error"),
    FREE_FIRST: with_option(first="free"),
    **{name: with_option(detail=x) for x, name in DETAILS.items() if x != DETAIL},
}
