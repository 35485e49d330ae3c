"""Precomputed schedules of every preset, so that most users never search."""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

import numpy as np

from hso_jax import solvers
from hso_jax.checks import check_guidance, check_nfe
from hso_jax.noise import PRESETS, NoiseSchedule, check_noise, first_lam, preset, preset_name
from hso_jax.schedule import Origin, Schedule, Scores

FORMAT, VERSION = "hso-jax/zoo", 2
FILE = "zoo.json"
SOLVERS = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3")
CHOICES = (*SOLVERS, solvers.NONSTATIONARY)
"""What may be asked for."""

MAX_NFE = 20
FREE_NFE = range(2, 13)
"""N of the non-stationary solver."""


class NotShippedError(ValueError):
    """What was asked for is not in the zoo, and a search is what finds it.

    Attributes:
        why: what is missing and what there is.
        solver: of that search; None for its default.
        guidance: of that search.
    """

    def __init__(self, why: str, solver: str | None, guidance: float) -> None:
        wanted = f"solver={solver!r}, " if solver is not None else ""
        super().__init__(f"{why}; use search(noise, nfe, method=SolverError({wanted}guidance={guidance:g}))")
        self.why, self.solver, self.guidance = why, solver, guidance


def zoo(model: str | NoiseSchedule, nfe: int, solver: str | None = None, *, guidance: float | None = None) -> Schedule:
    """The shipped schedule, what `search(noise, nfe, method=SolverError(solver=..., guidance=...))` finds; node layout.

    Args:
        model: a preset's name, or a noise schedule with the same two ends as some preset's, whose model predicts the
            same.
        nfe: N in 1..20.
        solver: "ddim", "dpmpp-2m", "unipc-2", "unipc-3" by any of their names (`hso_jax.solvers.canonical`), or
            "nonstationary", which has coefficients of its own (N in 2..12; where it gains nothing the known solver that
            is as good). By default the one with the smallest error: `Schedule.solver` says which.
        guidance: w; by default the model's usual one for a preset (`PRESETS[name].guidance`), else 1. What is shipped
            is 1 and the usual weights of the presets with these ends.

    Returns:
        A `Schedule` whose `others_own_nodes` are the errors of the other solvers, each with its own shipped schedule.

    Raises:
        ValueError: for an unknown model, solver or N, or (`NotShippedError`) ends or a weight that are not shipped; the
            message lists what is, and how to search instead.
    """
    noise = preset(model) if isinstance(model, str) else check_noise(model)
    weight = check_guidance(guidance, PRESETS[preset_name(model)].guidance if isinstance(model, str) else 1.0)
    name = None if solver is None else solvers.canonical(solver, CHOICES)
    if name not in (None, *CHOICES):
        raise NotShippedError(f"solver {solver!r} is not in the zoo ({', '.join(CHOICES)})", name, weight)
    if check_nfe(nfe) > MAX_NFE:
        raise NotShippedError(f"nfe is {nfe}; the zoo has 1..{MAX_NFE}", solver, weight)
    if name == solvers.NONSTATIONARY and nfe not in FREE_NFE:
        have = f"{FREE_NFE[0]}..{FREE_NFE[-1]}"
        raise NotShippedError(f"nfe is {nfe}; the zoo has {have} of {name!r}", solver, weight)
    shelf = _shelves().get(shelf_key(noise))
    if shelf is None:
        raise NotShippedError(f"no preset has the noise range and prediction type of {noise.name}", solver, weight)
    if weight not in shelf:
        have = ", ".join(f"{w:g}" for w in sorted(shelf))
        raise NotShippedError(f"guidance {weight:g} is not in the zoo for {noise.name} ({have})", solver, weight)
    entries = {s: found for s, rows in shelf[weight].items() if (found := rows.get(nfe)) is not None}
    best = min(entries, key=lambda s: entries[s]["error"])
    name = best if name not in entries else name
    found = entries.pop(name)
    return Schedule.from_lams(
        noise,
        [first_lam(noise, nfe, weight), *found["lams"]],
        origin=Origin(
            method="solver-error",
            solver=name,
            guidance=weight,
            versions=_document()["versions"],
        ),
        scores=Scores(
            error=found["error"],
            others_own_nodes={s: e["error"] for s, e in entries.items()},
            amplification=found.get("amplification"),
        ),
        coefficients=found.get("coefficients"),
    )


def shipped_guidance(noise: NoiseSchedule) -> tuple[float, ...]:
    """The weights for which the zoo has schedules of this model, rising; none if no preset has its ends."""
    return tuple(sorted(_shelves().get(shelf_key(noise), ())))


def nearest_guidance(noise: NoiseSchedule, guidance: float) -> float:
    """Of the weights that the zoo has for a model the nearest by ratio (below 1: 1); itself where it has none."""
    wanted = check_guidance(guidance)
    return min(shipped_guidance(noise), key=lambda weight: abs(math.log(weight / wanted)), default=wanted)


def shelf_key(noise: NoiseSchedule) -> tuple[float | None, float, bool]:
    """What a search on the solver's error knows of a noise schedule and its model.

    The ends in lam, rounded (None is -inf), and whether the model's error in x_0 grows without bound towards the noise
    end, as with epsilon, or not, as with every other prediction type.
    """
    noisy = noise.noise_end
    pure = bool(np.isneginf(noisy))
    return None if pure else round(noisy, 3), round(noise.data_end, 3), noise.prediction == "epsilon" and not pure


def text() -> str:
    """The shipped file's text."""
    return resources.files("hso_jax.shelf").joinpath(FILE).read_text(encoding="utf-8")


@functools.cache
def _document() -> dict[str, Any]:
    return json.loads(text())


@functools.cache
def _shelves() -> dict[tuple[float | None, float, bool], dict[float, dict[str, dict[int, dict[str, Any]]]]]:
    """By what a search knows of a model, by guidance, by solver and by N."""
    return {
        (*shelf["ends"], shelf["unbounded"]): {
            float(weight): {s: {int(n): e for n, e in rows.items()} for s, rows in entries.items()}
            for weight, entries in shelf["guidance"].items()
        }
        for shelf in _document()["shelves"]
    }
