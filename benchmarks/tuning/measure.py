"""Which cells there are, and how each is measured: one line of JSON a cell, appended whole."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks import metrics
from benchmarks.heldout.outside import MANY, SMALL
from benchmarks.tuning.targets import Judged, Target, target, tuning_seed
from bridge import Tuned, tune_denoiser
from hso_jax import BASELINES, NoiseSchedule, Schedule, SolverError, baseline, search
from hso_jax.baselines import inapplicable
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

BUDGETS = (4, 5, 6, 8)
EVALUATIONS, MANY_EVALUATIONS = 5000, 50_000
RULE_SOLVERS = ("ddim", "dpmpp-2m", "unipc-3")
LATENTS = 1024


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
Key = tuple[str, int, str]
"""Network, N and method."""


class _Network:
    """One network, its converged samples made when first needed."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.target: Target = target(name, folder)
        self.many = MANY if np.prod(self.target.shape) < SMALL else 1

    @functools.cached_property
    def judged(self) -> Judged:
        return Judged(self.target, self.many)

    def measure(self, nfe: int, method: str) -> dict[str, Any]:
        """A record's figures."""
        begin = time.perf_counter()
        if method == "rule":
            return {"solver": "", "evaluations": 0, **self._best_rule(nfe)}
        if method in ("zoo", AT_END):
            first = "end" if method == AT_END else "auto"
            schedule = search(self.target.noise, nfe, method=SolverError(NONSTATIONARY, first=first))
            return {"solver": schedule.solver, "evaluations": 0, **self._figures(schedule, schedule.solver)}
        way = WAYS[method]
        found = self._tune(nfe, way)
        return {
            "solver": found.schedule.solver,
            "evaluations": found.evaluations,
            "seconds": round(time.perf_counter() - begin, 1),
            "start": found.start,
            "start_error": rounded(found.start_error),
            "error": rounded(found.error),
            "history": [[count, rounded(own), rounded(apart)] for count, own, apart in found.history],
            **self._figures(found.schedule, found.schedule.solver),
        }

    def _tune(self, nfe: int, way: Way) -> Tuned:
        one = self.target
        options: dict[str, Any] = {"budget": way.budget, "solver": way.solver, "by": way.by}
        latents = one.latents(LATENTS, tuning_seed(0))
        return tune_denoiser(one.denoiser, one.noise, nfe, latents=latents, condition=one.condition(LATENTS), **options)

    def _best_rule(self, nfe: int) -> dict[str, Any]:
        found = {}
        for name, schedule in rules(self.target.noise, nfe):
            for solver in RULE_SOLVERS:
                found[name, solver] = self._figures(schedule, solver)
        (name, solver), figures = min(found.items(), key=lambda pair: pair[1]["rmse"] or np.inf)
        return {"rule": name, "solver": solver, **figures}

    def _figures(self, schedule: Schedule, solver: str) -> dict[str, Any]:
        samples = self.target.sample(schedule, solver, self.judged.latents)
        if not bool(samples.isfinite().all()):
            return {"rmse": None}
        figures: dict[str, Any] = {"rmse": rounded(self.judged.rmse(samples))}
        if (pair := self.judged.features(samples)) is not None:
            figures["fid"] = rounded(metrics.frechet_distance(*map(metrics.moments_of, pair)))
        return figures


def rules(noise: NoiseSchedule, nfe: int) -> Iterator[tuple[str, Schedule]]:
    """Every rule that fits the noise, by name."""
    for name in BASELINES:
        if not inapplicable(name, noise):
            try:
                yield name, baseline(name, noise, nfe)
            except ValueError:  # no such N
                continue


def rounded(x: float) -> float | None:
    """To five digits; None for what is not finite."""
    return float(f"{x:.5g}") if np.isfinite(x) else None


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """The records so far."""
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(line["network"], line["nfe"], line["method"]): line for line in lines}


def run(path: Path, networks: Sequence[str], nfes: Sequence[int], methods: Sequence[str], folder: Path | None) -> int:
    """Measure what the records do not have yet; a record is written as soon as it is done. Returns how many.

    Raises:
        ValueError: for an unknown method, before any work.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods has {', '.join(unknown)}; use {', '.join(METHODS)}")
    done = read(path)
    network: Callable[[str], _Network] = functools.lru_cache(maxsize=2)(lambda name: _Network(name, folder))
    cells = [(name, nfe, method) for nfe in nfes for name in networks for method in methods]
    missing = [cell for cell in cells if cell not in done]
    for name, nfe, method in track(missing, description="tuning", transient=True):
        try:
            found = network(name).measure(nfe, method)
        except ValueError as reason:
            if method not in WAYS or WAYS[method].by != "gradients":
                raise
            # a network that has none
            print(f"{name}, N = {nfe}, {method}: left out, {reason}")
            continue
        done[name, nfe, method] = {"network": name, "nfe": nfe, "method": method, **found}
        write_whole(path, "".join(json.dumps(line) + "\n" for line in done.values()).encode())
    return len(missing)
