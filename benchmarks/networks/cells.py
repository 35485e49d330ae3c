"""Which cells there are, in which order, and how one is measured.

The order makes a run that is stopped early useful: whole columns of the tables, the rules and the fast searches
first, then the studies, guidance, and last what takes minutes a cell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import metrics
from benchmarks.methods.registry import METHODS, Inapplicable
from benchmarks.metrics import Estimate
from benchmarks.models.data import load_data, to_unit
from benchmarks.models.load import MODELS
from benchmarks.models.subjects import Subject, Teacher
from benchmarks.networks import ablations, records
from benchmarks.networks.ablations import ABLATIONS
from benchmarks.networks.records import Cell, Record
from benchmarks.solvers import COMPARED
from hso_jax.solvers import NONSTATIONARY

BUDGETS = (6, 4, 8, 10, 5, 7)  # in the order of work
COSTLY = ("gits", "direct", "autodiffusion")  # run the network to find a schedule
ALL_METHODS = (*METHODS, *ABLATIONS)
GUIDANCE = (1.0, 2.0, 4.0)
GUIDED = (
    "solver-error",
    ablations.FREE_FIRST,
    "nonstationary",
    "hso",
    "trailing",
    "karras",
    "ays",
    "beta-t",
    "uniform-lam",
)
TRAINING_IMAGES = 2000  # as training draws them; with as many, their own share of a Frechet distance is small


def plan(
    models: Collection[str] = MODELS,
    solvers: Collection[str] = COMPARED,
    nfes: Collection[int] = BUDGETS,
    methods: Collection[str] = ALL_METHODS,
    guidance: Collection[float] = GUIDANCE,
    *,
    seed: int = 0,
    samples: int = 256,
    dtype: str = "float32",
) -> list[Cell]:
    """The cells in the order of work.

    Without guidance every method, with guidance the methods `GUIDED`.

    Raises:
        ValueError: for an unknown name, or if no cell is left.
    """
    for what, chosen, known in (
        ("model", models, MODELS),
        ("solver", solvers, COMPARED),
        ("method", methods, ALL_METHODS),
    ):
        if unknown := [x for x in chosen if x not in known]:
            raise ValueError(f"{what} {unknown[0]!r} is not one of {', '.join(known)}")
    if samples < 2:
        raise ValueError(f"samples is {samples}; a spread needs 2 or more")
    budgets = [n for n in BUDGETS if n in nfes] + sorted(set(nfes) - set(BUDGETS))

    def block(known: Iterable[str], weight: float = 1.0) -> list[Cell]:
        return [
            Cell(model, weight, solver, nfe, method, seed, samples, dtype)
            for nfe in budgets
            for model in models
            for solver in solvers
            for method in known
            if method in methods
        ]

    cells: list[Cell] = []
    if 1.0 in guidance:
        cells += block([m for m in METHODS if m not in COSTLY])
        cells += block(ABLATIONS)
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
    prepare: Callable[..., Any] = ablations.prepare,
    progress: bool = True,
) -> int:
    """Measure what the records in `path` do not have yet; a record is added as soon as its cell is done.

    Args:
        cells: in the order of work.
        path: of the records file; its folder exists.
        data: "fashion" or "emoji" to the data set's path; without, the distance to held-out images is unknown, and
            there is no AutoDiffusion, which needs training images.
        subject: makes a subject, as `Subject` does.
        prepare: makes a schedule, as `ablations.prepare` does.
        progress: show a bar.

    Returns:
        How many were measured.

    Raises:
        ValueError: for data that is not readable, before any work.
        RuntimeError: if a solver calls the network more or less often than N times.
    """
    real = {name: _real(name, place) for name, place in (data or {}).items()}
    finished = {record.cell for record in records.read(path).cells}
    waiting = [cell for cell in cells if cell not in finished]
    setup = records.this_setup(torch.get_num_threads())
    target = functools.cache(lambda *key: _Target(subject(*key), real))
    measured = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), disable=not progress) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(waiting))
        for cell in waiting:
            bar.update(task, description=str(cell))
            one = target(cell.model, cell.guidance, cell.samples, cell.seed, cell.dtype)
            if one.converges:
                try:
                    records.append(path, one.measure(cell, prepare), setup)
                    measured += 1
                except Inapplicable as reason:
                    bar.console.print(f"{cell}: left out, {reason}")
            else:
                bar.console.print(f"{cell}: left out, {one.reason}")
            bar.advance(task)
    return measured


class _Real(NamedTuple):
    """Real images [n, C, 32, 32] in [-1, 1]: those to judge with, and those that a method may look at."""

    held_out: torch.Tensor
    training: torch.Tensor


class _Target:
    """A subject with what its samples are compared with, computed when first needed."""

    def __init__(self, subject: Any, real: Mapping[str, _Real]) -> None:
        self.subject = subject
        self._real = real.get(subject.data)
        self.teacher: Teacher
        self.reason = ""

    @functools.cached_property
    def converges(self) -> bool:
        """Whether there are converged samples; `reason` says why not. The other subjects go on without it."""
        try:
            self.teacher = self.subject.teacher()
        except RuntimeError as error:
            self.reason = str(error)
            return False
        return True

    @functools.cached_property
    def converged(self) -> np.ndarray:
        return self.subject.features(self.teacher.images)

    @functools.cached_property
    def held_out(self) -> np.ndarray | None:
        return None if self._real is None else self.subject.features(self._real.held_out)

    @functools.cached_property
    def training(self) -> np.ndarray | None:
        return None if self._real is None else self.subject.features(self._real.training)

    def measure(self, cell: Cell, prepare: Callable[..., Any]) -> Record:
        """The record of a cell of this subject. Raises Inapplicable where the method has no schedule."""
        prepared = prepare(cell.method, self.subject, cell.solver, cell.nfe, seed=cell.seed, real=self.training)
        nodes = records.nodes_of(prepared.schedule)
        solver = prepared.schedule.solver if cell.method == NONSTATIONARY else cell.solver
        images, counted = self.subject.sample(prepared.schedule, solver)
        estimates: dict[str, Estimate] = {}
        if bool(images.isfinite().all()):
            squares = metrics.mean_squares(images, self.teacher.images)
            estimates = metrics.compare(squares, self.subject.features(images), self.converged, self.held_out)
        psi = prepared.schedule.psi
        return Record(
            **cell._asdict(),
            lams=nodes,
            psi=None if psi is None else {name: float(f"{x:.6g}") for name, x in psi.items()},
            predicted=records.predicted(prepared.schedule),
            seconds=float(f"{prepared.seconds:.4g}"),
            compile_seconds=float(f"{prepared.compile_seconds:.3g}"),
            calls=int(prepared.calls),
            counted=int(counted),
            teacher=float(f"{self.teacher.error:.4g}"),
            **records.figures(estimates),  # type: ignore[arg-type]
        )


def _real(name: str, place: Path) -> _Real:
    data = load_data(name, place)
    drawn = np.random.default_rng(0).choice(len(data.train), TRAINING_IMAGES, p=data.chances)
    held_out, training = (torch.from_numpy(to_unit(images)) for images in (data.test, data.train[drawn]))
    return _Real(held_out, training)
