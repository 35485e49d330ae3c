"""What is used where nothing is shipped, without a search: the nearest that is, fitted to the model and the steps."""

from __future__ import annotations

import functools

import numpy as np

from hso_jax.noise import PRESETS, NoiseSchedule, first_lam, lam_of_s, preset, s_of_lam
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.zoo import MAX_NFE, SOLVERS, nearest_guidance, shipped_guidance, zoo, zoo_key
from hso_jax.solvers import canonical


def fitted(noise: NoiseSchedule, nfe: int, guidance: float, solver: str | None = None) -> tuple[Schedule, str]:
    """A schedule for a known solver from the nearest that is shipped, and what was done.

    More steps than are shipped have the nodes of the most that are, with others between them, even in
    s = sigma/(alpha + sigma). A model's noise that nothing is shipped for takes the nodes of the preset whose noise
    ends nearest; lam = log(alpha/sigma) is stretched on the noisy side from its first node to this model's, and pressed
    together on the other side where this model ends earlier. What errors this has: README.md beside this file.

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
    found = min(
        (zoo(near, most, choice, guidance=weight) for choice in choices), key=lambda one: float(one.error or np.inf)
    )
    lams = np.array(found.lams)
    told = [f"{found.solver}, with the steps that are shipped for it; no error is predicted."]
    if nfe > most:
        lams = _between(lams, nfe, float(near.lam(float(near.t_max))))
        told.append(
            f"For {nfe} steps nothing is shipped: these are the {most} for {most} steps, and {nfe - most} between."
        )
    if not shipped:
        lams = _stretched(lams, first_lam(noise, nfe, weight), noise.data_end)
        made_for = f"sigma {np.exp(-near.noise_end):.4g}" if np.isfinite(near.noise_end) else "pure noise"
        told.append(
            f"For this model's noise nothing is shipped: they are made for noise up to {made_for}, and stretched."
        )
    if weight != guidance:
        told.append(f"Of the guidances that are shipped {weight:g} is the nearest to {guidance:g}.")
    origin = Origin(method="fitted", solver=found.solver, guidance=weight)
    return Schedule.from_lams(noise, lams, origin=origin), " ".join(told)


def _nearest(noise: NoiseSchedule) -> NoiseSchedule:
    """The preset with shipped schedules whose ends are nearest; first of all it has the kind of error and of end."""
    end, data_end, unbounded = zoo_key(noise)

    def distance(other: tuple[float | None, float, bool]) -> tuple[bool, bool, float, float]:
        far = abs((other[0] or 0.0) - (end or 0.0))
        return (other[0] is None) != (end is None), other[2] != unbounded, far, abs(other[1] - data_end)

    return min(_shipped(), key=lambda other: distance(zoo_key(other)))


@functools.cache
def _shipped() -> tuple[NoiseSchedule, ...]:
    return tuple(noise for noise in (preset(name) for name in PRESETS) if shipped_guidance(noise))


def _between(lams: np.ndarray, nfe: int, noisiest: float) -> np.ndarray:
    """N nodes among these; those after pure noise begin at the model's noisiest finite level."""
    s = s_of_lam(np.maximum(lams, noisiest))
    found = lam_of_s(np.interp(np.linspace(0.0, len(s) - 1.0, nfe), np.arange(len(s)), s))
    return np.append(lams[:1], found[1:])


def _stretched(lams: np.ndarray, first: float, last: float) -> np.ndarray:
    """The nodes with those of lam < 0 drawn to begin at `first`, and the others pressed to end by `last`."""
    if not np.isfinite(first):
        return np.where(lams > 0.0, lams * min(1.0, last / max(lams[-1], last)), lams)
    middle = 0.0 if first < 0.0 < last else 0.5 * (first + last)
    return np.interp(lams, [lams[0], 0.0, max(lams[-1], last, 1.0)], [first, middle, last])
