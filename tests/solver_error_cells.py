"""What the tests of the search on the solver's error share: a tiny family, a small effort, lanes of one program."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hso_jax import Effort, Lane, NoiseSchedule, Schedule, SolverError, preset, search_many
from hso_jax.problems import ModelError, Problem, family
from hso_jax.solver_error_levels import Refinement

SAMPLES = 8
EFFORT = Effort(population=4, generations=1, steps=5, polish=1, lanes=1)
SMALL: dict[str, Any] = {"samples": SAMPLES, "refinement": Refinement(2, 8, 16)}
"""All samples of both problems are two chunks."""
NAMES = ("ddim", "unipc-2")
WEIGHTS = (1.0, 5.0)
SD, SD3 = preset("sd15"), preset("sd3-medium")
PLAIN: dict[str, Any] = {"model_error": ModelError(eta=0.0), "detail": 0.0, "power": 1.0}
"""What the oracles compute: the plain error without a model's error, and the mean of squares."""
BATCH = 16  # lanes a call of the compiled program, see `hso_jax.solver_error_method`


@functools.cache
def small_family() -> Problem:
    """Two problems of 4 components in 4 dimensions, in float32 whoever asks first."""
    with jax.enable_x64(False):
        return family(range(2), dimension=4, components=4, members=2)


def deviations() -> np.ndarray:
    """[2] standard deviation of each problem's data, to which errors are relative; float64."""
    means, variances = (np.asarray(x, np.float64) for x in (small_family().means, small_family().variances))
    return np.sqrt((means.var(1) + variances).mean(-1))


def method(solver: str = "dpmpp-2m", guidance: float = 1.0, first: str = "end", **options: Any) -> SolverError:
    """The method on the small family; without a model's error and by the mean of squares, as the oracles have it."""
    own = {"problems": small_family(), "compare": (), **PLAIN, **SMALL, **options}
    return SolverError(solver, guidance, first, **own)


def lane(noise: NoiseSchedule, nfe: int, layout: str = "node", *options: Any, seed: int = 0, **more: Any) -> Lane:
    """A lane of `method(...)`."""
    return Lane(noise, nfe, layout, seed, method(*options, **more))


def grid() -> list[Lane]:
    """Both kinds of noise end, three budgets, both layouts, two solvers, two weights, both first nodes."""
    axes = itertools.product((SD, SD3), (1, 2, 4), ("node", "interval"), NAMES, WEIGHTS, ("free", "end"))
    return [lane(*cell) for cell in axes]


def find(lanes: Sequence[Lane]) -> list[Schedule]:
    """The lanes' schedules, in a call whose shape is the same for all lanes of the grid's kind: one compilation."""
    whole = [lane(noise, 4, "interval", name, w) for noise in (SD, SD3) for w in WEIGHTS for name in NAMES]
    filled = [*whole, *lanes]
    filled += [whole[0]] * (-len(filled) % BATCH)
    return search_many(filled, effort=EFFORT)[len(whole) : len(whole) + len(lanes)]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that are compiled meanwhile, by JAX's own count."""
    found: list[str] = []

    def count(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
