"""Which cells there are on networks from outside, and how they are measured: one record a cell."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import metrics, runner
from benchmarks.compared import COMPARED, SHIFTS, SOLVERS, flow_time
from benchmarks.methods import DETAILS
from benchmarks.runner import Cell, Inapplicable, Record, check_names, rounded
from benchmarks.targets import Judged, find, outside, provenance
from hso_jax import Hso, NoiseSchedule, Profile, Schedule, SolverError, baseline, search
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.error import DETAIL
from hso_jax.noise import s_of_lam

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
COUNT, SEED = 64, 0
FINE = 256
"""Evaluations of the converged samples; what they are checked against takes twice as many."""


def schedules(
    method: str, solver: str, nfes: Sequence[int], noise: NoiseSchedule, profile: Profile | None = None
) -> list[Schedule]:
    """Make a method's schedules, one an N; searches by the solver's error use the profile, if one is given."""
    kind, detail = DETAILED.get(method, (method.removesuffix("-profile"), DETAIL))
    if kind == "hso":
        return search(noise, nfes, method=Hso(relax=True), seed=SEED)
    if kind in ("solver-error", FREE):
        how = SolverError(FREE if kind == FREE else solver, profile=profile, detail=detail)
        if method not in (FREE, FREE_PROFILED):  # these are shown beside what other solvers would have
            how = replace(how, compare=())
        return search(noise, nfes, method=how, seed=SEED)
    make = flow_time if method in SHIFTS else baseline
    return [make(method, noise, nfe) for nfe in nfes]


class _Network:
    """A network with its schedules and its converged samples, each computed when first needed."""

    def __init__(self, module: object, name: str, nfes: Sequence[int], count: int) -> None:
        self.target = outside(module, name)
        self.nfes, self.count = nfes, count
        self.found = functools.cache(self._found)

    @functools.cached_property
    def judged(self) -> Judged:
        return Judged(self.target, self.count, FINE, SEED)

    @functools.cached_property
    def error(self) -> float:
        return self.judged.error()

    @functools.cached_property
    def profile(self) -> Profile:
        return self.target.profile(SEED)

    def _found(self, method: str, solver: str) -> tuple[dict[int, Schedule], float]:
        """N to schedule, and the seconds for each, compilation and a profile's measurement included."""
        begin = time.perf_counter()
        profile = self.profile if method in (PROFILED, FREE_PROFILED) else None
        made = schedules(method, solver, self.nfes, self.target.noise, profile)
        return dict(zip(self.nfes, made, strict=True)), (time.perf_counter() - begin) / len(made)

    def measure(self, cell: Cell) -> Record:
        """Measure a cell. Raises Inapplicable for a rule that has no schedule for the network."""
        if cell.method in BASELINES and (reason := inapplicable(cell.method, self.target.noise)):
            raise Inapplicable(reason)
        of_solver = cell.method not in (*RULES, "hso")
        every, seconds = self.found(cell.method, cell.solver if of_solver else "any")
        schedule = every[cell.nfe]
        # The variance of noise and data stays 1: a flow's sample at its first node is smaller than the noise.
        s = float(s_of_lam(schedule.lams[0])) if schedule.kind == "flow" else 1.0
        samples = self.target.sample(schedule, cell.solver, self.judged.latents * math.hypot(s, 1.0 - s))
        record = Record(
            *cell, seconds=rounded(seconds, 4) or 0.0, counted=cell.nfe, teacher=rounded(self.error, 4) or 0.0
        )
        record = record.with_schedule(schedule)
        if not bool(samples.isfinite().all()):
            return record
        squares = metrics.mean_squares(samples, self.judged.converged)
        return record.with_estimates(metrics.compare(squares, None, None, None))


def run(
    folder: Path,
    path: Path,
    *,
    nfes: Sequence[int] = BUDGETS,
    solvers: Collection[str] = COMPARED,
    methods: Collection[str] = METHODS,
    count: int = COUNT,
) -> int:
    """Measure on all networks of a folder what the records do not have yet; returns how many cells were measured.

    `folder` has networks.py, see `benchmarks.targets`; `count` is of images, of points `MANY` times as many are taken.
    """
    check_names("solver", solvers, SOLVERS)
    check_names("method", methods, METHODS)
    if count < 2:
        raise ValueError(f"count is {count}; a spread needs 2 or more")
    module = find(folder)
    origins = {name: provenance(folder, name) for name in module.NAMES}
    _check_files(runner.read(path), origins, path)
    network = functools.lru_cache(maxsize=1)(lambda name: _Network(module, name, nfes, count))
    cells = [
        Cell(name, 1.0, solver, nfe, method, SEED, count * network(name).target.many, "float32")
        for name in module.NAMES
        for method in methods
        for solver in ((FREE,) if method in OWN_SOLVER else solvers)
        for nfe in nfes
    ]
    setup = runner.this_setup()
    return runner.run(
        path, cells, lambda cell: network(cell.model).measure(cell), lambda cell: setup | origins[cell.model]
    )


def _check_files(kept: runner.Records, origins: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Raise ValueError if a network's records were made with other files than those that it is loaded from now."""
    for old in kept.setups:
        new = origins.get(old.get("network", ""))
        if new is not None and new["sha256"] != old.get("sha256"):
            raise ValueError(f"{path} has records of {new['network']} from other files; choose another --records")
