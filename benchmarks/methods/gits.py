"""GITS: the nodes of a fine trajectory of the model between which Euler steps stray least, by dynamic programming.

Source: Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", ICML, arXiv 2405.11326: the
cost of a step is the distance to the teacher's trajectory after a single Euler step from it, in sigma/alpha with the
sample divided by alpha. Warm-up samples, levels, rule of the levels (Karras', rho = 7) and the coefficient are those of
the authors' code for 5 to 10 evaluations, whose teacher is a multistep solver as well. That code also measures distance
by how far the step strays from the straight line to the sample; the paper's definition, Euclidean, is used here.

Here the last step goes to clean data, as for every method: the grid has `levels` evaluated levels and sigma = 0.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from rich.progress import track

import bridge
from benchmarks.models.subjects import Subject
from bridge.tuning import gits
from hso_jax import NoiseSchedule, Schedule
from hso_jax.schedule import Origin

IMAGES, LEVELS, RHO = 256, 60, 7.0
_BATCH = 64


def search(
    subject: Subject, nfe: int, *, images: int = IMAGES, levels: int = LEVELS, seed: int = 0
) -> tuple[Schedule, int, float]:
    """Find the schedule of N evaluations for any solver, on other noises than the subject's own.

    Returns:
        The schedule; the network's evaluations, images x levels whatever N; and seconds.
    """
    if not 1 <= nfe <= levels:
        raise ValueError(f"nfe is {nfe}; the teacher's grid has {levels} levels, so use 1 to {levels}")
    costs, spent = mean_costs(subject, images, levels, seed)
    begin = time.perf_counter()
    t = teacher_grid(subject.noise, levels).t[gits.best_path(costs, nfe, gits.COEFFICIENT)]
    schedule = Schedule.from_t(subject.noise, t, origin=Origin(method="gits", guidance=subject.guidance, seed=seed))
    return schedule, images * levels, spent + time.perf_counter() - begin


@functools.lru_cache(maxsize=8)
def mean_costs(subject: Subject, images: int, levels: int, seed: int) -> tuple[np.ndarray, float]:
    """Average `euler_costs` over the warm-up samples; also the seconds it took. Kept, since every N uses the same."""
    begin = time.perf_counter()
    own, grid = subject.for_preparation(images, seed), teacher_grid(subject.noise, levels)
    parts = [slice(i, min(i + _BATCH, images)) for i in range(0, images, _BATCH)]
    shown = track(parts, description=f"{own.name}: GITS", transient=True)
    costs = sum(euler_costs(own, grid, rows) for rows in shown) / images
    costs.setflags(write=False)
    return costs, time.perf_counter() - begin


def teacher_grid(noise: NoiseSchedule, levels: int) -> Schedule:
    """Spread levels evenly in (sigma/alpha)^(1/rho) between the model's ends (EDM, arXiv 2206.00364, eq. 5)."""
    high, low = (float(noise.ksigma(float(t))) ** (1.0 / RHO) for t in (noise.t_max, noise.t_min))
    t = np.asarray(noise.t_of_lam(-RHO * np.log(np.linspace(high, low, levels))))
    t[0], t[-1] = float(noise.t_max), float(noise.t_min)
    return Schedule.from_t(noise, t)


@torch.no_grad()
def euler_costs(subject: Subject, grid: Schedule, rows: slice) -> np.ndarray:
    """[L + 1, L + 1] sums over the images `rows`: how far an Euler step from level i ends from the teacher at j > i.

    The step from i starts on the teacher's trajectory and has the prediction that the teacher had there, so that the
    trajectory (DPM++ 2M) is all that is evaluated.
    """
    positions, predictions, levels = [], [], list[bridge.Level]()

    def recorded(x: torch.Tensor, level: bridge.Level) -> torch.Tensor:
        x0 = subject.trained.denoise(x, level, subject.labels[rows], subject.guidance)
        positions.append(x)
        predictions.append(x0)
        levels.append(level)
        return x0

    positions.append(bridge.sample(recorded, grid, subject.start[rows], solver="dpmpp-2m"))
    alpha, sigma = ([float(getattr(level, name)) for level in levels] for name in ("alpha", "sigma"))
    return gits.euler_costs(positions, predictions, alpha, sigma)
