"""Which cells there are on networks from outside, and how they are measured: one record a cell (`networks.records`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import metrics
from benchmarks.heldout.outside import Converged, Outside, find, provenance
from benchmarks.methods.flow_time import SHIFTS, flow_time
from benchmarks.networks import records
from benchmarks.networks.ablations import DETAILS
from benchmarks.networks.records import Cell, Record
from benchmarks.solvers import COMPARED, SOLVERS
from hso_jax import BASELINES, Hso, NoiseSchedule, Profile, Schedule, SolverError, baseline, search
from hso_jax.baselines import inapplicable
from hso_jax.error import DETAIL

RULES = (*BASELINES, *SHIFTS)
PLAIN = ("trailing", "karras", "uniform-lam", "beta-t", *SHIFTS)
"""Rules of one formula for every model; the others are defaults of old, or tables that were made for other models."""

SEARCHED = ("hso", "solver-error")
FREE = "nonstationary"
"""Nodes and coefficients searched together: a method whose solver is its own."""

PROFILED, FREE_PROFILED = "solver-error-profile", "nonstationary-profile"
"""The same two with a profile of the network, measured on trajectories of other noise."""

DETAILED = {f"{method}-detail-{x:g}": (method, x) for method in ("solver-error", FREE) for x in DETAILS if x != DETAIL}
"""The searches without a profile with other weights of fine detail than the default's."""

OWN_SOLVER = (FREE, FREE_PROFILED, *(name for name, (method, _) in DETAILED.items() if method == FREE))

METHODS = (*RULES, *SEARCHED, FREE, PROFILED, FREE_PROFILED, *DETAILED)
BUDGETS = (4, 6, 8)
COUNT = 64


def schedules(
    method: str, solver: str, nfes: Sequence[int], noise: NoiseSchedule, seed: int, profile: Profile | None = None
) -> list[Schedule]:
    """A method's schedules, one an N; searches by the solver's error use the profile, if one is given.

    Raises:
        ValueError: for a rule that has no schedule for this noise or N.
    """
    if method == "hso":
        return search(noise, nfes, method=Hso(relax=True), seed=seed)
    if method in ("solver-error", PROFILED):
        return search(noise, nfes, method=SolverError(solver, compare=(), profile=profile), seed=seed)
    if method in (FREE, FREE_PROFILED):
        return search(noise, nfes, method=SolverError(FREE, profile=profile), seed=seed)
    if method in DETAILED:
        kind, detail = DETAILED[method]
        how = SolverError(FREE if kind == FREE else solver, compare=(), detail=detail)
        return search(noise, nfes, method=how, seed=seed)
    if method in SHIFTS:
        return [flow_time(method, noise, nfe) for nfe in nfes]
    return [baseline(method, noise, nfe) for nfe in nfes]


class _Target:
    """A network with its schedules and its converged samples, each computed when first needed."""

    def __init__(self, one: Outside, nfes: Sequence[int], seed: int) -> None:
        self.one, self.nfes, self.seed = one, nfes, seed
        self.found = functools.cache(self._found)

    @functools.cached_property
    def converged(self) -> Converged:
        return self.one.converged()

    @functools.cached_property
    def profile(self) -> Profile:
        return self.one.profile()

    def _found(self, method: str, solver: str) -> tuple[dict[int, Schedule], float]:
        """N to schedule, and the seconds for each, compilation and a profile's measurement included."""
        begin = time.perf_counter()
        profile = self.profile if method in (PROFILED, FREE_PROFILED) else None
        made = schedules(method, solver, self.nfes, self.one.noise, self.seed, profile)
        return dict(zip(self.nfes, made, strict=True)), (time.perf_counter() - begin) / len(made)

    def measure(self, cell: Cell) -> Record:
        """The record of a cell."""
        of_solver = cell.method not in (*RULES, "hso")
        every, seconds = self.found(cell.method, cell.solver if of_solver else "any")
        schedule = every[cell.nfe]
        samples, counted = self.one.sample(schedule, cell.solver)
        estimates = {}
        if bool(samples.isfinite().all()):
            squares = metrics.mean_squares(samples, self.converged.samples)
            estimates = metrics.compare(squares, None, None, None)
        return Record(
            **cell._asdict(),
            lams=records.nodes_of(schedule),
            seconds=float(f"{seconds:.4g}"),
            calls=0,
            counted=counted,
            teacher=float(f"{self.converged.error:.4g}"),
            predicted=records.predicted(schedule),
            **records.figures(estimates),  # type: ignore[arg-type]
        )


def run(
    folder: Path,
    path: Path,
    *,
    nfes: Sequence[int] = BUDGETS,
    solvers: Collection[str] = COMPARED,
    methods: Collection[str] = METHODS,
    count: int = COUNT,
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Measure on all networks of a folder what the records do not have yet; a record is added as soon as it is done.

    Args:
        folder: with networks.py, see `outside`.
        path: of the records file; its folder exists.
        nfes: every N.
        solvers: names, of `benchmarks.solvers.SOLVERS`.
        methods: names, of `METHODS`.
        count: of images; of points `outside.MANY` times as many.
        seed: of noise and searches.
        progress: show a bar.

    Returns:
        How many were measured.

    Raises:
        ValueError: for an unknown name, too few images, a folder without networks, or records that were measured on
            other files, before any work.
        RuntimeError: if a solver calls a network more or less often than N times.
    """
    _check_choices(solvers, methods, count)
    module, kept = find(folder), records.read(path)
    origins = {name: provenance(folder, name) for name in module.NAMES}
    _check_files(kept, origins, path)
    setup, measured = records.this_setup(torch.get_num_threads()), 0
    finished = {record.cell for record in kept.cells}
    every = [
        Cell(name, 1.0, solver, nfe, method, seed, count, "float32")
        for name in module.NAMES
        for method in methods
        for solver in ((FREE,) if method in OWN_SOLVER else solvers)
        for nfe in nfes
    ]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), disable=not progress) as bar:
        task = bar.add_task("", total=len(every))
        for name in module.NAMES:
            own = [cell for cell in every if cell.model == name]
            target = _Target(Outside(module, name, count, seed), nfes, seed)
            for cell in own:
                cell = cell._replace(samples=len(target.one.start))
                bar.update(task, description=str(cell))
                reason = inapplicable(cell.method, target.one.noise) if cell.method in BASELINES else None
                if reason is None and cell not in finished:
                    records.append(path, target.measure(cell), setup | origins[name])
                    measured += 1
                bar.advance(task)
    return measured


def _check_choices(solvers: Collection[str], methods: Collection[str], count: int) -> None:
    for what, chosen, known in (("solver", solvers, SOLVERS), ("method", methods, METHODS)):
        if unknown := [x for x in chosen if x not in known]:
            raise ValueError(f"{what} {unknown[0]!r} is not one of {', '.join(known)}")
    if count < 2:
        raise ValueError(f"count is {count}; a spread needs 2 or more")


def _check_files(kept: records.Records, origins: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Raises ValueError if a network's records were made with other files than those that it is loaded from now."""
    for old in kept.setups:
        new = origins.get(old.get("network", ""))
        if new is not None and new["sha256"] != old.get("sha256"):
            raise ValueError(f"{path} has records of {new['network']} from other files; choose another --records")
