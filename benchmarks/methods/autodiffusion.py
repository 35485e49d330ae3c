"""An evolutionary search of the timesteps by the Frechet distance of the model's samples to real images.

Source: Li et al. 2023, "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
Diffusion Model Acceleration", ICCV, arXiv 2309.10438; its search of timesteps alone. The authors rate 10 rounds of 50
candidates with 1,000 samples each (their settings for Stable Diffusion); here a round is 10 candidates, a candidate
100 samples, and the number of rounds what the budget allows. The shares are theirs: the best fifth of a round's size
are parents, half of the next round are mutations, a fifth crossovers, the rest random; a timestep mutates with
probability 0.1; the first round is a uniform row, its mutations and random rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.metrics import frechet_distance, moments_of
from benchmarks.targets import OWN_SEEDS, Target
from hso_jax import Schedule, baseline
from hso_jax.schedule import Origin

IMAGES, BUDGET = 100, 30_000
ROUND, PARENTS, MUTATIONS, CROSSOVERS = 10, 2, 5, 2
MUTATION = 0.1
_TRIES = 100  # for a row that was not rated yet

Row = tuple[int, ...]
"""Training levels 1..T, falling; level i is t = i/T."""


class Result(NamedTuple):
    """The best schedule, squared Frechet distances of its samples and of the uniform row's, and what it cost."""

    schedule: Schedule
    distance: float
    start: float
    calls: int


def search(
    target: Target, solver: str, nfe: int, real: np.ndarray, images: int = IMAGES, budget: int = BUDGET, seed: int = 0
) -> Result:
    """Find the timesteps whose samples come closest to real images, given by their features [m, d].

    Each candidate takes `images` samples of the same noise, which nothing is judged on: images x N of the budget.
    """
    features, affordable = target.features, budget // (images * nfe)
    if features is None or affordable < 1 or min(len(real), images) < 2:
        given = f"budget is {budget}, with {images} samples, {len(real)} real images and N = {nfe}"
        raise ValueError(f"{given}; need two of each or more and a budget of {images * nfe} or more")
    noise, latents, wanted = target.noise, target.latents(images, OWN_SEEDS + seed), moments_of(real.astype(np.float64))
    count = noise.num_train_timesteps
    first, last = (round(count * float(t)) for t in (noise.t_min, noise.t_max))

    def schedule_of(row: Row) -> Schedule:
        origin = Origin(method="autodiffusion", solver=solver, guidance=target.guidance, seed=seed)
        return Schedule.from_t(noise, np.array(row) / count, origin=origin)

    def rate(row: Row) -> float:
        samples = target.sample(schedule_of(row), solver, latents)
        if not bool(samples.isfinite().all()):
            return np.inf
        return frechet_distance(moments_of(features(samples).numpy().astype(np.float64)), wanted)

    uniform = _row(np.rint(count * baseline("trailing", noise, nfe).t))
    ratings = evolve(rate, uniform, np.arange(max(first, 1), last + 1), affordable, seed)
    row = min(ratings, key=ratings.__getitem__)
    return Result(schedule_of(row), ratings[row], ratings[uniform], len(ratings) * images * nfe)


def evolve(
    rate: Callable[[Row], float], start: Row, levels: np.ndarray, candidates: int, seed: int
) -> dict[Row, float]:
    """Rate rows made of `levels`, the lower the better; returns all ratings, that of `start`, the uniform row, first.

    There are less than `candidates` only where no new row is found.
    """
    draw = np.random.default_rng(seed)
    known: dict[Row, float] = {}

    def add(make: Callable[[], Row], count: int) -> None:
        """Rate so many rows that are not known yet."""
        for _ in range(min(count, candidates - len(known))):
            row = next((row for row in (make() for _ in range(_TRIES)) if row not in known), None)
            if row is not None:
                known[row] = rate(row)

    def anything() -> Row:
        return _row(draw.choice(levels, len(start), replace=False))

    def parent() -> Row:
        return parents[draw.integers(len(parents))]

    add(lambda: start, 1)
    parents = [start]
    add(anything, ROUND // 2)
    add(lambda: _mutated(parent(), levels, draw), ROUND - ROUND // 2 - 1)
    while len(known) < candidates:
        before = len(known)
        parents = sorted(known, key=known.__getitem__)[:PARENTS]
        add(lambda: _mutated(parent(), levels, draw), MUTATIONS)
        add(lambda: _crossed(parent(), parent(), draw), CROSSOVERS)
        add(anything, ROUND - (len(known) - before))
        if len(known) == before:
            break
    return known


def _mutated(row: Row, levels: np.ndarray, draw: np.random.Generator) -> Row:
    """Each entry is drawn anew with probability `MUTATION`."""
    kept = np.array(row)[draw.random(len(row)) >= MUTATION]
    others = draw.choice(np.setdiff1d(levels, kept), len(row) - len(kept), replace=False)
    return _row([*kept, *others])


def _crossed(one: Row, other: Row, draw: np.random.Generator) -> Row:
    """Each entry from either parent; `one` where that would repeat a level."""
    row = np.where(draw.random(len(one)) < 0.5, one, other)
    return _row(row) if len(set(row.tolist())) == len(one) else one


def _row(levels: np.ndarray | list[int]) -> Row:
    return tuple(sorted((int(i) for i in levels), reverse=True))
