"""Which cells of the trained networks there are, in which order, and how one is measured.

The order makes a run that is stopped early useful: whole columns of the tables, the rules and the fast searches
first, then the studies, guidance, and last what takes minutes a cell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import metrics, runner
from benchmarks.compared import COMPARED
from benchmarks.methods import ABLATIONS, FREE_FIRST, METHODS, prepare
from benchmarks.models.data import load_data, to_unit
from benchmarks.models.load import MODELS
from benchmarks.models.subjects import Subject, Teacher
from benchmarks.runner import Cell, Inapplicable, Record, check_names, rounded
from hso_jax.solvers import NONSTATIONARY

BUDGETS = (6, 4, 8, 10, 5, 7)  # in the order of work
COSTLY = ("gits", "direct", "autodiffusion")  # run the network to find a schedule
ALL_METHODS = (*METHODS, *ABLATIONS)
GUIDANCE = (1.0, 2.0, 4.0)
RULES_WITH_GUIDANCE = ("trailing", "karras", "ays", "beta-t", "uniform-lam")
GUIDED = ("solver-error", FREE_FIRST, NONSTATIONARY, "hso", *RULES_WITH_GUIDANCE)
TRAINING_IMAGES = 2000  # as training draws them; with as many, their own share of a Frechet distance is small


def plan(
    models: Collection[str] = MODELS,
    solvers: Collection[str] = COMPARED,
    nfes: Collection[int] = BUDGETS,
    methods: Collection[str] = ALL_METHODS,
    guidance: Collection[float] = GUIDANCE,
    samples: int = 256,
) -> list[Cell]:
    """List the cells in the order of work: without guidance every method, with guidance the methods `GUIDED`."""
    check_names("model", models, MODELS)
    check_names("solver", solvers, COMPARED)
    check_names("method", methods, ALL_METHODS)
    if samples < 2:
        raise ValueError(f"samples is {samples}; a spread needs 2 or more")
    budgets = [n for n in BUDGETS if n in nfes] + sorted(set(nfes) - set(BUDGETS))

    def block(known: Iterable[str], weight: float = 1.0) -> list[Cell]:
        return [
            Cell(model, weight, solver, nfe, method, 0, samples, "float32")
            for nfe in budgets
            for model in models
            for solver in solvers
            for method in known
            if method in methods
        ]

    cells: list[Cell] = []
    if 1.0 in guidance:
        cells += block([m for m in METHODS if m not in COSTLY]) + block(ABLATIONS)
    for weight in guidance:
        if weight != 1.0:
            cells += block(GUIDED, weight)
    if 1.0 in guidance:
        for method in COSTLY:
            cells += block([method])
    if not cells:
        raise ValueError(f"there is nothing to measure: with guidance only {', '.join(GUIDED)} are")
    return cells


def run(
    cells: Sequence[Cell],
    path: Path,
    *,
    data: Mapping[str, Path] | None = None,
    subject: Callable[..., Any] = Subject,
    progress: bool = True,
) -> int:
    """Measure what the records in `path` do not have yet; returns how many were measured.

    Args:
        cells: in the order of work.
        path: of the records file.
        data: "fashion" or "emoji" to the data set's path; without, the distance to held-out images is unknown, and
            there is no AutoDiffusion, which needs training images.
        subject: makes a subject, as `Subject` does.
        progress: show a bar.
    """
    real = {name: _real(name, place) for name, place in (data or {}).items()}
    target = functools.cache(lambda *key: _Target(subject(*key), real))

    def measure(cell: Cell) -> Record:
        return target(cell.model, cell.guidance, cell.samples, cell.seed).measure(cell)

    return runner.run(path, cells, measure, progress=progress)


class _Target:
    """A subject with what its samples are compared with, computed when first needed."""

    def __init__(self, subject: Any, real: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.subject = subject
        self._real = real.get(subject.data)

    @functools.cached_property
    def teacher(self) -> Teacher | RuntimeError:
        """The converged samples, or why there are none."""
        try:
            return self.subject.teacher()
        except RuntimeError as error:
            return error

    @functools.cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Of the converged samples, of held-out images, and of images that a method may look at."""
        assert isinstance(self.teacher, Teacher)
        held_out, training = (None, None) if self._real is None else map(self.subject.features, self._real)
        return self.subject.features(self.teacher.images), held_out, training

    def measure(self, cell: Cell) -> Record:
        """Measure a cell of this subject. Raises Inapplicable where the method has no schedule."""
        teacher = self.teacher
        if isinstance(teacher, RuntimeError):
            raise Inapplicable(str(teacher))
        converged, held_out, training = self.features
        made = prepare(cell.method, self.subject, cell.solver, cell.nfe, seed=cell.seed, real=training)
        solver = made.schedule.solver if cell.method == NONSTATIONARY else cell.solver
        images, counted = self.subject.sample(made.schedule, solver)
        record = Record(
            *cell,
            seconds=rounded(made.seconds, 4) or 0.0,
            compile_seconds=rounded(made.compile_seconds, 3) or 0.0,
            calls=int(made.calls),
            counted=int(counted),
            teacher=rounded(teacher.error, 4) or 0.0,
        ).with_schedule(made.schedule)
        if not bool(images.isfinite().all()):
            return record
        squares = metrics.mean_squares(images, teacher.images)
        return record.with_estimates(metrics.compare(squares, self.subject.features(images), converged, held_out))


def _real(name: str, place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, C, 32, 32] in [-1, 1]: those to judge with, and those that a method may look at."""
    data = load_data(name, place)
    drawn = np.random.default_rng(0).choice(len(data.train), TRAINING_IMAGES, p=data.chances)
    held_out, training = (torch.from_numpy(to_unit(images)) for images in (data.test, data.train[drawn]))
    return held_out, training
