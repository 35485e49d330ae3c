"""Which of many schedules a model is best with: successive halving on common noises, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bridge.tuning.candidates import Candidate
from bridge.tuning.judge import Judge
from hso_jax.schedule import Schedule

KEEP = 3
"""One in so many candidates goes on to twice as many noises."""

FINALISTS = 4
"""As many go on to the last noises, so that the choice is among the best and no single noise decides."""

SURE = 0.99
"""Share of the bootstrap's draws in which one candidate is the best, at which no further noise is looked at."""

LEAST_SURE = 8
"""Noises before which that is not asked."""

DRAWS, INTERVAL = 2000, 0.8
"""Draws of the bootstrap, and the share of them that its interval holds."""

WIDER = 1.5
"""The interval is as much wider: the winner is the best of many on these very noises, and converged samples err too.
Chosen on five networks by others, where it then holds what is true in 79% of the cells (docs/recommend.md)."""


class Measured(NamedTuple):
    """A candidate, and its mean square error on each of the first noises."""

    name: str
    schedule: Schedule
    errors: np.ndarray

    @property
    def mean(self) -> float:
        """Of the errors; infinite where one is not finite."""
        mean = float(np.mean(self.errors))
        return mean if math.isfinite(mean) else math.inf

    @property
    def error(self) -> float:
        """The root of the mean."""
        return math.sqrt(self.mean)


def rungs(candidates: int, noises: int, samples: int) -> Iterator[tuple[int, int]]:
    """(candidates, noises) of each round, which take at most so many samples in all.

    The first round is as wide as the samples allow: later candidates of the list are left out where they do not.
    """

    def of(width: int, last: int) -> list[tuple[int, int]]:
        found, seen = [(width, 1)], 1
        while seen < noises and width > 1:
            width, seen = max(min(width, last), width // KEEP), min(2 * seen, noises)
            found.append((width, seen))
        return found

    def cost(rounds: list[tuple[int, int]]) -> int:
        return sum(
            alive * (seen - before) for (alive, seen), (_, before) in zip(rounds, [(0, 0), *rounds], strict=False)
        )

    for last in (FINALISTS, 2):  # a pair where the samples are too few for more
        width = next((w for w in range(candidates, 1, -1) if cost(of(w, last)) <= samples), 1)
        if width > 2 * FINALISTS or width == candidates:
            break
    yield from of(width, last)


def race(
    judge: Judge,
    candidates: Sequence[Candidate],
    rows: Sequence[int],
    budget: int,
    told: Callable[[Measured], None] = lambda best: None,
    beside: Callable[[str], bool] = lambda name: False,
) -> list[Measured]:
    """The candidates of one N that were measured, the best first: those that were seen on more noises before others.

    The most promising come first in the list: ties go to them, and a small budget of evaluations leaves out the last.
    `told` is called with the best one after each round. Of those whose names are to be `beside` the winner, the best is
    measured on as many noises, to compare it with.
    """
    nfe = candidates[0].schedule.nfe
    alive = [Measured(*candidate, np.zeros(0)) for candidate in candidates]
    out: list[Measured] = []
    reserve = len(rows) if any(beside(candidate.name) for candidate in candidates) else 0

    def seen_on(m: Measured, seen: int) -> Measured:
        return m._replace(errors=np.append(m.errors, judge.errors(m.schedule, rows[len(m.errors) : seen])))

    for width, seen in rungs(len(alive), len(rows), budget // nfe - reserve):
        out, alive = alive[width:] + out, [seen_on(m, seen) for m in alive[:width]]
        alive.sort(key=lambda m: m.mean)
        told(alive[0])
        if seen >= LEAST_SURE and sure(alive):
            break
    ranked = [*alive, *(m for m in out if len(m.errors))]
    for i, m in enumerate(ranked):
        if beside(m.name):
            ranked[i] = seen_on(m, len(alive[0].errors))
            break
    return sorted(ranked, key=lambda m: (-len(m.errors), m.mean))


def sure(best_first: Sequence[Measured]) -> bool:
    """Whether the first one stays the best whatever noises are drawn anew."""
    errors = np.array([m.errors for m in best_first if math.isfinite(m.mean)])
    return len(errors) < 2 or float(np.mean(_means(errors).argmin(0) == 0)) >= SURE


def interval(one: Measured, other: Measured) -> tuple[float, float, float]:
    """The ratio of two root-mean-square errors on their common noises, and the ends of its bootstrap interval."""
    n = min(len(one.errors), len(other.errors))
    errors = np.array([one.errors[:n], other.errors[:n]])
    if not np.isfinite(errors).all() or not errors.mean(1).all():
        return (math.nan,) * 3
    drawn, middle = _means(errors), 0.5 * math.log(errors[0].mean() / errors[1].mean())
    ends = np.quantile(0.5 * np.log(drawn[0] / drawn[1]), [0.5 - INTERVAL / 2, 0.5 + INTERVAL / 2])
    low, high = np.exp(middle + WIDER * (ends - middle))
    return math.exp(middle), float(low), float(high)


def _means(errors: np.ndarray) -> np.ndarray:
    """[candidates, draws] means of the errors of noises drawn anew, the same for all."""
    drawn = np.random.default_rng(0).integers(0, errors.shape[1], (DRAWS, errors.shape[1]))
    return errors[:, drawn].mean(-1)
