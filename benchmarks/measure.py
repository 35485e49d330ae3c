"""How a cell is measured, whatever the study: a network's samples by a method's schedule, beside the converged ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import metrics, runner
from benchmarks.methods import OWN_SOLVER, RULES, prepare
from benchmarks.models.load import MODELS, load_data, to_unit
from benchmarks.runner import COMPARED, SOLVERS, Cell, Inapplicable, Record, rounded
from benchmarks.targets import Judged, Networks, Target
from hso_jax import Schedule
from hso_jax.noise import s_of_lam
from hso_jax.shipped.zoo import nearest_guidance, rule_errors

FINE = 256
"""Evaluations of the converged samples; what they are checked against takes twice as many."""

BEST_RULE = "rule"
"""The method that takes the best of all rules, each with the best of `COMPARED`, on the noise that it is judged on."""

TRAINING_IMAGES = 2000  # as training draws them; with as many, their own share of a Frechet distance is small

Real = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class Network:
    """A network at one guidance weight, and what its samples are compared with, computed when first needed."""

    def __init__(self, networks: Networks, name: str, guidance: float, images: int, seed: int, fine: int, real: Real):
        """Load it; `images` samples, of points more, are judged on noise of `seed`."""
        self.target = networks.target(name, guidance)
        self._size, self._real = (self.target.count(images), fine, seed), real

    @functools.cached_property
    def judged(self) -> Judged:
        """The noise, and its converged samples."""
        return Judged(self.target, *self._size)

    @functools.cached_property
    def features(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Of the converged samples, of held-out images, and of images that a method may look at."""
        real = [self.judged.features(images) for images in self._real.get(self.target.data, ())] or [None, None]
        return self.judged.features(self.judged.converged), real[0], real[1]

    def measure(self, cell: Cell) -> Record:
        """Measure a cell. Raises Inapplicable where the method has no schedule."""
        if cell.method == BEST_RULE:
            return self._best_rule(cell)
        made = prepare(
            cell.method, self.target, cell.solver, cell.nfe, seed=cell.seed,
            real=self.features[2] if cell.method == "autodiffusion" else None,
        )  # fmt: skip
        own = cell.method in OWN_SOLVER or cell.solver not in SOLVERS
        record = Record(
            *cell,
            seconds=rounded(made.seconds, 4) or 0.0,
            compile_seconds=rounded(made.compile_seconds, 3) or 0.0,
            calls=int(made.calls),
            **made.kept,
        )
        return self._judged(record, made.schedule, made.schedule.solver if own else cell.solver)

    def _best_rule(self, cell: Cell) -> Record:
        every = []
        for name in RULES:
            for solver in COMPARED:
                try:
                    schedule = prepare(name, self.target, solver, cell.nfe).schedule
                except (Inapplicable, ValueError):  # no schedule for this model, or for this N
                    continue
                record = self._judged(Record(*cell), schedule, solver)
                every.append(replace(record, chosen=f"{name} {solver}"))
        return min(every, key=lambda r: math.inf if r.rmse is None else r.rmse)

    def _judged(self, record: Record, schedule: Schedule, solver: str) -> Record:
        judged, latents = self.judged, self.judged.latents
        if schedule.kind == "flow" and self.target.name not in MODELS:
            # Noise and data keep the variance 1: a sample at a first node below pure noise is smaller than the noise.
            # Pipelines, for which the project's own networks stand, start with the noise as it is.
            s = float(s_of_lam(schedule.lams[0]))
            latents = latents * math.hypot(s, 1.0 - s)
        samples = self.target.sample(schedule, solver, latents)
        record = replace(record, chosen=solver, counted=schedule.nfe, teacher=rounded(judged.error, 4) or 0.0)
        record = record.with_schedule(schedule, predicted_error(schedule, solver, self.target))
        if not bool(samples.isfinite().all()):
            return record
        converged, held_out, _ = self.features
        squares = metrics.mean_squares(samples, judged.converged)
        return record.with_estimates(metrics.compare(squares, judged.features(samples), converged, held_out))


def predicted_error(schedule: Schedule, solver: str, target: Target) -> float | None:
    """What the library says beforehand: the schedule's own error on the reference problems, or the shipped one."""
    if schedule.error is not None and schedule.solver == solver:
        return schedule.error
    weight = nearest_guidance(target.noise, target.guidance)
    return rule_errors(target.noise, schedule.nfe, weight, solver).get(schedule.method)


def run(
    path: Path,
    cells: Sequence[Cell],
    networks: Networks | None = None,
    *,
    images: int,
    fine: int = FINE,
    data: Mapping[str, Path] | None = None,
    again: Collection[str] = (),
    progress: bool = True,
) -> int:
    """Measure what the records in `path` do not have yet, and the methods `again`; returns how many cells it measured.

    `images` samples are judged, beside converged ones of `fine` evaluations. `data` maps "fashion" or "emoji" to a data
    set's path: without it the distance to held-out images is unknown, and AutoDiffusion has no training images.
    """
    networks = networks or Networks()
    real = {name: _real(name, place) for name, place in (data or {}).items()}
    origins = {name: networks.provenance(name) for name in dict.fromkeys(cell.model for cell in cells)}
    for old in runner.read(path).setups:
        new = origins.get(old.get("network", ""))
        if new and new["sha256"] != old.get("sha256"):
            raise ValueError(f"{path} has records of {new['network']} from other files; choose another --records")
    network = functools.lru_cache(maxsize=2)(lambda name, w: Network(networks, name, w, images, 0, fine, real))
    setup = runner.this_setup()
    return runner.run(
        path,
        cells,
        lambda cell: network(cell.model, cell.guidance).measure(cell),
        lambda cell: setup | origins[cell.model],
        again=again,
        progress=progress,
    )


def _real(name: str, place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, C, 32, 32] in [-1, 1]: those to judge with, and those that a method may look at."""
    data = load_data(name, place)
    drawn = np.random.default_rng(0).choice(len(data.train), TRAINING_IMAGES, p=data.chances)
    held_out, training = (torch.from_numpy(to_unit(images)) for images in (data.test, data.train[drawn]))
    return held_out, training
