"""The schedules people use today, each under its own name, on the same two layouts as the search's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax import dm_nonuni, trust_region
from hso_jax.batch import compiler_options
from hso_jax.lanes import check_nfe
from hso_jax.noise import NoiseSchedule
from hso_jax.objectives import PAPER_GAMMA, paper_d_min
from hso_jax.schedule import Schedule
from hso_jax.search import score, versions

_DM_NODES = 21  # one compilation for every N up to 20


def leading(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Diffusers' `timestep_spacing="leading"` with `steps_offset=1`, the default of SD: t = (i T//N + 2)/T."""
    levels = noise.num_train_timesteps
    t = np.minimum((np.arange(nfe)[::-1] * (levels // nfe) + 2) / levels, float(noise.t_max))
    return _with_last(t, noise, layout)


def linspace(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Evenly spaced in t with both ends: diffusers' "linspace" (and its rule for flow models, before the shift)."""
    return np.linspace(float(noise.t_max), float(noise.t_min), _count(nfe, layout))


def trailing(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Diffusers' `timestep_spacing="trailing"`, t = 1 - i/N (Lin et al. 2024, arXiv 2305.08891, table 2)."""
    return _with_last(np.minimum(1.0 - np.arange(nfe) / nfe, float(noise.t_max)), noise, layout)


def edm(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """EDM's (Karras) schedule, rho = 7, between the model's ends (arXiv 2206.00364, eq. 5)."""
    low, high = (float(noise.ksigma(float(t))) ** (1 / 7) for t in (noise.t_min, noise.t_max))
    return _of_lam(noise, -7.0 * np.log(np.linspace(high, low, _count(nfe, layout))))


def uniform_lam(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Evenly spaced in lam between the model's ends (DPM-Solver, Lu et al. 2022, arXiv 2206.00927, section 3)."""
    low, high = (float(noise.lam(float(t))) for t in (noise.t_max, noise.t_min))
    return _of_lam(noise, np.linspace(low, high, _count(nfe, layout)))


AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""Levels ksigma of Align Your Steps for ten steps (Sabour et al. 2024, arXiv 2404.14507): SD 1.5's and SDXL's."""


def align_your_steps(noise: NoiseSchedule, nfe: int, layout: str, table: str = "ays") -> np.ndarray:
    """Align Your Steps: log ksigma of the ten-step table interpolated linearly to N, as its authors prescribe.

    The step to the table's last level is replaced by one to clean data in the node layout. Models of another range
    than Stable Diffusion's take the same ksigma, as far as they have it.
    """
    levels = -np.log(AYS[table])
    lams = np.interp(np.linspace(0.0, 1.0, nfe + 1), np.linspace(0.0, 1.0, len(levels)), levels)[: _count(nfe, layout)]
    low, high = (float(noise.lam(float(t))) for t in (noise.t_max, noise.t_min))
    return np.asarray(noise.t_of_lam(np.clip(lams, low, high)))


def dm_nonuniform(noise: NoiseSchedule, nfe: int, layout: str, p: float = 2.0) -> np.ndarray:
    """DM-NonUni: minimiser of the UniPC-3 error bound with fixed ends (Xue et al. 2024, arXiv 2402.17376).

    Its ends are t = 1 (the model's largest usable t) and 1e-3 (its smallest); the start is uniform in t.
    """
    intervals = _count(nfe, layout) - 1
    t_max, t_eps = float(noise.t_max), max(float(noise.t_min), 1e-3)
    if intervals < 2:
        return np.linspace(t_max, t_eps, intervals + 1)
    nodes = max(_DM_NODES, intervals + 1)
    start = np.concatenate([np.linspace(t_max, t_eps, intervals + 1), np.full(nodes - intervals - 1, t_eps)])
    with jax.enable_x64(True):  # its minimum is flat: float32 misses it by up to three timesteps
        found = _minimiser()(
            dataclasses.replace(noise, name=""), start, np.asarray(intervals), np.asarray(p, np.float64)
        )
    t = np.array(found.t[: intervals + 1], np.float64)
    t[0], t[-1] = t_max, t_eps
    return t


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "edm": edm,
    "uniform-lam": uniform_lam,
    "ays": align_your_steps,
    "ays-sdxl": functools.partial(align_your_steps, table="ays-sdxl"),
    "dm-nonuni": dm_nonuniform,
}


def baseline(
    name: str, noise: NoiseSchedule, nfe: int, *, layout: str = "node", p: float = 2.0, d_min: float | None = None
) -> Schedule:
    """A named baseline as a `Schedule`, scored with the same MEP and SPF as the search's.

    The node layout has the rule's N nodes; the interval layout adds (or includes) the model's smallest t. Models at
    zero terminal SNR start at their largest usable t, where MEP is still defined.

    Args:
        name: a key of `BASELINES`.
        noise: the model's noise schedule.
        nfe: N >= 1.
        layout: "node" or "interval".
        p: exponent of the model-error bound, for the scores and for DM-NonUni.
        d_min: spacing for the SPF score; the paper's by default.

    Raises:
        ValueError: for an unknown name or layout, or more evaluations than the model has levels.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline is {name!r}; use one of {', '.join(BASELINES)}")
    check_nfe(nfe)
    if nfe > noise.num_train_timesteps - 2:
        raise ValueError(f"nfe is {nfe}; {noise.name} has only {noise.num_train_timesteps} levels")
    extra: dict[str, Any] = {"p": p} if name == "dm-nonuni" else {}
    t = BASELINES[name](noise, nfe, layout, **extra)
    least = paper_d_min(nfe) if d_min is None else d_min
    schedule = Schedule.from_t(noise, t, layout=layout, method=name, p=p, d_min=least, versions=versions())
    return Schedule(**{**vars(schedule), **score(schedule, p=p, d_min=least, gamma=PAPER_GAMMA)})


def _count(nfe: int, layout: str) -> int:
    return nfe + (layout == "interval")


def _with_last(t: np.ndarray, noise: NoiseSchedule, layout: str) -> np.ndarray:
    return np.append(t, float(noise.t_min)) if layout == "interval" else t


def _of_lam(noise: NoiseSchedule, lams: np.ndarray) -> np.ndarray:
    t = noise.t_of_lam(lams)
    t[0] = float(noise.t_max)
    return t


@functools.cache
def _minimiser() -> Callable[..., trust_region.Solution]:
    def minimise(noise: NoiseSchedule, start: jax.Array, intervals: jax.Array, p: jax.Array) -> trust_region.Solution:
        feasible = trust_region.Feasible(start[0], start[-1], jnp.zeros_like(start[0]), intervals)
        return dm_nonuni.minimise(noise, start, feasible, p)

    return jax.jit(minimise, compiler_options=compiler_options(jax.default_backend()))
