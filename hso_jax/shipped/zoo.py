"""The zoo: schedules of every preset, searched once and shipped, and the errors of the usual rules beside them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from hso_jax import solvers
from hso_jax.checks import check_guidance, check_nfe
from hso_jax.noise import NoiseSchedule, first_lam, named
from hso_jax.schedule import Origin, Schedule, Scores, t_of_lams

ZOO_FILE, RULES_FILE = "zoo.json", "rules.json"
SOLVERS = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3")
CHOICES = (*SOLVERS, solvers.NONSTATIONARY)
"""What may be asked for."""

MAX_NFE = 20
NONSTATIONARY_NFE = range(2, 13)
"""N of the non-stationary solver."""

HSO = "hso"
RULES = (
    *("leading", "linspace", "trailing", "sgm-uniform", "karras", "uniform-lam", "beta", "beta-t"),
    *("ays", "ays-sdxl", "ays-svd"),
)
"""Of `BASELINES`, those that pipelines and user interfaces have; DM-NonUni is a method of its own."""

SHIFTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Of rectified flow: the rules' levels follow the shift. Between them the error is interpolated."""

Key = tuple[float | None, float, bool]


class NotInZooError(ValueError):
    """What was asked for is not in the zoo: `why` says what is, `solver` and `guidance` are of a search for it."""

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
        ValueError: for an unknown model, solver or N, or (`NotInZooError`) ends or a weight that are not shipped; the
            message lists what is, and how to search instead.
    """
    noise, facts = named(model)
    weight = check_guidance(guidance, facts.guidance)
    found = entries(noise, nfe, weight, solver)
    name = None if solver is None else solvers.canonical(solver, CHOICES)
    if name not in found:
        name = min(found, key=lambda s: found[s]["error"])
    return schedule_of(noise, nfe, weight, name, found)


def entries(noise: NoiseSchedule, nfe: int, weight: float, solver: str | None = None) -> dict[str, dict[str, Any]]:
    """What the zoo has of a model at N and a weight, by solver. NotInZooError if it has nothing, or not that solver."""
    name = None if solver is None else solvers.canonical(solver, CHOICES)
    if name not in (None, *CHOICES):
        raise NotInZooError(f"solver {solver!r} is not in the zoo ({', '.join(CHOICES)})", name, weight)
    if check_nfe(nfe) > MAX_NFE:
        raise NotInZooError(f"nfe is {nfe}; the zoo has N = 1 to {MAX_NFE}", solver, weight)
    if name == solvers.NONSTATIONARY and nfe not in NONSTATIONARY_NFE:
        have = f"N = {NONSTATIONARY_NFE[0]} to {NONSTATIONARY_NFE[-1]}"
        raise NotInZooError(f"nfe is {nfe}; the zoo has {have} of {name!r}", solver, weight)
    by_guidance = _schedules().get(zoo_key(noise))
    if by_guidance is None:
        why = f"nothing is shipped for {noise.name}: no preset has its noise range and prediction type"
        raise NotInZooError(why, solver, weight)
    if weight not in by_guidance:
        have = ", ".join(f"{w:g}" for w in sorted(by_guidance))
        raise NotInZooError(f"guidance {weight:g} is not in the zoo for {noise.name} ({have})", solver, weight)
    return {s: rows[str(nfe)] for s, rows in by_guidance[weight].items() if str(nfe) in rows}


def schedule_of(
    noise: NoiseSchedule, nfe: int, weight: float, solver: str, entries: Mapping[str, dict[str, Any]]
) -> Schedule:
    """The schedule of one of the solvers in `entries`."""
    entry = entries[solver]
    return Schedule.from_t(
        noise,
        t_of_lams(noise, np.array([first_lam(noise, nfe), *entry["lams"]])),
        origin=Origin(method="solver-error", solver=solver, guidance=weight, versions=_document(ZOO_FILE)["versions"]),
        scores=Scores(
            error=entry["error"],
            others_own_nodes={s: e["error"] for s, e in entries.items() if s != solver},
            amplification=entry.get("amplification"),
        ),
        coefficients=entry.get("coefficients"),
    )


def shipped_guidance(noise: NoiseSchedule) -> tuple[float, ...]:
    """The weights for which the zoo has schedules of this model, rising; none if no preset has its ends."""
    return tuple(sorted(_schedules().get(zoo_key(noise), ())))


def nearest_guidance(noise: NoiseSchedule, guidance: float) -> float:
    """Of the weights that the zoo has for a model the nearest by ratio (below 1: 1); itself where it has none."""
    wanted = check_guidance(guidance)
    return min(shipped_guidance(noise), key=lambda weight: abs(math.log(weight / wanted)), default=wanted)


def zoo_key(noise: NoiseSchedule) -> Key:
    """What a search on the solver's error knows of a model, so that models with one key share their schedules.

    The ends in lam, rounded (None is -inf), and whether the model's error in x_0 grows without bound towards the noise
    end, as with epsilon, or not, as with every other prediction type.
    """
    noisy = noise.noise_end
    pure = bool(np.isneginf(noisy))
    return None if pure else round(noisy, 3), round(noise.data_end, 3), noise.prediction == "epsilon" and not pure


def rules_key(noise: NoiseSchedule) -> tuple[Any, ...]:
    """What a rule's error depends on: `zoo_key`, and a flow model's shift or the fingerprint of other noises."""
    return (*zoo_key(noise), round(shift_of(noise), 6) if noise.kind == "flow" else noise.fingerprint())


def shift_of(noise: NoiseSchedule) -> float:
    """The shift of a rectified flow."""
    return math.exp(-float(noise.lam(0.5)))


def rule_errors(noise: NoiseSchedule, nfe: int, guidance: float, solver: str) -> dict[str, float]:
    """The solver's error with each rule, and with HSO's nodes, by their names; what is not known is left out.

    Nothing is known of a noise schedule that no preset has (other than rectified flow), of a shift outside `SHIFTS`, or
    of a weight, an N or a solver that the zoo does not have. Between two shifts the logarithm of the error is taken to
    be linear in that of the shift; HSO's nodes are known for the shifts themselves alone.
    """
    rows = _beside(noise)
    tables = [row["guidance"].get(f"{guidance:g}", {}).get(solver, {}) for row, _ in rows]
    found = {}
    for rule in tables[0] if tables else ():
        values = [table.get(rule, [])[nfe - 1 : nfe] for table in tables]
        if all(value and value[0] for value in values) and not (rule == HSO and len(rows) > 1):
            shares = [share for _, share in rows]
            found[rule] = math.exp(sum(s * math.log(v[0]) for s, v in zip(shares, values, strict=True)))
    return found


def _beside(noise: NoiseSchedule) -> list[tuple[dict[str, Any], float]]:
    """The rows that a noise schedule lies between, with their shares; one row for most, none where there is none."""
    key, rows = rules_key(noise), _rules()
    if key in rows:
        return [(rows[key], 1.0)]
    if noise.kind != "flow":
        return []
    at = math.log(shift_of(noise))
    known = [(math.log(shift), rows[*key[:-1], shift]) for shift in SHIFTS if (*key[:-1], shift) in rows]
    if not known or not known[0][0] - 1e-6 <= at <= known[-1][0] + 1e-6:
        return []
    i = int(np.clip(np.searchsorted([x for x, _ in known], at), 1, len(known) - 1))
    (low, before), (high, after) = known[i - 1], known[i]
    share = min(max((at - low) / (high - low), 0.0), 1.0)
    return [(before, 1.0 - share), (after, share)]


def shipped_text(file: str) -> str:
    """The text of `ZOO_FILE` or `RULES_FILE`."""
    return resources.files("hso_jax.shipped").joinpath(file).read_text(encoding="utf-8")


@functools.cache
def _document(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shipped_text(file))
    return found


@functools.cache
def _schedules() -> dict[Key, dict[float, dict[str, dict[str, dict[str, Any]]]]]:
    """The zoo's entries by `zoo_key`, by guidance, by solver and by N."""
    return {
        (*row["ends"], row["unbounded"]): {float(weight): entries for weight, entries in row["guidance"].items()}
        for row in _document(ZOO_FILE)["shelves"]
    }


@functools.cache
def _rules() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of the rules' errors by `rules_key`."""
    return {
        (*row["ends"], row["unbounded"], row["shift"] if "shift" in row else row["noise"]): row
        for row in _document(RULES_FILE)["rows"]
    }
