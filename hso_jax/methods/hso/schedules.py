"""From what HSO's program found to `Schedule`s."""

from __future__ import annotations

from typing import Any

import numpy as np

from hso_jax.lane import Lane
from hso_jax.lower.results import NOT_FINITE, RESULTS
from hso_jax.lower.simplex import spread
from hso_jax.objectives.expansion import objective_name
from hso_jax.objectives.mep_spf import score
from hso_jax.schedule import Origin, Schedule, versions
from hso_jax.upper.evolution import Evolution

_DISTINCT = 1e-6  # in t: nodes that the objective merges (p > 2 without a spacing) stay this far apart


def schedule_of(lane: Lane, found: Evolution | None) -> Schedule:
    """The result in float64: ends as psi has them, spacing exact, everything else derived from t.

    Nodes that are not finite (an objective that has no value there) are replaced by equal gaps; `result` says so.

    Args:
        lane: checked.
        found: its row of the program's results; None for a lane without intervals.
    """
    hso: Any = lane.method
    name = objective_name(hso.objective)
    fields: dict[str, Any] = {
        "p": hso.p,
        "d_min": hso.spacing,
        "versions": versions(),
        "method": "hso" if name == "mep" else f"hso-{name}",
    }
    if found is None:  # a single node: nothing to place, pure noise is where every sampler starts
        return Schedule.from_t(lane.noise, [hso.box.t_max[1]], layout=lane.layout, origin=Origin(**fields))
    code = int(found.memo.result)
    t = np.asarray(found.memo.t[: lane.intervals + 1], np.float64)
    psi: Any = found.best
    if not (np.isfinite(psi).all() and np.isfinite(t).all() and np.isfinite(found.memo.value)):
        code, psi = NOT_FINITE, np.asarray([(low + high) / 2 for low, high in hso.box])
        t = np.linspace(psi[2], psi[1], lane.intervals + 1)
    rho, t_eps, t_max = (_shortest(x) for x in psi)
    t_eps = float(np.clip(t_eps, *hso.box.t_eps))
    t_max = float(np.clip(t_max, *hso.box.t_max))
    t_eps, t_max = _with_room(t_eps, t_max, lane)
    t[0], t[-1] = t_max, t_eps
    least = max(hso.spacing if hso.spacing_as == "constraint" else 0.0, _DISTINCT)
    t = spread(t, min(least, (t_max - t_eps) / lane.intervals))
    ends = lane.noise.ksigma(np.array([t_eps, t_max]))
    stationarity = float(found.memo.stationarity)
    origin = Origin(
        psi={"rho": rho, "t_eps": t_eps, "t_max": t_max, "ksigma_min": float(ends[0]), "ksigma_max": float(ends[1])},
        result=RESULTS[code],
        iterations=int(found.memo.steps),
        stationarity=stationarity if np.isfinite(stationarity) else None,
        seed=int(lane.seed),
        **fields,
    )
    schedule = Schedule.from_t(lane.noise, t, layout=lane.layout, origin=origin)
    return schedule.with_scores(**score(schedule, p=hso.p, d_min=hso.spacing, gamma=hso.gamma))


def _with_room(t_eps: float, t_max: float, lane: Lane) -> tuple[float, float]:
    """The ends moved outward in the box by what rounding took of the room that the spacing needs."""
    hso: Any = lane.method
    if hso.spacing_as != "constraint":
        return t_eps, t_max
    needed = lane.intervals * hso.spacing
    t_max = min(max(t_max, t_eps + needed), hso.box.t_max[1])
    return max(min(t_eps, t_max - needed), hso.box.t_eps[0]), t_max


def _shortest(x: np.floating[Any]) -> float:
    """The float with the fewest digits that is this float32: 0.03, not 0.029999999329."""
    return float(str(x))
