"""Which cells of tuning there are, and how each is measured; and the README's picture of what tuning buys."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks import metrics, plots, runner
from benchmarks.models.subjects import OWN_SEEDS
from benchmarks.plots import Row
from benchmarks.runner import ANY, Cell, Inapplicable, Record, check_names, rounded
from benchmarks.tables import number
from benchmarks.targets import Judged, Target, names, target
from bridge import Tuned, tune_denoiser
from hso_jax import Schedule, SolverError, baseline, recommend, search
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.solvers import NONSTATIONARY

BUDGETS = (4, 5, 6, 8)
EVALUATIONS, MANY_EVALUATIONS = 5000, 50_000
RULE_SOLVERS = ("ddim", "dpmpp-2m", "unipc-3")
LATENTS = 1024
JUDGED, FINE = 64, 192
"""Samples that schedules are judged on, and the evaluations that their converged samples take."""

PICTURED, PICTURED_NFE, PICTURED_COLUMNS = "emoji-flow", 4, 9


class Way(NamedTuple):
    """How a schedule is made by looking at the model; options of `bridge.tune_denoiser`."""

    description: str
    solver: str
    by: str = "auto"
    budget: int = EVALUATIONS


WAYS = {
    "tune": Way("nodes and coefficients", NONSTATIONARY),
    "tune-gradients": Way("the same, with gradients through the network", NONSTATIONARY, "gradients"),
    "nodes": Way("nodes for UniPC-3", "unipc-3"),
    "nodes-2m": Way("nodes for DPM++ 2M", "dpmpp-2m"),
    "nodes-gradients": Way("nodes for UniPC-3, with gradients through the network (as LD3)", "unipc-3", "gradients"),
    "gits": Way("GITS, nodes for UniPC-3", "unipc-3", "gits"),
    "tune-50k": Way("nodes and coefficients, ten times the evaluations", NONSTATIONARY, budget=MANY_EVALUATIONS),
    "nodes-50k": Way("nodes for UniPC-3, ten times the evaluations", "unipc-3", budget=MANY_EVALUATIONS),
}
PLAIN = ("rule", "zoo")
"""The best rule with its best known solver, chosen on the noise that it is judged on; and the search without the
model."""

AT_END = "zoo-end"
"""The search without the model, its first node at the noise end; another than "zoo" for epsilon models alone."""

METHODS = (*PLAIN, AT_END, *WAYS)


def tuned(one: Target, nfe: int, way: Way) -> Tuned:
    """Tune on noise that nothing is judged on."""
    return tune_denoiser(
        one.denoiser, one.noise, nfe, latents=one.latents(LATENTS, OWN_SEEDS), condition=one.condition(LATENTS),
        budget=way.budget, solver=way.solver, by=way.by,
    )  # fmt: skip


class _Network:
    """One network, its converged samples made when first needed."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.target = target(name, folder)

    @functools.cached_property
    def judged(self) -> Judged:
        return Judged(self.target, JUDGED, FINE)

    def measure(self, cell: Cell) -> Record:
        """Measure a cell. Raises Inapplicable for gradients through a network that has none."""
        begin, record = time.perf_counter(), Record(*cell)
        if cell.method == "rule":
            return self._best_rule(record)
        if cell.method in ("zoo", AT_END):
            first = "end" if cell.method == AT_END else "auto"
            found = search(self.target.noise, cell.nfe, method=SolverError(NONSTATIONARY, first=first))
            return self._judged(record, found, found.solver)
        way = WAYS[cell.method]
        try:
            made = tuned(self.target, cell.nfe, way)
        except ValueError as reason:
            if way.by != "gradients":
                raise
            raise Inapplicable(str(reason)) from reason
        record = replace(
            record,
            calls=made.evaluations,
            seconds=round(time.perf_counter() - begin, 1),
            start=made.start,
            start_error=rounded(made.start_error),
            error=rounded(made.error),
            history=[[count, rounded(own), rounded(apart)] for count, own, apart in made.history],
        )
        return self._judged(record, made.schedule, made.schedule.solver)

    def _best_rule(self, record: Record) -> Record:
        found = []
        for name in BASELINES:
            if not inapplicable(name, self.target.noise):
                try:
                    made = baseline(name, self.target.noise, record.nfe)
                except ValueError:  # the rule has no such N
                    continue
                for solver in RULE_SOLVERS:
                    found.append(replace(self._judged(record, made, solver), chosen=f"{name} {solver}"))
        return min(found, key=lambda one: float("inf") if one.rmse is None else one.rmse)

    def _judged(self, record: Record, schedule: Schedule, solver: str) -> Record:
        samples = self.target.sample(schedule, solver, self.judged.latents)
        record = replace(record, chosen=solver, counted=schedule.nfe).with_schedule(schedule)
        if not bool(samples.isfinite().all()):
            return record
        pair = self.judged.features(samples)
        fid = None if pair is None else rounded(metrics.frechet_distance(*map(metrics.moments_of, pair)))
        return replace(record, rmse=rounded(self.judged.rmse(samples)), fid=fid)


def run(
    path: Path,
    folder: Path | None,
    *,
    networks: Collection[str] | None = None,
    nfes: Sequence[int] = BUDGETS,
    methods: Collection[str] = METHODS,
) -> int:
    """Measure what the records do not have yet; returns how many cells were measured."""
    every = names(folder)
    check_names("only", networks or (), every)
    check_names("method", methods, METHODS)
    network = functools.lru_cache(maxsize=2)(lambda name: _Network(name, folder))
    cells = [
        Cell(name, 1.0, ANY, nfe, method, 0, JUDGED, "float32")
        for nfe in nfes
        for name in networks or every
        for method in methods
    ]
    return runner.run(path, cells, lambda cell: network(cell.model).measure(cell))


def picture(path: Path) -> None:
    """Draw the same noise in few steps as pipelines have them, recommended and tuned; and converged.

    No choice sees the noise that is drawn; each error is that of all of it.
    """
    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or name another file")
    one, nfe = target(PICTURED, None), PICTURED_NFE
    judged = Judged(one, JUDGED, FINE)
    best, made = recommend(one.noise, nfe, guidance=1.0), tuned(one, nfe, WAYS["tune"])
    trailing = baseline("trailing", one.noise, nfe)

    def row(name: str, schedule: Schedule, solver: str, detail: str) -> Row:
        samples = one.sample(schedule, solver, judged.latents)
        return Row(name, f"{detail}\nRMSE {number(judged.rmse(samples))}", samples)

    rows = [
        row(f"{nfe} steps of Euler", trailing, "ddim", "evenly spaced, as FLUX has it"),
        row("of UniPC", trailing, "unipc-2", "evenly spaced"),
        row("recommended", best.schedule, best.solver, "no evaluation of the model"),
        row("tuned", made.schedule, made.schedule.solver, f"{made.evaluations:,} evaluations"),
        Row("converged", f"{FINE} steps", judged.converged),
    ]
    plots.save(plots.samples_figure(rows, PICTURED_COLUMNS), path)
