"""The search: evolution over a few numbers psi, and for each psi the schedule that a lower level finds.

Algorithm 1 of HSO (arXiv 2511.11688), written once for every method that has two levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

from hso_jax.upper.evolution import Draws, Evolution, draws, evolve

Found = Any
"""A pytree of arrays: what a lower level found for one psi, among it the nodes."""


class Effort(NamedTuple):
    """How hard each lane is searched; all static (a change compiles again). None is the method's own value.

    Attributes:
        population: of the upper level, at least 4.
        generations: of the upper level.
        steps: of the lower level at each psi.
        polish: rounds of as many steps more for the winner.
        lanes: taken at once on each device; bounds the memory.
    """

    population: int | None = None
    generations: int | None = None
    steps: int | None = None
    polish: int | None = None
    lanes: int | None = None

    def over(self, default: Effort) -> Any:
        """With the values of `default` where this has none."""
        return Effort(*(mine if mine is not None else its for mine, its in zip(self, default, strict=True)))


class TwoLevel(Protocol):
    """What a method gives to `bilevel`: pure functions of one lane, a pytree of arrays."""

    def boxes(self, lane: Any) -> tuple[Array, Array]:
        """Lower and upper ends [S, D] of the S boxes in which psi [D] is looked for, each with a start of its own."""

    def blank(self, lane: Any) -> Found:
        """What `lower` is given for a psi that is new."""

    def lower(self, lane: Any, psi: Array, before: Found) -> Found:
        """The lower level: what it finds for psi, from `before` if that is not blank."""

    def fitness(self, lane: Any, found: Found) -> Array:
        """The upper level's objective: a scalar to be small."""

    def refine(self, lane: Any, starts: Evolution) -> Any:
        """The result, from what evolution found in each box (leading axis S)."""


def randomness(seeds: Sequence[int] | np.ndarray, effort: Any, axes: int, boxes: int = 1) -> Draws:
    """The random numbers [L, S, ...] of each lane's search in S boxes of psi [D], by its seed; NumPy."""
    return draws(seeds, 1 + effort.generations + effort.polish, effort.population, axes, boxes)


def bilevel(method: TwoLevel, lane: Any, random: Draws, effort: Any) -> Any:
    """Both levels for one lane, with its `randomness` and a complete `Effort`. Pure; map it over lanes."""

    def fitness(psi: Array, before: Found) -> tuple[Array, Found]:
        found = method.lower(lane, psi, before)
        return method.fitness(lane, found), found

    def start(box: tuple[Draws, Array, Array]) -> Evolution:
        return evolve(fitness, method.blank(lane), *box, generations=effort.generations, polish=effort.polish)

    return method.refine(lane, _one_by_one(start, (random, *method.boxes(lane))))


def _one_by_one(function: Callable[[Any], Any], rows: Any) -> Any:
    """`lax.map`, without a loop around a single row."""
    if len(jax.tree.leaves(rows)[0]) > 1:
        return jax.lax.map(function, rows)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], rows)))
