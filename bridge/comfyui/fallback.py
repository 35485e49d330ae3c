"""What is used where nothing is shipped, without a search: the nearest that is, fitted to the model and the steps."""

from __future__ import annotations

import functools

import numpy as np

from hso_jax.noise import PRESETS, NoiseSchedule, preset
from hso_jax.noise.ends import first_lam, lam_of_s, s_of_lam
from hso_jax.origin import Origin
from hso_jax.schedule import Schedule
from hso_jax.shelf.shipped import MAX_NFE, SOLVERS, nearest_guidance, shelf_key, shipped_guidance, zoo
from hso_jax.solvers import canonical


def fitted(noise: NoiseSchedule, nfe: int, guidance: float, solver: str | None = None) -> tuple[Schedule, str]:
    """A schedule for a known solver from the nearest that is shipped, and what was done.

    More steps than are shipped have the nodes of the most that are, with others between them, even in
    s = sigma/(alpha + sigma). A model's noise that nothing is shipped for takes the nodes of the preset whose noise
    ends nearest; lam = log(alpha/sigma) is stretched on the noisy side from its first node to this model's, and pressed
    together on the other side where this model ends earlier. What error this has is in docs/results/solver-error.md.

    Args:
        noise: the model's.
        nfe: N, up to the model's levels.
        guidance: w; the nearest that is shipped is taken.
        solver: by any of its names; by default the one with the least error there.

    Raises:
        ValueError: for a solver that nothing is shipped for.
    """
    shipped = bool(shipped_guidance(noise))
    near = noise if shipped else _nearest(noise)
    weight, most = nearest_guidance(near, guidance), min(nfe, MAX_NFE)
    choices = SOLVERS if solver is None else (canonical(solver, SOLVERS),)
    if choices[0] not in SOLVERS:
        raise ValueError(f"solver is {solver!r}, for which nothing is shipped; choose dpmpp_2m")
    found = min((zoo(near, most, choice, guidance=weight) for choice in choices), key=lambda one: one.error or 0.0)
    lams = np.array(found.lams)
    told = f"{found.solver} with the steps that are shipped for {most} steps"
    if nfe > most:
        places = np.linspace(0.0, most - 1.0, nfe)
        lams = lam_of_s(np.interp(places, np.arange(most), s_of_lam(lams)))
        told += f", and {nfe - most} between them: for {nfe} nothing is shipped"
    if not shipped:
        lams = _stretched(lams, first_lam(noise, nfe, weight), noise.data_end)
        told += f". They are those of {near.name}, stretched to the noise of {noise.name}, for which nothing is shipped"
    told += f". Guidance {weight:g}" + (
        "" if weight == guidance else f" is of those shipped the nearest to {guidance:g}"
    )
    origin = Origin(method="fitted", solver=found.solver, guidance=weight)
    return Schedule.from_lams(noise, lams, origin=origin), told + "."


def _nearest(noise: NoiseSchedule) -> NoiseSchedule:
    """The preset with shipped schedules whose ends are nearest; first of all it has the kind of error and of end."""
    end, data_end, unbounded = shelf_key(noise)

    def distance(other: tuple[float | None, float, bool]) -> tuple[bool, bool, float, float]:
        far = abs((other[0] or 0.0) - (end or 0.0))
        return (other[0] is None) != (end is None), other[2] != unbounded, far, abs(other[1] - data_end)

    return min(_shipped(), key=lambda other: distance(shelf_key(other)))


@functools.cache
def _shipped() -> tuple[NoiseSchedule, ...]:
    return tuple(noise for noise in (preset(name) for name in PRESETS) if shipped_guidance(noise))


def _stretched(lams: np.ndarray, first: float, last: float) -> np.ndarray:
    """The nodes with their noisy part, lam < 0, drawn to begin at `first`, and all of them below `last`."""
    if np.isfinite(first) and np.isfinite(lams[0]):
        lams = np.where(lams < 0.0, lams * (first / lams[0]), lams)
    return np.where(lams > 0.0, lams * min(1.0, last / max(lams[-1], last)), lams)
