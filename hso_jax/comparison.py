"""`compare`: HSO, the usual rules and the recommended schedules of one model, ranked by a solver's error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from hso_jax import solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.batch import Progress
from hso_jax.checks import check_guidance
from hso_jax.hso import Hso
from hso_jax.noise import NoiseSchedule, named
from hso_jax.schedule import Schedule
from hso_jax.searches import lanes, search_many
from hso_jax.shipped.recommend import recommend
from hso_jax.shipped.zoo import NotInZooError
from hso_jax.solver_error_method import solver_error


class Comparison(NamedTuple):
    """Schedules of one N.

    Attributes:
        ranked: HSO's and the rules', the least error first, those without a finite one last.
        recommended: the best for the solver and the best of all, with errors of their own solvers; node layout only.
        skipped: what is missing, and why.
    """

    ranked: list[Schedule]
    recommended: list[Schedule]
    skipped: list[str]


def compare(
    model: str | NoiseSchedule,
    nfe: int | Iterable[int],
    *,
    solver: str = "dpmpp-2m",
    guidance: float | None = None,
    layout: str = "node",
    p: float | None = None,
    progress: Progress | None = None,
) -> list[Comparison]:
    """HSO and every rule that applies, ranked by the solver's error on the reference problems; one entry for each N.

    Args:
        model: a preset's name or a noise schedule.
        nfe: one or several N.
        solver: whose error is measured, by any of its names.
        guidance: weight of classifier-free guidance; by default the model's usual one for a preset, else 1.
        layout: "node" or "interval".
        p: exponent of the model-error bound for HSO and the scores; the preset's by default.
        progress: called with (N done, N in all).

    Raises:
        ValueError: for any value that `search`, `baseline` or `solver_error` refuses.
    """
    noise, facts = named(model)
    p, weight, solver = facts.p if p is None else p, check_guidance(guidance, facts.guidance), solvers.canonical(solver)
    many = lanes([noise], [nfe] if isinstance(nfe, int) else nfe, layouts=[layout], method=Hso(relax=True, p=p))
    entries = []
    for found in search_many(many):
        every, skipped = [found], []
        for name in BASELINES:
            if (reason := inapplicable(name, noise)) is None:
                try:
                    every.append(baseline(name, noise, found.nfe, layout=layout, p=p))
                except ValueError as error:  # a narrow range of noise may leave a rule's levels no room
                    reason = f"{name} at N = {found.nfe}: {error}"
            skipped += [] if reason is None else [reason]
        errors = [solver_error(schedule, noise, solver=solver, guidance=weight) for schedule in every]
        ranked = [s.with_scores(error=e if math.isfinite(e) else None) for s, e in zip(every, errors, strict=True)]
        ranked.sort(key=lambda s: math.inf if s.error is None else s.error)
        recommended: list[Schedule] = []
        for kept in (solver, None) if layout == "node" else ():
            try:
                best = recommend(noise, found.nfe, guidance=weight, solver=kept, distilled=False).schedule
            except NotInZooError as error:
                skipped.append(f"a recommendation at N = {found.nfe}: {error.why}")
            else:
                recommended += [best] if best not in recommended else []
        entries.append(Comparison(ranked, recommended, skipped))
        if progress is not None:
            progress(len(entries), len(many))
    return entries
