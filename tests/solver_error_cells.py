"""What the tests of the reference search share: a tiny family, a small effort, and lanes that need one program."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from hso_jax import ReferenceEffort, Schedule, preset
from hso_jax.methods.solver_error import ReferenceLane, reference_schedules
from hso_jax.problems import Problem, family

SAMPLES = 8
EFFORT = ReferenceEffort(population=4, generations=1, polish=1, chunk=8, few=2, more=2, steps=8, final_steps=16)
"""All samples of both problems are two chunks: the upper level sees what the error is measured on."""
NAMES = ("ddim", "unipc-2")
WEIGHTS = (1.0, 5.0)
SD, SD3 = preset("sd15"), preset("sd3-medium")
BATCH = 16  # lanes a call of the compiled program, see `hso_jax.methods.solver_error.search.run`


@functools.cache
def small_family() -> Problem:
    """Two problems of 4 components in 4 dimensions, in float32 whoever asks first."""
    with jax.enable_x64(False):
        return family(range(2), dimension=4, components=4, members=2)


def deviations() -> np.ndarray:
    """[2] standard deviation of each problem's data, to which errors are relative; float64."""
    means, variances = (np.asarray(x, np.float64) for x in (small_family().means, small_family().variances))
    return np.sqrt((means.var(1) + variances).mean(-1))


def grid() -> list[ReferenceLane]:
    """Both kinds of noise end, three budgets, both layouts, two solvers, two weights, both first nodes."""
    axes = itertools.product((SD, SD3), (1, 2, 4), ("node", "interval"), NAMES, WEIGHTS, ("free", "end"))
    return [
        ReferenceLane(noise, nfe, layout, solver, weight, first=first)
        for noise, nfe, layout, solver, weight, first in axes
    ]


def find(lanes: Sequence[ReferenceLane], *, compare: bool = False) -> list[Schedule]:
    """The lanes' schedules, in a call whose shape is the same for all lanes of the grid's kind: one compilation."""
    whole = [ReferenceLane(noise, 4, "interval", name, w) for noise in (SD, SD3) for w in WEIGHTS for name in NAMES]
    filled = [*whole, *lanes]
    filled += [whole[0]] * (-len(filled) % BATCH)
    options = {"effort": EFFORT, "problems": small_family(), "samples": SAMPLES}
    found = reference_schedules(filled, compare=compare, **options)
    return found[len(whole) : len(whole) + len(lanes)]
